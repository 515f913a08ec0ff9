"""Log entries: numbered per task, and replaced in place."""

from __future__ import annotations

from datetime import timedelta
from typing import Final
from uuid import UUID, uuid4

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from taskherd.store import logs
from taskherd.store.engine import transaction
from taskherd.store.logs import FullLog, LogEntryRow, LogLimits
from tests.store.conftest import NOW, empty

LIMITS = LogLimits(max_entries=100, max_bytes=1_000)


def entry(task_id: UUID, entry_id: int, seq: int, content: str, build: int = 1) -> LogEntryRow:
    """Return an entry of the agent's output."""
    return LogEntryRow(task_id, build, entry_id, seq, "output", content, NOW)


async def test_log_ids_count_per_task_and_never_change(engine: AsyncEngine) -> None:
    """Entries get 0, 1, 2 … when first committed; a greater seq replaces the content in place, a lesser one nothing."""
    one, other = uuid4(), uuid4()

    async def stored() -> list[tuple[int, str]]:
        rows = await connection.execute(
            text("SELECT log_id, content FROM task_logs WHERE task_id = :id ORDER BY log_id"), {"id": one}
        )
        return [(row.log_id, row.content) for row in rows]

    async with transaction(engine) as connection:
        batch = [entry(one, 7, 1, "a"), entry(other, 0, 1, "x"), entry(one, 3, 1, "b"), entry(one, 7, 2, "a2")]
        assert (await logs.append(connection, batch, NOW, LIMITS)).added == 3
        assert await stored() == [(0, "a2"), (1, "b")]
        again = [entry(one, 3, 2, "b2"), entry(one, 7, 1, "old"), entry(one, 7, 1, "c", build=2)]
        assert (await logs.append(connection, again, NOW + timedelta(weeks=1), LIMITS)).added == 1
        assert await stored() == [(0, "a2"), (1, "b2"), (2, "c")]
        await connection.execute(text("DELETE FROM task_logs"))
        assert (await logs.append(connection, [entry(one, 9, 1, "d")], NOW, LIMITS)).added == 1
        assert await stored() == [(3, "d")]


async def test_entries_that_come_late_are_read_in_the_order_of_their_seq(engine: AsyncEngine) -> None:
    """Ids are given in the order of commit; readers see the order of builds, and of the lowest seq of each entry."""
    task = uuid4()

    async def in_order() -> list[tuple[int, str]]:
        rows = await connection.execute(
            text(f"SELECT log_id, content FROM task_logs WHERE task_id = :id ORDER BY {logs.ORDER}"), {"id": task}
        )
        return [(row.log_id, row.content) for row in rows]

    async with transaction(engine) as connection:
        await logs.append(connection, [entry(task, 2, 30, "third"), entry(task, 1, 20, "second")], NOW, LIMITS)
        assert await in_order() == [(0, "second"), (1, "third")]
        late = [entry(task, 5, 1, "next build", build=2), entry(task, 0, 10, "first")]
        await logs.append(connection, late, NOW, LIMITS)
        ordered = [(2, "first"), (0, "second"), (1, "third"), (3, "next build")]
        assert await in_order() == ordered
        await logs.append(connection, [entry(task, 1, 40, "second, edited")], NOW, LIMITS)
        assert await in_order() == [(2, "first"), (0, "second, edited"), (1, "third"), (3, "next build")]
        both = [entry(task, 2, 5, "third, begun"), entry(task, 2, 50, "third, edited")]
        await logs.append(connection, both, NOW, LIMITS)
        assert await in_order() == [(1, "third, edited"), (2, "first"), (0, "second, edited"), (3, "next build")]


async def test_a_full_log_keeps_its_beginning_and_counts_the_rest(engine: AsyncEngine) -> None:
    """From the first entry that does not fit, all are left out, also smaller ones; the counts go on."""
    one, other = uuid4(), uuid4()
    limits, later = LogLimits(max_entries=3, max_bytes=10), NOW + timedelta(minutes=1)
    async with transaction(engine) as connection:
        batch = [entry(one, 0, 1, "four"), entry(other, 0, 1, "x"), entry(one, 1, 1, "é" * 4), entry(one, 2, 1, "s")]
        result = await logs.append(connection, batch, NOW, limits)
        assert (result.added, list(result.full)) == (2, [FullLog(one, 1, 2, 9, NOW, is_new=True)])
        result = await logs.append(connection, [entry(one, 3, 1, "a"), entry(other, 1, 1, "y")], later, limits)
        assert (result.added, list(result.full)) == (1, [FullLog(one, 1, 3, 10, NOW, is_new=False)])
        more = [entry(other, number, 1, "z") for number in (2, 3)]
        full = (await logs.append(connection, more, later, limits)).full
        assert list(full) == [FullLog(other, 3, 1, 1, later, is_new=True)]


