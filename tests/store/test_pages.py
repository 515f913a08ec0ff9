"""Pages of rows end at a size in bytes."""

from __future__ import annotations

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from taskherd.store.engine import transaction
from taskherd.store.pages import MAX_PAGE_BYTES, bytes_before

PAGE = text(f"""
SELECT number FROM (
    SELECT number, {bytes_before("CAST(:size AS bigint)", "ORDER BY number DESC")} AS bytes_before
    FROM generate_series(1, 200) AS number
) AS page WHERE bytes_before < :most
""")


@pytest.mark.parametrize(("size", "rows"), [(64 * 1024, 128), (8 * 1024 * 1024, 1), (8 * 1024 * 1024 - 1, 2)])
async def test_a_page_ends_at_eight_mebibytes(engine: AsyncEngine, size: int, rows: int) -> None:
    """It has the row with which that is reached, which may be the first one, and no further one."""
    async with transaction(engine) as connection:
        found = await connection.execute(PAGE, {"size": size, "most": MAX_PAGE_BYTES})
    assert set(found.scalars()) == {*range(201 - rows, 201)}
