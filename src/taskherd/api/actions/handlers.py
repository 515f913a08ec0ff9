"""Handlers of task actions: make, show, list, cancel, and their results."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final, assert_never
from uuid import UUID

import orjson
from pydantic import Field

from taskherd.api.actions.schemas import MAX_PREVIEW, MAX_TASKS, ActionState, ActionType, CreateAction
from taskherd.api.commands import IDEMPOTENCY_KEY, command_id_of
from taskherd.api.http.errors import HTTPError, invalid, not_found, unavailable
from taskherd.api.http.ids import parse_uuid
from taskherd.api.http.query_parameters import FLAG, QueryModel, whole_number
from taskherd.api.http.responses import BufferedResponse, json
from taskherd.api.tasks import search
from taskherd.domain.command_results import NO_INPUT, NOT_FOUND
from taskherd.domain.reports import format_rfc3339
from taskherd.messages import texts
from taskherd.store import task_actions, task_queries
from taskherd.store.engine import LOCK_TIMEOUT, transaction
from taskherd.store.task_actions import NewAction, NotAdded, StoredActions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from taskherd.api.context import ApiContext, RequestContext
    from taskherd.store.read_pool import Row

MAX_REQUESTS, MAX_REQUESTS_OF_USER = 16, 4
"""Maximum number of requests for actions in progress in one process, of all users and of one: together their bodies
have up to 32 MiB, as those of batches."""
TOO_MANY: Final = "Too many requests for actions are in progress. Please wait."
MAX_STORED: Final = StoredActions(unfinished=10, actions=2 * task_actions.MAX_KEYS, tasks=400_000)
"""What may be stored of one user. Maintenance keeps up to 30 actions with their tasks, of 10,000 each, and the keys of
1,000; what is beyond that waits to be pruned."""
PRUNED_AFTER: Final = 15
"""Seconds after which a client should repeat a request that has to wait until maintenance has pruned."""
MAX_BUSY: Final = LOCK_TIMEOUT
"""Seconds for which a request waits while others add actions of the same user."""
_BUSY_INTERVAL: Final = 0.1
MAX_LIMIT: Final = 500
BEHIND: Final = "The index of the tasks is behind; try again later."
_AFTER_ALL: Final = (datetime(9999, 12, 31, tzinfo=UTC), UUID(int=0))
"""A cursor before the first page."""


class ActionListQuery(QueryModel):
    """Query parameters of the list of actions."""

    limit: Annotated[int, whole_number(1, MAX_LIMIT)] = Field(
        100, description=f"Maximum number of actions in the response, 1 to {MAX_LIMIT}."
    )
    after: Annotated[tuple[datetime, UUID] | None, search.PAGE_CURSOR] = Field(
        None,
        description="Cursor of the page: the value of `next` in the previous response. Empty for the first page.",
    )


class ResultQuery(QueryModel):
    """Query parameters of the results of an action."""

    limit: Annotated[int, whole_number(1, MAX_LIMIT)] = Field(
        MAX_LIMIT, description=f"Maximum number of results in the response, 1 to {MAX_LIMIT}."
    )
    after: Annotated[int | None, whole_number(0, MAX_TASKS)] = Field(
        None, description="Position of a task; only results after it are returned. By default all are."
    )
    refused: Annotated[bool, FLAG] = Field(default=False, description="`true`: only results that are errors.")


def admit(request: RequestContext) -> AbstractContextManager[None]:
    """Count a request from before its body is read; raise a 429 if there are too many."""
    return request.api.action_requests.enter(request.caller.user_id)


async def create(request: RequestContext) -> BufferedResponse:
    """Make an action for the tasks that match now; repeated with the same Idempotency-Key it returns the same one."""
    body: CreateAction = request.body
    _check(body)
    action_id = command_id_of(request)
    digest = _digest(body)
    if not body.dry_run:
        earlier = await task_actions.find(request.api.reader, request.caller.user_id, action_id)
        if earlier is not None:
            return _repeated(earlier, digest)
    task_ids, missing = await _select(request, body)
    if body.dry_run:
        return await _preview(request, body, task_ids, missing)
    await _add(
        request,
        NewAction(
            id=action_id,
            user_id=request.caller.user_id,
            token_id=request.caller.token_id,
            action=body.action.value,
            input=None if body.input is None else texts.sanitize(body.input, {}),
            query=body.q,
            digest=digest,
            task_ids=task_ids,
            missing=missing,
        ),
    )
    stored = await _get_or_404(request, action_id)
    if stored["digest"] != digest:  # another request with the same key was faster
        return _repeated(stored, digest)
    return json(action_json(stored), 202)


async def _add(request: RequestContext, new: NewAction) -> None:
    """Store an action, and have it executed. Raise an error if the caller has too many, or adds others at the time."""
    reason = await _try_to_add(request.api, new)
    if reason is not None:
        raise _not_added(reason)
    request.api.action_executor.wake()
    request.log_fields = {"action_id": str(new.id), "action": new.action, "tasks": len(new.task_ids)}


async def _try_to_add(api: ApiContext, new: NewAction) -> NotAdded | None:
    """Store an action, or return why not; no connection is in use while others add actions of the same user."""
    now = asyncio.get_running_loop().time
    deadline = now() + MAX_BUSY
    while True:
        async with transaction(api.engine) as connection:
            reason = await task_actions.add(connection, new, NOT_FOUND.message, MAX_STORED)
        if reason is not NotAdded.BUSY or now() >= deadline:
            return reason
        await asyncio.sleep(_BUSY_INTERVAL)


def _not_added(reason: NotAdded) -> HTTPError:
    match reason:
        case NotAdded.BUSY:
            return unavailable("Other actions of yours are being added.")
        case NotAdded.TOO_MANY_UNFINISHED:
            return HTTPError(
                409,
                "Too many actions are unfinished.",
                f"You may have {MAX_STORED.unfinished}. Cancel one, or wait until one is finished, then try again.",
            )
        case NotAdded.TOO_MANY_STORED:
            return HTTPError(
                429,
                "You have made too many actions.",
                "The results of the older ones that are finished are deleted in a moment. Please try again then.",
                headers={"Retry-After": str(PRUNED_AFTER)},
            )
        case _:
            assert_never(reason)


def _check(body: CreateAction) -> None:
    """Raise a 400 unless the body selects tasks, and has an input if the action needs one."""
    if body.q is None and body.ids is None:
        raise invalid(("q", "Expected q or ids."))
    if body.q is None and not body.ids:
        raise invalid(("ids", "Expected at least one ID."))
    if body.q is not None and not body.q.strip():
        raise invalid(("q", "Expected at least one search term, such as owner:me for all of your tasks."))
    if (body.input is None) == (body.action is ActionType.SEND):
        needs = "Expected an input for the action send." if body.input is None else "Only the action send has one."
        raise invalid(("input", needs))
    if body.input is not None and not texts.sanitize(body.input, {}):
        raise HTTPError(NO_INPUT.status, NO_INPUT.message)


def _digest(body: CreateAction) -> bytes:
    """Return what recognizes a repeated request. With ``q``, IDs do not count: another dry run found others."""
    content = body.model_dump(mode="json", exclude={"dry_run"})
    if body.q is not None:
        content["ids"] = None
    return hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).digest()


def _repeated(stored: Row, digest: bytes) -> BufferedResponse:
    if stored["digest"] != digest:
        raise HTTPError(409, f"{IDEMPOTENCY_KEY} was used for another request.")
    return json(action_json(stored))


async def _select(request: RequestContext, body: CreateAction) -> tuple[Sequence[UUID], frozenset[UUID]]:
    """Return the ids of the tasks, and those of them that do not exist or that the caller may not see."""
    reader = request.api.reader
    if body.q is None:
        task_ids = list(dict.fromkeys(body.ids or ()))
        visible = await task_actions.visible(reader, request.caller.user_id, task_ids)
        return task_ids, frozenset(task_ids) - visible
    if body.ids == []:  # also of a client that cancels before it has an answer, whatever keeps tasks from being found
        return [], frozenset()
    selected = await search.task_filter(request, search.WatchQuery(q=body.q))
    found = await task_queries.current_task_ids(reader, replace(selected, limit=MAX_TASKS))
    if found is None:
        raise unavailable(BEHIND)
    task_ids = list(found)
    if len(task_ids) > MAX_TASKS:
        raise HTTPError(
            400,
            f"More than {MAX_TASKS:,} tasks match.",
            "Narrow the search, for example by owner, status, state or template, and repeat it for the rest.",
        )
    if body.ids is not None:
        confirmed = frozenset(body.ids)
        task_ids = [task_id for task_id in task_ids if task_id in confirmed]
    return task_ids, frozenset()


async def _preview(
    request: RequestContext, body: CreateAction, task_ids: Sequence[UUID], missing: frozenset[UUID]
) -> BufferedResponse:
    first = [task_id for task_id in task_ids if task_id not in missing][:MAX_PREVIEW]
    rows = await request.api.reader.fetch(task_actions.PREVIEW, request.caller.user_id, first)
    tasks = [
        {"task_id": row["id"], "owner_name": row["username"], "name": row["name"], "status": row["status"]}
        for row in rows
    ]
    found = {} if body.q is None else {"ids": task_ids}
    return json({"action": body.action, "total": len(task_ids), "missing": len(missing), "tasks": tasks, **found})


async def get(request: RequestContext) -> BufferedResponse:
    """Return one action of the caller."""
    return json(action_json(await _get_or_404(request, action_id_of(request))))


async def list_actions(request: RequestContext) -> BufferedResponse:
    """Return the actions of the caller, newest first."""
    query = request.parameters(ActionListQuery)
    created_at, action_id = query.after or _AFTER_ALL
    rows = await request.api.reader.fetch(
        task_actions.LIST, request.caller.user_id, created_at, action_id, query.limit + 1
    )
    last = rows[query.limit - 1] if len(rows) > query.limit else None
    after = None if last is None else search.cursor(last["created_at"], last["id"])
    return json({"actions": [action_json(row) for row in rows[: query.limit]], "next": after})


async def results(request: RequestContext) -> BufferedResponse:
    """Return the tasks of an action with their results, in pages."""
    query = request.parameters(ResultQuery)
    action = await _get_or_404(request, action_id_of(request))
    after = -1 if query.after is None else query.after
    rows = await request.api.reader.fetch(
        task_actions.RESULTS, request.caller.user_id, action["id"], after, query.refused, query.limit + 1
    )
    page = rows[: query.limit]
    return json(
        {"results": [_result_json(row) for row in page], "next": page[-1]["ordinal"] if len(rows) > len(page) else None}
    )


async def cancel(request: RequestContext) -> BufferedResponse:
    """Cancel an action: what was sent may take effect, and the tasks after it stay as they are."""
    action_id = action_id_of(request)
    await _get_or_404(request, action_id)
    async with transaction(request.api.engine) as connection:
        await task_actions.cancel(connection, request.caller.user_id, action_id)
    request.api.action_executor.wake()
    return json(action_json(await _get_or_404(request, action_id)), 202)


def action_id_of(request: RequestContext) -> UUID:
    """Return the id of the action that the path names. Raise a 404 if it is not an id."""
    action_id = parse_uuid(request.params["action"])
    if action_id is None:
        raise not_found()
    return action_id


async def _get_or_404(request: RequestContext, action_id: UUID) -> Row:
    row = await task_actions.find(request.api.reader, request.caller.user_id, action_id)
    if row is None:
        raise not_found()
    return row


def action_json(row: Row) -> dict[str, Any]:
    """Return an action as JSON types."""
    return {
        "id": row["id"],
        "action": row["action"],
        "q": row["query"],
        "state": _state(row),
        "total": row["total"],
        "succeeded": row["succeeded"],
        "refused": row["refused"],
        "unconfirmed": row["unconfirmed"],
        "pending": row["total"] - row["succeeded"] - row["refused"] - row["unconfirmed"],
        "failure": row["failure"],
        "created_at": format_rfc3339(row["created_at"]),
        "started_at": row["started_at"] and format_rfc3339(row["started_at"]),
        "finished_at": row["finished_at"] and format_rfc3339(row["finished_at"]),
    }


def _state(row: Row) -> ActionState:
    if row["finished_at"] is None:
        if row["canceled_at"] is not None:
            return ActionState.CANCELING
        return ActionState.PENDING if row["started_at"] is None else ActionState.RUNNING
    if row["succeeded"] + row["refused"] == row["total"]:
        return ActionState.COMPLETED
    return ActionState.FAILED if row["failure"] is not None else ActionState.CANCELED


def _result_json(row: Row) -> dict[str, Any]:
    result = {
        "position": row["ordinal"],
        "task_id": row["task_id"],
        "owner_name": row["username"],
        "name": row["name"],
        "status": row["status"],
        "decided_at": row["decided_at"] and format_rfc3339(row["decided_at"]),
    }
    if row["message"] is not None:
        result["error"] = {"message": row["message"], **({"detail": row["detail"]} if row["detail"] else {})}
    return result
