"""The change feed as callers read it: changes of tasks that they see, in order, each with the document before it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from taskherd.store import feed
from taskherd.store.engine import transaction
from taskherd.store.feed import FeedPage
from taskherd.store.read_pool import ReadPool, Row
from tests.store.conftest import execute_script, reading_whole_tables
from tests.store.world import (
    ACME,
    ADA,
    ALICE,
    BETA,
    BOB,
    DELETED,
    DORA,
    EVE,
    EVERYBODY,
    OF_ALICE,
    OF_BOB,
    OF_DORA,
    OF_EVE,
    OF_ZED,
    SEEN,
    WORLD,
    ZED,
)

SEEN_EVEN_DELETED = {**SEEN, DELETED: {ALICE, ADA}}

POSITIONS = (
    (5, OF_ALICE, 2),
    (3, OF_BOB, 1),
    (4, OF_ALICE, 1),
    (9, OF_ALICE, 4),
    (7, DELETED, 1),
    (8, OF_ALICE, 3),
    (6, OF_DORA, 1),
    (10, OF_EVE, 1),
    (2, OF_ZED, 1),
)
"""Positions in the feed with their versions, of which the first are pruned."""


def _event(task: UUID, version: int, status: str, state: str | None, changes: str) -> str:
    is_asked_for = task == OF_ALICE
    current = None if state is None and is_asked_for else {"state": state if is_asked_for else "of another task"}
    document: dict[str, Any] = {
        "status": status if is_asked_for else "of another task",
        "current_state": current,
        "of": f"{task.int:x}-{version}",
    }
    if version == 3:
        document["workspace_agent_health"] = {"reason": "lost"}
        document["agent_exit"] = {"why": "crash"}
        document["requests_open"] = 2
    cause = {"kind": "command", "actor_id": str(BOB if version == 2 else EVE)} if version > 1 else {"kind": "report"}
    prompt = 1 if version < 3 else 3
    return (
        f"INSERT INTO task_events (task_id, version, occurred_at, kind, document, changes, cause, prompt_version)"
        f" VALUES ('{task}', {version}, '2026-01-01T00:0{version}Z', 'updated', '{json.dumps(document)}',"
        f" '{{{changes}}}', '{json.dumps(cause)}', {prompt});\n"
    )


FEED = (
    WORLD
    + "".join(
        f"INSERT INTO task_feed (position, task_id, version, occurred_at) VALUES"
        f" ({position}, '{task}', {version}, '2026-01-01T00:0{version}Z');\n"
        for position, task, version in POSITIONS
    )
    + "".join(
        _event(task, *fields)
        for task in (OF_ZED, OF_BOB, OF_ALICE, OF_DORA, DELETED, OF_EVE)
        for fields in (
            (4, "paused", "idle", "other"),
            (1, "pending", None, "status"),
            (3, "active", "idle", "current_state,initial_prompt"),
            (2, "active", "working", "status,current_state"),
        )
    )
    + "".join(
        f"INSERT INTO task_prompts (task_id, version, prompt)"
        f" VALUES ('{task}', {version}, 'p{task.int:x}-{version}');\n"
        for task in (OF_ZED, OF_BOB, OF_ALICE, OF_DORA)
        for version in (4, 1, 3)
    )
)


@pytest.fixture
async def reader(database_url: str, engine: AsyncEngine) -> AsyncIterator[ReadPool]:
    """Yield a pool for readers, with changes of tasks of several people."""
    await execute_script(engine, FEED)
    async with reading_whole_tables(database_url) as pool:
        yield pool


async def execute(engine: AsyncEngine, statement: str) -> None:
    """Execute a statement in a transaction of its own."""
    async with transaction(engine) as connection:
        await connection.execute(text(statement))


def fields(row: Row, *names: str) -> list[Any]:
    """Return some columns of a row."""
    return [row[name] for name in names]


def positions(seen_by: UUID | None = None, after: int = 0) -> list[int]:
    """Return the positions of the changes of tasks that this user may see, or of all."""
    found = [each[0] for each in POSITIONS if seen_by is None or seen_by in SEEN_EVEN_DELETED[each[1]]]
    return sorted(position for position in found if position > after)


async def test_where_a_reader_can_resume(reader: ReadPool, engine: AsyncEngine) -> None:
    """At a position that is not pruned; at the start only as long as nothing is."""
    assert await feed.latest(reader) == 10
    assert [number for number in range(-1, 12) if await feed.position_exists(reader, number)] == list(range(2, 11))
    await execute(engine, f"INSERT INTO task_feed VALUES (1, '{OF_ZED}', 1, now())")
    assert await feed.position_exists(reader, 0)
    assert not await feed.position_exists(reader, -1)
    await execute(engine, "DELETE FROM task_feed")
    assert await feed.latest(reader) == 0
    assert await feed.position_exists(reader, 0)
    assert not await feed.position_exists(reader, 1)


async def test_all_changes_have_the_users_who_may_see_them(reader: ReadPool) -> None:
    """Its organization's admins, and its owner as long as a member."""
    rows = (await feed.changes_after(reader, 0, 20)).rows
    assert [row["position"] for row in rows] == positions()
    assert [(row["task_id"], row["version"]) for row in rows] == [each[1:] for each in sorted(POSITIONS)]
    for row in rows:
        visible = {*(row["admins"] or ()), *([row["owner_id"]] if row["owner_can_see"] else ())}
        assert visible == SEEN_EVEN_DELETED[row["task_id"]]
    assert [row["position"] for row in (await feed.changes_after(reader, 4, 3)).rows] == [5, 6, 7]


