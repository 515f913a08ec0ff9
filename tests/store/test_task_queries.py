"""What callers read of tasks: only those that they see, each with its own prompt and names, in a stated order."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from taskherd.store import task_queries
from taskherd.store.engine import transaction
from taskherd.store.read_pool import ReadPool, Row
from taskherd.store.task_lists import Between, Listed
from taskherd.store.task_queries import TaskFilter, TaskRef
from tests.store.conftest import execute_script, reading_whole_tables
from tests.store.world import (
    ACME,
    ADA,
    ALICE,
    BETA,
    BETAS,
    BOB,
    CLAUDE,
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
    V_BETAS,
    V_CLAUDE,
    V_UNUSED,
    WORLD,
    ZED,
)

WORKSPACE, OTHER_WORKSPACE, REUSED_WORKSPACE = UUID(int=0x71), UUID(int=0x72), UUID(int=0x74)
TASKS: tuple[UUID, ...] = (OF_ZED, OF_ALICE, OF_BOB, OF_DORA, DELETED, OF_EVE)

PROMPTS = "".join(
    f"INSERT INTO task_prompts (task_id, version, prompt) VALUES ('{task}', 3, 'later'), ('{task}', 1, 'first'),"
    f" ('{task}', 2, 'of {number}');\n"
    for number, task in enumerate(TASKS)
)
BUILDS = f"""
INSERT INTO task_builds (build_id, task_id, number, transition, job_status, workspace_id, created_at, updated_at) VALUES
    (gen_random_uuid(), '{OF_ALICE}', 1, 'start', 'succeeded', '{OTHER_WORKSPACE}', now(), now()),
    (gen_random_uuid(), '{OF_DORA}', 2, 'start', 'succeeded', '{WORKSPACE}', now(), now()),
    (gen_random_uuid(), '{OF_ALICE}', 3, 'start', 'succeeded', '{WORKSPACE}', now(), now()),
    (gen_random_uuid(), '{OF_ALICE}', 4, 'start', 'succeeded', '{REUSED_WORKSPACE}', now(), now()),
    (gen_random_uuid(), '{DELETED}', 5, 'start', 'succeeded', '{REUSED_WORKSPACE}', now(), now()),
    (gen_random_uuid(), '{DELETED}', 1, 'start', 'succeeded', '{DELETED}', now(), now());
