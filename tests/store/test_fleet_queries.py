"""What callers know of the fleet: counted once, within their organizations, up to the hour and the last heartbeat."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from taskherd.store import diagnostics, fleet_queries, rates, task_index
from taskherd.store.engine import transaction
from taskherd.store.rates import RateKey, TaskCounts
from taskherd.store.read_pool import ReadPool, Row
from taskherd.store.task_creation import AddedRows, insert_tasks
from taskherd.store.task_index import IndexedTask
from taskherd.store.tasks import StoredTask
from tests.harness.tasks import make_task
from tests.store.conftest import NOW, execute_script, ignore_indexes

ACME, OTHER = UUID(int=0xA), UUID(int=0xB)
ALICE, CAROL, DORA, EVE = (UUID(int=number) for number in (0xA1, 0xC1, 0xD1, 0xE1))
CLAUDE, CODEX, OTHERS = (UUID(int=number) for number in (0x11, 0x12, 0x13))
OLD, NEVER, THEIRS = (UUID(int=number) for number in (0x14, 0x15, 0x16))
HOUR = datetime(2026, 11, 27, 10, tzinfo=UTC)
SECOND = timedelta(seconds=1)

DIRECTORY = f"""
INSERT INTO organizations (id, name, display_name) VALUES ('{ACME}', 'acme', ''), ('{OTHER}', 'other', '');
INSERT INTO users (id, username, name, email, avatar_url, active) VALUES
    ('{ALICE}', 'alice', '', '', '', true), ('{CAROL}', 'carol', '', '', '', true),
    ('{DORA}', 'dora', '', '', '', true), ('{EVE}', 'eve', '', '', '', false);
INSERT INTO memberships (user_id, organization_id, role, active) VALUES
    ('{ALICE}', '{ACME}', 'member', true), ('{CAROL}', '{ACME}', 'admin', true), ('{EVE}', '{ACME}', 'admin', false),
    ('{DORA}', '{ACME}', 'admin', true), ('{DORA}', '{OTHER}', 'admin', true);
INSERT INTO templates (id, organization_id, name, display_name, icon, active_version_id, active) VALUES
    ('{CLAUDE}', '{ACME}', 'claude', '', '', '{CLAUDE}', true), ('{CODEX}', '{ACME}', 'codex', '', '', '{CODEX}', true),
    ('{OTHERS}', '{OTHER}', 'claude', '', '', '{OTHERS}', true), ('{OLD}', '{ACME}', 'old', '', '', '{OLD}', false),
    ('{NEVER}', '{ACME}', 'never', '', '', '{NEVER}', true), ('{THEIRS}', '{OTHER}', 'aider', '', '', '{THEIRS}', true);
INSERT INTO template_versions (id, template_id, name, run, active) VALUES
    ('{CLAUDE}', '{CLAUDE}', 'v1', '{{"pool": "gpu"}}', true), ('{CODEX}', '{CODEX}', 'v1', '{{"pool": ""}}', true),
    ('{OTHERS}', '{OTHERS}', 'v1', '{{"pool": "gpu"}}', true), ('{OLD}', '{OLD}', 'v1', '{{"pool": "old"}}', true),
    ('{NEVER}', '{NEVER}', 'v1', '{{"pool": "gpu"}}', false),
    ('{THEIRS}', '{THEIRS}', 'v1', '{{"pool": "theirs"}}', true);
