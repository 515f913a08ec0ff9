from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from uuid import uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from taskherd.store import outbox, partitions, tasks
from taskherd.store.engine import StatementTimeout, transaction
from taskherd.store.task_creation import insert_tasks
from tests.store.conftest import NOW, event, ignore_indexes, task_row

FAR = datetime(2040, 1, 4, 12, tzinfo=UTC)  # a Wednesday
THIS_WEEK = date(2040, 1, 2)
EVENTS_AND_LOGS = ("task_events", "task_logs")
MINUTE = timedelta(minutes=1)
YEAR, DAY, HOUR, SECOND = timedelta(days=365), timedelta(days=1), timedelta(hours=1), timedelta(seconds=1)


async def create(connection: AsyncConnection, now: datetime, weeks: int = partitions.AHEAD) -> int:
    """Create all missing partitions, and return how many there were."""
    created = 0
    for parent in EVENTS_AND_LOGS:
        while await partitions.create(
            connection, parent, await partitions.next_partition(connection, parent, now, MINUTE, weeks=weeks), MINUTE
        ):
            created += 1
    return created


async def _insert_event(connection: AsyncConnection, at: datetime) -> str:
    await connection.execute(
        text(
            "INSERT INTO task_events (task_id, version, occurred_at, kind, document, changes, cause, prompt_version) "
            "VALUES (:id, 1, :at, 'created', '{}', '{}', '{}', 1)"
        ),
        {"id": uuid4(), "at": at},
    )
    return str((await connection.execute(text("SELECT CAST(max(tableoid) AS regclass) FROM task_events"))).scalar_one())


async def test_a_new_schema_has_partitions_for_five_weeks(engine: AsyncEngine) -> None:
    """An event of this week or the next four does not go to the default partition."""
    async with transaction(engine) as connection:
        assert await create(connection, datetime.now(UTC)) == 0
        partition = await _insert_event(connection, datetime.now(UTC) + timedelta(weeks=4))
    assert partition.startswith("task_events_p")


async def test_concurrent_workers_create_each_partition_once(engine: AsyncEngine) -> None:
    """Ten workers that create partitions at the same time create each one once."""

    async def ensure() -> int:
        async with transaction(engine) as connection:
            return await create(connection, FAR, weeks=2)

    assert sum(await asyncio.gather(*(ensure() for _ in range(10)))) == 2 * 3


async def test_rows_move_from_the_default_partition_to_a_new_one(engine: AsyncEngine) -> None:
    """Rows that were stored before their partition existed are moved into it."""
    async with transaction(engine) as connection:
        assert await _insert_event(connection, FAR) == "task_events_default"
    async with transaction(engine) as connection:
        await create(connection, FAR, weeks=0)
        rows = await connection.execute(text("SELECT CAST(tableoid AS regclass), occurred_at FROM task_events"))
        assert [tuple(row) for row in rows] == [("task_events_p20400102", FAR)]


async def _partitions(connection: AsyncConnection, table: str) -> list[tuple[str, datetime]]:
    column = "occurred_at" if table == "task_events" else "logged_at"
    rows = await connection.execute(
        text(f"SELECT CAST(CAST(tableoid AS regclass) AS text), {column} FROM {table} ORDER BY {column}")
    )
    return [(name, at) for name, at in rows]