async def test_a_change_is_what_its_own_event_says(reader: ReadPool, engine: AsyncEngine) -> None:
    """With the prompt and the names of its task, and what it altered of the version before."""
    await execute(engine, "UPDATE directory_revision SET revision = 7")
    await execute(engine, f"UPDATE tasks SET erased_at = now() WHERE id = '{DELETED}'")
    rows = {(row["task_id"], row["version"]): row for row in (await feed.changes_after(reader, 0, 20)).rows}
    first, second, third, fourth = (rows[OF_ALICE, version] for version in (1, 2, 3, 4))
    names = ("kind", "changes", "prompt", "owner_id", "organization_id", "revision", "username", "avatar_url", "erased")
    assert fields(second, *names) == [
        *("updated", ["status", "current_state"], "p32-1", ALICE, ACME, 7, "Alice", "alice.png", False)
    ]
    assert fields(second, "name", "display_name", "icon") == ["claude", "Claude Code", "claude.svg"]
    assert [json.loads(row["core_document"])["of"] for row in (first, second)] == ["32-1", "32-2"]
    assert [json.loads(row["cause"])["kind"] for row in (first, second)] == ["report", "command"]
    assert [fields(row, "previous_status", "previous_state", "prompt") for row in (first, second, third, fourth)] == [
        [None, None, "p32-1"], ["pending", "", "p32-1"], [None, "working", "p32-3"], [None, None, "p32-3"]
    ]  # fmt: skip
    dora = rows[OF_DORA, 1]
    assert fields(dora, "username", "name", "organization_id", "prompt") == ["Dora", "betas", BETA, "p34-1"]
    assert [rows[task, 1]["erased"] for task in (DELETED, OF_DORA)] == [True, False]
    await execute(engine, "DELETE FROM task_events WHERE version = 1")
    row = (await feed.changes_after(reader, 3, 1)).rows[0]
    assert fields(row, "position", "kind", "core_document", "prompt") == [4, None, None, None]


async def test_the_event_of_a_change_has_its_version_and_its_time(reader: ReadPool, engine: AsyncEngine) -> None:
    """Neither alone says which of several it is."""
    async with transaction(engine) as connection:
        for statement in (
            "DELETE FROM task_events WHERE version = 3",
            "UPDATE task_events SET version = 3 WHERE version = 2",
            "UPDATE task_events SET version = 4, occurred_at = '2026-01-01T00:03Z' WHERE version = 1",
            "UPDATE task_events SET occurred_at = '2026-01-01T00:03Z' WHERE version = 3",
            "UPDATE task_events SET kind = kind WHERE occurred_at = '2026-01-01T00:04Z'",  # now last in the table
        ):
            await connection.execute(text(statement))
    rows = {row["version"]: row for row in (await feed.changes_after(reader, 0, 20)).rows if row["task_id"] == OF_ALICE}
    documents = {
        version: row["core_document"] and json.loads(row["core_document"])["of"] for version, row in rows.items()
    }
    assert documents == {1: None, 2: None, 3: "32-2", 4: "32-4"}
    timeline = await feed.timeline(reader, ALICE, OF_ALICE, 5, 10)
    assert [json.loads(row["core_document"])["of"] for row in timeline] == ["32-2", "32-4"]


@pytest.mark.parametrize(("since", "expected"), [("00:02", [2, 3, 4]), ("00:05", []), ("00:01", [1, 2, 3, 4])])
async def test_since_when_a_task_is_in_its_state(
    reader: ReadPool, engine: AsyncEngine, since: str, expected: list[int]
) -> None:
    """Not said of a change after which it has come into another one."""
    await execute(engine, f"""UPDATE tasks SET state = '{{"since":"2026-01-01T{since}:00Z"}}'""")
    rows = [row for row in (await feed.changes_after(reader, 0, 20)).rows if row["task_id"] == OF_ALICE]
    known = {row["version"]: row["state_since"] for row in rows if row["state_since"] is not None}
    assert known == dict.fromkeys(expected, f"2026-01-01T{since}:00Z")


