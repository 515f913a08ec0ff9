"""Entity tags, so that who has a document already is not sent it again (RFC 9110, sections 8.8.3 and 13.1.2)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2b

from taskherd.api.http.responses import BufferedResponse, empty


def of_document(version: int, revision: int) -> str:
    """The tag of a task: its version, and the directory's revision, whose names it carries."""
    return f'"{version}.{revision}"'


def of_list(parts: Iterable[object]) -> str:
    """The tag of a list that is the same as long as all of `parts` are."""
    return f'"{blake2b(" ".join(map(str, parts)).encode(), digest_size=12).hexdigest()}"'


def unchanged(headers: Mapping[str, str], tag: str) -> BufferedResponse | None:
    """The 304 for who has this very document, compared weakly as If-None-Match asks; else None."""
    wanted = headers.get("if-none-match")
    if wanted is None:
        return None
    held = {each.strip().removeprefix("W/") for each in wanted.split(",")}
    return empty(304, {"ETag": tag}) if tag in held or "*" in held else None
