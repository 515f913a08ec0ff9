"""Why a task is as it is, and what it has been through."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import orjson
from pydantic import Field

from taskherd.api.http.responses import BufferedResponse, json, not_found
from taskherd.api.http.route import ResponseSpec, Route
from taskherd.api.query import MAX_POSITION, QueryModel, whole_number
from taskherd.api.tasks import queries
from taskherd.api.tasks.schemas import Explained, Timeline
from taskherd.domain.explain import explain
from taskherd.domain.reports import rfc3339
from taskherd.store import feed, task_queries, task_state_codec
from taskherd.timeouts import timeouts_of

if TYPE_CHECKING:
    from taskherd.api.context import RequestContext
    from taskherd.domain.explain import Reason
    from taskherd.domain.view import AgentHealth, CurrentState
    from taskherd.store.reader import Row

MAX_LIMIT: Final = 500
LIMIT: Final = 100


class TimelineQuery(QueryModel):
    """The parameters of a timeline."""

    after: Annotated[int, whole_number(0, MAX_POSITION)] = Field(
        0, description="A position; what came behind it is told."
    )
    limit: Annotated[int, whole_number(1, MAX_LIMIT)] = Field(LIMIT, description="Changes in one answer.")


async def timeline(request: RequestContext) -> BufferedResponse:
    """The changes of a task, oldest first, each with what was and what is."""
    query = request.parameters(TimelineQuery)
    task_id = await task_queries.find_id(request.api.reader, queries.task_ref_of(request))
    rows = (
        await feed.timeline(request.api.reader, request.caller.user_id, task_id, query.after, query.limit)
        if task_id
        else ()
    )
    if not rows:
        raise not_found()
    return json({"events": [_event_json(row) for row in rows if row["own"] is not None]})


def _event_json(row: Row) -> dict[str, Any]:
    after = {**orjson.loads(row["own"]), "initial_prompt": row["prompt"]}
    before = orjson.loads(row["own_before"]) if row["own_before"] else {}
    before["initial_prompt"] = row["prompt_before"]
    return {
        "position": row["position"],
        "version": row["version"],
        "time": rfc3339(row["occurred_at"]),
        "changes": {name: {"from": before.get(name), "to": after.get(name)} for name in row["changes"]},
        "cause": orjson.loads(row["cause"]),
    }


async def explain_task(request: RequestContext) -> BufferedResponse:
    """Why the task has its status, state and health, and what is still open of its inbox and requests."""
    row = await task_queries.explain_inputs(request.api.reader, queries.task_ref_of(request))
    if row is None:
        raise not_found()
    found = explain(task_state_codec.loads(row["id"], row["state"]), timeouts_of(request.api.settings))
    return json(
        {
            "status": _reason_json(found.status, str(found.status.value)),
            "current_state": _reason_json(found.current_state, _state(found.current_state.value)),
            "health": _reason_json(found.health, _health(found.health.value)),
            "inbox": _open(row["inbox"]),
            "requests": _open(row["requests"]),
        }
    )


def _reason_json(found: Reason[Any], value: Any) -> dict[str, Any]:
    held = found.report
    return {
        "value": value,
        "because": found.explanation,
        "rule": found.rule,
        "report": None
        if held is None
        else {
            "type": held.report.type,
            "seq": held.report.seq,
            "build_number": held.report.build_number,
            "received_at": rfc3339(held.received_at),
        },
    }


def _state(state: CurrentState | None) -> dict[str, Any] | None:
    if state is None:
        return None
    return {
        "timestamp": rfc3339(state.timestamp),
        "state": state.state,
        "message": state.message,
        "uri": state.uri,
    }


def _health(health: AgentHealth | None) -> dict[str, Any] | None:
    if health is None:
        return None
    return {"healthy": health.healthy, **({} if health.reason is None else {"reason": health.reason})}


def _open(text: str | None) -> list[dict[str, Any]]:
    """Rows as PostgreSQL told them in JSON, with times as we tell them."""
    rows: list[dict[str, Any]] = orjson.loads(text) if text else []
    for row in rows:
        for name, value in row.items():
            if name.endswith("_at") and value is not None:
                row[name] = rfc3339(datetime.fromisoformat(value))
    return rows


_ONE: Final = "/tasks/{user}/{task}"

ROUTES: Final = (
    Route(
        method="GET",
        path=f"{_ONE}/events",
        handler=timeline,
        summary="Get AI task timeline",
        description="The task's changes in order. For the next page, `after` is the last position of this one.",
        query=TimelineQuery,
        responses={200: ResponseSpec("The changes.", Timeline)},
    ),
    Route(
        method="GET",
        path=f"{_ONE}/explain",
        handler=explain_task,
        summary="Explain AI task",
        description="Why the task is as it is, and what would change it.",
        responses={200: ResponseSpec("The reasons.", Explained)},
    ),
)
