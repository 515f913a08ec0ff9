"""Requests of agents in the database: what is saved is loaded, one statement for many tasks, and the queue's index."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from taskherd.domain.request_values import RequestState
from taskherd.store import agent_requests, erasure, work_requests
from taskherd.store.agent_requests import AgentRequestRow, StoredAnswer
from taskherd.store.engine import DataError, transaction
from taskherd.store.work_requests import WorkRequestRow
from tests.store.conftest import NOW, empty

ALICE = uuid4()
ORGANIZATION = uuid4()

QUEUE = """
SELECT task_id, request_id FROM agent_requests
WHERE shown = 'open' AND (since, task_id, request_id) > (:since, :task_id, :request_id)
ORDER BY since, task_id, request_id LIMIT :limit
"""
"""How readers page through all open requests, the oldest first."""


def row(task_id: UUID, number: int = 1, shown: RequestState = RequestState.OPEN) -> AgentRequestRow:
    """Return a request without an answer."""
    since = NOW + timedelta(seconds=number)
    report = f'{{"title":"Question {number}?"}}'
    return AgentRequestRow(task_id, UUID(int=number), ORGANIZATION, ALICE, 1, shown, report, since, since)


def answered(of: AgentRequestRow) -> AgentRequestRow:
    """Return the request with an answer."""
    return of._replace(
        shown=RequestState.ANSWERED,
        answer_option_id="allow",
        answer_text="because",
        answered_by=ALICE,
        answered_at=NOW,
        answer_command_id=UUID(int=7),
        delivered_at=NOW,
    )


async def load(engine: AsyncEngine, *rows: AgentRequestRow) -> dict[tuple[UUID, UUID], AgentRequestRow]:
    """Return what is known of these requests."""
    async with transaction(engine) as connection:
        found = await agent_requests.load(connection, {(each.task_id, each.request_id) for each in rows})
    return {(each.row.task_id, each.row.request_id): each.row for each in found}


async def test_what_is_saved_is_loaded(engine: AsyncEngine) -> None:
    """Rows of several tasks are saved at once, and replaced whole; the id of a request is unique in its task only."""
    one, two = uuid4(), uuid4()
    rows = [row(one), row(two), row(two, 2)]
    async with transaction(engine) as connection:
        await agent_requests.save(connection, rows)
    assert await load(engine, *rows, row(uuid4())) == {(each.task_id, each.request_id): each for each in rows}
    changed = answered(rows[1])._replace(report='{"state":"answered"}', build_number=2)
    async with transaction(engine) as connection:
        await agent_requests.save(connection, [changed])
    expected = {(one, UUID(int=1)): rows[0], (two, UUID(int=1)): changed, (two, UUID(int=2)): rows[2]}
    assert await load(engine, *rows) == expected


async def test_a_request_keeps_whose_it_is(engine: AsyncEngine) -> None:
    """The organization and owner are those of its first row, and who answered is named if the user exists."""
    of, user = row(uuid4()), uuid4()
    async with transaction(engine) as connection:
        await agent_requests.save(connection, [of])
        await agent_requests.save(connection, [answered(of)._replace(organization_id=uuid4(), answered_by=user)])
        ((stored, name),) = await agent_requests.load(connection, [(of.task_id, of.request_id)])
        assert (stored.organization_id, stored.owner_id, name) == (ORGANIZATION, ALICE, "")
        await connection.execute(
            text("INSERT INTO users (id, username, name, email, avatar_url) VALUES (:id, :name, '', :name, '')"),
            {"id": user, "name": f"user-{user}"},
        )
        ((_, name),) = await agent_requests.load(connection, [(of.task_id, of.request_id)])
        assert name == f"user-{user}"


async def test_how_requests_show_is_saved_for_readers(engine: AsyncEngine) -> None:
    """Only those named change, in their own task, and nothing else of them; another state is rejected."""
    one, two = uuid4(), uuid4()
    rows = [row(one), row(one, 2), row(two)]
    async with transaction(engine) as connection:
        await agent_requests.save(connection, rows)
        await agent_requests.show(connection, {(one, UUID(int=1)): RequestState.WITHDRAWN})
    assert await load(engine, *rows) == {
        (one, UUID(int=1)): rows[0]._replace(shown=RequestState.WITHDRAWN),
        (one, UUID(int=2)): rows[1],
        (two, UUID(int=1)): rows[2],
    }
    with pytest.raises(DataError, match="agent_requests_shown_check"):
        async with transaction(engine) as connection:
            await connection.execute(text("UPDATE agent_requests SET shown = 'closed'"))


async def test_answers_are_read_for_their_delivery(engine: AsyncEngine) -> None:
    """An answer is that of this task's request; one without an answer has none."""
    one, two = uuid4(), uuid4()
    keys = [(one, UUID(int=1)), (two, UUID(int=1)), (one, UUID(int=2))]
    async with transaction(engine) as connection:
        await agent_requests.save(connection, [answered(row(one)), row(two)])
        assert await agent_requests.answers(connection, keys) == {keys[0]: StoredAnswer("allow", "because")}


