"""Ids and names in requests: ids in the forms that Go's clients accept, and names that the database can look up."""

from __future__ import annotations

import re
from typing import Final
from uuid import UUID

_UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|[0-9a-f]{32}", re.IGNORECASE)
_MAX_SEARCHED_NAME: Final = 256
"""Maximum length of a name in a path that is looked up; longer than any stored name (``domain.names.MAX_NAME``)."""


def parse_uuid(text: str) -> UUID | None:
    """Parse an id, with or without hyphens. Return None if the text is not one."""
    return UUID(text) if _UUID.fullmatch(text) else None


def is_searchable(text: str) -> bool:
    """Return whether a text is a possible name: short, and storable in PostgreSQL."""
    return 0 < len(text) <= _MAX_SEARCHED_NAME and text.isprintable()
