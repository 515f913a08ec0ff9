"""Handlers of the routes for agents: what an agent is doing, and what it used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from taskherd.api.agents.reporting import common_fields, publish
from taskherd.api.agents.schemas import AppStatusPatch, UsageReport
from taskherd.api.http.errors import invalid
from taskherd.api.http.responses import BufferedResponse, empty, json
from taskherd.domain.reports import AgentState, AgentUsage, AppStatus
from taskherd.messages import texts

if TYPE_CHECKING:
    from taskherd.api.context import RequestContext

_STATES: Final = {
    "working": AgentState.WORKING,
    "idle": AgentState.IDLE,
    "complete": AgentState.COMPLETE,
    "failure": AgentState.FAILED,
    "failed": AgentState.FAILED,
}


async def app_status(request: RequestContext) -> BufferedResponse:
    """Publish what the agent is doing as a report."""
    body: AppStatusPatch = request.body
    state = _STATES.get(body.state or "")
    if state is None:
        validation = ("state", "State must be one of: complete, failure, working, idle.")
        raise invalid(validation, message="Invalid state provided.")
    report = AppStatus(
        **common_fields(request),
        state=state,
        message=texts.sanitize_message(body.message or "", {}),
        uri=texts.sanitize_uri(body.uri or "", {}),
    )
    await publish(request, [report])
    return json(None)


async def usage(request: RequestContext) -> BufferedResponse:
    """Publish what the agent used as a report."""
    body: UsageReport = request.body
    await publish(request, [AgentUsage(**common_fields(request), **body.to_fields({}))])
    return empty(204)