INSERT INTO runners (name, pool, active) VALUES ('r1', 'gpu', true), ('r2', 'spare', true), ('r3', 'gone', false);
INSERT INTO runner_hellos (name, pool, hello_at) VALUES ('r1', 'gpu', now()), ('r4', 'new', now());
"""


@pytest.fixture
async def reader(database_url: str, engine: AsyncEngine) -> AsyncIterator[ReadPool]:
    """Yield a pool for readers, with a directory of two organizations."""
    await execute_script(engine, DIRECTORY)
    pool = ReadPool(database_url, size=2, application_name="taskherd-tests")
    yield pool
    await pool.close()


def task(number: int, owner: UUID = ALICE, template: UUID = CLAUDE, **fields: Any) -> StoredTask:
    """Return a task of Acme."""
    ids = {"owner_id": owner, "organization_id": ACME, "template_id": template, "template_version_id": template}
    return StoredTask(make_task(UUID(int=number), **ids, **fields), "active", '{"status":"active"}', None)


async def wait(connection: AsyncConnection, task_id: int, number: int, seconds: int, runner: str | None = None) -> None:
    """Add a work request for a task, made so many seconds ago."""
    await connection.execute(
        text(
            "INSERT INTO work_requests (request_id, task_id, build_number, type, target_runner, attempt, created_at,"
            " next_at) VALUES (:id, :task_id, 1, :type, :runner, 1, :at, :at)"
        ),
        {
            "id": UUID(int=number),
            "task_id": UUID(int=task_id),
            "type": "agent.input" if runner else "workspace.start",
            "runner": runner,
            "at": NOW - seconds * SECOND,
        },
    )


def columns(rows: Sequence[Row], *names: str) -> list[tuple[Any, ...]]:
    """Return the values of these columns."""
    return [tuple(row[name] for name in names) for row in rows]


async def test_pools_and_runners_that_a_caller_may_know(reader: ReadPool) -> None:
    """Members know the pools of their templates, who sees all also those of runners; each has a template once."""
    for caller, all_, expected in (
        (ALICE, False, [("default", ["codex"]), ("gpu", ["claude", "never"])]),
        (EVE, False, []),
        (DORA, False, [("default", ["codex"]), ("gpu", ["claude", "never"]), ("theirs", ["aider"])]),
        (
            EVE,
            True,
            [("default", ["codex"]), ("gpu", ["claude", "never"]), ("new", []), ("spare", []), ("theirs", ["aider"])],
        ),
    ):
        rows = await fleet_queries.pools(reader, caller, all_=all_)
        assert columns(rows, "pool", "templates") == expected
    rows = await fleet_queries.runners(reader, ["spare", "gpu", "gone", "new"])
    assert columns(rows, "pool", "name", "listed") == [("gpu", "r1", True), ("new", "r4", False), ("spare", "r2", True)]
    assert [row["hello_at"] is None for row in rows] == [False, False, True]
    assert columns(await fleet_queries.runners(reader, ["gpu"]), "name") == [("r1",)]


async def test_what_a_page_shows_is_bounded(engine: AsyncEngine, reader: ReadPool) -> None:
    """However many there are, the first ones by name, or those that wait longest; of agents, some of them."""
    most = fleet_queries
    numbers = f"generate_series({most.MAX_RUNNERS + 1}, 1, -1) AS n"
    agents = f"generate_series(1, {most.MAX_AGENTS + 1}) AS n"
    statements = (
        f"INSERT INTO runners (name, pool) SELECT 'x' || md5(n::text), 'p' || md5(n::text) FROM {numbers}",
        f"INSERT INTO workers (worker_id, started_at, seen_at) SELECT md5(n::text), now(), now() FROM {numbers}",
        f"INSERT INTO dead_letter_rates (hour, reason, letters) SELECT '{HOUR}', md5(n::text), 1 FROM {numbers}",
        f"INSERT INTO runners (name, pool) SELECT 'y' || md5(n::text), 'many' FROM {numbers}",
        f"""INSERT INTO work_requests (request_id, task_id, build_number, type, attempt, created_at, next_at)
        SELECT md5(n::text)::uuid, '{UUID(int=1)}', 1, 'workspace.start', 1, '{NOW}'::timestamptz + n * interval '1 s',
               now() FROM {numbers}""",
        f"""INSERT INTO build_claims (task_id, build_number, runner, claimed_at)
        SELECT md5(n::text)::uuid, 1, 'r1', now() FROM {agents}""",
        f"""INSERT INTO leases (task_id, build_number, seq, last_heartbeat_at)
        SELECT md5(n::text)::uuid, 1, 1, now() FROM {agents}""",
    )
    async with transaction(engine) as connection:
        await insert_tasks(connection, [task(1)])
        for statement in statements:
            await connection.exec_driver_sql(statement)
    pools = [row["pool"] for row in await most.pools(reader, DORA, all_=True)]
    assert (len(pools), pools) == (most.MAX_POOLS, sorted(pools))
    assert pools[0] == "default"
    runners = [row["name"] for row in await most.runners(reader, ["many"])]
    assert (len(runners), runners) == (most.MAX_RUNNERS, sorted(runners))
    workers = [row["worker_id"] for row in await most.workers(reader)]
    assert (len(workers), workers) == (100, sorted(workers))
    reasons = [row["reason"] for row in await most.dead_letters(reader, HOUR)]
    assert (len(reasons), reasons) == (100, sorted(reasons))
    waiting = [row["created_at"] for row in await most.waiting(reader, ALICE, all_=False)]
    assert waiting == [NOW + number * SECOND for number in range(1, most.MAX_WAITING + 1)]
    (agents_of_runner,) = await most.agents(reader, DORA, all_=True)
    assert agents_of_runner["agents"] == most.MAX_AGENTS
    assert (most.MAX_POOLS, most.MAX_RUNNERS, most.MAX_WAITING, most.MAX_AGENTS) == (100, 500, 100, 20_000)


async def test_who_sees_all(engine: AsyncEngine, reader: ReadPool) -> None:
    """An admin of every active organization; nobody without any."""
    assert [await fleet_queries.sees_all(reader, each) for each in (ALICE, CAROL, DORA, EVE)] == [
        False, False, True, False,
    ]  # fmt: skip
    for name, expected in (("other", [False, True, True, False]), ("acme", [False] * 4)):
        async with transaction(engine) as connection:
            await connection.execute(text("UPDATE organizations SET active = false WHERE name = :name"), {"name": name})
        assert [await fleet_queries.sees_all(reader, each) for each in (ALICE, CAROL, DORA, EVE)] == expected


async def test_a_task_waits_once_since_its_first_request(engine: AsyncEngine, reader: ReadPool) -> None:
    """Of several requests of a task the oldest says since when; deleted tasks are listed for who sees all only."""
    tasks = [task(1), task(2), task(3, CAROL, CODEX), task(4, deleted_at=NOW)]
    async with transaction(engine) as connection:
        await insert_tasks(connection, tasks)
        await connection.execute(text("UPDATE tasks SET deleted_at = now() WHERE id = :id"), {"id": UUID(int=4)})
        for task_id, number, seconds, runner in (
            (1, 12, 5, None), (1, 11, 9, None), (2, 21, 7, None), (2, 23, 1, "r1"), (2, 22, 3, "r1"),
            (3, 31, 9, None), (4, 41, 60, None),
        ):  # fmt: skip
            await wait(connection, task_id, number, seconds, runner)
    of_alice = {("gpu", None, 2, NOW - 9 * SECOND), ("gpu", "r1", 1, NOW - 3 * SECOND)}
    of_carol = {("default", None, 1, NOW - 9 * SECOND)}
    for caller, all_, expected in (
        (ALICE, False, of_alice),
        (CAROL, False, of_alice | of_carol),
        (EVE, False, set()),
        (DORA, True, of_alice | of_carol),
    ):
        rows = await fleet_queries.waiting_by_target(reader, caller, all_=all_)
        assert set(columns(rows, "pool", "runner", "tasks", "since")) == expected
    listed = [UUID(int=number) for number in (1, 2, 1, 2, 2)]
    assert [row["id"] for row in await fleet_queries.waiting(reader, ALICE, all_=False)] == listed
    assert [row["id"] for row in await fleet_queries.waiting(reader, EVE, all_=False)] == []
    rows = await fleet_queries.waiting(reader, EVE, all_=True)
    in_order = [UUID(int=number) for number in (4, 1, 3, 2, 1, 2, 2)]  # the first two of 9 s by their requests' ids
    assert columns(rows, "id", "deleted") == [(each, each.int == 4) for each in in_order]


@pytest.mark.usefixtures("reader")
async def test_open_requests_of_each_target_for_an_operator(engine: AsyncEngine) -> None:
    """Each target has its tasks once, since its oldest request; the oldest targets come first, up to the limit."""
    async with transaction(engine) as connection:
        await insert_tasks(connection, [task(1), task(2), task(3, CAROL, CODEX)])
        for task_id, number, seconds, runner in (
            (1, 12, 5, None), (1, 11, 9, None), (2, 21, 7, None), (3, 32, 1, "r9"), (3, 31, 20, None), (3, 33, 8, "r9"),
        ):  # fmt: skip
            await wait(connection, task_id, number, seconds, runner)
        found = await diagnostics.open_requests(connection, "main", ["agent.input"], 10)
        assert [(each.pool, each.runner, each.may_use_pool, each.tasks, each.since) for each in found] == [
            ("main", None, False, 1, NOW - 20 * SECOND),
            ("gpu", None, False, 2, NOW - 9 * SECOND),
            ("main", "r9", True, 1, NOW - 8 * SECOND),
        ]
        assert await diagnostics.open_requests(connection, "main", ["agent.input"], 2) == found[:2]
        pools = await diagnostics.template_pools(connection, "main", 10)
        assert [(each.pool, each.templates) for each in pools] == [
            ("gpu", ("claude", "claude")),
            ("main", ("codex",)),
            ("theirs", ("aider",)),
        ]
        assert await diagnostics.template_pools(connection, "main", 1) == pools[:1]
        counts = await diagnostics.content_counts(connection)
        assert (counts.users, counts.templates, counts.unpublished, counts.oldest) == (3, 5, 0, 0)


async def test_agents_are_counted_where_their_build_was_claimed(engine: AsyncEngine, reader: ReadPool) -> None:
    """By their leases, of the claimed build only; the last heartbeat of any of a runner is the runner's."""
    async with transaction(engine) as connection:
        await insert_tasks(connection, [task(1), task(2, CAROL), task(3), task(4)])
        for number, build, runner, seconds in ((1, 1, "r1", 3), (2, 1, "r1", 1), (3, 2, "r1", 0), (4, 1, "r2", 2)):
            values = {"id": UUID(int=number), "build": build, "runner": runner, "at": NOW - seconds * SECOND}
            await connection.execute(
                text(
                    "INSERT INTO build_claims (task_id, build_number, runner, claimed_at) VALUES (:id, 1, :runner, :at)"
                ),
                values,
            )
            await connection.execute(
                text("INSERT INTO leases (task_id, build_number, seq, last_heartbeat_at) VALUES (:id, :build, 1, :at)"),
                values,
            )
    two = ("r2", 1, NOW - 2 * SECOND)
    for caller, all_, expected in (
        (ALICE, False, {("r1", 1, NOW - 3 * SECOND), two}),
        (CAROL, False, {("r1", 2, NOW - SECOND), two}),
        (EVE, False, set()),
        (EVE, True, {("r1", 2, NOW - SECOND), two}),
    ):
        rows = await fleet_queries.agents(reader, caller, all_=all_)
        assert set(columns(rows, "runner", "agents", "heard_at")) == expected


