"""Long histories: what a request reads of one does not grow with the number of the task's versions."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from taskherd.store import builds, feed
from taskherd.store.pages import MAX_PAGE_BYTES
from taskherd.store.read_pool import ReadPool
from tests.store.conftest import execute_script, rows_read
from tests.store.world import ALICE, OF_ALICE, WORLD

STEPS = ("workspace_status", "workspace_build_number")
LAST_OF = {1: 10_000, 2: 29_990, 3: 30_000}
"""The last version of each build. Those of the first two begin with three steps and end with two."""
STEPS_OF = {1: [1, 2, 3, 9_999, 10_000], 2: [10_001, 10_002, 10_003, 29_989, 29_990], 3: [29_991, 29_992, 29_993]}
STATUSES = [30_000, 29_998, 29_997]
"""The versions in which the app of the last build reported a status, newest first."""
FIRST_STATUS_OF_ALL = 5
TASK, CHANGES = f"'{OF_ALICE}'", "'{" + ",".join(STEPS) + "}'"

HISTORY = f"""
INSERT INTO task_events (task_id, version, occurred_at, kind, document, changes, cause, prompt_version)
SELECT '{OF_ALICE}', v, timestamptz '2026-01-01T00:00Z' + v * interval '10 seconds', 'updated',
       json_build_object('workspace_build_number', CASE WHEN v <= 10000 THEN 1 WHEN v <= 29990 THEN 2 ELSE 3 END,
                         'current_state', json_build_object('state', 'working', 'message', 'm' || v)),
       CASE WHEN v IN ({", ".join(str(v) for steps in STEPS_OF.values() for v in steps)}) THEN '{{workspace_status}}'
            WHEN v IN ({", ".join(map(str, STATUSES))}, {FIRST_STATUS_OF_ALL}) THEN '{{current_state}}'
            ELSE '{{workspace_agent_health}}' END::text[], '{{}}', 1