"""


@pytest.fixture
async def reader(database_url: str, engine: AsyncEngine) -> AsyncIterator[ReadPool]:
    """Yield a pool for readers, with tasks of several people."""
    await execute_script(engine, WORLD + PROMPTS + BUILDS)
    async with reading_whole_tables(database_url) as pool:
        yield pool


async def execute(engine: AsyncEngine, statement: str) -> None:
    """Execute a statement in a transaction of its own."""
    async with transaction(engine) as connection:
        await connection.execute(text(statement))


def fields(row: Row | None, *names: str) -> list[Any]:
    """Return some columns of a row that exists."""
    assert row is not None
    return [row[name] for name in names]


async def test_a_task_is_found_by_its_id_on_behalf_of_who_sees_it(reader: ReadPool) -> None:
    """Whoever of those the caller knows the path names; admins know former members, members do not."""
    for task_id, callers in SEEN.items():
        for caller in EVERYBODY:
            found = await task_queries.find_id(reader, TaskRef(caller, caller, task_id))
            assert found == (task_id if caller in callers else None)
    for caller, user, task_id, is_found in (
        (ALICE, "BOB", OF_ALICE, True), (ALICE, BOB, OF_ALICE, True), (ALICE, "alice", OF_ALICE, True),
        (ALICE, "zed", OF_ALICE, False), (ALICE, ZED, OF_ALICE, False), (ALICE, "nobody", OF_ALICE, False),
        (ALICE, EVE, OF_ALICE, False), (ADA, EVE, OF_ALICE, True), (ADA, "eve", OF_ALICE, True),
        (BOB, DORA, OF_BOB, False), (BOB, "alice", OF_ALICE, False), (EVE, "eve", OF_EVE, False),
    ):  # fmt: skip
        found = await task_queries.find_id(reader, TaskRef(caller, user, task_id))
        assert found == (task_id if is_found else None), (caller, user)


async def test_a_task_is_found_by_the_name_that_its_owner_gave_it(reader: ReadPool, engine: AsyncEngine) -> None:
    """In any case; a name may also look like an id."""
    for caller, user, name, expected in (
        (ALICE, ALICE, "fix-it", OF_ALICE), (ALICE, "ALICE", "FIX-IT", OF_ALICE), (ADA, "bob", "Fix-it", OF_BOB),
        (ADA, BOB, "fix-it", OF_BOB), (ALICE, DORA, "fix-it", OF_DORA), (ADA, EVE, "fix-it", OF_EVE),
        (ALICE, BOB, "fix-it", None), (EVE, EVE, "fix-it", None), (ALICE, ALICE, "gone", None),
        (ALICE, ALICE, "fix", None), (ALICE, ALICE, "", None),
    ):  # fmt: skip
        assert await task_queries.find_id(reader, TaskRef(caller, user, name)) == expected, (caller, user, name)
    looks_like_an_id = UUID(int=0xFEED)
    await execute(engine, f"UPDATE tasks SET name = '{looks_like_an_id.hex}' WHERE id = '{OF_BOB}'")
    assert await task_queries.find_id(reader, TaskRef(ADA, BOB, looks_like_an_id)) == OF_BOB
    assert await task_queries.find_id(reader, TaskRef(ADA, ALICE, looks_like_an_id)) is None


async def test_a_task_is_found_by_the_id_of_its_workspace(reader: ReadPool) -> None:
    """Of several tasks that had it, the one of the latest build: of those that the caller may see and that exist."""
    for caller, user, workspace, expected in (
        (ALICE, ALICE, WORKSPACE, OF_ALICE), (ALICE, BOB, WORKSPACE, OF_ALICE), (ALICE, ZED, WORKSPACE, None),
        (ADA, ADA, OTHER_WORKSPACE, OF_ALICE), (DORA, DORA, WORKSPACE, OF_DORA), (ALICE, ALICE, DELETED, None),
        (ALICE, ALICE, REUSED_WORKSPACE, OF_ALICE),
        (BOB, BOB, WORKSPACE, None), (ALICE, ALICE, UUID(int=0x73), None),
    ):  # fmt: skip
        assert await task_queries.find_id(reader, TaskRef(caller, user, workspace)) == expected


async def test_the_document_of_a_task_is_made_of_its_own_parts(reader: ReadPool, engine: AsyncEngine) -> None:
    """Its prompt is the one that it has now; since when it is in its state is read only on demand."""
    await execute(engine, "UPDATE directory_revision SET revision = 7")
    row = await task_queries.task(reader, TaskRef(ALICE, ALICE, OF_ALICE), with_state_since=True)
    names = ("id", "version", "revision", "prompt", "username", "avatar_url", "organization_id")
    assert fields(row, *names) == [OF_ALICE, 2, 7, "of 1", "Alice", "alice.png", ACME]
    assert fields(row, "name", "display_name", "icon", "state_since") == [
        *("claude", "Claude Code", "claude.svg", "2026-01-01T00:00:00Z")
    ]
    row = await task_queries.task(reader, TaskRef(ALICE, ALICE, OF_DORA))
    assert fields(row, "id", "prompt", "username", "name", "template_id") == [OF_DORA, "of 3", "Dora", "betas", BETAS]
    assert row is not None
    assert "state_since" not in dict(row)
    listed, _ = await task_queries.tasks(reader, TaskFilter(ALICE, 5))
    assert [fields(row, "id", "prompt", "username", "name") for row in listed] == [
        [OF_DORA, "of 3", "Dora", "betas"], [OF_ALICE, "of 1", "Alice", "claude"]
    ]  # fmt: skip
    assert [row["sorted_at"] for row in listed] == [row["created_at"] for row in listed]
    assert ["state_since" in dict(row) for row in listed] == [False, False]


def hours(hour: int) -> datetime:
    """Return the time that is so many hours after that of the first task."""
    return datetime(2026, 1, 1, hour, tzinfo=UTC)


async def listed(reader: ReadPool, criteria: TaskFilter) -> Sequence[UUID]:
    """Return the ids of the tasks of a list, which are the same with and without documents."""
    ids = await task_queries.task_ids(reader, criteria)
    page = await task_queries.tasks(reader, criteria)
    assert [row["id"] for row in page.rows] == ids[: criteria.limit]
    assert page.more == (len(ids) > criteria.limit)
    return ids


async def test_lists_of_tasks_are_of_those_that_the_caller_sees(reader: ReadPool, engine: AsyncEngine) -> None:
    """The newest first: all, those of an owner or of an organization. A task that an admin owns is listed once."""
    for caller, all_of_them in (
        (ALICE, [OF_DORA, OF_ALICE]), (ADA, [OF_BOB, OF_EVE, OF_ALICE]), (BOB, [OF_BOB]), (EVE, []), (DORA, [OF_DORA]),
    ):  # fmt: skip
        assert await listed(reader, TaskFilter(caller, 5)) == all_of_them
        for owner, task_id in ((ALICE, OF_ALICE), (BOB, OF_BOB), (DORA, OF_DORA), (EVE, OF_EVE), (ZED, OF_ZED)):
            assert await listed(reader, TaskFilter(caller, 5, owner=owner)) == [
                each for each in all_of_them if each == task_id
            ]
        for organization, tasks in ((ACME, {OF_ALICE, OF_BOB, OF_EVE}), (BETA, {OF_DORA})):
            expected = [each for each in all_of_them if each in tasks]
            assert await listed(reader, TaskFilter(caller, 5, organization=organization)) == expected
    await execute(engine, f"UPDATE tasks SET organization_id = '{BETA}' WHERE id = '{OF_ALICE}'")
    assert await listed(reader, TaskFilter(ALICE, 5)) == [OF_DORA, OF_ALICE]
    assert await listed(reader, TaskFilter(ADA, 5)) == [OF_BOB, OF_EVE]


async def test_lists_of_tasks_are_in_pages(reader: ReadPool, engine: AsyncEngine) -> None:
    """One more is returned if there are more; those of the same time are in the order of their ids."""
    assert await listed(reader, TaskFilter(ADA, 1)) == [OF_BOB, OF_EVE]
    assert await listed(reader, TaskFilter(ADA, 1, after=(hours(4), OF_BOB))) == [OF_EVE, OF_ALICE]
    assert await listed(reader, TaskFilter(ADA, 1, after=(hours(2), OF_EVE))) == [OF_ALICE]
    await execute(engine, f"UPDATE tasks SET created_at = '{hours(9).isoformat()}' WHERE deleted_at IS NULL")
    assert await listed(reader, TaskFilter(ADA, 5)) == [OF_EVE, OF_BOB, OF_ALICE]
    assert await listed(reader, TaskFilter(ADA, 1, after=(hours(9), OF_EVE))) == [OF_BOB, OF_ALICE]
    assert await listed(reader, TaskFilter(ADA, 5, after=(hours(9), OF_BOB))) == [OF_ALICE]


async def test_lists_of_tasks_are_of_those_that_match(reader: ReadPool, engine: AsyncEngine) -> None:
    """By creation, by a part of the name and by the status of the workspace, in every combination."""
    await execute(
        engine,
        f"""UPDATE tasks SET name = 'Fix-That', document = '{{"workspace_status":"stopped"}}'
        WHERE id IN ('{OF_EVE}', '{OF_ZED}')""",
    )
    for criteria, expected in (
        (TaskFilter(ADA, 5, created=Between(after=hours(1))), [OF_BOB, OF_EVE]),
        (TaskFilter(ADA, 5, created=Between(before=hours(4))), [OF_EVE, OF_ALICE]),
        (TaskFilter(ADA, 5, created=Between(hours(1), hours(4))), [OF_EVE]),
        (TaskFilter(ADA, 5, name="x-t"), [OF_EVE]),
        (TaskFilter(ADA, 5, name="fix-i"), [OF_BOB, OF_ALICE]),
        (TaskFilter(ADA, 5, name="x_t"), []),
        (TaskFilter(ADA, 5, workspace_status="stopped"), [OF_EVE]),
        (TaskFilter(ADA, 5, name="fix", listed=Listed(template="claude")), [OF_BOB, OF_EVE, OF_ALICE]),
        (TaskFilter(ALICE, 5, name="fix", listed=Listed(template="betas")), [OF_DORA]),
        (TaskFilter(ADA, 5, name="fix", listed=Listed(template="unused")), []),
        (TaskFilter(ADA, 5, name="fix", workspace_status="running"), []),
        (TaskFilter(ADA, 5, workspace_status="stopped", listed=Listed(template="claude")), [OF_EVE]),
    ):
        assert await listed(reader, criteria) == expected, criteria


async def test_what_no_index_has_is_looked_for_among_the_newest_tasks(
    reader: ReadPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the caller, and of each organization; a list without such a search has all."""
    monkeypatch.setattr("taskherd.store.task_queries.MAX_SEARCHED", 2)
    assert await listed(reader, TaskFilter(ADA, 5, name="fix")) == [OF_BOB, OF_EVE]
    assert await listed(reader, TaskFilter(ADA, 5, name="fix", owner=ALICE)) == [OF_ALICE]
    assert await listed(reader, TaskFilter(ADA, 5, name="fix", after=(hours(4), OF_BOB))) == [OF_EVE, OF_ALICE]
    assert await listed(reader, TaskFilter(ADA, 5)) == [OF_BOB, OF_EVE, OF_ALICE]