async def test_unwell_tasks_are_counted_by_their_runners(engine: AsyncEngine, reader: ReadPool) -> None:
    """By the term that begins as asked, whatever other terms a task has; of tasks that the caller may see."""
    tasks = [(1, ALICE, "lost", "r1"), (2, CAROL, "lost", "r1"), (3, ALICE, "lost", "r2"), (4, ALICE, "healthy", "r1")]
    indexed = [
        IndexedTask(
            *(UUID(int=number), ACME, owner, CLAUDE, "gpu", "active", "working", health),
            waiting=False,
            stalled=False,
            created_at=NOW,
            changed_at=NOW,
            terms=f'["label:a=b","runner:{runner}","z:last"]',
            deleted=False,
        )
        for number, owner, health, runner in tasks
    ]
    async with transaction(engine) as connection:
        rows = [task(number, owner) for number, owner, _, _ in tasks]
        await insert_tasks(connection, rows, AddedRows(indexed=indexed))
        assert len(await task_index.apply(connection, 10)) == 4
    for caller, expected in ((CAROL, {"runner:r1": 2, "runner:r2": 1}), (ALICE, {"runner:r1": 1, "runner:r2": 1})):
        assert await fleet_queries.unwell(reader, caller, "lost", "runner:") == expected
    assert await fleet_queries.unwell(reader, EVE, "lost", "runner:") == {}
    assert await fleet_queries.unwell(reader, CAROL, "lost", "label:") == {"label:a=b": 3}


