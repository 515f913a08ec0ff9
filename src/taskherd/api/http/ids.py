"""How people refer to things: ids in the forms that Go's clients accept, texts that a database can look up."""

from __future__ import annotations

import re
from typing import Final
from uuid import UUID

_UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|[0-9a-f]{32}", re.IGNORECASE)
_MAX_NAME: Final = 256


def parse_uuid(text: str) -> UUID | None:
    """The id that a text is, with hyphens or without; None when it is none."""
    return UUID(text) if _UUID.fullmatch(text) else None


def is_searchable(text: str) -> bool:
    """Whether a text can be a name at all: short, and of characters that PostgreSQL takes."""
    return 0 < len(text) <= _MAX_NAME and text.isprintable()