def summary(page: FeedPage) -> tuple[int, list[int], bool]:
    """Return a page with its positions instead of its rows."""
    return page.until, [row["position"] for row in page.rows], page.more


async def test_a_caller_catches_up_with_what_the_caller_sees(reader: ReadPool) -> None:
    """Page by page: the position to go on after is that of the page, even if there is nothing on it to see."""

    async def catch_up(
        caller: UUID, after: int, limit: int, owner: UUID | None = None, organization: UUID | None = None
    ) -> tuple[int, list[int], bool]:
        return summary(await feed.catch_up(reader, caller, after, limit, owner=owner, organization=organization))

    for caller in EVERYBODY:
        assert await catch_up(caller, 0, 20) == (10, positions(caller), False)
    assert await catch_up(EVE, 10, 20) == (10, [], False)
    assert await catch_up(DORA, 0, 2) == (3, [], True)
    for owner, organization, expected in (
        (None, BETA, [6]), (DORA, None, [6]), (ALICE, None, [4, 5, 7, 8, 9]), (DORA, ACME, []),
        (ALICE, ACME, [4, 5, 7, 8, 9]), (BOB, None, []),
    ):  # fmt: skip
        assert await catch_up(ALICE, 0, 20, owner, organization) == (10, expected, False)
    assert await catch_up(ALICE, 4, 3) == (7, [5, 6, 7], True)
    page = await feed.catch_up(reader, ALICE, 4, 3, owner=None, organization=None)
    assert fields(page.rows[0], "previous_status", "prompt", "username") == ["pending", "p32-1", "Alice"]


async def test_a_caller_catches_up_with_one_task(reader: ReadPool) -> None:
    """As with all; a deletion is also received."""
    for task_id, callers in SEEN_EVEN_DELETED.items():
        expected = sorted(position for position, each, _ in POSITIONS if each == task_id)
        for caller in EVERYBODY:
            page = await feed.catch_up_task(reader, caller, 0, 20, task_id)
            assert summary(page) == (expected[-1], expected if caller in callers else [], False)
            assert await feed.visible_even_deleted(reader, caller, task_id) is (caller in callers)
    assert summary(await feed.catch_up_task(reader, ALICE, 4, 2, OF_ALICE)) == (8, [5, 8], True)
    assert summary(await feed.catch_up_task(reader, ALICE, 9, 2, OF_ALICE)) == (9, [], False)


