"""Pages of rows that end at a size in bytes, because a prompt has up to 256 KiB and a page is in memory as a whole."""

from __future__ import annotations

from typing import Final

MAX_PAGE_BYTES: Final = 8 * 1024 * 1024
"""Size of the prompts and documents of a page at which no further row is read."""


def bytes_before(size: str, order: str) -> str:
    """Return the SQL of how many bytes the rows before a row have; a page has the rows where that is below its limit.

    The first row thus always belongs to it. PostgreSQL knows the size of a text without reading it.

    Args:
        size: the SQL of the size of a row.
        order: the ORDER BY of the page.
    """
    return f"COALESCE(sum({size}) OVER ({order} ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0)"