INDEXED = "".join(
    f"INSERT INTO task_index_changes (task_id, organization_id, owner_id, template_id, pool, status, state, health,"
    f" waiting, stalled, created_at, changed_at, terms, deleted) VALUES ('{task}', '{ACME}', '{owner}', '{CLAUDE}',"
    f" 'p', '{status}', 'working', 'none', false, false, '{hours(created)}', '{hours(changed)}', '[]', {deleted});\n"
    for task, owner, status, created, changed, deleted in (
        (OF_ALICE, ALICE, "active", 1, 7, False),
        (OF_BOB, BOB, "paused", 4, 5, False),
        (DELETED, ALICE, "active", 5, 9, True),
        (OF_EVE, EVE, "active", 2, 6, False),
    )
)


async def test_lists_that_the_index_of_tasks_serves(reader: ReadPool, engine: AsyncEngine) -> None:
    """By the time of change, of some tasks only, or by what else is in it; the newest first, or the oldest."""
    await execute_script(engine, INDEXED)
    active = Listed(status="active")
    for criteria, expected in (
        (TaskFilter(ADA, 5, by_change=True), [OF_ALICE, OF_EVE, OF_BOB]),
        (TaskFilter(ADA, 1, by_change=True), [OF_ALICE, OF_EVE]),
        (TaskFilter(ADA, 5, by_change=True, oldest_first=True), [OF_BOB, OF_EVE, OF_ALICE]),
        (TaskFilter(ADA, 5, by_change=True, after=(hours(7), OF_ALICE)), [OF_EVE, OF_BOB]),
        (TaskFilter(ADA, 5, by_change=True, after=(hours(6), OF_EVE), oldest_first=True), [OF_ALICE]),
        (TaskFilter(ADA, 5, by_change=True, changed=Between(after=hours(5)), created=Between(after=hours(9))),
         [OF_ALICE, OF_EVE]),
        (TaskFilter(ADA, 5, ids=[OF_BOB, OF_ALICE, DELETED]), [OF_BOB, OF_ALICE]),
        (TaskFilter(ADA, 5, ids=[]), []),
        (TaskFilter(ADA, 5, listed=active), [OF_EVE, OF_ALICE]),
        (TaskFilter(ADA, 5, listed=active, changed=Between(after=hours(9)), created=Between(before=hours(2))),
         [OF_ALICE]),
        (TaskFilter(ADA, 5, listed=active, owner=EVE), [OF_EVE]),
        (TaskFilter(ADA, 5, listed=active, organization=BETA), []),
        (TaskFilter(BOB, 5, listed=active), []),
    ):  # fmt: skip
        assert await listed(reader, criteria) == expected, criteria
    rows, _ = await task_queries.tasks(reader, TaskFilter(ADA, 5, by_change=True, with_state_since=True))
    assert [fields(row, "id", "sorted_at", "prompt", "state_since") for row in rows] == [
        [OF_ALICE, hours(7), "of 1", "2026-01-01T00:00:00Z"],
        [OF_EVE, hours(6), "of 5", "2026-01-01T00:00:00Z"],
        [OF_BOB, hours(5), "of 2", "2026-01-01T00:00:00Z"],
    ]


