"""Handlers of what agents ask people for with their own token: open or withdraw a request, and fetch its answer.

An agent sees only requests of its own task and build, and can answer none.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Final
from uuid import UUID, uuid4

from pydantic import Field

from taskherd.api.agent_requests.documents import own_request
from taskherd.api.agents.reporting import common_fields, publish
from taskherd.api.changes import ChangeFilter
from taskherd.api.http.errors import HTTPError, not_found, unauthorized
from taskherd.api.http.ids import parse_uuid
from taskherd.api.http.query_parameters import QueryModel
from taskherd.api.http.responses import BufferedResponse, json
from taskherd.api.tasks.long_poll import WAIT_PARAMETER
from taskherd.domain import agent_requests
from taskherd.domain.reports import AgentRequest
from taskherd.domain.request_values import RequestState
from taskherd.store import agent_queries, agent_request_queries

if TYPE_CHECKING:
    from taskherd.api.agents.schemas import AgentRequestReport
    from taskherd.api.context import RequestContext
    from taskherd.store.read_pool import Row

MAX_WAITING: Final = 2_000
"""Maximum number of requests of agents in one process that wait for answers, half of the change feed's subscribers."""
MAX_WAITING_OF_OWNER: Final = MAX_WAITING // 8
"""Of the agents of all tasks of one user, so that they leave the waits to those of others."""
MAX_WAITING_OF_TASK: Final = 20
TOO_MANY: Final = "Too many requests of this agent wait for answers. Please wait."
TOO_MANY_OF_OWNER: Final = "Too many requests of the agents of this user wait for answers. Please wait."
TOO_MANY_OPEN: Final = "Too many requests of this agent are open."
TOO_MANY_OF_BUILD: Final = "This agent has asked too much."
READ_EVERY: Final = 4.0
"""Seconds between two reads without a change: the changes of a task whose owner has left are not in their feed, and a
token must not count for more than five seconds after its task's delete or next start."""


class OwnRequestQuery(QueryModel):
    """Query parameters of a request of an agent."""

    wait: Annotated[float | None, WAIT_PARAMETER] = Field(
        None,
        description=(
            "Maximum time to wait until the request is no longer open, as a number with the unit `s` (the default) or"
            " `ms`, at most 60 seconds. Without it the response is immediate."
        ),
    )


async def report(request: RequestContext) -> BufferedResponse:
    """Publish a request of the agent as a report.

    What the worker would not accept is refused here, so that the agent learns it; a few may still come at once.
    """
    body: AgentRequestReport = request.body
    request_id = body.request_id or uuid4()
    state = body.state or RequestState.OPEN
    await _check_room(request, request_id, state)
    fields = {**body.to_fields({}), "state": state, "pull": True}
    await publish(request, [AgentRequest(**common_fields(request), request_id=request_id, **fields)])
    return json({"request_id": request_id}, 202)


async def _check_room(request: RequestContext, request_id: UUID, state: RequestState) -> None:
    """Raise a 409 if the build has too many requests for this one. One that it has already is no further one."""
    assert request.agent is not None
    room = await agent_request_queries.room(request.api.reader, *request.agent, request_id)
    if room.is_known:
        return
    if room.number >= agent_requests.MAX_OF_BUILD:
        detail = f"A start of a task may have {agent_requests.MAX_OF_BUILD:,}; it can open more after the next start."
        raise HTTPError(409, TOO_MANY_OF_BUILD, detail)
    if room.open >= agent_requests.MAX_OPEN and state is RequestState.OPEN:
        detail = f"A task may have {agent_requests.MAX_OPEN}: wait for answers, or withdraw requests."
        raise HTTPError(409, TOO_MANY_OPEN, detail)


async def get(request: RequestContext) -> BufferedResponse:
    """Return a request of the agent, immediately or once it is no longer open."""
    request_id = parse_uuid(request.params["request"])
    wait = request.parameters(OwnRequestQuery).wait
    if request_id is None or request.agent is None:
        raise not_found()
    row = await _read(request, request_id)
    if wait and _may_change(row):
        task_id, api = request.agent[0], request.api
        owner = await agent_request_queries.owner(api.reader, task_id)
        if owner is None:
            raise not_found()
        with api.agent_waits.enter(task_id), api.agent_waits_of_owners.enter(owner):
            request.waits = True
            row = await _wait(request, owner, request_id, wait)
        if not await agent_queries.is_latest_start(request.api.reader, *request.agent):
            raise unauthorized()
    if row is None:
        raise not_found()
    return json(own_request(row))


async def _wait(request: RequestContext, owner: UUID, request_id: UUID, wait: float) -> Row | None:
    """Return the request once it can change no more or the token no longer counts, or as it is at the end of the wait.

    None: there is none. ``owner`` is that of the task.
    """
    assert request.agent is not None
    loop, feed = asyncio.get_running_loop(), request.api.change_feed
    deadline = loop.time() + wait
    async with feed.subscription(None):
        subscriber = feed.subscribe(ChangeFilter(owner, task=request.agent[0]), await feed.position())
        assert subscriber is not None  # the position cannot change between the two calls
        try:
            row = await _read(request, request_id)  # includes the changes before the subscription
            while _may_change(row) and not subscriber.ended and (remaining := deadline - loop.time()) > 0:
                await subscriber.next(min(remaining, READ_EVERY))
                row = await _read(request, request_id)
                if not await agent_queries.is_latest_start(request.api.reader, *request.agent):
                    break
            return row
        finally:
            feed.unsubscribe(subscriber)


async def _read(request: RequestContext, request_id: UUID) -> Row | None:
    assert request.agent is not None
    return await agent_request_queries.own(request.api.reader, *request.agent, request_id)


def _may_change(row: Row | None) -> bool:
    """Return whether there is something to wait for: the request is open, or the worker has not taken it yet."""
    return row is None or row["shown"] == RequestState.OPEN
