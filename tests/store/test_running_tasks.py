"""The running tasks of each owner: counted under a lock, from an index."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import asyncpg
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from taskherd.store import running_tasks
from taskherd.store.command_preconditions import References, lock_and_read
from taskherd.store.engine import transaction
from tests.store.conftest import waits_for_lock

ALICE, BOB, CAROL = UUID(int=0xA1), UUID(int=0xB1), UUID(int=0xC1)


def nodes_of(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield all nodes of a plan."""
    yield plan
    for part in plan.get("Plans", ()):
        yield from nodes_of(part)


async def lock_and_count(connection: AsyncConnection, *owners: UUID, limit: int = 10) -> dict[UUID, int]:
    """Count the running tasks of each owner, as commands do that start tasks."""
    return (await lock_and_read(connection, References([], [], owners, []), limit)).running


async def test_tasks_are_counted_by_owner_up_to_the_limit(engine: AsyncEngine) -> None:
    """Adding a task twice counts it once, and deleting one that is not there changes nothing."""
    own = [(uuid4(), ALICE) for _ in range(3)]
    async with transaction(engine) as connection:
        await running_tasks.add(connection, [*own, (uuid4(), BOB)])
        await running_tasks.add(connection, own[:1])
        await running_tasks.delete(connection, [own[1][0], uuid4()])
        assert await lock_and_count(connection, CAROL, BOB, ALICE) == {ALICE: 2, BOB: 1, CAROL: 0}
        assert await lock_and_count(connection, ALICE, limit=1) == {ALICE: 1}


async def test_a_count_waits_for_the_transaction_that_counted_before(engine: AsyncEngine) -> None:
    """Who counts an owner's tasks sees what the previous one added, and does not wait for other owners."""
    async with transaction(engine) as first:
        assert await lock_and_count(first, ALICE) == {ALICE: 0}

        async def count(*owners: UUID) -> dict[UUID, int]:
            async with transaction(engine) as connection:
                return await lock_and_count(connection, *owners)

        assert await count(BOB) == {BOB: 0}
        second = asyncio.create_task(count(BOB, ALICE))
        await running_tasks.add(first, [(uuid4(), ALICE)])
        assert await waits_for_lock(engine, second)
    assert await second == {ALICE: 1, BOB: 0}


async def test_the_count_reads_an_index(database_url: str) -> None:
    """With many running tasks of many owners, a count reads only as many index entries as the limit."""
    connection = await asyncpg.connect(database_url, timeout=30)
    try:
        await connection.execute(
            "INSERT INTO running_tasks (task_id, owner_id)"
            " SELECT gen_random_uuid(), md5((n % 500)::text)::uuid FROM generate_series(1, 50000) AS n"
        )
        await connection.execute("VACUUM ANALYZE running_tasks")
        statement = running_tasks.COUNT.replace(":owner_ids", "ARRAY[md5('7')]").replace(":limit", "100")
        plan = json.loads(await connection.fetchval("EXPLAIN (ANALYZE, FORMAT JSON) " + statement))
        (scan,) = (node for node in nodes_of(plan[0]["Plan"]) if node.get("Relation Name") == "running_tasks")
        assert scan["Index Name"] == "running_tasks_owner_id_idx"
        assert scan["Actual Rows"] == 100
    finally:
        await connection.close()