async def test_replacing_entries_does_not_pass_the_limit(engine: AsyncEngine) -> None:
    """An entry that grows counts by its growth; one that would pass the limit keeps its content, and may shrink."""
    task_id, limits = uuid4(), LogLimits(max_entries=10, max_bytes=10)

    async def contents() -> list[str]:
        rows = await connection.execute(text("SELECT content FROM task_logs ORDER BY log_id"))
        return [content for (content,) in rows]

    async with transaction(engine) as connection:
        await logs.append(connection, [entry(task_id, 0, 1, "1234"), entry(task_id, 1, 1, "12")], NOW, limits)
        assert not (await logs.append(connection, [entry(task_id, 1, 2, "123456")], NOW, limits)).full
        (full,) = (await logs.append(connection, [entry(task_id, 0, 2, "12345")], NOW, limits)).full
        assert (full.omitted_entries, full.omitted_bytes, full.notice_log_id) == (1, 5, 2)
        assert await contents() == ["1234", "123456"]
        assert not (await logs.append(connection, [entry(task_id, 1, 3, "1")], NOW, limits)).full
        assert await contents() == ["1234", "1"]
        assert not (await logs.append(connection, [entry(task_id, 0, 1, "stale and too long")], NOW, limits)).full
        both = [entry(task_id, 0, 3, "123"), entry(task_id, 1, 4, "much too long")]
        (full,) = (await logs.append(connection, both, NOW, limits)).full
        assert (full.omitted_entries, full.omitted_bytes) == (2, 18)
        assert await contents() == ["123", "1"]


async def test_entries_fit_up_to_the_last_byte(engine: AsyncEngine) -> None:
    """New entries have what the limit leaves beside those that grow or shrink in the same batch, and no byte more."""
    task_id, limits = uuid4(), LogLimits(max_entries=10, max_bytes=10)
    async with transaction(engine) as connection:
        await logs.append(connection, [entry(task_id, 0, 1, "123")], NOW, limits)
        grown = [entry(task_id, 0, 2, "12345"), entry(task_id, 1, 2, "67")]
        assert (await logs.append(connection, grown, NOW, limits)).added == 2 - 1
        shrunk = [entry(task_id, 0, 3, "1"), entry(task_id, 2, 3, "2345678"), entry(task_id, 3, 3, "9")]
        result = await logs.append(connection, shrunk, NOW, limits)
        assert (result.added, [each.omitted_bytes for each in result.full]) == (1, [1])
        last = uuid4()
        exact = [entry(last, 0, 1, "x" * 10), entry(last, 1, 1, "y")]
        result = await logs.append(connection, exact, NOW, limits)
        assert (result.added, [each.omitted_bytes for each in result.full]) == (1, [1])


async def test_a_full_log_has_one_notice(engine: AsyncEngine) -> None:
    """The notice is written once and its content replaced; after its partition was dropped it does not come back."""
    task_id = uuid4()
    first, second = (FullLog(task_id, 5, 1, 1, NOW, is_new=is_new) for is_new in (True, False))
    query = text("SELECT log_id, entry_id, content FROM task_logs")
    async with transaction(engine) as connection:
        await logs.write_notice(connection, first, 1, "1 left out", NOW)
        await logs.write_notice(connection, second, 1, "2 left out", NOW)
        assert [tuple(row) for row in await connection.execute(query)] == [(5, logs.NOTICE_ENTRY_ID, "2 left out")]
        await connection.execute(text("DELETE FROM task_logs"))
        await logs.write_notice(connection, second, 1, "3 left out", NOW)
        assert not (await connection.execute(query)).all()


async def test_an_entry_is_replaced_with_its_kind_title_status_and_data(engine: AsyncEngine) -> None:
    """What an entry is besides its text is stored, replaced with it, and counts towards the limit of the log."""
    one = uuid4()
    call = LogEntryRow(one, 1, 0, 1, "output", "make", NOW, "tool_call", "make", "in_progress", '{"kind":"execute"}')
    done = LogEntryRow(one, 1, 0, 2, "output", "make\nok", NOW, "tool_call", "make", "completed", '{"kind":"other"}')
    async with transaction(engine) as connection:
        for row in (call, done, call):
            await logs.append(connection, [row], NOW, LIMITS)
        (stored,) = (await connection.execute(text("SELECT * FROM task_logs"))).all()
        assert (stored.kind, stored.title, stored.status, stored.data) == (
            "tool_call", "make", "completed", {"kind": "other"},
        )  # fmt: skip
        size = (await connection.execute(text("SELECT content_bytes FROM task_log_heads"))).scalar_one()
        assert size == len("make\nok") + len('{"kind":"other"}')
        plain = entry(one, 0, 3, "plain")
        await logs.append(connection, [plain], NOW, LIMITS)
        (stored,) = (await connection.execute(text("SELECT * FROM task_logs"))).all()
        assert (stored.kind, stored.title, stored.status, stored.data) == (None, None, None, None)


