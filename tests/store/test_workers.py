"""The rows of live workers."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy.ext.asyncio import AsyncEngine

from taskherd.store import workers
from taskherd.store.engine import transaction
from tests.store.conftest import NOW, ignore_indexes


async def test_a_worker_is_live_while_it_updates_its_row(engine: AsyncEngine) -> None:
    """A worker that was not seen since a given time is not live, and is pruned; one that shuts down is deleted."""
    old = workers.WorkerRow("old", NOW, NOW, None)
    new = workers.WorkerRow("new", NOW, NOW + timedelta(minutes=1), NOW)
    async with transaction(engine) as connection:
        for row in (old, workers.WorkerRow("new", NOW - timedelta(hours=1), NOW, None), new):
            await workers.record_seen(connection, row)
        assert await workers.live(connection, NOW + timedelta(seconds=1)) == [new]
        await ignore_indexes(connection)
        assert await workers.live(connection, NOW) == [new, old]
        assert await workers.prune(connection, NOW + timedelta(seconds=1)) == 1
        await workers.delete(connection, "new")
        assert await workers.live(connection, NOW) == []
