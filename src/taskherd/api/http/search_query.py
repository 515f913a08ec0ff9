"""The grammar of `q`, which lists of tasks and of templates share: `key:value`, quoted values, bare words.

As Coder's servers read it (coderd/searchquery): all lowercased, a key once, all words without a colon one value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from taskherd.api.http.responses import HTTPError, invalid

MAX_QUERY = 4_096
"""Characters of a query that are read; a longer one is refused."""


def read(query: str, *, bare: str, known: Iterable[str], message: str) -> Mapping[str, str]:
    """The terms of a query by key; words without a colon count as `bare`. Raises a 400 that begins with `message`."""
    if len(query) > MAX_QUERY:
        raise _wrong(message, "q", f"A query has at most {MAX_QUERY} characters.")
    tokens = _split(query.lower(), " ", keep_quotes=True)
    words = [token for token in tokens if ":" not in token]
    found: dict[str, list[str]] = {}
    for element in [token for token in tokens if ":" in token] + ([" ".join(words)] if words else []):
        key, value = _pair(element, bare, message)
        found.setdefault(key, []).append(value)
    for key, values in found.items():
        if len(values) > 1:
            raise _wrong(message, "q", f'Query parameter "{key}" provided more than once, found {len(values)} times')
    allowed = frozenset(known)
    strange = [(key, f'"{key}" is not a valid query param') for key in found if key not in allowed]
    if strange:
        raise invalid(*strange, message=message)
    return {key: values[0] for key, values in found.items()}


def bad_value(message: str, key: str, why: str) -> HTTPError:
    """A value that can't be: it names nothing, or nothing that the caller may see."""
    return _wrong(message, key, f'Query param "{key}" has invalid value: {why}')


def _pair(element: str, bare: str, message: str) -> tuple[str, str]:
    if element.startswith(":") or element.endswith(":"):
        raise _wrong(message, "q", f"Query element \"{element}\" cannot start or end with ':'")
    parts = _split(element, ":", keep_quotes=False)
    if len(parts) == 1:
        return bare, parts[0]
    if len(parts) == 2:  # noqa: PLR2004 - a pair
        return parts[0], parts[1]
    raise _wrong(message, "q", f"Query element \"{element}\" can only contain 1 ':'")


def _split(text: str, delimiter: str, *, keep_quotes: bool) -> list[str]:
    """Cut at the delimiter where it is not within quotes; empty parts are left out."""
    parts: list[str] = [""]
    quoted = False
    for character in text:
        if character == '"':
            quoted = not quoted
            parts[-1] += character if keep_quotes else ""
        elif character == delimiter and not quoted:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def _wrong(message: str, field: str, detail: str) -> HTTPError:
    return invalid((field, detail), message=message)
