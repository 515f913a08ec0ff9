"""What callers read of builds: those of tasks that they see, with the names of what their task refers to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from taskherd.store import builds
from taskherd.store.builds import BuildRow
from taskherd.store.engine import transaction
from taskherd.store.read_pool import ReadPool, Row
from tests.store.conftest import NOW, execute_script, reading_whole_tables
from tests.store.world import ADA, ALICE, DELETED, EVERYBODY, OF_ALICE, OF_BOB, OF_DORA, OF_EVE, OF_ZED, SEEN, WORLD

NUMBERS = {OF_ZED: 1, OF_EVE: 3, OF_ALICE: 4, OF_DORA: 2, OF_BOB: 1, DELETED: 1}
STATUSES = ("succeeded", "running", "failed", "running")

HISTORY = f"""
INSERT INTO task_events (task_id, version, occurred_at, kind, document, changes, cause, prompt_version) VALUES
    ('{OF_BOB}', 4, now(), 'updated', '{{"workspace_build_number":1,"current_state":{{"state":"other"}}}}',
     '{{current_state,status}}', '{{}}', 1),
    ('{OF_ALICE}', 6, now(), 'updated', '{{"workspace_build_number":1,"workspace_status":"running",
     "current_state":{{"state":"complete","message":"Done","uri":"pr"}},"workspace_agent_lifecycle":"ready",
     "workspace_agent_health":{{"healthy":true,"reason":"fine"}}}}', '{{current_state,status}}', '{{}}', 1),
    ('{OF_ALICE}', 5, now(), 'updated', '{{"workspace_build_number":1,"current_state":{{"state":"same"}}}}',
     '{{status}}', '{{}}', 1),
    ('{OF_ALICE}', 4, now(), 'updated', '{{"workspace_build_number":1,"current_state":{{"state":"idle"}}}}',
     '{{current_state}}', '{{}}', 1),
    ('{OF_ALICE}', 3, now(), 'updated', '{{"workspace_build_number":1,"current_state":null}}', '{{current_state}}',
     '{{}}', 1),
    ('{OF_ALICE}', 2, now(), 'updated', '{{"workspace_build_number":1,"current_state":{{"state":"working"}}}}',
     '{{current_state}}', '{{}}', 1),
    ('{OF_ALICE}', 7, now(), 'updated', '{{"workspace_build_number":2,"current_state":{{"state":"next"}}}}',
     '{{current_state,status}}', '{{}}', 1);