async def test_rates_of_each_hour_since_one(engine: AsyncEngine, reader: ReadPool) -> None:
    """The first hour belongs to it; members see their own rates, admins those of their organization, all in one sum."""
    hours = [HOUR + timedelta(hours=number) for number in range(-1, 12)]
    counts = {
        **{RateKey(hour, ACME, ALICE): TaskCounts(3, 2, 1) for hour in hours},
        RateKey(HOUR, ACME, CAROL): TaskCounts(10, 20, 30),
        RateKey(HOUR, OTHER, DORA): TaskCounts(100, 200, 300),
    }
    async with transaction(engine) as connection:
        await rates.add(connection, counts)
        letters = {(hours[0], "old"): 9, (hours[2], "z"): 2, (HOUR, "z"): 3} | {(HOUR, each): 1 for each in "gbdface"}
        await rates.add_dead_letters(connection, letters)
        await rates.add_dead_letters(connection, {(HOUR, "z"): 4, (HOUR, "new"): 1})
    for caller, all_, first in (
        (ALICE, False, (3, 2, 1)),
        (CAROL, False, (13, 22, 31)),
        (DORA, False, (113, 222, 331)),
        (EVE, True, (113, 222, 331)),
    ):
        rows = await fleet_queries.rates(reader, caller, HOUR, all_=all_)
        expected = [(HOUR, *first), *((hour, 3, 2, 1) for hour in hours[2:])]
        assert columns(rows, "hour", "created", "completed", "failed") == expected
    assert not await fleet_queries.rates(reader, EVE, HOUR, all_=False)
    rows = await fleet_queries.dead_letters(reader, HOUR)
    assert columns(rows, "reason", "letters") == [("z", 9), *((each, 1) for each in (*"abcdefg", "new"))]


async def test_old_rates_are_deleted_from_their_oldest_end(engine: AsyncEngine) -> None:
    """Up to the limit of rows, those before an hour; of dead letters all before it."""
    keys = [RateKey(HOUR + timedelta(hours=number), ACME, ALICE) for number in (1, -1, -2, 0)]

    async def left(connection: AsyncConnection, table: str) -> list[datetime]:
        return list((await connection.execute(text(f"SELECT hour FROM {table} ORDER BY hour"))).scalars())

    async with transaction(engine) as connection:
        for key in keys:
            await rates.add(connection, {key: TaskCounts(1, 1, 1)})
        await rates.add_dead_letters(connection, {(key.hour, "invalid"): 1 for key in keys})
        await ignore_indexes(connection)
        assert await rates.prune(connection, HOUR, 1) == 1
        hours = sorted(key.hour for key in keys)
        assert (await left(connection, "task_rates"), await left(connection, "dead_letter_rates")) == (
            hours[1:],
            hours[2:],
        )
        assert await rates.prune(connection, HOUR, 10) == 1
        assert await left(connection, "task_rates") == hours[2:]