APPLIED = """
INSERT INTO task_index (task_id, term, organization_id, owner_id, template_id, pool, status, state, health, waiting,
                        stalled, created_at, changed_at)
SELECT task_id, '', organization_id, owner_id, template_id, pool, status, state, health, waiting,
       stalled, created_at, changed_at
FROM task_index_changes WHERE NOT deleted;
DELETE FROM task_index_changes;
"""


@pytest.mark.parametrize("applied", ["", APPLIED], ids=["recorded", "applied"])
async def test_who_may_see_tasks_is_asked_again_when_a_list_names_them(
    reader: ReadPool, engine: AsyncEngine, applied: str
) -> None:
    """A stream finds the ids of its tasks once, and reads the documents page by page, perhaps much later."""
    await execute_script(engine, INDEXED + applied)
    named = [OF_ALICE, OF_BOB, OF_EVE]
    for caller in EVERYBODY:
        found = await listed(reader, TaskFilter(caller, 5, ids=named))
        assert set(found) == {task for task in named if caller in SEEN[task]}, caller
    assert await listed(reader, TaskFilter(ADA, 5, ids=named)) == [OF_BOB, OF_EVE, OF_ALICE]
    for lost in ("role = 'member'", "role = 'admin', active = false"):
        await execute(engine, f"UPDATE memberships SET {lost} WHERE user_id = '{ADA}'")
        assert await listed(reader, TaskFilter(ADA, 5, ids=named)) == []
        assert (await task_queries.tasks(reader, TaskFilter(ADA, 5, ids=named))).rows == []


