"""Prompts that were replaced: they stay as long as anything refers to them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from taskherd.store import prompts
from taskherd.store.engine import transaction
from taskherd.store.prompts import START, PromptCursor
from tests.store.conftest import execute_script, rows_read
from tests.store.world import OF_ALICE, OF_BOB, OF_EVE, OF_ZED, WORLD

KEPT = 20
"""How many prompts of a task stay whatever its history is."""


def add(task_id: UUID, versions: Iterable[int], *, current: int, events: Iterable[int] = ()) -> str:
    """Return a script that stores prompts of a task, and the versions that its history has."""
    rows = ", ".join(f"('{task_id}', {version}, 'prompt {version}')" for version in versions)
    script = f"INSERT INTO task_prompts (task_id, version, prompt) VALUES {rows};\n"
    script += f"UPDATE tasks SET prompt_version = {current} WHERE id = '{task_id}';\n"
    return script + "".join(
        "INSERT INTO task_events (task_id, version, occurred_at, kind, document, changes, cause, prompt_version)"
        f" VALUES ('{task_id}', {version}, '2026-01-01T00:00Z', 'updated', '{{}}', '{{}}', '{{}}', {version});\n"
        for version in events
    )


async def pruned(engine: AsyncEngine, limit: int) -> list[PromptCursor]:
    """Look at all prompts, and return the places at which each of the steps but the last one ended."""
    places: list[PromptCursor] = []
    place = START
    while True:
        async with transaction(engine) as connection:
            place = await prompts.prune(connection, place, limit)
        if place == START:
            return places
        places.append(place)


async def left(engine: AsyncEngine, task_id: UUID) -> list[int]:
    """Return the versions of the prompts of a task."""
    async with transaction(engine) as connection:
        query = text("SELECT version FROM task_prompts WHERE task_id = :task_id ORDER BY version")
        return list((await connection.execute(query, {"task_id": task_id})).scalars())


async def test_replaced_prompts_go_with_the_history_that_has_them(engine: AsyncEngine) -> None:
    """The newest ones stay, in which texts of logs are looked for, and those of versions that the history has."""
    every = range(10, 310, 10)
    newest = list(every)[-KEPT:]
    script = add(OF_ALICE, every, current=300, events=(9, 30, 59, 210, 300))
    script += add(OF_BOB, every, current=300) + add(OF_EVE, every[:KEPT], current=every[KEPT - 1])
    await execute_script(engine, WORLD + script)
    assert await pruned(engine, 1_000) == []
    assert await left(engine, OF_ALICE) == [30, 50, *newest]
    assert await left(engine, OF_BOB) == newest
    assert await left(engine, OF_EVE) == list(every[:KEPT])
    await execute_script(engine, "DELETE FROM task_events WHERE version < 59;\n")
    assert await pruned(engine, 1_000) == []
    assert await left(engine, OF_ALICE) == [50, *newest]


async def test_the_current_prompt_stays(engine: AsyncEngine) -> None:
    """Whatever prompts a task has besides, and although no history is left."""
    await execute_script(engine, WORLD + add(OF_ZED, range(1, 41), current=5))
    assert await pruned(engine, 1_000) == []
    assert await left(engine, OF_ZED) == [5, *range(6, 41)]


async def test_prompts_are_looked_at_in_bounded_steps(engine: AsyncEngine) -> None:
    """Each goes on where the one before has ended, across tasks, and after the last one at the start again."""
    script = add(OF_ZED, range(1, 24), current=23) + add(OF_ALICE, range(1, 24), current=23)
    await execute_script(engine, WORLD + script)
    assert await pruned(engine, 20) == [PromptCursor(OF_ZED, 20), PromptCursor(OF_ALICE, 17)]
    assert await left(engine, OF_ZED) == await left(engine, OF_ALICE) == list(range(4, 24))
    assert await pruned(engine, 40) == [PromptCursor(OF_ALICE, 23)]


async def test_a_step_scans_no_table(engine: AsyncEngine) -> None:
    """What refers to a prompt is found by primary keys."""
    async with transaction(engine) as connection:
        await connection.execute(text("SET LOCAL enable_seqscan = off"))
        values = {**START._asdict(), "limit": 500, "newest": KEPT}
        rows = await connection.execute(text(f"EXPLAIN {prompts.PRUNE.text}"), values)
        plan = "\n".join(rows.scalars())
    assert "task_prompts_pkey" in plan
    assert "Seq Scan" not in plan


async def test_the_history_that_follows_is_not_read(engine: AsyncEngine) -> None:
    """A prompt without a version of its own is found by the first version that follows, however many do."""
    history = f"""
        INSERT INTO task_events (task_id, version, occurred_at, kind, document, changes, cause, prompt_version)
        SELECT '{OF_ALICE}', v, '2026-01-01T00:00Z', 'updated', '{{}}', '{{}}', '{{}}', 60
        FROM generate_series(1000, 3000) AS v;
        ANALYZE task_events, task_prompts, tasks;
    """
    await execute_script(engine, WORLD + add(OF_ALICE, range(1, 61), current=60) + history)
    values = {**START._asdict(), "limit": 500, "newest": KEPT}
    async with transaction(engine) as connection:
        await connection.execute(text("SET LOCAL enable_seqscan = off"))
        explain = text(f"EXPLAIN (ANALYZE, FORMAT JSON) {prompts.PRUNE.text}")
        [explained] = (await connection.execute(explain, values)).scalars()
    plan = json.loads(explained) if isinstance(explained, str) else explained
    assert rows_read(plan[0]["Plan"]) < 2_000
    assert await left(engine, OF_ALICE) == list(range(41, 61))
