"""The agents' own two routes."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final

from pydantic import Field

from taskherd.api.agents.schemas import AppStatusPatch, LogSnapshot
from taskherd.api.http.ids import parse_uuid
from taskherd.api.http.responses import BufferedResponse, HTTPError, empty, invalid, json, not_found
from taskherd.api.http.route import Auth, ResponseSpec, Route
from taskherd.api.query import QueryModel, Text
from taskherd.domain.reports import AgentState, AppStatus, LogEntry, LogSource, TaskLog
from taskherd.messages import texts
from taskherd.messages.limits import ELEMENTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from taskherd.api.context import RequestContext
    from taskherd.domain.reports import Report

SNAPSHOT_BYTES: Final = 64 * 1024
FORMAT: Final = "agentapi"
_STATES: Final = {
    "working": AgentState.WORKING,
    "idle": AgentState.IDLE,
    "complete": AgentState.COMPLETE,
    "failure": AgentState.FAILED,
    "failed": AgentState.FAILED,
}
_SPEAKERS: Final = {"user": LogSource.INPUT, "agent": LogSource.OUTPUT}


def _format(text: str) -> str:
    if text != FORMAT:
        message = f'Query param "format" has invalid value: only {FORMAT} is known'
        raise ValueError(message)
    return text


class SnapshotQuery(QueryModel):
    """The parameters of a log's snapshot."""

    refusal: ClassVar[str] = "Query parameters have invalid values."
    format: Annotated[str, Text(_format, {"type": "string", "enum": [FORMAT]})] = Field(description="What the body is.")


async def app_status(request: RequestContext) -> BufferedResponse:
    """Take what the agent says it is doing."""
    body: AppStatusPatch = request.body
    state = _STATES.get(body.state or "")
    if state is None:
        wrong = ("state", "State must be one of: complete, failure, working, idle.")
        raise invalid(wrong, message="Invalid state provided.")
    report = AppStatus(
        **_common(request),
        state=state,
        message=texts.message(body.message or "", {}),
        uri=texts.address(body.uri or "", {}),
    )
    await _publish(request, [report])
    return json(None)


async def log_snapshot(request: RequestContext) -> BufferedResponse:
    """Take the end of the conversation, so that it can be read when the agent is gone."""
    if request.agent is None or parse_uuid(request.params["id"]) != request.agent[0]:
        raise not_found()
    request.parameters(SnapshotQuery)
    body: LogSnapshot = request.body
    strange = [message.role for message in body.messages if message.role not in _SPEAKERS]
    if strange:
        raise HTTPError(400, "Invalid agentapi payload structure.", "A message's role is user or agent.")
    common = _common(request)
    now: datetime = common["observed_at"]
    entries = tuple(
        LogEntry(message.id, _SPEAKERS[message.role], texts.content(message.content, {}), message.time or now)
        for message in body.messages
    )
    parts = [entries[start : start + ELEMENTS] for start in range(0, len(entries), ELEMENTS)]
    if parts:
        await _publish(request, [TaskLog(**common, entries=part) for part in parts])
    return empty(204)


def _common(request: RequestContext) -> dict[str, Any]:
    """The fields that every report of the agent has; its seq is left to the worker, see `ReportPublisher.publish`.

    Two reports of an agent are told apart by this process's clock, which the worker bounds by its own.
    """
    assert request.agent is not None
    task_id, build_number = request.agent
    return {"task_id": task_id, "build_number": build_number, "seq": 0, "observed_at": datetime.now(UTC)}


async def _publish(request: RequestContext, reports: Sequence[Report]) -> None:
    assert request.agent is not None
    task_id, build_number = request.agent
    request.log_fields = {"task_id": str(task_id), "build_number": build_number}
    await request.api.reports.publish(task_id, reports)


ROUTES: Final = (
    Route(
        method="PATCH",
        path="/workspaceagents/me/app-status",
        handler=app_status,
        summary="Patch workspace agent app status",
        auth=Auth.AGENT,
        body=AppStatusPatch,
        responses={200: ResponseSpec("Taken; the body is null.", type(None))},
        tag="agents",
    ),
    Route(
        method="POST",
        path="/workspaceagents/me/tasks/{id}/log-snapshot",
        handler=log_snapshot,
        summary="Upload task log snapshot",
        auth=Auth.AGENT,
        body=LogSnapshot,
        max_body=SNAPSHOT_BYTES,
        query=SnapshotQuery,
        responses={204: ResponseSpec("Taken.")},
        tag="agents",
    ),
)