@pytest.mark.parametrize(
    "wanted",
    [TaskFilter(ADA, 5), TaskFilter(ADA, 5, by_change=True), TaskFilter(ADA, 5, by_change=True, oldest_first=True)],
    ids=["by the tasks", "by the index", "the oldest first"],
)
async def test_a_page_ends_where_its_documents_reach_a_size(
    reader: ReadPool, engine: AsyncEngine, wanted: TaskFilter
) -> None:
    """It has one task at least, says that there are more, and the next one goes on after it."""
    await execute_script(engine, INDEXED)
    await execute(engine, "UPDATE task_prompts SET prompt = repeat('x', 100000)")
    whole = await task_queries.tasks(reader, wanted)
    ids, document = [row["id"] for row in whole.rows], len(whole.rows[0]["core_document"])
    assert len(ids) == 3
    for max_bytes, kept in ((1, 1), (100_000 + document, 1), (100_001 + document, 2), (500_000, 3)):
        page = await task_queries.tasks(reader, replace(wanted, max_bytes=max_bytes))
        assert [row["id"] for row in page.rows] == ids[:kept]
        assert page.more == (kept < 3)
    place = (whole.rows[0]["sorted_at"], ids[0])
    page = await task_queries.tasks(reader, replace(wanted, max_bytes=1, after=place))
    assert ([row["id"] for row in page.rows], page.more) == (ids[1:2], True)


LOGS = "".join(
    f"""
    INSERT INTO task_logs (task_id, log_id, build_number, entry_id, seq, type, content, data, time, logged_at,
                           first_seq, revision)
    VALUES ('{task}', {log_id}, 1, {log_id}, 1, 'output', '{content}', {data}, now(), now(), {first_seq}, {revision});
"""
    for task, log_id, content, data, first_seq, revision in (
        (OF_BOB, 0, "x", "NULL", 1, 9),
        (OF_ALICE, 3, "dddd", "NULL", 3, 4),
        (OF_ALICE, 0, "a", "NULL", 0, 1),
        (OF_ALICE, 1, "bb", "NULL", 4, 5),
        (OF_ALICE, 2, "c", "'[1]'", 2, 3),
    )
) + (f"INSERT INTO task_log_heads (task_id, next_log_id, revision) VALUES ('{OF_BOB}', 1, 9), ('{OF_ALICE}', 4, 5);\n")


async def test_the_newest_entries_of_a_log_that_fit(reader: ReadPool, engine: AsyncEngine) -> None:
    """By number and by size, with their data; in the order in which they were made."""
    await execute_script(engine, LOGS)

    async def contents(
        after: int = -1, before: int = 9, entries: int = 10, content_bytes: int = 100
    ) -> list[str | None]:
        bounds = {"after": after, "before": before, "entries": entries, "content_bytes": content_bytes}
        return [row["content"] for row in await task_queries.logs(reader, ALICE, OF_ALICE, **bounds)]

    assert await contents() == ["a", "c", "dddd", "bb"]
    assert await contents(0) == ["c", "dddd", "bb"]
    assert await contents(before=3) == ["a", "c", "bb"]
    assert await contents(entries=2) == ["c", "dddd"]
    assert await contents(content_bytes=8) == ["c", "dddd"]
    assert await contents(content_bytes=7) == ["dddd"]
    assert await contents(content_bytes=10) == ["c", "dddd", "bb"]
    assert await contents(3) == [None]
    for task_id, callers in SEEN.items():
        for caller in EVERYBODY:
            rows = await task_queries.logs(reader, caller, task_id, after=-1, before=9, entries=1, content_bytes=9)
            assert bool(rows) is (caller in callers)
    for task_id, revision, last in ((OF_ALICE, 5, "bb"), (OF_DORA, 0, None)):
        row = (await task_queries.logs(reader, ALICE, task_id, after=-1, before=9, entries=9, content_bytes=99))[-1]
        assert fields(row, "status", "log_revision", "content") == ["active", revision, last]


