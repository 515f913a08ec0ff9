"""Handlers that explain a task: the reasons for its status, and its timeline."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import orjson
from pydantic import Field

from taskherd.api.http.errors import not_found
from taskherd.api.http.query_parameters import FLAG, MAX_POSITION, QueryModel, whole_number
from taskherd.api.http.responses import BufferedResponse, json
from taskherd.api.tasks import queries
from taskherd.domain import causes
from taskherd.domain.commands import Send
from taskherd.domain.explain import explain
from taskherd.domain.reports import AgentExit, ExitReason, format_rfc3339
from taskherd.domain.view import EndedAgent
from taskherd.messages import document
from taskherd.store import feed, task_queries, task_state_codec
from taskherd.store.pages import MAX_PAGE_BYTES
from taskherd.timeouts import timeouts_of

if TYPE_CHECKING:
    from taskherd.api.context import RequestContext
    from taskherd.domain.explain import ExplainedValue
    from taskherd.domain.view import AgentHealth, CurrentState
    from taskherd.store.read_pool import Row

MAX_LIMIT: Final = 500
DEFAULT_LIMIT: Final = 100
MAX_ACTIONS: Final = 100
"""Maximum number of actions in a timeline, the newest ones; unlike changes they have no pages."""


class TimelineQuery(QueryModel):
    """Query parameters of a timeline."""

    after: Annotated[int, whole_number(0, MAX_POSITION)] = Field(
        0, description="Position; only changes after it are returned. 0, the default, returns them from the first one."
    )
    limit: Annotated[int, whole_number(1, MAX_LIMIT)] = Field(
        DEFAULT_LIMIT,
        description=f"Maximum number of changes in the response, 1 to {MAX_LIMIT}; by default {DEFAULT_LIMIT}. "
        f"There are fewer, at least one, where {MAX_PAGE_BYTES >> 20} MiB of documents and prompts are reached; "
        "`X-Taskherd-Truncated` tells.",
    )
    newest: Annotated[bool, FLAG] = Field(
        default=False,
        description="If more than `limit` changes follow `after`: true returns the last of them instead of the first.",
    )


async def timeline(request: RequestContext) -> BufferedResponse:
    """Return the changes of a task, oldest first, with the old and new values."""
    query = request.parameters(TimelineQuery)
    task_id = await task_queries.find_id(request.reader, queries.task_ref_of(request))
    rows = (
        await feed.timeline(
            request.reader, request.caller.user_id, task_id, query.after, query.limit, newest=query.newest
        )
        if task_id
        else ()
    )
    if not rows:
        raise not_found()
    actions = await feed.actions(request.reader, request.caller.user_id, rows[0]["id"], MAX_ACTIONS)
    body = {
        "events": [_event_json(row) for row in rows if row["core_document"] is not None],
        "actions": [_send_json(row) for row in actions],
    }
    return json(body, 200, {"X-Taskherd-Truncated": "true"} if rows[0]["found"] > len(rows) else {})


def _send_json(row: Row) -> dict[str, Any]:
    """Return a send as an action of the timeline; another kind of action gets a type of its own."""
    return {
        "type": Send.type,
        "id": row["input_id"],
        "time": format_rfc3339(row["created_at"]),
        "actor_id": row["actor_id"],
        "actor_name": row["actor_name"],
        "words": causes.describe("command", Send.type, row["actor_name"] or "", steers=row["steers"]),
        "input": row["input"],
        "steers": row["steers"],
        "state": row["state"],
        "sent_at": row["sent_at"] and format_rfc3339(row["sent_at"]),
        "decided_at": row["decided_at"] and format_rfc3339(row["decided_at"]),
        "detail": row["detail"],
    }


def _event_json(row: Row) -> dict[str, Any]:
    after = {**orjson.loads(row["core_document"]), "initial_prompt": row["prompt"]}
    before = orjson.loads(row["core_document_before"]) if row["core_document_before"] else {}
    before["initial_prompt"] = row["prompt_before"]
    cause = orjson.loads(row["cause"])
    if "actor_id" in cause:
        cause["actor_name"] = row["actor_name"] or cause["actor_id"]
    ended = _ended_agent(after.get("agent_exit")) if cause["type"] == AgentExit.type else None
    cause["words"] = causes.describe(
        cause["kind"],
        cause["type"],
        cause.get("actor_name", ""),
        ended,
        outcome=cause.get("outcome", ""),
        steers=cause["type"] == Send.type and after.get("interrupt") is not None,
        request=cause.get("request", ""),
        answer=cause.get("answer"),
    )
    return {
        "position": row["position"],
        "version": row["version"],
        "time": format_rfc3339(row["occurred_at"]),
        "changes": {name: {"from": before.get(name), "to": after.get(name)} for name in row["changes"]},
        "cause": cause,
    }


def _ended_agent(agent_exit: dict[str, Any] | None) -> EndedAgent | None:
    """Return the field of a stored document; a reason is one of this release or of an earlier one."""
    if agent_exit is None:
        return None
    at = datetime.fromisoformat(agent_exit["at"])
    why = ExitReason(agent_exit["why"])
    return EndedAgent(why, agent_exit["status"], agent_exit["signal"], agent_exit["words"], at)


async def explain_task(request: RequestContext) -> BufferedResponse:
    """Return why the task has its status, state and health, and its undelivered inputs and unanswered requests."""
    row = await task_queries.explanation_facts(request.reader, queries.task_ref_of(request))
    if row is None:
        raise not_found()
    state = task_state_codec.loads(row["id"], row["state"])
    explanation = explain(state, timeouts_of(request.api.settings))
    ended, since = explanation.agent_exit.value, explanation.stalled_since.value
    return json(
        {
            "status": _reason_json(explanation.status, str(explanation.status.value)),
            "current_state": _reason_json(explanation.current_state, _state_json(explanation.current_state.value)),
            "health": _reason_json(explanation.health, _health_json(explanation.health.value)),
            "agent_exit": _reason_json(explanation.agent_exit, ended and document.agent_exit(ended)),
            "stalled_since": _reason_json(explanation.stalled_since, since and format_rfc3339(since)),
            "interrupt": _reason_json(
                explanation.interrupt,
                explanation.interrupt.value and {"since": format_rfc3339(explanation.interrupt.value)},
            ),
            "waiting": _reason_json(explanation.waiting, explanation.waiting.value),
            "resume": _reason_json(explanation.resume, explanation.resume.value),
            "restart_at": explanation.restart_at and format_rfc3339(explanation.restart_at),
            "pool": row["pool"],
            "runner": (state.runner.report.runner or None) if state.runner else None,
            "last_command": _last_command_json(row["last_command"]),
            "inbox": _rows_json(row["inbox"]),
            "requests": _rows_json(row["requests"]),
        }
    )


def _last_command_json(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    command: dict[str, Any] = orjson.loads(text)
    name = command["actor_name"] or command["actor_id"]
    time = format_rfc3339(datetime.fromisoformat(command["time"]))
    words = causes.describe("command", command["type"], name or "")
    return {**command, "time": time, "actor_name": name, "words": words}


def _reason_json(reason: ExplainedValue[Any], value: Any) -> dict[str, Any]:
    stamped = reason.report
    return {
        "value": value,
        "because": reason.explanation,
        "rule": reason.rule,
        "report": None
        if stamped is None
        else {
            "type": stamped.report.type,
            "seq": stamped.report.seq,
            "build_number": stamped.report.build_number,
            "received_at": format_rfc3339(stamped.received_at),
        },
    }


def _state_json(state: CurrentState | None) -> dict[str, Any] | None:
    if state is None:
        return None
    return {
        "timestamp": format_rfc3339(state.timestamp),
        "state": state.state,
        "message": state.message,
        "uri": state.uri,
    }


def _health_json(health: AgentHealth | None) -> dict[str, Any] | None:
    if health is None:
        return None
    return {"healthy": health.healthy, **({} if health.reason is None else {"reason": health.reason})}


def _rows_json(text: str | None) -> list[dict[str, Any]]:
    """Return rows that PostgreSQL rendered as JSON, with times in the form of the API."""
    rows: list[dict[str, Any]] = orjson.loads(text) if text else []
    for row in rows:
        for name, value in row.items():
            if name.endswith("_at") and value is not None:
                row[name] = format_rfc3339(datetime.fromisoformat(value))
    return rows