async def test_an_answer_comes_before_an_interrupt_and_ends_with_its_request(engine: AsyncEngine) -> None:
    """Of one batch, a runner gets the answer first; deleting the request of one task leaves that of another."""
    one, two = uuid4(), uuid4()

    def request(task_id: UUID, kind: str, answers: UUID | None) -> WorkRequestRow:
        return WorkRequestRow(uuid4(), task_id, 1, kind, None, "r1", 0, NOW, NOW, None, None, answers)

    rows = [
        request(one, "agent.interrupt", None),
        request(one, "agent.answer", UUID(int=1)),
        request(two, "agent.answer", UUID(int=1)),
    ]
    async with transaction(engine) as connection:
        await work_requests.add(connection, rows)
        due = await work_requests.pick_due(connection, NOW, 10, first_delay=1, max_delay=9)
        ours = [each for each in due if each.task_id in {one, two}]
        assert [each.type for each in ours] == ["agent.answer", "agent.answer", "agent.interrupt"]
        assert {each.agent_request_id for each in ours} == {None, UUID(int=1)}
        await work_requests.delete_of_answers(connection, [(one, UUID(int=1))])
        left = await work_requests.of_tasks(connection, [one, two])
        assert {each.request_id for each in left} == {rows[0].request_id, rows[2].request_id}


async def test_the_requests_of_an_erased_task_are_deleted(engine: AsyncEngine) -> None:
    """What an agent asked and what people answered are contents, which do not outlive the retention."""
    erased, kept = uuid4(), uuid4()
    rows = [*(row(erased, number) for number in range(1, 4)), row(kept)]
    async with transaction(engine) as connection:
        await agent_requests.save(connection, rows)
        assert await erasure.delete_contents(connection, [erased], 2, NOW) == 2
        assert await erasure.delete_contents(connection, [erased], 2, NOW) == 1
        assert await erasure.delete_contents(connection, [erased], 2, NOW) == 0
    assert set(await load(engine, *rows)) == {(kept, UUID(int=1))}


async def test_the_queue_of_open_requests_is_read_from_an_index(engine: AsyncEngine) -> None:
    """Pages of all open requests, the oldest first, cost the same however many others there are."""
    task_id = uuid4()
    async with transaction(engine) as connection:
        await connection.execute(text("DELETE FROM agent_requests"))
        await agent_requests.save(connection, [row(task_id, number) for number in (3, 1, 2)])
        await agent_requests.save(connection, [row(task_id, number, RequestState.EXPIRED) for number in range(4, 200)])
        values = {"since": NOW, "task_id": UUID(int=0), "request_id": UUID(int=0), "limit": 2}
        first = list(await connection.execute(text(QUEUE), values))
        assert [each.request_id.int for each in first] == [1, 2]
        last = {"since": NOW + timedelta(seconds=2), "task_id": task_id, "request_id": UUID(int=2)}
        second = list(await connection.execute(text(QUEUE), {**values, **last}))
        assert [each.request_id.int for each in second] == [3]
        await connection.execute(text("SET LOCAL enable_seqscan = off"))
        plan = "\n".join((await connection.execute(text(f"EXPLAIN {QUEUE}"), values)).scalars())
    assert "agent_requests_open_idx" in plan
    assert "Sort" not in plan


async def test_only_what_is_asked_for_is_read(engine: AsyncEngine) -> None:
    """Requests, answers and numbers are those of the given tasks, although others have requests of the same ids."""
    one, two, three = UUID(int=1), UUID(int=2), UUID(int=3)
    rows = [
        *(answered(row(task_id, number))._replace(answer_text=f"{task_id.int}-{number}", report=f'["{number}"]')
          for task_id in (one, two, three) for number in (1, 2)),
        row(two, 3)._replace(build_number=2),
        row(two, 4)._replace(build_number=2, answer_option_id="allow"),
    ]  # fmt: skip
    keys = [(two, UUID(int=2)), (one, UUID(int=1)), (two, UUID(int=4)), (three, UUID(int=4))]
    async with transaction(engine) as connection:
        await empty(connection, "agent_requests")
        await agent_requests.save(connection, rows[::-1])
        written = await connection.execute(text("SELECT task_id, request_id FROM agent_requests ORDER BY ctid"))
        assert [tuple(key) for key in written] == sorted((each.task_id, each.request_id) for each in rows)
        assert await agent_requests.answers(connection, keys) == {
            keys[0]: StoredAnswer("allow", "2-2"), keys[1]: StoredAnswer("allow", "1-1")
        }  # fmt: skip
        assert {each.row for each in await agent_requests.load(connection, keys)} == {rows[3], rows[0], rows[7]}
        assert sorted(await agent_requests.numbers(connection, {three, two})) == [
            (two, 1, 2),
            (two, 2, 2),
            (three, 1, 2),
        ]
        assert await agent_requests.numbers(connection, [UUID(int=9)]) == []
