"""How many requests an agent may have, and that nobody waits for those of a task that is gone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import orjson
import pytest

from taskherd.api.agents import requests
from taskherd.api.agents.schemas import AgentRequestReport
from taskherd.api.context import RequestContext
from taskherd.api.http.errors import HTTPError
from taskherd.store import agent_request_queries
from taskherd.store.agent_request_queries import Room
from tests.pure.api.test_agent_request_documents import REQUEST

if TYPE_CHECKING:
    from collections.abc import Sequence

    from taskherd.domain.reports import Report

TASK = UUID(int=2)


def request_of(api: object, body: object = None, **query: str) -> RequestContext:
    """Return a request of the agent of the third build of a task."""
    params = {"request": str(REQUEST)}
    return RequestContext(cast("Any", api), "GET", params, query, {}, body, requests.OwnRequestQuery, agent=(TASK, 3))


class Agent:
    """An agent with room for further requests, and what it has published."""

    def __init__(self) -> None:
        self.room = Room(0, 0, is_known=False)
        self.published: list[Report] = []

    async def publish(self, _: UUID, reports: Sequence[Report]) -> None:
        """Take reports, as the publisher does."""
        self.published += reports

    async def report(self, state: str) -> None:
        """Report a request."""
        body = AgentRequestReport.model_validate({"kind": "question", "title": "Which one?", "state": state})
        await requests.report(request_of(SimpleNamespace(reader="reader", reports=self), body))


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> Agent:
    """Return an agent that has asked nothing yet."""
    agent = Agent()

    async def room(*_: object) -> Room:
        return agent.room

    monkeypatch.setattr(agent_request_queries, "room", room)
    return agent


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
        await agent.report(state)
        assert len(agent.published) == 1
    else:
        with pytest.raises(HTTPError) as raised:
            await agent.report(state)
        response = raised.value.response
        assert (response.status, orjson.loads(response.body)) == (409, {"message": message, "detail": detail})
        assert agent.published == []


async def test_nobody_waits_for_a_request_of_a_task_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not there, and the wait takes no place of those that an owner may have."""

    async def nothing(*_: object) -> None:
        """Find nothing."""

    monkeypatch.setattr(agent_request_queries, "own", nothing)
    monkeypatch.setattr(agent_request_queries, "owner", nothing)
    with pytest.raises(HTTPError) as raised:
        await requests.get(request_of(SimpleNamespace(reader="reader"), wait="60"))
    assert raised.value.response.status == 404
