"""The claims of builds: of each task the latest one that was granted."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from taskherd.domain.claims import BuildClaim
from taskherd.store import build_claims
from taskherd.store.engine import transaction
from tests.store.conftest import NOW, empty, ignore_indexes

ONE, TWO, THREE = UUID(int=1), UUID(int=2), UUID(int=3)


async def test_the_latest_claim_of_each_task_is_kept(engine: AsyncEngine) -> None:
    """A later one replaces it, with its number, its runner and its time; those of other tasks stay."""
    first = [BuildClaim(THREE, 7, "r3"), BuildClaim(ONE, 1, "r1"), BuildClaim(TWO, 2, "r2")]
    async with transaction(engine) as connection:
        await empty(connection, "build_claims")
        assert await build_claims.latest(connection, [ONE]) == {}
        await build_claims.save(connection, first, NOW)
        await ignore_indexes(connection)
        assert await build_claims.latest(connection, {ONE, THREE, UUID(int=9)}) == {
            ONE: BuildClaim(ONE, 1, "r1"), THREE: BuildClaim(THREE, 7, "r3")
        }  # fmt: skip
        rows = await connection.execute(text("SELECT task_id FROM build_claims ORDER BY ctid"))
        assert list(rows.scalars()) == [ONE, TWO, THREE]  # in one order, in which no two transactions deadlock
        await build_claims.save(connection, [BuildClaim(TWO, 4, "r4")], NOW + timedelta(seconds=1))
        rows = await connection.execute(
            text("SELECT task_id, build_number, runner, claimed_at FROM build_claims ORDER BY task_id")
        )
        assert [tuple(row) for row in rows] == [
            (ONE, 1, "r1", NOW), (TWO, 4, "r4", NOW + timedelta(seconds=1)), (THREE, 7, "r3", NOW)
        ]  # fmt: skip