BEGUN: Final = int(NOW.timestamp()) * 1000 + NOW.microsecond // 1000
"""The revision before the first one of a log that began then, in milliseconds since the epoch."""


async def heads(connection: AsyncConnection) -> dict[UUID, tuple[object, ...]]:
    """Return the head of each log that began at ``NOW``, with its revision since then."""
    rows = await connection.execute(
        text(
            "SELECT task_id, revision - :begun, next_log_id, content_bytes, omitted_entries, omitted_bytes,"
            " omitted_since, notice_log_id FROM task_log_heads"
        ),
        {"begun": BEGUN},
    )
    return {row[0]: tuple(row[1:]) for row in rows}


async def revisions(connection: AsyncConnection, task_id: UUID) -> list[tuple[str, int | None]]:
    """Return the contents of a log that began at ``NOW`` with the revision of each entry since then, by log id."""
    rows = await connection.execute(
        text("SELECT content, revision - :begun AS revision FROM task_logs WHERE task_id = :id ORDER BY log_id"),
        {"id": task_id, "begun": BEGUN},
    )
    return [(row.content, row.revision) for row in rows]


async def test_each_change_of_a_log_raises_its_revision(engine: AsyncEngine) -> None:
    """Once for all entries of a call, which carry it; what changes nothing does not, nor do changes of other logs."""
    one, other = UUID(int=1), UUID(int=2)
    async with transaction(engine) as connection:
        await logs.append(
            connection, [entry(one, 0, 5, "a"), entry(one, 1, 5, "bb"), entry(other, 0, 5, "x")], NOW, LIMITS
        )
        assert await heads(connection) == {one: (1, 2, 3, 0, 0, None, None), other: (1, 1, 1, 0, 0, None, None)}
        await logs.append(connection, [entry(one, 1, 6, "bbbb"), entry(one, 2, 6, "c")], NOW, LIMITS)
        assert await revisions(connection, one) == [("a", 1), ("bbbb", 2), ("c", 2)]
        await logs.append(connection, [entry(one, 1, 6, "again"), entry(one, 0, 5, "again")], NOW, LIMITS)
        assert await heads(connection) == {one: (2, 3, 6, 0, 0, None, None), other: (1, 1, 1, 0, 0, None, None)}
        await logs.append(connection, [entry(one, 0, 4, "late: only its place changes")], NOW, LIMITS)
        assert await revisions(connection, one) == [("a", 3), ("bbbb", 2), ("c", 2)]
        await logs.append(connection, [entry(one, 2, 7, ""), entry(other, 0, 7, "xyz")], NOW, LIMITS)
        assert await heads(connection) == {one: (4, 3, 5, 0, 0, None, None), other: (2, 1, 3, 0, 0, None, None)}
        assert await revisions(connection, one) == [("a", 3), ("bbbb", 2), ("", 4)]
        assert await revisions(connection, other) == [("xyz", 2)]


async def test_the_revisions_of_a_log_begin_after_those_of_earlier_ones(engine: AsyncEngine) -> None:
    """However many changes these had; one that began in an earlier release goes on from where it is."""
    earlier, later, former = UUID(int=1), UUID(int=2), UUID(int=3)
    async with transaction(engine) as connection:
        for number in range(20):
            await logs.append(connection, [entry(earlier, number, number, "a")], NOW, LIMITS)
        await logs.append(connection, [entry(later, 0, 1, "b")], NOW + timedelta(milliseconds=20), LIMITS)
        assert await revisions(connection, later) == [("b", 21)]
        assert max(number or 0 for _, number in await revisions(connection, earlier)) == 20
        await connection.execute(
            text("INSERT INTO task_log_heads (task_id, next_log_id, revision) VALUES (:id, 0, 7)"), {"id": former}
        )
        await logs.append(connection, [entry(former, 0, 1, "c")], NOW, LIMITS)
        assert await revisions(connection, former) == [("c", 8 - BEGUN)]


