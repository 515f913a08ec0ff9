"""Handlers of the routes for agents."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final

from pydantic import Field

from taskherd.api.agents.schemas import AppStatusPatch, LogSnapshot, UsageReport
from taskherd.api.http.errors import HTTPError, invalid, not_found, rate_limited
from taskherd.api.http.ids import parse_uuid
from taskherd.api.http.query_parameters import QueryModel, TextParameter
from taskherd.api.http.responses import BufferedResponse, empty, json
from taskherd.domain.reports import AgentState, AgentUsage, AppStatus, LogEntry, LogSource, TaskLog
from taskherd.messages import texts
from taskherd.messages.limits import MAX_ELEMENTS
from taskherd.store import agent_queries

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from taskherd.api.agents.schemas import SnapshotMessage
    from taskherd.api.context import RequestContext
    from taskherd.domain.reports import Report

FORMAT: Final = "agentapi"
MAX_GIVEN_BYTES: Final = 64 * 1024
"""Maximum size of a prompt or input that is recognized in a snapshot, in bytes; a snapshot is not larger."""
_STATES: Final = {
    "working": AgentState.WORKING,
    "idle": AgentState.IDLE,
    "complete": AgentState.COMPLETE,
    "failure": AgentState.FAILED,
    "failed": AgentState.FAILED,
}
_USER: Final = "user"
_WHITE_SPACE: Final = dict.fromkeys(map(ord, " \t\n"))
_ROLES: Final = frozenset({_USER, "agent"})


def _format(text: str) -> str:
    if text != FORMAT:
        message = f'Query param "format" has invalid value: expected {FORMAT}'
        raise ValueError(message)
    return text


class SnapshotQuery(QueryModel):
    """Query parameters of a log snapshot."""

    error_message: ClassVar[str] = "Query parameters have invalid values."
    format: Annotated[str, TextParameter(_format, {"type": "string", "enum": [FORMAT]})] = Field(
        description="Format of the body."
    )


async def app_status(request: RequestContext) -> BufferedResponse:
    """Publish what the agent is doing as a report."""
    body: AppStatusPatch = request.body
    state = _STATES.get(body.state or "")
    if state is None:
        validation = ("state", "State must be one of: complete, failure, working, idle.")
        raise invalid(validation, message="Invalid state provided.")
    report = AppStatus(
        **_common(request),
        state=state,
        message=texts.sanitize_message(body.message or "", {}),
        uri=texts.sanitize_uri(body.uri or "", {}),
    )
    await _publish(request, [report])
    return json(None)


async def usage(request: RequestContext) -> BufferedResponse:
    """Publish what the agent used as a report."""
    body: UsageReport = request.body
    await _publish(request, [AgentUsage(**_common(request), **body.to_fields({}))])
    return empty(204)


async def log_snapshot(request: RequestContext) -> BufferedResponse:
    """Publish the end of the conversation as reports, so that it can be read while no agent is running.

    A user's message counts as input only if the agent was given it: an agent's words are never shown as a person's.
    """
    if request.agent is None or parse_uuid(request.params["id"]) != request.agent[0]:
        raise not_found()
    request.parameters(SnapshotQuery)
    body: LogSnapshot = request.body
    if any(message.role not in _ROLES for message in body.messages):
        raise HTTPError(400, "Invalid agentapi payload structure.", "The role of a message must be user or agent.")
    _charge_log(request, body.messages)
    common = _common(request)
    now: datetime = common["observed_at"]
    given = await _given_texts(request, common["task_id"], body.messages)
    entries = tuple(
        LogEntry(
            message.id,
            LogSource.INPUT if message.role == _USER and _compact(message.content) in given else LogSource.OUTPUT,
            texts.sanitize_content(message.content, {}),
            message.time or now,
        )
        for message in body.messages
    )
    parts = [entries[start : start + MAX_ELEMENTS] for start in range(0, len(entries), MAX_ELEMENTS)]
    if parts:
        await _publish(request, [TaskLog(**common, entries=part) for part in parts])
    return empty(204)


def _charge_log(request: RequestContext, messages: Sequence[SnapshotMessage]) -> None:
    """Count a snapshot against the rate at which a task's log may grow. Raise a 429 if it exceeds it."""
    assert request.agent is not None
    task_id, limits = request.agent[0], request.api.rate_limits
    wait = limits.log_entries.acquire(task_id, len(messages)) or limits.log_bytes.acquire(
        task_id, sum(len(message.content.encode(errors="replace")) for message in messages)
    )
    if wait > 0:
        raise rate_limited(wait, "The log of this task grows too fast. Please wait.")


async def _given_texts(request: RequestContext, task_id: UUID, messages: Sequence[SnapshotMessage]) -> set[str]:
    """Return the compact texts of those users' messages that are inputs which the agent was given."""
    claimed = {_compact(message.content) for message in messages if message.role == _USER}
    if not claimed:
        return set()
    return await agent_queries.given_texts(request.api.reader, task_id, sorted(claimed), max_bytes=MAX_GIVEN_BYTES)


def _compact(text: str) -> str:
    """Return a text as ``agent_queries`` compares it, without the white space that agents change."""
    return texts.sanitize(text, {}).translate(_WHITE_SPACE)


def _common(request: RequestContext) -> dict[str, Any]:
    """Return the fields that all reports of an agent have; the worker assigns ``seq``, see ``ReportPublisher``.

    ``observed_at`` is read from this process's clock, and tells two reports of an agent apart; the worker caps it at
    its own clock.
    """
    assert request.agent is not None
    task_id, build_number = request.agent
    return {"task_id": task_id, "build_number": build_number, "seq": 0, "observed_at": datetime.now(UTC)}


async def _publish(request: RequestContext, reports: Sequence[Report]) -> None:
    assert request.agent is not None
    task_id, build_number = request.agent
    request.log_fields = {"task_id": str(task_id), "build_number": build_number}
    await request.api.reports.publish(task_id, reports)