async def test_a_page_ends_where_its_changes_reach_a_size(
    reader: ReadPool, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has one change at least, and its position is that of its last change: what is left out comes on the next."""
    await execute(engine, "UPDATE task_prompts SET prompt = repeat('x', 100000)")
    monkeypatch.setattr("taskherd.store.feed.MAX_PAGE_BYTES", 100_000)
    assert summary(await feed.changes_after(reader, 3, 20)) == (4, [4], True)
    assert summary(await feed.changes_after(reader, 9, 20)) == (10, [10], False)
    pages, after = [(5, [5], True), (6, [6], True), (8, [7, 8], True), (10, [9], False)], 4
    for expected in pages:  # the deleted task has no prompt
        page = await feed.catch_up(reader, ALICE, after, 20, owner=None, organization=None)
        assert summary(page) == expected
        after = page.until
    for after, expected in ((4, (5, [5], True)), (5, (8, [8], True)), (8, (9, [9], False))):
        assert summary(await feed.catch_up_task(reader, ALICE, after, 20, OF_ALICE)) == expected
    monkeypatch.setattr("taskherd.store.feed.MAX_PAGE_BYTES", 100_000_000)
    assert summary(await feed.changes_after(reader, 0, 20)) == (10, positions(), False)
    assert summary(await feed.changes_after(reader, 0, len(POSITIONS))) == (10, positions(), True)


async def test_a_timeline_ends_where_its_changes_reach_a_size(
    reader: ReadPool, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has one change at least: the first, or with ``newest`` the last."""
    await execute(engine, "UPDATE task_prompts SET prompt = repeat('x', 100000)")
    monkeypatch.setattr("taskherd.store.feed.MAX_PAGE_BYTES", 100_000)
    for newest, expected in ((False, [4, 5, 8]), (True, [8, 9])):
        rows = await feed.timeline(reader, ALICE, OF_ALICE, 0, 20, newest=newest)
        assert [row["position"] for row in rows] == expected
        assert {row["found"] for row in rows} == {4}
    monkeypatch.setattr("taskherd.store.feed.MAX_PAGE_BYTES", 1)
    for newest, expected in ((False, [4]), (True, [9])):
        rows = await feed.timeline(reader, ALICE, OF_ALICE, 0, 20, newest=newest)
        assert [row["position"] for row in rows] == expected


async def test_which_changes_the_feed_will_deliver(reader: ReadPool, engine: AsyncEngine) -> None:
    """Those after a position, and those that are not published yet or come after one that is not."""
    await execute(engine, f"INSERT INTO outbox (task_id, version, occurred_at) VALUES ('{OF_DORA}', 2, now())")
    versions = [(OF_ALICE, 2), (OF_BOB, 1), (OF_DORA, 3), (OF_EVE, 1), (OF_ZED, 2)]
    assert await feed.will_replay(reader, 4, versions) == {OF_ALICE: 2, OF_DORA: 3, OF_EVE: 1}
    assert await feed.will_replay(reader, 5, versions) == {OF_DORA: 3, OF_EVE: 1}
    assert await feed.will_replay(reader, 5, [(OF_DORA, 1), (OF_DORA, 2)]) == {OF_DORA: 2}
    assert await feed.will_replay(reader, 9, [(OF_DORA, 1), (OF_ALICE, 4)]) == {}


async def test_the_timeline_of_a_task(reader: ReadPool) -> None:
    """Each change with the document and the prompt before it, and the name of who made it."""
    rows = await feed.timeline(reader, ALICE, OF_ALICE, 0, 10)
    assert [row["position"] for row in rows] == [4, 5, 8, 9]
    assert [json.loads(row["core_document"])["of"] for row in rows] == ["32-1", "32-2", "32-3", "32-4"]
    before = [row["core_document_before"] for row in rows]
    assert [each and json.loads(each)["of"] for each in before] == [None, "32-1", "32-2", "32-3"]
    assert [fields(row, "prompt", "prompt_before", "actor_name") for row in rows] == [
        [None, None, None], [None, None, "Bob"], ["p32-3", "p32-1", "Eve"], [None, None, "Eve"]
    ]  # fmt: skip
    for after, limit, newest, expected in (
        (4, 2, False, [5, 8]), (4, 2, True, [8, 9]), (0, 3, True, [5, 8, 9]), (9, 2, False, [None]),
    ):  # fmt: skip
        rows = await feed.timeline(reader, ALICE, OF_ALICE, after, limit, newest=newest)
        assert [row["position"] for row in rows] == expected
    for task_id, callers in SEEN.items():
        for caller in EVERYBODY:
            assert bool(await feed.timeline(reader, caller, task_id, 0, 10)) is (caller in callers)


async def test_the_states_that_a_task_was_in(reader: ReadPool) -> None:
    """Of the newest changes, the oldest first."""
    names = ("status", "state", "health", "exit", "requests_open")
    rows = await feed.states(reader, ALICE, OF_ALICE, 3)
    assert [fields(row, *names) for row in rows] == [
        ["active", "working", None, None, 0],
        ["active", "idle", "lost", "crash", 2],
        ["paused", "idle", None, None, 0],
    ]
    assert [row["occurred_at"].minute for row in rows] == [2, 3, 4]
    for task_id, callers in SEEN.items():
        for caller in EVERYBODY:
            assert len(await feed.states(reader, caller, task_id, 10)) == (4 if caller in callers else 0)


INPUTS = "".join(
    f"INSERT INTO inputs (input_id, task_id, ordinal, content, state, created_at, actor_id) VALUES"
    f" ('{UUID(int=number)}', '{task}', {ordinal}, 'input {number}', 'queued', now(), {actor});\n"
    for number, task, ordinal, actor in (
        (1, OF_BOB, 1, f"'{ZED}'"),
        (2, OF_ALICE, 2, f"'{BOB}'"),
        (3, OF_ALICE, 3, f"'{UUID(int=99)}'"),
        (4, OF_ALICE, 1, f"'{ALICE}'"),
        (5, OF_ALICE, 4, "NULL"),
        (6, DELETED, 1, f"'{ALICE}'"),
    )
)


async def test_the_inputs_of_a_task(reader: ReadPool, engine: AsyncEngine) -> None:
    """The newest, the oldest first, each with the name of who sent it, or else the id."""
    await execute_script(engine, INPUTS)
    rows = await feed.actions(reader, ALICE, OF_ALICE, 3)
    assert [fields(row, "input", "actor_name") for row in rows] == [
        ["input 2", "Bob"], ["input 3", str(UUID(int=99))], ["input 5", None]
    ]  # fmt: skip
    assert len(await feed.actions(reader, ADA, OF_ALICE, 10)) == 4
    for caller, task_id in ((BOB, OF_ALICE), (ALICE, OF_BOB), (ALICE, DELETED), (ALICE, OF_DORA)):
        assert await feed.actions(reader, caller, task_id, 10) == []