async def test_the_head_of_a_full_log_counts_what_is_left_out(engine: AsyncEngine) -> None:
    """Its notice has the id after the last entry that fits; that it was left out is a change, too."""
    one, other = UUID(int=1), UUID(int=2)
    limits, later = LogLimits(max_entries=2, max_bytes=10), NOW + timedelta(minutes=1)
    async with transaction(engine) as connection:
        await logs.append(connection, [entry(other, 0, 1, "1"), entry(one, 0, 1, "22")], NOW, limits)
        batch = [entry(other, 1, 2, "333"), *(entry(one, number, 2, "4444") for number in (1, 2, 3))]
        result = await logs.append(connection, batch, later, limits)
        assert result.full == [FullLog(one, 2, 2, 8, later, is_new=True)]
        assert await heads(connection) == {one: (2, 3, 6, 2, 8, later, 2), other: (2, 2, 4, 0, 0, None, None)}
        last = later + timedelta(minutes=1)
        result = await logs.append(connection, [entry(one, 4, 3, "5"), entry(one, 0, 3, "")], last, limits)
        assert result.full == [FullLog(one, 2, 3, 9, later, is_new=False)]
        assert await heads(connection) == {one: (3, 3, 4, 3, 9, later, 2), other: (2, 2, 4, 0, 0, None, None)}
        assert await revisions(connection, one) == [("", 3), ("4444", 2)]
        both = [entry(other, 2, 4, "6"), entry(one, 5, 4, "7")]
        result = await logs.append(connection, both, last, limits)
        assert [(each.task_id, each.is_new) for each in result.full] == [(one, False), (other, True)]


async def test_a_notice_is_that_of_one_log(engine: AsyncEngine) -> None:
    """It has the revision of its log, is the last one to be read, and replaces nothing else."""
    one, other = UUID(int=1), UUID(int=2)
    async with transaction(engine) as connection:
        for task_id, content in ((one, "a"), (other, "b"), (one, "c"), (one, "d"), (other, "e")):
            await logs.append(connection, [entry(task_id, ord(content), 1, content)], NOW, LIMITS)
        await logs.write_notice(connection, FullLog(one, 3, 1, 1, NOW, is_new=True), 4, "1 left out", NOW)
        assert await revisions(connection, one) == [("a", 1), ("c", 2), ("d", 3), ("1 left out", 3)]
        await logs.append(connection, [entry(one, ord("c"), 2, "C"), entry(other, ord("b"), 2, "B")], NOW, LIMITS)
        await logs.write_notice(connection, FullLog(one, 3, 2, 2, NOW, is_new=False), 5, "2 left out", NOW)
        assert await revisions(connection, one) == [("a", 1), ("C", 4), ("d", 3), ("2 left out", 4)]
        assert await revisions(connection, other) == [("B", 3), ("e", 2)]
        rows = await connection.execute(
            text("SELECT build_number, seq, type, time, logged_at FROM task_logs WHERE entry_id = :id"),
            {"id": logs.NOTICE_ENTRY_ID},
        )
        assert [tuple(row) for row in rows] == [(4, 0, "output", NOW, NOW)]


async def test_entries_are_appended_in_the_order_of_builds_and_seq(engine: AsyncEngine) -> None:
    """Those of one report as given; of an entry that is reported several times the last state has the first place."""
    task_id = UUID(int=1)
    batch = [
        entry(task_id, 1, 9, "second build", build=2),
        entry(task_id, 4, 7, "fourth"),
        entry(task_id, 3, 5, "third"),
        entry(task_id, 2, 3, "first, early"),
        entry(task_id, 9, 3, "second"),
        entry(task_id, 2, 8, "first, late"),
        entry(task_id, 2, 8, "first, late again"),
    ]
    async with transaction(engine) as connection:
        assert (await logs.append(connection, batch, NOW, LIMITS)).added == 5
        rows = await connection.execute(text("SELECT content, seq, first_seq FROM task_logs ORDER BY log_id"))
        assert [tuple(row) for row in rows] == [
            ("first, late", 8, 3), ("second", 3, 3), ("third", 5, 5), ("fourth", 7, 7), ("second build", 9, 9)
        ]  # fmt: skip


async def test_logs_are_locked_in_the_order_of_their_tasks(engine: AsyncEngine) -> None:
    """Whatever the order in which entries come."""
    ids = [UUID(int=number) for number in (3, 1, 4, 2)]
    async with transaction(engine) as connection:
        await empty(connection, "task_log_heads")
        await logs.append(connection, [entry(task_id, 0, 1, f"of {task_id.int}") for task_id in ids], NOW, LIMITS)
        rows = await connection.execute(text("SELECT task_id FROM task_log_heads ORDER BY ctid"))
        assert list(rows.scalars()) == sorted(ids)