async def test_rows_of_past_weeks_leave_the_default_partition(engine: AsyncEngine) -> None:
    """Also those between two weeks that have partitions; those of a clock that was ahead stay until their week comes.

    The weeks to come are created first, and each one by itself.
    """
    days = (date(2039, 11, 2), date(2039, 12, 7), date(2039, 12, 28), date(2040, 1, 4), date(2041, 1, 1))
    times = [datetime(day.year, day.month, day.day, tzinfo=UTC) for day in days]
    log = "INSERT INTO task_logs (task_id, log_id, build_number, entry_id, seq, type, content, time, logged_at)"
    async with transaction(engine) as connection:
        await connection.execute(text("SELECT taskherd_add_partition('task_events', '2039-12-12')"))
        for at in times:
            await _insert_event(connection, at)
        await connection.execute(
            text(f"{log} VALUES (:id, 1, 1, 1, 1, 'input', '', :at, :at)"), {"id": uuid4(), "at": times[0]}
        )
        created: dict[str, list[str]] = {"task_events": [], "task_logs": []}
        for parent, weeks in created.items():
            assert await partitions.next_partition(connection, parent, FAR, MINUTE, weeks=0, past=False) == THIS_WEEK
            while await partitions.create(
                connection,
                parent,
                week := await partitions.next_partition(connection, parent, FAR, MINUTE, weeks=1),
                MINUTE,
            ):
                weeks.append(week.isoformat())
            assert week == THIS_WEEK
        assert created == {
            "task_events": ["2040-01-09", "2040-01-02", "2039-10-31", "2039-12-05", "2039-12-26"],
            "task_logs": ["2040-01-09", "2040-01-02", "2039-10-31"],
        }
        assert await create(connection, FAR, 1) == 0
        assert await _partitions(connection, "task_events") == [
            ("task_events_p20391031", times[0]),
            ("task_events_p20391205", times[1]),
            ("task_events_p20391226", times[2]),
            ("task_events_p20400102", times[3]),
            ("task_events_default", times[4]),
        ]
        assert await _partitions(connection, "task_logs") == [("task_logs_p20391031", times[0])]
        dropped = await partitions.prune(connection, events_before=FAR - 4 * timedelta(weeks=1), logs_before=FAR)
        assert {"task_events_p20391031", "task_logs_p20391031"} <= set(dropped)
        assert "task_events_p20391205" not in dropped


async def _settings(connection: AsyncConnection) -> tuple[str, ...]:
    shown = "SELECT current_setting('statement_timeout'), current_setting('enable_seqscan')"
    return tuple((await connection.execute(text(shown))).one())


async def test_a_move_has_a_time_of_its_own(engine: AsyncEngine) -> None:
    """Longer than that of other statements, or shorter; if it was too short, nothing has changed.

    It reads the default partition as it is, and not by an index that has no times.
    """
    slow = """
CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(5.5); RETURN OLD; END';
CREATE TRIGGER slow BEFORE DELETE ON task_events_default FOR EACH ROW EXECUTE FUNCTION slow()
"""
    async with transaction(engine) as connection:
        await _insert_event(connection, FAR)
        for statement in slow.strip().split(";\n"):
            await connection.execute(text(statement))
    week = ("task_events", date(2040, 1, 2))
    with pytest.raises(StatementTimeout):
        async with transaction(engine) as connection:
            await partitions.create(connection, *week, timedelta(seconds=0.5))
    async with transaction(engine) as connection:
        assert await _partitions(connection, "task_events") == [("task_events_default", FAR)]
    async with transaction(engine) as connection:
        assert await partitions.create(connection, *week, MINUTE)
        assert await _partitions(connection, "task_events") == [("task_events_p20400102", FAR)]
        assert not await partitions.create(connection, *week, MINUTE)
        assert await _settings(connection) == ("1min", "on")
    async with transaction(engine) as connection:
        assert await _settings(connection) == ("4500ms", "off")


async def test_prune_drops_old_weeks_without_unpublished_events(engine: AsyncEngine) -> None:
    """A partition that ended before the given time is dropped, unless it contains an unpublished event."""
    row = task_row()
    async with transaction(engine) as connection:
        await create(connection, FAR, weeks=1)
        await insert_tasks(connection, [row])
        await tasks.save(connection, [], [event(row.task.id, 1)])
        assert await partitions.prune(connection, events_before=FAR, logs_before=NOW) == []
    async with transaction(engine) as connection:
        await outbox.mark_published(connection, [(row.task.id, 1)])
        dropped = await partitions.prune(connection, events_before=FAR, logs_before=NOW)
        assert len(dropped) == 5
        assert all(name.startswith("task_events_p20") for name in dropped)
        remaining = await connection.execute(
            text("SELECT relid::text FROM pg_partition_tree('task_events') WHERE isleaf ORDER BY 1")
        )
        assert list(remaining.scalars()) == ["task_events_default", "task_events_p20400102", "task_events_p20400109"]
        assert await partitions.prune_feed(connection, NOW + timedelta(seconds=1), 100, NOW) == 1
        assert await partitions.prune_feed(connection, NOW + timedelta(seconds=1), 100, NOW) == 0


