"""Entity tags for conditional requests (RFC 9110, sections 8.8.3 and 13.1.2)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import TYPE_CHECKING

from taskherd.api.http.responses import BufferedResponse, empty

if TYPE_CHECKING:
    from uuid import UUID


def of_document(task_id: UUID, version: int, revision: int) -> str:
    """Return the tag of a task document: its id, its version, and the revision of the directory with its names.

    Without the id, another task that has the same address by now, or for another caller, would have the same tag.
    """
    return f'"{task_id.hex}.{version}.{revision}"'


def of_list(parts: Iterable[object]) -> str:
    """Return the tag of a list that changes only if one of ``parts`` does."""
    return f'"{blake2b(" ".join(map(str, parts)).encode(), digest_size=12).hexdigest()}"'


def unchanged(headers: Mapping[str, str], tag: str) -> BufferedResponse | None:
    """Return a 304 if If-None-Match contains this tag (by weak comparison), else None."""
    header = headers.get("if-none-match")
    if header is None:
        return None
    client_tags = {each.strip().removeprefix("W/") for each in header.split(",")}
    return empty(304, {"ETag": tag}) if tag in client_tags or "*" in client_tags else None