async def test_the_newest_changes_of_a_log_that_fit(reader: ReadPool, engine: AsyncEngine) -> None:
    """They say how many there are, at most one more than were asked for."""
    await execute_script(engine, LOGS)

    async def changed(after: int, entries: int = 10, content_bytes: int = 100) -> tuple[int, list[str | None]]:
        rows = await task_queries.changed_logs(
            reader, ALICE, OF_ALICE, after=after, entries=entries, content_bytes=content_bytes
        )
        return rows[0]["found"], [row["content"] for row in rows]

    assert await changed(0) == (4, ["a", "c", "dddd", "bb"])
    assert await changed(3) == (2, ["dddd", "bb"])
    assert await changed(0, 3) == (4, ["c", "dddd", "bb"])
    assert await changed(0, 1) == (2, ["bb"])
    assert await changed(0, content_bytes=6) == (4, ["dddd", "bb"])
    assert await changed(0, content_bytes=5) == (4, ["bb"])
    assert await changed(2, content_bytes=10) == (3, ["c", "dddd", "bb"])
    assert await changed(5) == (0, [None])
    await execute(engine, "UPDATE task_logs SET revision = 7")
    assert await changed(6, content_bytes=4) == (4, ["dddd"])
    assert await changed(6, 2) == (3, ["c", "dddd"])
    await execute(engine, "UPDATE task_logs SET revision = log_id + 1")
    for task_id, callers in SEEN.items():
        for caller in EVERYBODY:
            rows = await task_queries.changed_logs(reader, caller, task_id, after=0, entries=1, content_bytes=9)
            assert bool(rows) is (caller in callers)


INPUTS = f"""
INSERT INTO inputs (input_id, task_id, ordinal, content, state, created_at, sent_at, decided_at, actor_id,
                    steers) VALUES
    ('{UUID(int=1)}', '{OF_BOB}', 9, 'other', 'queued', '2026-01-09T00:00Z', NULL, NULL, '{ZED}', false),
    ('{UUID(int=2)}', '{OF_ALICE}', 2, 'second', 'queued', '2026-01-02T00:00Z', NULL, NULL, '{BOB}', false),
    ('{UUID(int=3)}', '{OF_ALICE}', 1, 'first', 'delivered', '2026-01-01T00:00Z', now(), now(), '{ZED}', false),
    ('{UUID(int=4)}', '{OF_ALICE}', 5, 'fifth', 'queued', '2026-01-05T00:00Z', NULL, NULL, '{ADA}', true),
    ('{UUID(int=5)}', '{OF_ALICE}', 4, 'fourth', 'queued', '2026-01-04T00:00Z', NULL, NULL, '{BOB}', true),
    ('{UUID(int=6)}', '{OF_ALICE}', 3, 'third', 'sent', '2026-01-03T00:00Z', now(), NULL, '{BOB}', false);
"""
REQUESTS = f"""
INSERT INTO work_requests (request_id, task_id, build_number, type, attempt, created_at, next_at) VALUES
    ('{UUID(int=1)}', '{OF_BOB}', 1, 'build.start', 1, '2026-01-01T00:00Z', now()),
    ('{UUID(int=4)}', '{OF_ALICE}', 1, 'agent.input', 1, '2026-01-02T00:00Z', now()),
    ('{UUID(int=2)}', '{OF_ALICE}', 1, 'agent.input', 1, '2026-01-03T00:00Z', now()),
    ('{UUID(int=3)}', '{OF_ALICE}', 1, 'agent.input', 1, '2026-01-02T00:00Z', now());
"""


