"""Waiting for a task: a read that is answered when its status or state is what was asked for, or the time is up.

Who waits hangs on the tail, so that it costs the database two reads however long it takes.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Final

import orjson
from pydantic import Field

from taskherd.api.changes import FollowFilter
from taskherd.api.http import etags
from taskherd.api.http.endpoint import token_is_valid
from taskherd.api.http.responses import BufferedResponse, not_found, unauthorized
from taskherd.api.query import QueryModel, Text
from taskherd.api.tasks import queries
from taskherd.domain.reports import AgentState
from taskherd.domain.view import Status
from taskherd.settings import durations

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from taskherd.api.change_feed import Subscriber
    from taskherd.api.context import RequestContext
    from taskherd.store.reader import Row

MAX_WAIT: Final = 60.0
TIMED_OUT: Final = "X-Taskherd-Timed-Out"
_VALUES: Final = frozenset(Status) | frozenset(AgentState) - {AgentState.FAILURE}
_UNTIL: Final = "idle,complete,failed"
_DEFAULT: Final = frozenset(_UNTIL.split(","))


def _until(text: str) -> frozenset[str]:
    until = frozenset(each.strip().lower() for each in text.split(","))
    if not until <= _VALUES:
        message = f"Some of these were expected, separated by commas: {', '.join(sorted(_VALUES))}."
        raise ValueError(message)
    return until


def _wait(text: str) -> float:
    message = f"A duration such as 30s was expected, at most {MAX_WAIT:g}s."
    try:
        wait = durations.parse(text)
    except ValueError:
        raise ValueError(message) from None
    if not 0 <= wait <= MAX_WAIT:
        raise ValueError(message)
    return wait


class TaskQuery(QueryModel):
    """The parameters of one task."""

    until: Annotated[
        frozenset[str],
        Text(_until, {"type": "string", "pattern": "^({0})(,({0}))*$".format("|".join(sorted(_VALUES)))}),
    ] = Field(_DEFAULT, description=f"Values of status or of current_state.state, separated by commas; else {_UNTIL}.")
    wait: Annotated[
        float | None,
        Text(_wait, {"type": "string", "pattern": r"^(([0-5]?[0-9](\.[0-9]{1,3})?|60)s?|([0-5]?[0-9]{1,4}|60000)ms)$"}),
    ] = Field(None, description="How long to wait, at most 60s.")


async def get(request: RequestContext) -> BufferedResponse:
    """One task, at once or when it is as it was waited for."""
    query = request.parameters(TaskQuery)
    if query.wait is None:
        return await queries.get(request)
    until = query.until
    deadline = asyncio.get_running_loop().time() + query.wait
    row = await queries.get_or_404(request)
    if until.isdisjoint(_values(row)):
        tail = request.api.change_feed
        async with tail.subscription():
            follower = tail.subscribe(FollowFilter(request.caller.user_id, task=row["id"]), await tail.position())
            assert follower is not None  # nothing came between the position and this
            try:
                response = await _waited(request, follower, until, deadline)
                if not await token_is_valid(request):
                    raise unauthorized()
                return response
            finally:
                tail.unsubscribe(follower)
    return queries.task_response(request, row)


async def _waited(
    request: RequestContext, follower: Subscriber, until: AbstractSet[str], deadline: float
) -> BufferedResponse:
    row = await queries.get_or_404(request)  # what changed before the tail was joined
    if not until.isdisjoint(_values(row)):
        return queries.task_response(request, row)
    loop = asyncio.get_running_loop()
    while not follower.ended and (left := deadline - loop.time()) > 0:
        for change in await follower.next(left):
            if change.deleted:
                raise not_found()
            if change.version > row["version"] and not until.isdisjoint(change.values):
                tag = {"ETag": etags.of_document(change.version, change.revision)}
                return BufferedResponse(200, orjson.dumps(change.document), tag)
    response = queries.task_response(request, await queries.get_or_404(request))
    return replace(response, headers={**response.headers, TIMED_OUT: "true"})


def _values(row: Row) -> set[str]:
    own = orjson.loads(row["own"])
    state = own["current_state"]
    return {own["status"], "" if state is None else state["state"]}
