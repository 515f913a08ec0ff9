"""Handlers of agents' requests: those of a task, the queue of all that are open, and the answer to one."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Final
from uuid import UUID

from pydantic import Field

from taskherd.api.agent_requests import documents
from taskherd.api.commands import send_command
from taskherd.api.http.errors import HTTPError, invalid, not_found
from taskherd.api.http.ids import parse_uuid
from taskherd.api.http.query_parameters import QueryModel, TextParameter, whole_number
from taskherd.api.http.responses import BufferedResponse, empty, json
from taskherd.api.tasks import search
from taskherd.api.tasks.commands import command_fields
from taskherd.api.tasks.queries import task_ref_of
from taskherd.domain.command_results import REQUEST_NOT_FOUND
from taskherd.domain.commands import Answer
from taskherd.domain.request_values import RequestState
from taskherd.messages import texts
from taskherd.store import agent_request_queries, task_queries
from taskherd.store.agent_request_queries import QueuePlace, TaskPlace

if TYPE_CHECKING:
    from taskherd.api.agent_requests.schemas import AnswerBody
    from taskherd.api.context import RequestContext
    from taskherd.store.read_pool import Row
    from taskherd.store.task_queries import TaskFilter

MAX_LIMIT: Final = 100
DEFAULT_LIMIT: Final = 50
MAX_WAITING_TASKS: Final = 10_000
"""Maximum number of tasks that match and have open requests; of more, the queue has only the newest tasks."""
_OPEN, _CLOSED = "o", "c"
"""How a cursor of a task's requests begins: in which part of them its page ended."""
_NO_CURSOR: Final = "Expected the value of `next` in the previous response."
_HEX: Final = 32
"""Number of hexadecimal digits of an id."""
_REQUEST_ID: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)


def _task_cursor(text: str) -> TaskPlace | None:
    if not text:
        return None
    time_and_id = search.PAGE_CURSOR.read(text[1:])
    if text[0] not in {_OPEN, _CLOSED} or time_and_id is None:
        raise ValueError(_NO_CURSOR)
    return TaskPlace(text[0] == _OPEN, *time_and_id)


def _queue_cursor(text: str) -> QueuePlace | None:
    if not text:
        return None
    time_and_task, request_id = search.PAGE_CURSOR.read(text[:-_HEX]), text[-_HEX:]
    if time_and_task is None or not _REQUEST_ID.fullmatch(request_id):
        raise ValueError(_NO_CURSOR)
    since, task_id = time_and_task
    return QueuePlace(since, task_id, UUID(request_id))


class QueueQuery(QueryModel):
    """Query parameters of the queue of open requests."""

    q: str = Field("", description="Search terms of tasks, as of the list of tasks; `waiting:false` matches none.")
    limit: Annotated[int, whole_number(1, MAX_LIMIT)] = Field(
        DEFAULT_LIMIT, description=f"Maximum number of requests, 1 to {MAX_LIMIT}; by default {DEFAULT_LIMIT}."
    )
    after: Annotated[
        QueuePlace | None,
        TextParameter(_queue_cursor, {"type": "string", "pattern": "^(A[A-Za-z0-3][A-Za-z0-9_-]{30}[0-9a-f]{32})?$"}),
    ] = Field(
        None, description="Cursor of the page: the value of `next` in the previous response. Empty for the first page."
    )


class TaskRequestsQuery(QueryModel):
    """Query parameters of a task's requests."""

    limit: Annotated[int, whole_number(1, MAX_LIMIT)] = Field(
        DEFAULT_LIMIT, description=f"Maximum number of requests, 1 to {MAX_LIMIT}; by default {DEFAULT_LIMIT}."
    )
    after: Annotated[
        TaskPlace | None,
        TextParameter(_task_cursor, {"type": "string", "pattern": "^([oc]A[A-Za-z0-3][A-Za-z0-9_-]{30})?$"}),
    ] = Field(
        None, description="Cursor of the page: the value of `next` in the previous response. Empty for the first page."
    )


async def queue(request: RequestContext) -> BufferedResponse:
    """Return the open requests of the tasks that the caller may see and that match, oldest first."""
    query = request.parameters(QueueQuery)
    wanted = await search.task_filter(request, search.ListQuery(q=query.q))
    if wanted.listed.waiting is False:
        raise invalid(("waiting", "Open requests are those of tasks that wait: leave it out."), message=search.MESSAGE)
    page, truncated = await waiting(request, wanted, query.limit, query.after)
    return json(page, 200, {"X-Taskherd-Truncated": "true"} if truncated else {})


async def waiting(
    request: RequestContext, wanted: TaskFilter, limit: int, after: QueuePlace | None = None
) -> tuple[dict[str, Any], bool]:
    """Return a page of the open requests of the tasks that match, and whether more tasks wait than are looked at."""
    wanted = replace(wanted, limit=MAX_WAITING_TASKS, listed=replace(wanted.listed, waiting=True))
    rows, truncated = await agent_request_queries.waiting(request.reader, wanted, limit, after)
    shown = rows[:limit]
    following = _after(shown[-1]) if len(rows) > limit else None
    return {"requests": [documents.with_task(row) for row in shown], "next": following}, truncated


def _after(row: Row) -> str:
    return f"{search.cursor(row['since'], row['task_id'])}{row['request_id'].hex}"


async def of_task(request: RequestContext) -> BufferedResponse:
    """Return the requests of a task, open ones first."""
    query = request.parameters(TaskRequestsQuery)
    task_id = await task_queries.find_id(request.reader, task_ref_of(request))
    if task_id is None:
        raise not_found()
    caller = request.caller.user_id
    rows = await agent_request_queries.of_task(request.reader, caller, task_id, query.limit, query.after)
    shown = rows[: query.limit]
    following = None
    if len(rows) > query.limit:
        last = shown[-1]
        part = _OPEN if last["shown"] == RequestState.OPEN else _CLOSED
        following = part + search.cursor(last["since"], last["request_id"])
    return json({"requests": [documents.request_json(row) for row in shown], "next": following})


async def answer(request: RequestContext) -> BufferedResponse:
    """Answer an open request of a task's agent."""
    fields, body = await command_fields(request), request.body
    request_id = parse_uuid(request.params["request"])
    if request_id is None:
        raise HTTPError(REQUEST_NOT_FOUND.status, REQUEST_NOT_FOUND.message)
    await send_command(request, _command(fields, request_id, body))
    return empty(204)


def _command(fields: dict[str, UUID], request_id: UUID, body: AnswerBody) -> Answer:
    text = None if body.text is None else texts.sanitize(body.text, {})
    return Answer(
        command_id=fields["command_id"],
        task_id=fields["task_id"],
        actor_id=fields["actor_id"],
        request_id=request_id,
        option_id=body.option_id,
        text=text,
    )