async def test_the_revisions_of_logs_with_the_inputs(reader: ReadPool, engine: AsyncEngine) -> None:
    """Of each task its own; of a task without a log or inputs, 0."""
    await execute_script(engine, LOGS + INPUTS)
    rows = await task_queries.log_revisions(reader, [OF_ALICE, DELETED, OF_DORA, OF_BOB, UUID(int=99)])
    assert sorted(fields(row, "id", "deleted", "revision", "last_input", "waiting_inputs") for row in rows) == [
        [OF_ALICE, False, 5, 5, 4], [OF_BOB, False, 9, 9, 1], [OF_DORA, False, 0, 0, 0], [DELETED, True, 0, 0, 0]
    ]  # fmt: skip


EVENTS = "".join(
    f"INSERT INTO task_events (task_id, version, occurred_at, kind, document, changes, cause, prompt_version) VALUES"
    f" ('{task}', {version}, '{day}', 'updated', '{{}}', '{{}}', '{json.dumps(cause)}', 1);\n"
    for task, version, day, cause in (
        (OF_BOB, 9, "2026-01-09T00:00Z", {"kind": "command", "type": "task.resume", "actor_id": str(ZED)}),
        (OF_ALICE, 1, "2026-01-01T00:00Z", {"kind": "command", "type": "task.create", "actor_id": str(ALICE)}),
        (OF_ALICE, 3, "2026-01-06T00:00Z", {"kind": "report", "type": "app.status"}),
        (OF_ALICE, 2, "2026-01-04T12:00Z", {"kind": "command", "type": "task.pause", "actor_id": str(BOB)}),
    )
)


async def explained(reader: ReadPool, task_id: UUID = OF_ALICE) -> dict[str, Any]:
    """Return the facts of an explanation for Alice."""
    row = await task_queries.explanation_facts(reader, TaskRef(ALICE, ALICE, task_id))
    assert row is not None
    decoded = {name: json.loads(row[name]) if row[name] else None for name in ("last_command", "inbox", "requests")}
    return {"id": row["id"], "version": row["version"], "pool": row["pool"], **decoded}


async def test_what_explains_a_task(reader: ReadPool, engine: AsyncEngine) -> None:
    """Its pool, its last command, which may be a send, and what is open, in the order in which it is handled."""
    facts = await explained(reader)
    assert facts == {
        "id": OF_ALICE, "version": 2, "pool": "gpu", "last_command": None, "inbox": None, "requests": None
    }  # fmt: skip
    assert (await explained(reader, OF_DORA))["pool"] == "default"
    await execute_script(engine, EVENTS + REQUESTS)
    facts = await explained(reader)
    command = facts["last_command"]
    assert [command[name] for name in ("type", "actor_id", "actor_name")] == ["task.pause", str(BOB), "Bob"]
    assert datetime.fromisoformat(command["time"]) == datetime(2026, 1, 4, 12, tzinfo=UTC)
    assert [each["request_id"] for each in facts["requests"]] == [str(UUID(int=number)) for number in (3, 4, 2)]
    await execute_script(engine, INPUTS)
    facts = await explained(reader)
    assert [facts["last_command"][name] for name in ("type", "actor_name")] == ["task.send", "Ada"]
    assert [each["input"] for each in facts["inbox"]] == ["third", "fourth", "fifth", "second"]
    await execute(engine, f"UPDATE inputs SET created_at = '2026-01-03T00:00Z' WHERE task_id = '{OF_ALICE}'")
    assert (await explained(reader))["last_command"]["type"] == "task.pause"
    await execute(engine, f"UPDATE inputs SET created_at = now(), actor_id = '{UUID(int=99)}' WHERE ordinal = 5")
    command = (await explained(reader))["last_command"]
    assert [command[name] for name in ("type", "actor_id", "actor_name")] == ["task.send", str(UUID(int=99)), None]


