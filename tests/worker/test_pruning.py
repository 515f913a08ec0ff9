"""What maintenance deletes from real tables, from which age on, and how much of it in one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from taskherd.store.engine import DataError, transaction
from taskherd.store.task_creation import insert_tasks
from taskherd.store.tasks import StoredTask
from taskherd.worker import maintenance
from tests.harness.tasks import make_task
from tests.harness.worker import ALICE, ORGANIZATION, TEMPLATE, VERSION, WorkerHarness
from tests.worker.conftest import ACTIONS, COMMANDS, DELETED, HISTORY, noted_statements

NOW = datetime(2026, 3, 5, 12, tzinfo=UTC)
"""A Thursday: the history is kept from a Monday on, and the logs from the Sunday before."""

MOMENT = timedelta.resolution
LONG_AGO = NOW - timedelta(days=9)
FULL = 500
"""How many rows of a table one transaction deletes."""
ROUNDS = 200
"""How many transactions delete rows of a table in one run."""
DUE_TOGETHER = 100
"""How many deleted tasks are erased together."""

KEPT = {
    "task_feed": HISTORY, "command_log": COMMANDS, "task_rates": timedelta(days=8),
    "dead_letter_rates": timedelta(days=8), "task_actions": ACTIONS, "workers": timedelta(minutes=10),
    "api_tokens": HISTORY,
}  # fmt: skip

BOB = UUID(int=0xB0B)
ADD_BOB = f"INSERT INTO users (id, username, name, email, avatar_url) VALUES ('{BOB}', 'bob', '', '', '')"
ROWS = {
    "task_feed": ("occurred_at", "(position, task_id, version, occurred_at) SELECT n, gen_random_uuid(), 1, at"),
    "command_log": ("created_at", "(command_id, digest, reply, created_at) SELECT gen_random_uuid(), '', '{}', at"),
    "task_rates": (
        "hour",
        """(hour, organization_id, owner_id, created, completed, failed)
        SELECT at, gen_random_uuid(), gen_random_uuid(), 1, 0, 0""",
    ),
    "dead_letter_rates": ("hour", "(hour, reason, letters) SELECT at, 'reason ' || n, 1"),
    "task_actions": (
        "finished_at",
        f"""(id, user_id, token_id, action, digest, total, created_at, next_at, finished_at)
        SELECT gen_random_uuid(), '{ALICE}', 'token', 'pause', '', 0, at, at, at""",
    ),
    "workers": ("seen_at", "(worker_id, started_at, seen_at) SELECT 'worker ' || n, at, at"),
    "api_tokens": ("expires_at", f"(id, user_id, secret_hash, expires_at) SELECT 'token ' || n, '{ALICE}', '', at"),
}
"""Of each table the column with the time by which its rows are old, and how a row of a time is inserted."""

ADD_RESULTS = """
INSERT INTO task_action_tasks (action_id, ordinal, task_id)
SELECT id, n, gen_random_uuid() FROM task_actions, generate_series(1, $1::int) AS n
"""
PARTITIONS = """
SELECT relid::text FROM pg_partition_tree('task_events') WHERE isleaf
UNION ALL SELECT relid::text FROM pg_partition_tree('task_logs') WHERE isleaf
"""


async def add(harness: WorkerHarness, table: str, *times: datetime) -> None:
    """Insert a row of each of these times."""
    await harness.database.execute(
        f"INSERT INTO {table} {ROWS[table][1]} FROM unnest($1::timestamptz[]) WITH ORDINALITY AS t(at, n)", times
    )


async def left(harness: WorkerHarness, table: str) -> list[datetime]:
    """Return the times of the rows of a table, the earliest first."""
    column = ROWS[table][0]
    return [row[0] for row in await harness.database.fetch(f"SELECT {column} FROM {table} ORDER BY 1")]


def deleted_rows(noted: Sequence[tuple[str, int]], table: str) -> list[int]:
    """Return how many rows each statement deleted that deletes rows of a table."""
    return [rows for statement, rows in noted if f"DELETE FROM {table} " in statement]


async def test_each_table_is_pruned_by_an_age_of_its_own(resting: WorkerHarness) -> None:
    """What is as old as it may get stays, and what is older by a moment goes."""
    for table, age in KEPT.items():
        await add(resting, table, NOW - age, NOW - age - MOMENT)
    await resting.worker._maintenance.run_maintenance(NOW, None)
    assert {table: await left(resting, table) for table in KEPT} == {table: [NOW - age] for table, age in KEPT.items()}
    assert resting.metric("taskherd_maintenance_failures_total") == 0


async def test_weeks_of_history_and_logs_are_created_and_dropped(resting: WorkerHarness) -> None:
    """This week and the next four are there afterwards, and of what is past only what is not too old as a whole."""
    for day in ("2026-02-16", "2026-02-23"):
        for table in ("task_events", "task_logs"):
            await resting.database.execute(f"SELECT taskherd_add_partition('{table}', '{day}')")
    before = {row[0] for row in await resting.database.fetch(PARTITIONS)}
    await resting.worker._maintenance.run_maintenance(NOW, None)
    after = {row[0] for row in await resting.database.fetch(PARTITIONS)}
    assert before - after == {"task_events_p20260216", "task_events_p20260223", "task_logs_p20260216"}
    assert after - before == {
        f"{table}_p2026{day}"
        for table in ("task_events", "task_logs")
        for day in ("0302", "0309", "0316", "0323", "0330")
    }


async def test_the_history_of_weeks_without_partitions_is_dropped_like_any_other(
    resting: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A past week in each run, since others wait for it; rows of a time to come stay."""
    monkeypatch.setattr(maintenance, "EVERY", 0.0)
    weeks = [NOW - number * timedelta(weeks=1) for number in (3, 2)]
    for at in (*weeks, NOW, NOW + timedelta(days=365)):
        await resting.database.execute(
            "INSERT INTO task_events (task_id, version, occurred_at, kind, document, changes, cause, prompt_version)"
            " VALUES (gen_random_uuid(), 1, $1, 'created', '{}', '{}', '{}', 1)",
            at,
        )
    history = "SELECT occurred_at FROM task_events ORDER BY occurred_at"
    in_default = "SELECT occurred_at FROM task_events_default ORDER BY occurred_at"
    counts = []
    for _ in range(3):
        await resting.worker._maintenance.run_maintenance(NOW, None)
        counts.append(len(await resting.database.fetch(history)))
    assert counts == [3, 2, 2]
    assert [row[0] for row in await resting.database.fetch(history)] == [NOW, NOW + timedelta(days=365)]
    assert [row[0] for row in await resting.database.fetch(in_default)] == [NOW + timedelta(days=365)]
    assert resting.metric("taskherd_maintenance_failures_total") == 0