FROM generate_series(1, 30000) AS v;
INSERT INTO task_feed (position, task_id, version, occurred_at)
SELECT 2 * version, task_id, version, occurred_at FROM task_events;
ANALYZE task_events, task_feed;
"""


@pytest.fixture
async def reader(database_url: str, engine: AsyncEngine) -> AsyncIterator[ReadPool]:
    """Yield a pool for readers, with a task of 30,000 versions in three builds."""
    await execute_script(engine, WORLD + HISTORY)
    pool = ReadPool(database_url, size=1, application_name="taskherd-tests")
    yield pool
    await pool.close()


async def read_by(database_url: str, statement: str, *values: str) -> float:
    """Return how many rows a statement with these SQL literals reads, by its generic plan."""
    connection = await asyncpg.connect(database_url, timeout=30, command_timeout=30)
    try:
        await connection.execute("SET plan_cache_mode = force_generic_plan")
        await connection.execute(f"PREPARE read AS {statement}")
        explained = await connection.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE read({', '.join(values)})")
    finally:
        await connection.close(timeout=30)
    return rows_read(json.loads(explained)[0]["Plan"])


async def test_the_steps_of_each_build_of_a_long_history(reader: ReadPool) -> None:
    """Those of its start and of its end, however many versions are in between, before and after."""
    for number, steps in STEPS_OF.items():
        page = await builds.history(reader, OF_ALICE, number, STEPS, after=0, limit=1_000)
        assert ([row["version"] for row in page.rows], page.until) == (steps, LAST_OF[number])
        for after in (steps[1], steps[-1], LAST_OF[number]):
            page = await builds.history(reader, OF_ALICE, number, STEPS, after=after, limit=1_000)
            assert [row["version"] for row in page.rows] == [step for step in steps if step > after]
            assert page.until == LAST_OF[number]
    beyond = await builds.history(reader, OF_ALICE, 3, STEPS, after=30_005, limit=1_000)
    assert beyond == ([], 30_005)
    assert await builds.history(reader, OF_ALICE, 3, STEPS, after=2**63 - 1, limit=1_000) == ([], builds.BEYOND)
    assert await builds.history(reader, OF_ALICE, 4, STEPS, after=0, limit=1_000) == ([], 30_000)


async def test_a_build_of_two_windows_is_looked_at_in_full(reader: ReadPool, engine: AsyncEngine) -> None:
    """Each of its versions once; of a longer one, those in the middle are left out."""
    every = ["workspace_agent_health", "workspace_status", "current_state"]
    await execute_script(engine, f"DELETE FROM task_events WHERE version > {2 * builds.STEPS_WINDOW};\n")
    page = await builds.history(reader, OF_ALICE, 1, every, after=0, limit=10_000)
    assert [row["version"] for row in page.rows] == list(range(1, 2 * builds.STEPS_WINDOW + 1))
    page = await builds.history(reader, OF_ALICE, 1, every, after=500, limit=10)
    assert [row["version"] for row in page.rows] == list(range(501, 511))


async def test_a_build_of_more_than_two_windows(reader: ReadPool) -> None:
    """The first and the last versions are looked at."""
    page = await builds.history(reader, OF_ALICE, 1, ["workspace_agent_health"], after=10, limit=10_000)
    versions = [row["version"] for row in page.rows]
    window = builds.STEPS_WINDOW
    assert versions == [*range(11, 11 + window), *range(10_000 - window + 1, 9_999)]


async def test_versions_that_were_pruned_are_not_found(reader: ReadPool, engine: AsyncEngine) -> None:
    """Neither at the start of a history nor within it, and the others still are."""
    await execute_script(engine, "DELETE FROM task_events WHERE version < 10003 OR version BETWEEN 20000 AND 29989;\n")
    page = await builds.history(reader, OF_ALICE, 2, STEPS, after=0, limit=1_000)
    assert ([row["version"] for row in page.rows], page.until) == ([10_003, 29_990], 29_990)
    assert await builds.history(reader, OF_ALICE, 1, STEPS, after=0, limit=1_000) == ([], 10_002)
    await execute_script(engine, "DELETE FROM task_events;\n")
    assert await builds.history(reader, OF_ALICE, 2, STEPS, after=7, limit=1_000) == ([], 7)
    assert await builds.app_statuses(reader, OF_ALICE, 3, 10, after=7) == ([], 0)


async def test_the_statuses_after_a_version(reader: ReadPool) -> None:
    """Those that were reported since; and how far the history goes."""
    for after, limit, versions in (
        (0, 100, STATUSES),
        (0, 2, STATUSES[:2]),
        (29_997, 9, STATUSES[:2]),
        (30_000, 9, []),
    ):
        page = await builds.app_statuses(reader, OF_ALICE, 3, limit, after=after)
        assert ([row["version"] for row in page.rows], page.until) == (versions, 30_000)


@pytest.mark.usefixtures("reader")
async def test_logs_and_statuses_read_a_bounded_part_of_the_history(database_url: str) -> None:
    """A page of a log reads its windows, one that continues only what is new, and statuses at most their window."""
    for number, after, most in ((1, 0, 4_200), (2, 0, 4_200), (2, 29_900, 200), (3, 0, 200), (3, 29_999, 100)):
        read = await read_by(database_url, builds.HISTORY, TASK, str(after), str(number), CHANGES, "1000")
        assert read <= most, (number, after)
    for after, most in ((0, builds.STATUSES_WINDOW + 100), (29_999, 100)):
        assert await read_by(database_url, builds.APP_STATUSES, TASK, "3", "100", str(after)) <= most


async def test_a_task_is_followed_from_where_a_client_is(reader: ReadPool, database_url: str) -> None:
    """Of the feed of a long history only the changes after a position are read, in either order."""
    page = await feed.catch_up_task(reader, ALICE, 59_990, 3, OF_ALICE)
    assert [row["position"] for row in page.rows] == [59_992, 59_994, 59_996]
    for newest, positions in ((False, [59_992, 59_994]), (True, [59_998, 60_000])):
        rows = await feed.timeline(reader, ALICE, OF_ALICE, 59_991, 2, newest=newest)
        assert [row["position"] for row in rows] == positions
    caller, size = f"'{ALICE}'", str(MAX_PAGE_BYTES)
    for after, limit in (("59990", "500"), ("60000", "500"), ("10", "20")):
        for statement, values in (
            (feed.CATCH_UP_ONE, (caller, after, limit, size, TASK)),
            (feed.TIMELINE, (caller, TASK, after, limit, size)),
            (feed.TIMELINE_NEWEST, (caller, TASK, after, limit, size)),
        ):
            assert await read_by(database_url, statement, *values) <= 400, (after, statement)