async def test_the_users_and_organizations_that_a_caller_may_name(reader: ReadPool, engine: AsyncEngine) -> None:
    """In any case, and even those that are not active; the default is by name, then the first that is active."""
    for caller, name, expected in (
        (ALICE, "BOB", BOB), (ALICE, "alice", ALICE), (ALICE, "eve", None), (ADA, "eve", EVE), (BOB, "dora", None),
        (EVE, "eve", EVE), (EVE, "alice", None), (DORA, "alice", ALICE), (ALICE, "zed", None),
    ):  # fmt: skip
        assert await task_queries.user_id(reader, caller, name) == expected, (caller, name)
    for caller, name, organization in (
        (ALICE, "ACME", ACME), (ALICE, "beta", BETA), (BOB, "beta", None), (EVE, "acme", None), (ALICE, "zero", None),
    ):  # fmt: skip
        assert await task_queries.organization_id(reader, caller, name) == organization
    for caller, organization in ((ALICE, ACME), (DORA, BETA), (EVE, None)):
        assert await task_queries.default_organization_id(reader, caller) == organization
    await execute(engine, f"UPDATE organizations SET name = 'Default' WHERE id = '{BETA}'")
    assert await task_queries.default_organization_id(reader, ALICE) == BETA
    await execute(engine, f"UPDATE organizations SET active = false WHERE id = '{BETA}'")
    assert await task_queries.default_organization_id(reader, ALICE) == ACME
    assert await task_queries.organization_id(reader, ALICE, "default") == BETA


async def test_for_whom_an_admin_may_create_tasks(reader: ReadPool, engine: AsyncEngine) -> None:
    """Members of an organization that the caller administers, from the templates of such an organization."""
    for caller, user, version, expected in (
        (ADA, "BOB", V_CLAUDE, (BOB, True)), (ADA, BOB, V_BETAS, (BOB, False)), (ADA, ALICE, V_UNUSED, (ALICE, False)),
        (ADA, ALICE, UUID(int=99), (ALICE, False)), (ADA, EVE, V_CLAUDE, None), (ADA, DORA, V_CLAUDE, None),
        (ADA, ADA, V_CLAUDE, (ADA, True)), (ALICE, BOB, V_CLAUDE, None), (ALICE, DORA, V_BETAS, (DORA, True)),
        (ALICE, "dora", V_CLAUDE, (DORA, False)), (EVE, BOB, V_CLAUDE, None), (BOB, BOB, V_CLAUDE, None),
    ):  # fmt: skip
        assert await task_queries.find_owner(reader, caller, user, version) == expected, (caller, user)
    await execute(engine, f"UPDATE users SET active = false WHERE id = '{BOB}'")
    assert await task_queries.find_owner(reader, ADA, BOB, V_CLAUDE) is None


async def test_what_explains_a_task_is_bounded(reader: ReadPool, engine: AsyncEngine) -> None:
    """The first inputs and requests, the beginning of each input, and the newest changes tell enough."""
    many = f"""
    INSERT INTO inputs (input_id, task_id, ordinal, content, state, created_at)
        SELECT gen_random_uuid(), '{OF_ALICE}', n, repeat('x', 2001), 'queued', '2026-01-01T00:00Z'
        FROM generate_series(1, 102) AS n;
    INSERT INTO work_requests (request_id, task_id, build_number, type, attempt, created_at, next_at)
        SELECT gen_random_uuid(), '{OF_ALICE}', n, 'workspace.start', 1, now() + n * interval '1 s', now()
        FROM generate_series(1, 101) AS n;
    INSERT INTO task_events (task_id, version, occurred_at, kind, document, changes, cause, prompt_version)
        SELECT '{OF_ALICE}', n, '2026-01-02T00:00Z', 'updated', '{{}}', '{{}}',
               CASE n WHEN 1 THEN '{{"kind":"command","type":"task.create"}}' ELSE '{{"kind":"report"}}' END::json, 1
        FROM generate_series(1, 500) AS n;
"""
    await execute_script(engine, many)
    facts = await explained(reader)
    assert [len(facts[name]) for name in ("inbox", "requests")] == [100, 100]
    assert [each["build_number"] for each in facts["requests"]] == list(range(1, 101))
    assert {len(each["input"]) for each in facts["inbox"]} == {2000}
    assert facts["last_command"]["type"] == "task.create"
    (row,) = await task_queries.log_revisions(reader, [OF_ALICE])
    assert fields(row, "last_input", "waiting_inputs") == [102, 101]
    await execute(
        engine,
        f"""INSERT INTO task_events (task_id, version, occurred_at, kind, document, changes, cause, prompt_version)
        VALUES ('{OF_ALICE}', 501, now(), 'updated', '{{}}', '{{}}', '{{"kind":"report"}}', 1)""",
    )
    assert (await explained(reader))["last_command"]["type"] == "task.send"