async def test_totals_that_count_no_task_are_deleted(resting: WorkerHarness) -> None:
    """The others stay."""
    await resting.database.execute(
        """INSERT INTO task_totals
        (organization_id, owner_id, template_id, pool, status, state, health, waiting, stalled, tasks)
        SELECT gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), '', '', '', '', false, false, n
        FROM generate_series(0, 2) AS n"""
    )
    await resting.worker._maintenance.run_maintenance(NOW, None)
    rows = await resting.database.fetch("SELECT tasks FROM task_totals ORDER BY tasks")
    assert [row[0] for row in rows] == [1, 2]


async def test_the_newest_actions_of_each_user_are_kept(resting: WorkerHarness) -> None:
    """Twenty finished ones of a user, however few there are of another, and however new the rest is."""
    times = [NOW - timedelta(minutes=number) for number in range(22)]
    await resting.database.execute(ADD_BOB)
    await add(resting, "task_actions", NOW - timedelta(days=1))
    await resting.database.execute("UPDATE task_actions SET user_id = $1", BOB)
    await add(resting, "task_actions", *times)
    await resting.worker._maintenance.run_maintenance(NOW, None)
    assert await left(resting, "task_actions") == [NOW - timedelta(days=1), *sorted(times)[2:]]


@pytest.mark.parametrize(("rows", "parts"), [(FULL - 1, [FULL - 1]), (2 * FULL, [FULL, FULL, 0])])
async def test_rows_are_deleted_part_by_part(resting: WorkerHarness, rows: int, parts: list[int]) -> None:
    """Until fewer than fit into a part are found, and no statement more."""
    tables = ("task_feed", "command_log", "task_rates")
    for table in tables:
        await add(resting, table, *[LONG_AGO + number * MOMENT for number in range(rows)])
    await add(resting, "task_actions", LONG_AGO)
    await resting.database.execute(ADD_RESULTS, rows)
    with noted_statements(resting) as noted:
        await resting.worker._maintenance.run_maintenance(NOW, None)
    for table in tables:
        assert (deleted_rows(noted, table), await left(resting, table)) == (parts, [])
    assert (deleted_rows(noted, "task_action_tasks"), await left(resting, "task_actions")) == (parts, [])


