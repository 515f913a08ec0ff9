"""What callers, and agents themselves, read of the requests of agents."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from uuid import UUID

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from taskherd.store import agent_request_queries
from taskherd.store.agent_request_queries import QueuePlace, Room, TaskPlace
from taskherd.store.read_pool import ReadPool, Row
from taskherd.store.task_lists import Listed
from taskherd.store.task_queries import TaskFilter
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
    EVERYBODY,
    OF_ALICE,
    OF_BOB,
    OF_DORA,
    OF_ZED,
    SEEN,
    UNUSED,
    WORLD,
    ZED,
    ZERO,
)

OWNERS = {
    OF_ZED: (ZERO, ZED, UNUSED),
    OF_ALICE: (ACME, ALICE, CLAUDE),
    OF_BOB: (ACME, BOB, CLAUDE),
    OF_DORA: (BETA, DORA, BETAS),
    DELETED: (ACME, ALICE, CLAUDE),
}

REQUESTS = (
    (OF_BOB, 9, 1, "open", 3),
    (OF_ALICE, 4, 2, "open", 3),
    (OF_ALICE, 1, 2, "answered", 1),
    (OF_ZED, 1, 2, "open", 9),
    (OF_ALICE, 3, 2, "open", 3),
    (OF_ALICE, 7, 1, "withdrawn", 2),
    (OF_DORA, 1, 1, "open", 2),
    (OF_ALICE, 6, 2, "expired", 2),
    (OF_ALICE, 2, 2, "open", 1),
    (OF_BOB, 3, 1, "open", 3),
    (DELETED, 1, 1, "open", 1),
)
"""Tasks with the number of a request, its build, what became of it, and the hour since when it is there."""


def hours(hour: int) -> datetime:
    """Return a time."""
    return datetime(2026, 1, 1, hour, tzinfo=UTC)


SCRIPT = (
    WORLD
    + "".join(
        f"INSERT INTO agent_requests (task_id, request_id, organization_id, owner_id, build_number, shown, report,"
        f" since, received_at, answer_option_id) VALUES ('{task}', '{UUID(int=number)}', '{OWNERS[task][0]}',"
        f" '{OWNERS[task][1]}', {build}, '{shown}', '[{number}]', '{hours(hour)}', '{hours(hour)}', '{number}');\n"
        for task, number, build, shown, hour in REQUESTS
    )
    + f"UPDATE agent_requests SET answered_by = '{BOB}' WHERE shown = 'answered';\n"
    + "".join(
        f"INSERT INTO task_index_changes (task_id, organization_id, owner_id, template_id, pool, status, state,"
        f" health, waiting, stalled, created_at, changed_at, terms, deleted) VALUES ('{task}', '{organization}',"
        f" '{owner}', '{template}', 'p', 'active', 'working', 'none', true, false, '{hours(hour)}', now(), '[]',"
        f" {task == DELETED});\n"
        for hour, (task, (organization, owner, template)) in enumerate(OWNERS.items())
    )
)


@pytest.fixture
async def reader(database_url: str, engine: AsyncEngine) -> AsyncIterator[ReadPool]:
    """Yield a pool for readers, with requests of the agents of several people."""
    await execute_script(engine, SCRIPT)
    async with reading_whole_tables(database_url) as pool:
        yield pool


def numbers(rows: Sequence[Row]) -> list[int]:
    """Return the numbers of requests."""
    return [row["request_id"].int for row in rows]


async def test_the_requests_of_a_task(reader: ReadPool) -> None:
    """Open ones, oldest first, then the others, newest first; page by page from either part."""

    async def page(limit: int, after: TaskPlace | None = None) -> list[int]:
        return numbers(await agent_request_queries.of_task(reader, ALICE, OF_ALICE, limit, after))

    assert await page(9) == [2, 3, 4, 7, 6, 1]
    assert await page(2) == [2, 3, 4]
    for is_open, hour, number, expected in (
        (True, 1, 2, [3, 4, 7, 6, 1]), (True, 3, 3, [4, 7, 6, 1]), (True, 3, 4, [7, 6, 1]), (False, 2, 7, [6, 1]),
        (False, 2, 6, [1]), (False, 1, 1, []),
    ):  # fmt: skip
        assert await page(9, TaskPlace(is_open, hours(hour), UUID(int=number))) == expected
    for task_id, callers in SEEN.items():
        of_it = {number for task, number, *_ in REQUESTS if task == task_id}
        for caller in EVERYBODY:
            rows = await agent_request_queries.of_task(reader, caller, task_id, 9, None)
            assert set(numbers(rows)) == (of_it if caller in callers else set())
    answered = (await agent_request_queries.of_task(reader, ALICE, OF_ALICE, 9, None))[-1]
    fields = ("answered_by", "answered_by_name", "answer_option_id", "shown", "build_number", "report")
    assert [answered[name] for name in fields] == [BOB, "Bob", "1", "answered", 2, "[1]"]


async def test_the_queue_of_open_requests(reader: ReadPool) -> None:
    """Of tasks that match and that the caller sees, the oldest first, page by page."""

    async def queue(
        caller: UUID, limit: int = 9, after: QueuePlace | None = None, owner: UUID | None = None, tasks: int = 9
    ) -> tuple[list[tuple[UUID, int]], bool]:
        wanted = TaskFilter(caller, tasks, owner=owner, listed=Listed(waiting=True))
        rows, more = await agent_request_queries.waiting(reader, wanted, limit, after)
        return [(row["task_id"], row["request_id"].int) for row in rows], more

    of_ada = [(OF_ALICE, 2), (OF_ALICE, 3), (OF_ALICE, 4), (OF_BOB, 3), (OF_BOB, 9)]
    assert await queue(ADA) == (of_ada, False)
    assert await queue(ADA, 2) == (of_ada[:3], False)
    for place, (task, number) in enumerate(of_ada, start=1):
        after = QueuePlace(hours(1 if place == 1 else 3), task, UUID(int=number))
        assert await queue(ADA, after=after) == (of_ada[place:], False)
    assert await queue(ALICE) == ([(OF_ALICE, 2), (OF_DORA, 1), (OF_ALICE, 3), (OF_ALICE, 4)], False)
    assert await queue(ALICE, owner=DORA) == ([(OF_DORA, 1)], False)
    assert await queue(BOB, tasks=1) == (of_ada[3:], False)
    assert await queue(ADA, tasks=2) == (of_ada, False)
    assert (await queue(ADA, tasks=1))[1]
    rows, _ = await agent_request_queries.waiting(reader, TaskFilter(ALICE, 9, listed=Listed(waiting=True)), 9, None)
    fields = ("username", "owner_id", "organization_id", "task_name", "template_name", "template_display_name")
    assert [[row[name] for name in fields] for row in rows[:2]] == [
        ["Alice", ALICE, ACME, "Fix-It", "claude", "Claude Code"],
        ["Dora", DORA, BETA, "fix-it", "betas", "Betas"],
    ]


async def test_what_an_agent_knows_of_its_own_requests(reader: ReadPool) -> None:
    """Those of its task and build."""
    for task, build, number, is_own in (
        (OF_ALICE, 2, 1, True), (OF_ALICE, 1, 1, False), (OF_ALICE, 2, 7, False), (OF_BOB, 1, 1, False),
        (OF_DORA, 1, 1, True),
    ):  # fmt: skip
        row = await agent_request_queries.own(reader, task, build, UUID(int=number))
        assert (row is not None) is is_own
        assert row is None or (row["request_id"].int, row["answer_option_id"]) == (number, str(number))
    for task, build, number, expected in (
        (OF_ALICE, 2, 6, Room(3, 5, is_known=True)), (OF_ALICE, 2, 7, Room(3, 5, is_known=False)),
        (OF_ALICE, 1, 7, Room(0, 1, is_known=True)), (OF_BOB, 1, 1, Room(2, 2, is_known=False)),
        (OF_BOB, 2, 3, Room(0, 0, is_known=False)),
    ):  # fmt: skip
        assert await agent_request_queries.room(reader, task, build, UUID(int=number)) == expected
    for task, (_, owner, _) in OWNERS.items():
        assert await agent_request_queries.owner(reader, task) == owner
    assert await agent_request_queries.owner(reader, UUID(int=99)) is None
