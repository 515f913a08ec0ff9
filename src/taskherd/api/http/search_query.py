"""The query grammar shared by the lists of tasks, templates and users: ``key:value``, quoted values, bare words.

It is that of Coder's servers (coderd/searchquery): the query is lowercased, a key may occur once, and all words without
a colon are one value.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping

from taskherd.api.http.errors import HTTPError, invalid

MAX_QUERY = 4_096
"""Maximum length of a query, in characters."""


def read(
    query: str, *, bare: str, allowed: Iterable[str], message: str, repeatable: Container[str] = ()
) -> Mapping[str, str]:
    """Return the terms of a query by key. Words without a colon are the value of the key ``bare``.

    The values of a key in ``repeatable`` are joined by a space.

    Raises:
        HTTPError: a 400 with this ``message``, if the query is malformed or a key is not one of ``allowed``.
    """
    if len(query) > MAX_QUERY:
        raise _term_error(message, "q", f"Expected at most {MAX_QUERY} characters.")
    tokens = _split(query.lower(), " ", keep_quotes=True)
    words = [token for token in tokens if ":" not in token]
    terms: dict[str, list[str]] = {}
    for element in [token for token in tokens if ":" in token] + ([" ".join(words)] if words else []):
        key, value = _pair(element, bare, message)
        terms.setdefault(key, []).append(value)
    for key, values in terms.items():
        if len(values) > 1 and key not in repeatable:
            raise _term_error(
                message, "q", f'Query parameter "{key}" provided more than once, found {len(values)} times'
            )
    allowed = frozenset(allowed)
    unknown = [(key, f'"{key}" is not a valid query param') for key in terms if key not in allowed]
    if unknown:
        raise invalid(*unknown, message=message)
    return {key: " ".join(values) for key, values in terms.items()}


def invalid_value(message: str, key: str, reason: str) -> HTTPError:
    """Return a 400 for the value of a term, for example a name that does not exist or that the caller may not see."""
    return _term_error(message, key, f'Query param "{key}" has invalid value: {reason}')


def _pair(element: str, bare: str, message: str) -> tuple[str, str]:
    if element.startswith(":") or element.endswith(":"):
        raise _term_error(message, "q", f"Query element \"{element}\" cannot start or end with ':'")
    parts = _split(element, ":", keep_quotes=False)
    if len(parts) == 1:
        return bare, parts[0]
    if len(parts) == 2:  # noqa: PLR2004 - a pair
        return parts[0], parts[1]
    raise _term_error(message, "q", f"Query element \"{element}\" can only contain 1 ':'")


def _split(text: str, delimiter: str, *, keep_quotes: bool) -> list[str]:
    """Split at delimiters outside quotes and drop empty parts."""
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


def _term_error(message: str, field: str, detail: str) -> HTTPError:
    return invalid((field, detail), message=message)