async def test_a_run_deletes_no_more_parts_than_it_may(resting: WorkerHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of each table is deleted by the next run."""
    monkeypatch.setattr(maintenance, "MAX_ROWS", 1)
    monkeypatch.setattr(maintenance, "MAX_ROUNDS", 3)
    monkeypatch.setattr(maintenance, "EVERY", 0.0)
    tables = ("task_feed", "command_log", "task_rates", "api_tokens")
    times = [LONG_AGO + number * MOMENT for number in range(4)]
    for table in tables:
        await add(resting, table, *times)
    await add(resting, "task_actions", LONG_AGO)
    await resting.database.execute(ADD_RESULTS, len(times))
    results = "SELECT count(*) FROM task_action_tasks"
    await resting.worker._maintenance.run_maintenance(NOW, None)
    assert [await left(resting, table) for table in tables] == [times[-1:]] * len(tables)
    assert await resting.database.fetchval(results) == 1
    await resting.worker._maintenance.run_maintenance(NOW, None)
    assert [await left(resting, table) for table in (*tables, "task_actions")] == [[]] * 5
    assert await resting.database.fetchval(results) == 0


@pytest.mark.parametrize("ahead", [1, FULL])
async def test_positions_of_a_clock_that_was_ahead_keep_no_others(resting: WorkerHarness, ahead: int) -> None:
    """Neither in the feed nor for another run; what is not too old stays."""
    old = [LONG_AGO + number * MOMENT for number in range(3 * FULL)]
    await add(resting, "task_feed", *[NOW + timedelta(days=365)] * ahead, *old, NOW)
    await resting.worker._maintenance.run_maintenance(NOW, None)
    assert await left(resting, "task_feed") == [NOW]


async def test_so_many_parts_are_deleted_in_one_run(resting: WorkerHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one table, so that a run ends, and what is deleted keeps up with what is added."""
    monkeypatch.setattr(maintenance, "MAX_ROWS", 1)
    times = [LONG_AGO + number * MOMENT for number in range(ROUNDS + 1)]
    await add(resting, "task_feed", *times)
    await resting.worker._maintenance.run_maintenance(NOW, None)
    assert await left(resting, "task_feed") == times[-1:]


async def test_each_run_looks_at_some_prompts(resting: WorkerHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that were replaced go once no history has them, and the next run goes on after those of this one."""
    (task_id,) = await add_deleted(resting, MOMENT)
    await resting.database.execute("UPDATE tasks SET prompt_version = 25 WHERE id = $1", task_id)
    await resting.database.execute(
        "INSERT INTO task_prompts SELECT $1, version, '' FROM generate_series(2, 25) AS version", task_id
    )
    monkeypatch.setattr(maintenance, "MAX_ROWS", 3)
    for first in (4, 6, 6):
        await resting.worker._maintenance._prune(NOW)
        query = "SELECT min(version) FROM task_prompts WHERE task_id = $1"
        assert await resting.database.fetchval(query, task_id) == first


async def test_the_parts_before_one_that_fails_stay_deleted(
    resting: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is a transaction of its own: the one with a row that cannot be deleted takes none of the others with it."""
    monkeypatch.setattr(maintenance, "MAX_ROWS", 2)
    times = [LONG_AGO + number * MOMENT for number in range(6)]
    await add(resting, "task_feed", *times)
    await resting.database.execute("CREATE TABLE pins (position bigint REFERENCES task_feed)")
    await resting.database.execute("INSERT INTO pins VALUES (4)")
    with pytest.raises(DataError, match="pins"):
        await resting.worker._maintenance._prune(NOW)
    assert await left(resting, "task_feed") == times[2:]


@pytest.mark.parametrize(("count", "calls"), [(FULL - 1, 1), (FULL, 2)])
async def test_a_token_goes_with_those_that_were_issued_from_it(resting: WorkerHarness, count: int, calls: int) -> None:
    """By its end, and as other rows until fewer than fit into a part are found."""
    await add(resting, "api_tokens", LONG_AGO, NOW + timedelta(days=365))
    await resting.database.execute(
        "INSERT INTO api_tokens (id, user_id, secret_hash, issued_from, issued_by)"
        " SELECT 'of ' || n, $1, '', 'token 1', $1 FROM generate_series(1, $2::int) AS n",
        ALICE, count - 1,
    )  # fmt: skip
    with noted_statements(resting) as noted:
        await resting.worker._maintenance.run_maintenance(NOW, None)
    assert sum("taskherd_prune_tokens" in statement for statement, _ in noted) == calls
    assert await left(resting, "api_tokens") == [NOW + timedelta(days=365)]
    assert resting.metric("taskherd_maintenance_failures_total") == 0


async def add_deleted(harness: WorkerHarness, *ages: timedelta) -> list[UUID]:
    """Store tasks of Alice that were deleted so long ago, and return their ids."""
    tasks = [
        make_task(
            uuid4(),
            owner_id=ALICE,
            organization_id=ORGANIZATION,
            template_id=TEMPLATE,
            template_version_id=VERSION,
            deleted_at=NOW - age,
        )
        for age in ages
    ]
    rows = [StoredTask(task, status="paused", document=f'{{"id":"{task.id}"}}', due_at=None) for task in tasks]
    async with transaction(harness.worker._engine) as connection:
        assert len((await insert_tasks(connection, rows)).tasks) == len(rows)
    return [task.id for task in tasks]


async def add_logs(harness: WorkerHarness, task_id: UUID, entries: int) -> None:
    """Store log entries of a task."""
    await harness.database.execute(
        "INSERT INTO task_logs (task_id, log_id, build_number, entry_id, seq, type, content, time, logged_at)"
        " SELECT $1, n, 1, n, 1, 'output', 'entry ' || n, $3, $3 FROM generate_series(1, $2::int) AS n",
        task_id, entries, NOW,
    )  # fmt: skip


async def erased(harness: WorkerHarness) -> set[UUID]:
    """Return the tasks that are erased."""
    return {row[0] for row in await harness.database.fetch("SELECT id FROM tasks WHERE erased_at IS NOT NULL")}


async def test_deleted_tasks_are_erased_with_their_contents(resting: WorkerHarness) -> None:
    """Contents go part by part, also those of a task that cannot be erased itself, which is not counted."""
    tasks = await add_deleted(resting, DELETED, DELETED, DELETED, DELETED - MOMENT)
    for task_id, entries in zip(tasks, (FULL, FULL, FULL - 1, 7), strict=True):
        await add_logs(resting, task_id, entries)
    await resting.database.execute("UPDATE tasks SET state = '{}' WHERE id = $1", tasks[1])
    with noted_statements(resting) as noted:
        assert await resting.worker._maintenance.erase_once(NOW) == 2
    assert deleted_rows(noted, "task_logs") == [FULL, FULL, FULL - 1]
    assert await erased(resting) == {tasks[0], tasks[2]}
    rows = await resting.database.fetch("SELECT task_id, count(*) FROM task_logs GROUP BY task_id")
    assert [tuple(row) for row in rows] == [(tasks[3], 7)]
    assert resting.metric("taskherd_tasks_erased_total") == 2


async def test_commands_of_an_erased_task_are_remembered_as_long_as_others(resting: WorkerHarness) -> None:
    """Those that are older go with its contents, because none was pruned by its age while it had any."""
    (task_id,) = await add_deleted(resting, DELETED)
    await add(resting, "command_log", NOW - COMMANDS, NOW - COMMANDS - MOMENT)
    await resting.database.execute("UPDATE command_log SET task_id = $1, kept_until_erased = true", task_id)
    assert await resting.worker._maintenance.erase_once(NOW) == 1
    assert await left(resting, "command_log") == [NOW - COMMANDS]


async def test_tasks_whose_contents_are_not_all_erased_wait(
    resting: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next run goes on with them."""
    monkeypatch.setattr(maintenance, "MAX_ROWS", 1)
    monkeypatch.setattr(maintenance, "MAX_ROUNDS", 3)
    (task_id,) = await add_deleted(resting, DELETED)
    await add_logs(resting, task_id, 4)
    assert await resting.worker._maintenance.erase_once(NOW) == 0
    assert await resting.database.fetchval("SELECT count(*) FROM task_logs") == 1
    assert await erased(resting) == set()
    assert await resting.worker._maintenance.erase_once(NOW) == 1
    assert await resting.database.fetchval("SELECT count(*) FROM task_logs") == 0
    assert await erased(resting) == {task_id}
    assert resting.metric("taskherd_tasks_erased_total") == 1


async def test_tasks_that_cannot_be_erased_hold_up_no_later_ones(resting: WorkerHarness) -> None:
    """One run reaches all that are due, however many of those deleted before them fail; the next one tries them again.

    Those that have failed a moment ago are looked at, and postponed.
    """
    damaged = await add_deleted(resting, *([DELETED + MOMENT] * (DUE_TOGETHER + 1)))
    others = await add_deleted(resting, DELETED, DELETED)
    await resting.database.execute("UPDATE tasks SET state = '{}' WHERE id = ANY($1::uuid[])", damaged)
    await resting.worker._maintenance._erase(NOW)
    assert await erased(resting) == set(others)
    assert resting.metric("taskherd_timer_checks_failed_total") == DUE_TOGETHER + 1
    late = await add_deleted(resting, DELETED)
    await resting.worker._maintenance._erase(NOW)
    assert await erased(resting) == {*others, *late}


async def test_so_many_tasks_are_erased_together(resting: WorkerHarness) -> None:
    """Those that were deleted first; when none is left that is due, a single statement finds that out."""
    tasks = await add_deleted(resting, *(DELETED + number * MOMENT for number in range(DUE_TOGETHER + 1)))
    (recent,) = await add_deleted(resting, DELETED - MOMENT)
    assert await resting.worker._maintenance.erase_once(NOW) == DUE_TOGETHER
    assert await erased(resting) == set(tasks[1:])
    assert await resting.worker._maintenance.erase_once(NOW) == 1
    with noted_statements(resting) as noted:
        assert await resting.worker._maintenance.erase_once(NOW) == 0
    assert len(noted) == 1
    assert recent not in await erased(resting)
