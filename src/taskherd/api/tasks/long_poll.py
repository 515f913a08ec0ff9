"""Long polling: a read of a task that waits until its status or state is one of the requested values, or a timeout.

A long poll subscribes to the change feed, so the number of reads does not depend on how long it waits.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Final, assert_never

import orjson
from pydantic import Field

from taskherd import durations
from taskherd.api.changes import ENDED, ChangeFilter, long_poll_values
from taskherd.api.http import etags
from taskherd.api.http.auth import token_is_valid
from taskherd.api.http.errors import HTTPError, not_found, unauthorized, unavailable
from taskherd.api.http.open_requests import AccessLoss
from taskherd.api.http.query_parameters import TextParameter
from taskherd.api.http.responses import BufferedResponse
from taskherd.api.tasks import queries
from taskherd.api.tasks.documents import IncludeQuery
from taskherd.domain.reports import AgentState
from taskherd.domain.view import Status

if TYPE_CHECKING:
    from uuid import UUID

    from taskherd.api.change_feed import Subscriber
    from taskherd.api.context import RequestContext
    from taskherd.store.read_pool import Row

MAX_WAIT: Final = 60.0
"""Maximum of ``wait``, in seconds."""
TIMED_OUT: Final = "X-Taskherd-Timed-Out"
_VALUES: Final = frozenset(Status) | frozenset(AgentState) - {AgentState.FAILURE} | {ENDED}
_UNTIL: Final = "idle,complete,failed,ended"
_DEFAULT: Final = frozenset(_UNTIL.split(","))


def _until(text: str) -> frozenset[str]:
    until = frozenset(each.strip().lower() for each in text.split(","))
    if not until <= _VALUES:
        message = f"Expected one or more of these, separated by commas: {', '.join(sorted(_VALUES))}."
        raise ValueError(message)
    return until


def _wait(text: str) -> float:
    message = f"Expected a duration such as 30s, at most {MAX_WAIT:g}s."
    try:
        wait = durations.parse(text)
    except ValueError:
        raise ValueError(message) from None
    if not 0 <= wait <= MAX_WAIT:
        raise ValueError(message)
    return wait


WAIT_PARAMETER: Final = TextParameter(
    _wait, {"type": "string", "pattern": r"^(([0-5]?[0-9](\.[0-9]{1,3})?|60)s?|([0-5]?[0-9]{1,4}|60000)ms)$"}
)
"""Annotation of a duration of at most ``MAX_WAIT``, in seconds."""


class TaskQuery(IncludeQuery):
    """Query parameters of a task."""

    until: Annotated[
        frozenset[str],
        TextParameter(_until, {"type": "string", "pattern": "^({0})(,({0}))*$".format("|".join(sorted(_VALUES)))}),
    ] = Field(
        _DEFAULT,
        description=(
            "With `wait`: values of `status` or `current_state.state` to wait for, separated by commas;"
            f" by default `{_UNTIL}`. `{ENDED}`: the agent has ended other than by a stop of its workspace, or is lost;"
            " no other value follows by itself, unless the template restarts lost agents."
        ),
    )
    wait: Annotated[float | None, WAIT_PARAMETER] = Field(
        None,
        description=(
            "Maximum time to wait, as a number with the unit `s` (the default) or `ms`, at most 60 seconds."
            " Without it the response is immediate."
        ),
    )


async def get(request: RequestContext) -> BufferedResponse:
    """Return one task, immediately or once it has one of the requested values."""
    query = request.parameters(TaskQuery)
    if query.wait is None:
        return await queries.get(request, with_state_since=query.has_state_since)
    request.follows = True
    try:
        return await _poll(request, query, query.wait)
    finally:
        request.mark_seen()


async def _poll(request: RequestContext, query: TaskQuery, wait: float) -> BufferedResponse:
    deadline = asyncio.get_running_loop().time() + wait
    row = await queries.get_or_404(request, with_state_since=query.has_state_since)
    if not query.until.isdisjoint(_values(row)):
        return queries.task_response(request, row)
    request.waits = True
    with request.api.access.watch(request.caller, row["id"]) as access:
        waiting = asyncio.create_task(_subscribe_and_wait(request, row["id"], query, deadline))
        lost = asyncio.create_task(access.wait_lost())
        try:
            await asyncio.wait({waiting, lost}, return_when=asyncio.FIRST_COMPLETED)
            if waiting.done() and waiting.exception() is None:
                await access.may_send()
            if access.loss is not None:
                raise _error_of(access.loss)
            response = await waiting
        finally:
            waiting.cancel()
            lost.cancel()
            await asyncio.wait({waiting, lost})
    if not await token_is_valid(request):
        raise unauthorized()
    return response


def _error_of(loss: AccessLoss) -> HTTPError:
    match loss:
        case AccessLoss.SIGNED_OUT:
            return unauthorized()
        case AccessLoss.NOT_VISIBLE:
            return not_found()
        case AccessLoss.UNCHECKED:
            return unavailable("The service is temporarily unavailable.")
        case _:
            assert_never(loss)


async def _subscribe_and_wait(
    request: RequestContext, task_id: UUID, query: TaskQuery, deadline: float
) -> BufferedResponse:
    feed = request.api.change_feed
    feed.check_room(request.caller.user_id)
    async with feed.subscription(request.caller.user_id):
        change_filter = ChangeFilter(request.caller.user_id, task=task_id)
        subscriber = feed.subscribe(change_filter, await feed.position())
        assert subscriber is not None  # the position cannot change between the two calls
        try:
            return await _wait_for(request, subscriber, query, deadline)
        finally:
            feed.unsubscribe(subscriber)


async def _wait_for(
    request: RequestContext, subscriber: Subscriber, query: TaskQuery, deadline: float
) -> BufferedResponse:
    until, with_state_since = query.until, query.has_state_since
    row = await queries.get_or_404(request, with_state_since=with_state_since)  # with the changes before it subscribed
    if not until.isdisjoint(_values(row)):
        return queries.task_response(request, row)
    loop = asyncio.get_running_loop()
    while not subscriber.ended and (remaining := deadline - loop.time()) > 0:
        for change in await subscriber.next(remaining):
            if change.deleted:
                raise not_found()
            if change.version > row["version"] and not until.isdisjoint(change.long_poll_values):
                tag = {"ETag": etags.of_document(change.task_id, change.version, change.revision)}
                shown = change.document_with_state_since if with_state_since else change.document
                return BufferedResponse(200, orjson.dumps(shown), tag)
    row = await queries.get_or_404(request, with_state_since=with_state_since)
    response = queries.task_response(request, row)
    if not until.isdisjoint(_values(row)):
        return response
    return replace(response, headers={**response.headers, TIMED_OUT: "true"})


def _values(row: Row) -> frozenset[str]:
    return long_poll_values(orjson.loads(row["core_document"]))