async def test_the_functions_accept_only_partitioned_tables(engine: AsyncEngine) -> None:
    """The functions run with the privileges of their owner, so they reject every other table."""
    async with engine.connect() as connection:
        with pytest.raises(DBAPIError, match="no weekly partition"):
            await connection.execute(text("SELECT taskherd_add_partition('users', '2040-01-02')"))


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        ("2040-01-01T23:59:59+00:00", "2039-12-26"),
        ("2040-01-02T00:00:00+00:00", "2040-01-02"),
        ("2040-01-08T23:59:59+00:00", "2040-01-02"),
        ("2040-01-02T00:30:00+01:00", "2039-12-26"),
    ],
)
def test_a_week_begins_on_monday_in_utc(at: str, expected: str) -> None:
    """Whatever the time zone in which the time is given."""
    assert partitions.monday(datetime.fromisoformat(at)).isoformat() == expected


async def _add_feed(connection: AsyncConnection, ages: Mapping[int, timedelta]) -> None:
    for position, age in ages.items():
        await connection.execute(
            text("INSERT INTO task_feed (position, task_id, version, occurred_at) VALUES (:position, :id, 1, :at)"),
            {"position": position, "id": uuid4(), "at": NOW - age},
        )


async def _feed(connection: AsyncConnection) -> list[int]:
    return list((await connection.execute(text("SELECT position FROM task_feed ORDER BY position"))).scalars())


async def test_the_oldest_positions_of_the_feed_are_pruned(engine: AsyncEngine) -> None:
    """Up to the limit, and none that is not older than the time, nor one that comes after such positions.

    The number is that of the positions among which some were deleted.
    """
    async with transaction(engine) as connection:
        await _add_feed(
            connection, {position: age * SECOND for position, age in ((3, 1), (1, 2), (4, 9), (2, 5), (5, 0))}
        )
        await ignore_indexes(connection)
        assert await partitions.prune_feed(connection, NOW - SECOND, 3, NOW) == 3
        assert await _feed(connection) == [3, 4, 5]
        assert await partitions.prune_feed(connection, NOW - SECOND, 1, NOW) == 0
        assert await partitions.prune_feed(connection, NOW, 1, NOW) == 1
        assert await partitions.prune_feed(connection, NOW, 9, NOW) == 2
        assert await _feed(connection) == [5]


