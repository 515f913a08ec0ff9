"""What an agent may ask people for, and how it waits for the answer with its own token."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import orjson
import pytest

from taskherd.api.agents import requests
from taskherd.api.agents.schemas import AgentRequestReport
from taskherd.api.context import RequestContext
from taskherd.api.http import query_parameters
from taskherd.api.http.concurrency import ConcurrencyLimit
from taskherd.api.http.errors import HTTPError
from taskherd.domain.reports import AgentRequest
from taskherd.store import agent_queries, agent_request_queries
from taskherd.store.agent_request_queries import Room
from tests.pure.api.test_agent_request_documents import ANSWER, REQUEST, row
from tests.pure.api.test_subscribers import at, new_feed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from taskherd.api.context import ApiContext
    from taskherd.domain.reports import Report
    from taskherd.store.read_pool import Row

TASK, OWNER = UUID(int=2), UUID(int=1)


class Agent:
    """An agent of the third build of a task, and what it has published and read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room = Room(0, 0, is_known=False)
        self.published: list[Report] = []
        self.rows: list[Row | None] = []
        self.is_latest = True
        self.owner: UUID | None = OWNER
        self.reads = 0
        self.feed = new_feed()
        self.waits = ConcurrencyLimit(10, 1, "Too many of the task.")
        self.waits_of_owners = ConcurrencyLimit(10, 1, "Too many of the owner.")
        self.api = SimpleNamespace(
            reader="reader",
            reports=self,
            change_feed=self.feed,
            agent_waits=self.waits,
            agent_waits_of_owners=self.waits_of_owners,
        )
        monkeypatch.setattr(agent_request_queries, "room", self._room)
        monkeypatch.setattr(agent_request_queries, "own", self._own)
        monkeypatch.setattr(agent_request_queries, "owner", self._owner)
        monkeypatch.setattr(agent_queries, "is_latest_start", self._is_latest_start)

    async def publish(self, task_id: UUID, reports: Sequence[Report]) -> None:
        """Take reports, as the publisher does."""
        assert task_id == TASK
        self.published += reports

    async def report(self, **fields: Any) -> Any:
        """Report a request, and return what the answer says."""
        body = AgentRequestReport.model_validate({"kind": "question", "title": "Which one?", **fields})
        response = await requests.report(self.request(body))
        assert response.status == 202
        return orjson.loads(response.body)

    def request(self, body: Any = None, request_id: str = str(REQUEST), **query: str) -> RequestContext:
        """Return a request of the agent."""
        api, params = cast("ApiContext", self.api), {"request": request_id}
        return RequestContext(api, "GET", params, query, {}, body, requests.OwnRequestQuery, agent=(TASK, 3))

    async def get(self, request: RequestContext | None = None, **query: str) -> Any:
        """Return what the agent sees of its request."""
        self.feed._position = 5  # it has none after its last subscriber has left
        self.feed._positioned.set()
        response = await requests.get(request or self.request(**query))
        assert response.status == 200
        return orjson.loads(response.body)

    async def _room(self, reader: object, task_id: UUID, build_number: int, request_id: UUID) -> Room:
        assert (reader, task_id, build_number) == ("reader", TASK, 3)
        assert isinstance(request_id, UUID)
        return self.room

    async def _own(self, reader: object, task_id: UUID, build_number: int, request_id: UUID) -> Row | None:
        assert (reader, task_id, build_number, request_id) == ("reader", TASK, 3, REQUEST)
        self.reads += 1
        return self.rows[min(self.reads, len(self.rows)) - 1] if self.rows else None

    async def _owner(self, reader: object, task_id: UUID) -> UUID | None:
        assert (reader, task_id) == ("reader", TASK)
        return self.owner

    async def _is_latest_start(self, reader: object, task_id: UUID, build_number: int) -> bool:
        assert (reader, task_id, build_number) == ("reader", TASK, 3)
        return self.is_latest


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> Agent:
    """Return an agent that has asked nothing yet."""
    return Agent(monkeypatch)


async def test_a_request_becomes_a_report_whose_answer_is_fetched(agent: Agent) -> None:
    """It has the id that the agent gives it, or a random one; it is open unless the agent withdraws it."""
    answer = await agent.report(request_id=str(REQUEST), detail="Of both.")
    assert answer == {"request_id": str(REQUEST)}
    await agent.report(request_id=str(REQUEST), state="withdrawn")
    first_random, second_random = (await agent.report())["request_id"], (await agent.report())["request_id"]
    reports = [cast("AgentRequest", report) for report in agent.published]
    assert [str(report.request_id) for report in reports] == [str(REQUEST)] * 2 + [first_random, second_random]
    assert len({str(REQUEST), first_random, second_random}) == 3
    assert [report.state for report in reports] == ["open", "withdrawn", "open", "open"]
    for report in reports:
        assert (report.task_id, report.build_number, report.seq) == (TASK, 3, 0)
        assert (report.pull, report.kind, report.title) == (True, "question", "Which one?")
    assert [report.detail for report in reports] == ["Of both.", "", "", ""]