"""


def build_id(task_id: UUID, number: int) -> UUID:
    """Return the id of a build."""
    return UUID(int=task_id.int * 0x100 + number)


def workspace_id(task_id: UUID) -> UUID:
    """Return the id of the workspace of a task."""
    return UUID(int=task_id.int * 0x1000)


def agent_id(task_id: UUID, number: int) -> UUID:
    """Return the id of an agent, which two builds of a task share."""
    return UUID(int=task_id.int * 0x10000 + (number + 1) // 2)


@pytest.fixture
async def reader(database_url: str, engine: AsyncEngine) -> AsyncIterator[ReadPool]:
    """Yield a pool for readers, with builds of tasks of several people."""
    await execute_script(engine, WORLD)
    async with transaction(engine) as connection:
        await builds.save(
            connection,
            [
                BuildRow(
                    build_id(task_id, number),
                    task_id,
                    number,
                    "start",
                    STATUSES[number - 1],
                    workspace_id(task_id),
                    agent_id(task_id, number),
                    f"error {number}",
                    NOW + timedelta(seconds=number),
                )
                for task_id, last in NUMBERS.items()
                for number in range(1, last + 1)
            ],
        )
    async with reading_whole_tables(database_url) as pool:
        yield pool


def named(rows: Sequence[Row | None]) -> list[tuple[UUID, int]]:
    """Return the tasks and numbers of builds."""
    return [(row["task_id"], row["number"]) for row in rows if row is not None]


async def test_a_build_has_the_names_of_its_own_task(reader: ReadPool) -> None:
    """Of the owner, the organization, the template, its version and the preset; one without a preset has none."""
    row = await builds.build(reader, ALICE, build_id(OF_ALICE, 3))
    assert row is not None
    fields = "task_id number transition job_status error is_latest created_at workspace_name healthy health_reason"
    assert [row[name] for name in fields.split()] == [
        *(OF_ALICE, 3, "start", "failed", "error 3", False, NOW + timedelta(seconds=3), "ws", False, "lost")
    ]
    fields = "username avatar_url organization_name template_name template_display_name template_icon parameters"
    assert [row[name] for name in fields.split()] == [
        *("Alice", "alice.png", "Acme", "claude", "Claude Code", "claude.svg", '["small"]')
    ]
    assert (row["template_version_name"], row["app_slug"], row["lifecycle"]) == ("v-claude", "editor", "ready")
    other = await builds.build(reader, ALICE, build_id(OF_DORA, 1))
    assert other is not None
    assert (other["username"], other["organization_name"], other["template_name"]) == ("Dora", "Beta", "betas")
    assert (other["template_version_name"], other["parameters"]) == ("v-betas", None)


async def test_the_status_of_a_superseded_build_is_its_last_one_only_if_final(reader: ReadPool) -> None:
    """No further report of it is stored, so it may have ended in any way."""
    rows = await builds.all_of_task(reader, ALICE, OF_ALICE, 10, 0)
    assert [(row["number"], row["job_status"], row["is_latest"]) for row in rows] == [
        (4, "running", True), (3, "failed", False), (2, "unknown", False), (1, "succeeded", False)
    ]  # fmt: skip
    for limit, offset, numbers in ((2, 0, [4, 3]), (1, 2, [2]), (10, 4, [])):
        page = await builds.all_of_task(reader, ALICE, OF_ALICE, limit, offset)
        assert [row["number"] for row in page] == numbers


async def test_a_build_is_found_by_its_own_ids(reader: ReadPool) -> None:
    """By the id of a workspace or of an agent, the latest that has it; by that of a task, its latest."""
    assert named([await builds.build(reader, ALICE, build_id(OF_ALICE, 2))]) == [(OF_ALICE, 2)]
    assert named([await builds.of_agent(reader, ALICE, agent_id(OF_ALICE, 1))]) == [(OF_ALICE, 2)]
    assert named([await builds.of_task(reader, ALICE, OF_ALICE)]) == [(OF_ALICE, 4)]
    for workspace in (workspace_id(OF_ALICE), OF_ALICE):
        assert named([await builds.latest_of_workspace(reader, ALICE, workspace)]) == [(OF_ALICE, 4)]
    unknown = UUID(int=99)
    for find in (builds.build, builds.of_agent, builds.of_task, builds.latest_of_workspace):
        assert await find(reader, ALICE, unknown) is None
    assert await builds.all_of_task(reader, ALICE, unknown, 10, 0) == []


async def test_builds_are_for_those_who_see_their_task(reader: ReadPool) -> None:
    """By whatever id they are asked for; nobody sees those of a deleted task."""
    for task_id, callers in SEEN.items():
        for caller in EVERYBODY:
            found = [
                await builds.build(reader, caller, build_id(task_id, 1)),
                await builds.of_agent(reader, caller, agent_id(task_id, 1)),
                await builds.of_task(reader, caller, task_id),
                await builds.latest_of_workspace(reader, caller, workspace_id(task_id)),
            ]
            assert [row is not None for row in found] == [caller in callers] * 4, (task_id, caller)
            assert bool(await builds.all_of_task(reader, caller, task_id, 1, 0)) is (caller in callers)


async def test_the_latest_builds_of_many_tasks(reader: ReadPool, engine: AsyncEngine) -> None:
    """Of those that the caller sees among the given ones, the newest task first."""
    for caller in EVERYBODY:
        rows = await builds.of_tasks(reader, caller, list(NUMBERS))
        seen = [task_id for task_id in (OF_BOB, OF_DORA, OF_EVE, OF_ALICE, OF_ZED) if caller in SEEN[task_id]]
        assert named(rows) == [(task_id, NUMBERS[task_id]) for task_id in seen]
    assert named(await builds.of_tasks(reader, ALICE, [OF_DORA, OF_BOB])) == [(OF_DORA, 2)]
    async with transaction(engine) as connection:
        await connection.execute(text("UPDATE tasks SET created_at = now()"))
    rows = await builds.of_tasks(reader, ADA, list(NUMBERS))
    assert [row["task_id"] for row in rows] == [OF_EVE, OF_BOB, OF_ALICE]


async def test_the_history_of_one_build(engine: AsyncEngine, reader: ReadPool) -> None:
    """Only what changed the given fields after a version, and only of this build of this task; the oldest first."""
    await execute_script(engine, HISTORY)

    async def versions(*changes: str, after: int = 0, limit: int = 10, number: int = 1) -> list[int]:
        page = await builds.history(reader, OF_ALICE, number, changes, after=after, limit=limit)
        return [row["version"] for row in page.rows]

    assert await versions("current_state") == [2, 3, 4, 6]
    assert await versions("status", "unknown") == [5, 6]
    assert await versions("current_state", "status") == [2, 3, 4, 5, 6]
    assert await versions("current_state", after=3) == [4, 6]
    assert await versions("current_state", limit=2) == [2, 3]
    assert await versions("current_state", number=2) == [7]
    last = (await builds.history(reader, OF_ALICE, 1, ["current_state"], after=5, limit=1)).rows[0]
    fields = ("workspace_status", "lifecycle", "healthy", "reason")
    assert [last[name] for name in fields] == ["running", "ready", True, "fine"]


async def test_the_statuses_that_the_app_of_one_build_reported(engine: AsyncEngine, reader: ReadPool) -> None:
    """The newest first; a change that is not one of the state, or that cleared it, is none."""
    await execute_script(engine, HISTORY)

    async def states(number: int, limit: int) -> list[str]:
        return [row["state"] for row in (await builds.app_statuses(reader, OF_ALICE, number, limit)).rows]

    assert await states(1, 10) == ["complete", "idle", "working"]
    assert await states(1, 2) == ["complete", "idle"]
    assert await states(2, 10) == ["next"]
    newest = (await builds.app_statuses(reader, OF_ALICE, 1, 1)).rows[0]
    assert (newest["version"], newest["message"], newest["uri"]) == (6, "Done", "pr")