@pytest.mark.parametrize(
    ("ages", "limit", "rounds", "left"),
    [
        ({1: 9 * DAY, 2: -YEAR, 3: 9 * DAY, 4: HOUR}, 3, [3, 0], [4]),  # one of a clock that was ahead
        ({1: -YEAR, 2: 9 * DAY, 3: 9 * DAY, 4: 9 * DAY, 5: 9 * DAY, 6: HOUR}, 3, [3, 3, 0], [6]),
        ({1: 9 * DAY, 2: -YEAR, 3: HOUR}, 3, [3, 0], [2, 3]),  # as old as its neighbors, of which one is not too old
        ({1: HOUR, 2: -YEAR, 3: HOUR}, 9, [0], [1, 2, 3]),
        ({1: -YEAR}, 9, [0], [1]),
        ({1: -30 * SECOND, 2: 9 * DAY}, 9, [2, 0], [1]),  # another clock may be so far ahead
        ({1: -31 * SECOND, 2: 9 * DAY}, 9, [2, 0], []),
        ({**dict.fromkeys(range(1, 11), -YEAR), **dict.fromkeys(range(11, 31), 9 * DAY)}, 5, [5] * 6 + [0], []),
        ({**dict.fromkeys(range(1, 11), -YEAR), **dict.fromkeys(range(11, 31), HOUR)}, 5, [0], [*range(1, 31)]),
        ({**dict.fromkeys(range(1, 11), HOUR), 11: 9 * DAY, 12: -YEAR, 13: 9 * DAY}, 5, [0], [*range(1, 14)]),
    ],
)
async def test_positions_of_a_clock_that_was_ahead_are_as_old_as_those_after_them(
    engine: AsyncEngine, ages: Mapping[int, timedelta], limit: int, rounds: list[int], left: list[int]
) -> None:
    """However many there are, they keep no others from being pruned; none goes before what comes after it may."""
    async with transaction(engine) as connection:
        await _add_feed(connection, ages)
        found = [await partitions.prune_feed(connection, NOW - 8 * DAY, limit, NOW) for _ in rounds]
        assert (found, await _feed(connection)) == (rounds, left)


@pytest.mark.parametrize("behind", [HOUR, YEAR])
async def test_a_clock_that_is_behind_prunes_nothing_of_the_feed(engine: AsyncEngine, behind: timedelta) -> None:
    """All is in the future then, and nothing that comes after it is too old."""
    async with transaction(engine) as connection:
        await _add_feed(connection, {1: 7 * DAY, 2: HOUR, 3: behind})
        assert await partitions.prune_feed(connection, NOW - behind - 8 * DAY, 500, NOW - behind) == 0
        assert await _feed(connection) == [1, 2, 3]


async def test_waits_for_locks_are_limited_in_one_transaction(engine: AsyncEngine) -> None:
    """In whole milliseconds; the next transaction waits as long as before."""
    show = text("SHOW lock_timeout")
    async with transaction(engine) as connection:
        before = (await connection.execute(show)).scalar_one()
        await partitions.limit_lock_waits(connection, timedelta(seconds=1.2345))
        assert (await connection.execute(show)).scalar_one() == "1234ms"
    async with transaction(engine) as connection:
        assert (await connection.execute(show)).scalar_one() == before


async def test_history_and_logs_are_pruned_by_times_of_their_own(engine: AsyncEngine) -> None:
    """A partition that ends at the time is dropped, one that ends later is not."""
    async with transaction(engine) as connection:
        await create(connection, FAR, weeks=2)
        dropped = await partitions.prune(
            connection,
            events_before=datetime(2040, 1, 9, tzinfo=UTC),
            logs_before=datetime(2040, 1, 15, 23, tzinfo=UTC),
        )
        assert [name for name in dropped if "p2040" in name] == ["task_events_p20400102", "task_logs_p20400102"]
        late = datetime(2040, 1, 16, tzinfo=UTC)
        assert await partitions.prune(connection, events_before=FAR, logs_before=late) == ["task_logs_p20400109"]


async def test_the_oldest_unpublished_event_keeps_its_week_and_later_ones(engine: AsyncEngine) -> None:
    """Weeks before it are dropped, and weeks of logs do not wait for it."""
    row = task_row()
    first = datetime(2040, 1, 11, tzinfo=UTC)  # of the second of four weeks
    async with transaction(engine) as connection:
        await create(connection, FAR, weeks=3)
        await insert_tasks(connection, [row])
        events = [event(row.task.id, version, first + timedelta(weeks=1) * (2 - version)) for version in (1, 2)]
        await tasks.save(connection, [], events)
        far = FAR + timedelta(weeks=9)
        dropped = await partitions.prune(connection, events_before=far, logs_before=far)
        assert [name for name in dropped if "p2040" in name] == [
            "task_events_p20400102",
            *(f"task_logs_p2040{day}" for day in ("0102", "0109", "0116", "0123")),
        ]