@pytest.mark.parametrize(
    ("room", "state", "message", "detail"),
    [
        (Room(99, 999, is_known=False), "open", None, None),
        (Room(100, 999, is_known=False), "withdrawn", None, None),
        (Room(100, 1_000, is_known=True), "open", None, None),
        (
            Room(0, 1_000, is_known=False),
            "withdrawn",
            "This agent has asked too much.",
            "A start of a task may have 1,000; it can open more after the next start.",
        ),
        (
            Room(100, 999, is_known=False),
            "open",
            "Too many requests of this agent are open.",
            "A task may have 100: wait for answers, or withdraw requests.",
        ),
    ],
)
async def test_an_agent_may_have_so_many_requests(
    agent: Agent, room: Room, state: str, message: str | None, detail: str | None
) -> None:
    """One that it has already is no further one, and to withdraw one needs no room for an open one."""
    agent.room = room
    if message is None:
        await agent.report(state=state)
        assert len(agent.published) == 1
    else:
        with pytest.raises(HTTPError) as raised:
            await agent.report(state=state)
        response = raised.value.response
        assert (response.status, orjson.loads(response.body)) == (409, {"message": message, "detail": detail})
        assert agent.published == []


async def test_a_request_is_shown_at_once(agent: Agent) -> None:
    """Without a wait, or with one of no time; and with one, if it can change no more."""
    agent.rows = [row()]
    assert (await agent.get())["state"] == (await agent.get(wait="0"))["state"] == "open"
    agent.rows, agent.reads = [row(**ANSWER)], 0
    assert (await agent.get(wait="60"))["text"] == "Do it."
    assert agent.reads == 1
    assert query_parameters.validate(requests.OwnRequestQuery, {"wait": "500ms"}).wait == 0.5


@pytest.mark.parametrize("request_id", [str(REQUEST), "x"])
async def test_a_request_that_is_not_there(agent: Agent, request_id: str) -> None:
    """None of the build, or one that cannot be."""
    with pytest.raises(HTTPError) as raised:
        await requests.get(agent.request(request_id=request_id))
    assert raised.value.response.status == 404
    nobody = agent.request()
    nobody.agent = None
    with pytest.raises(HTTPError) as raised:
        await requests.get(nobody)
    assert raised.value.response.status == 404


@pytest.mark.parametrize("first", ["open", None])
async def test_an_agent_waits_for_the_answer(agent: Agent, first: str | None) -> None:
    """Also for a request that the worker has not taken yet; a change of the task has it read again."""
    before = None if first is None else row()
    agent.rows = [before, before, before, row(**ANSWER)]
    request = agent.request(wait="60")
    waiting = asyncio.create_task(agent.get(request))
    async with asyncio.timeout(30):
        for _ in range(20):
            await asyncio.sleep(0)
        assert (agent.reads, request.waits) == (2, True)
        assert agent.waits.is_full(TASK)
        assert agent.waits_of_owners.is_full(OWNER)
        assert agent.feed._subscriber_count == 1
        agent.feed._distribute(at(6, viewer=OWNER, task_id=UUID(int=77)))
        for _ in range(20):
            await asyncio.sleep(0)
        assert agent.reads == 2
        agent.feed._distribute(at(7, viewer=OWNER))
        for _ in range(20):
            await asyncio.sleep(0)
        assert (agent.reads, waiting.done()) == (3, False)
        agent.feed._distribute(at(8, viewer=OWNER))
        assert (await waiting)["text"] == "Do it."
    assert not agent.waits.is_full(TASK)
    assert not agent.waits_of_owners.is_full(OWNER)
    assert (agent.feed._subscriber_count, len(agent.feed._subscribers)) == (0, 0)


async def test_a_wait_ends_with_its_time(agent: Agent) -> None:
    """The request is as it is then; one that has not come is not there."""
    agent.rows = [row()]
    assert (await agent.get(wait="1ms"))["state"] == "open"
    agent.rows = []
    with pytest.raises(HTTPError) as raised:
        await agent.get(wait="1ms")
    assert raised.value.response.status == 404


async def test_a_wait_ends_with_the_process(agent: Agent) -> None:
    """As the feed ends its subscribers."""
    agent.rows = [row()]
    waiting = asyncio.create_task(agent.get(wait="60"))
    for _ in range(20):
        await asyncio.sleep(0)
    agent.feed._end_all()
    async with asyncio.timeout(30):
        assert (await waiting)["state"] == "open"


async def test_a_wait_is_read_again_without_a_change(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the changes of a task whose owner has left are in no feed."""
    monkeypatch.setattr(requests, "READ_EVERY", 0.001)
    agent.rows = [row(), row(), row(**ANSWER)]
    async with asyncio.timeout(30):
        assert (await agent.get(wait="60"))["text"] == "Do it."


async def test_a_token_that_ends_during_a_wait_shows_nothing(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even the answer that has come meanwhile."""
    monkeypatch.setattr(requests, "READ_EVERY", 0.001)
    agent.is_latest = False
    for agent.rows in ([row()], [row(), row(), row(**ANSWER)], []):
        agent.reads = 0
        async with asyncio.timeout(30):
            with pytest.raises(HTTPError) as raised:
                await agent.get(wait="60")
        assert raised.value.response.status == 401
        assert agent.reads == 3


async def test_a_wait_needs_a_task_and_room(agent: Agent) -> None:
    """Of the task as of its owner."""
    agent.rows, agent.owner = [row()], None
    with pytest.raises(HTTPError) as raised:
        await agent.get(wait="60")
    assert raised.value.response.status == 404
    agent.owner = OWNER
    for limit, key, message in (
        (agent.waits, TASK, "Too many of the task."),
        (agent.waits_of_owners, OWNER, "Too many of the owner."),
    ):
        with limit.enter(key), pytest.raises(HTTPError) as raised:
            await agent.get(wait="60")
        body = orjson.loads(raised.value.response.body)
        assert (raised.value.response.status, body["message"]) == (429, message)
