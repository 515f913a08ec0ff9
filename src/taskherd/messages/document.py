"""Render the task document: the JSON that API responses, events and replies contain.

It has two parts. The *core document*, derived from the task state, is stored with the task, and the task's version
rises if it changes. The directory's names, the prompt and ``updated_at`` are added when the document is rendered.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import orjson
from pydantic import BaseModel

from taskherd.domain.reports import ExitReason, Lifecycle, format_rfc3339
from taskherd.domain.request_values import RequestKind
from taskherd.domain.view import LOST_CONNECTION, NOT_RUNNING, Status
from taskherd.messages.usage import UsageOut, render_usage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from taskherd.domain.directory import DirectoryNames
    from taskherd.domain.task import OpenAgentRequest, Task
    from taskherd.domain.view import EndedAgent, TaskView


MAX_SUMMARIES: Final = 10
"""Maximum number of open requests in the document; ``requests_open`` counts all."""


class CurrentStateOut(BaseModel):
    """What the agent is doing; ``state`` is working, idle, complete or failed."""

    timestamp: datetime
    state: str
    message: str
    uri: str


class AgentHealthOut(BaseModel):
    """Whether the agent is healthy; ``reason`` is present if it is not."""

    healthy: bool
    reason: str | None = None


class AgentExitOut(BaseModel):
    """How the agent ended; ``words`` are the last words of its output, ``at`` is when it ended."""

    why: ExitReason
    status: int | None
    signal: int | None
    words: str
    at: datetime


class InterruptOut(BaseModel):
    """An open interrupt of the agent."""

    since: datetime


class RequestSummaryOut(BaseModel):
    """An open request of the agent; ``since`` is when it was first reported."""

    id: UUID
    kind: RequestKind
    title: str
    since: datetime


class TaskDocument(BaseModel):
    """A task as users see it. Fields with a default are omitted if they are empty."""

    id: UUID
    organization_id: UUID
    owner_id: UUID
    owner_name: str
    owner_avatar_url: str = ""
    name: str
    display_name: str
    template_id: UUID
    template_version_id: UUID
    template_name: str
    template_display_name: str
    template_icon: str
    workspace_id: UUID | None
    workspace_name: str
    workspace_status: str = ""
    workspace_build_number: int = 0
    workspace_agent_id: UUID | None
    workspace_agent_lifecycle: Lifecycle | None
    workspace_agent_health: AgentHealthOut | None
    workspace_app_id: UUID | None
    initial_prompt: str
    status: Status
    current_state: CurrentStateOut | None
    agent_exit: AgentExitOut | None
    stalled_since: datetime | None
    usage: UsageOut | None
    interrupt: InterruptOut | None
    requests: list[RequestSummaryOut]
    requests_open: int
    labels: dict[str, str] = {}
    created_at: datetime
    updated_at: datetime


class Ending(StrEnum):
    """What became of a task whose agent needs nothing more, or cannot go on."""

    COMPLETED = "completed"
    FAILED = "failed"


def ending_of(fields: Mapping[str, Any]) -> Ending | None:
    """Return whether a task with these fields of the core document has completed or failed; None: neither.

    It has failed if its start or its agent failed, or the agent ended badly or is lost, whatever it said before.
    """
    state, health = fields["current_state"], fields["workspace_agent_health"]
    is_gone = health is not None and health.get("reason") in {LOST_CONNECTION, NOT_RUNNING}
    said = "" if state is None else state["state"]
    if fields["status"] == Status.ERROR.value or is_gone or said == "failed":
        return Ending.FAILED
    return Ending.COMPLETED if said == "complete" else None


def core_document(view: TaskView, task: Task) -> dict[str, Any]:
    """Return the stored part of the document, as JSON types. The version rises only if this part changes."""
    core: dict[str, Any] = {
        "id": str(task.id),
        "owner_id": str(task.owner_id),
        "name": task.name,
        "display_name": task.display_name,
        "template_version_id": str(task.template_version_id),
        "workspace_id": _id(view.workspace_id),
        "workspace_name": view.workspace_name,
        "workspace_agent_id": _id(view.agent_id),
        "workspace_agent_lifecycle": None if view.lifecycle is None else view.lifecycle.value,
        "workspace_agent_health": None,
        "workspace_app_id": _id(view.app_id),
        "status": view.status.value,
        "current_state": None,
        "agent_exit": None,
        "stalled_since": None if view.stalled_since is None else _rfc3339(view.stalled_since),
        "usage": None if view.usage is None else render_usage(view.usage),
        "interrupt": None if view.interrupted_since is None else {"since": _rfc3339(view.interrupted_since)},
        "requests": [_request(request) for request in view.requests[:MAX_SUMMARIES]],
        "requests_open": len(view.requests),
        "created_at": _rfc3339(task.created_at),
    }
    if view.workspace_status:
        core["workspace_status"] = str(view.workspace_status)
    if view.workspace_build_number:
        core["workspace_build_number"] = view.workspace_build_number
    if view.health is not None:
        reason = {} if view.health.reason is None else {"reason": view.health.reason}
        core["workspace_agent_health"] = {"healthy": view.health.healthy, **reason}
    state = view.current_state
    if state is not None:
        core["current_state"] = {
            "timestamp": _rfc3339(state.timestamp),
            "state": state.state,
            "message": state.message,
            "uri": state.uri,
        }
    if task.state.labels:
        core["labels"] = {**task.state.labels}
    if view.agent_exit is not None:
        core["agent_exit"] = agent_exit(view.agent_exit)
    return core


def _request(request: OpenAgentRequest) -> dict[str, Any]:
    return {
        "id": str(request.id),
        "kind": request.kind.value,
        "title": request.title,
        "since": _rfc3339(request.since),
    }


def agent_exit(ended: EndedAgent) -> dict[str, Any]:
    """Return how an agent ended, as in the document."""
    return {
        "why": ended.why.value,
        "status": ended.status,
        "signal": ended.signal,
        "words": ended.words,
        "at": _rfc3339(ended.at),
    }


def _rfc3339(instant: datetime) -> str:
    """Format as ``format_rfc3339``, three times as fast; its cache only helps with times that a whole batch shares."""
    text = orjson.dumps(instant, option=orjson.OPT_UTC_Z).decode()
    return text[1:-1] if instant.microsecond else f"{text[1:-2]}.000000Z"


def render(core: Mapping[str, Any], prompt: str, names: DirectoryNames, updated_at: datetime) -> dict[str, Any]:
    """Render the document from its stored part, the prompt and the current names; ``updated_at`` is in UTC."""
    return {**core, **_rendered_fields(prompt, names, updated_at)}


def render_json(core: str, prompt: str, names: DirectoryNames, updated_at: datetime) -> bytes:
    """Render the document as JSON from the text of its stored part, without parsing that."""
    return core.rstrip()[:-1].encode() + b"," + orjson.dumps(_rendered_fields(prompt, names, updated_at))[1:]


def with_nullable_ids(document: dict[str, Any]) -> dict[str, Any]:
    """Replace each id that may be null by ``{"uuid", "valid"}``, the form in Coder's published documentation."""
    for name in ("workspace_id", "workspace_agent_id", "workspace_app_id"):
        value = document[name]
        document[name] = {"uuid": value or _NIL, "valid": value is not None}
    return document


def _rendered_fields(prompt: str, names: DirectoryNames, updated_at: datetime) -> dict[str, Any]:
    """Return the fields of the document that are not stored with the task."""
    fields = {
        "organization_id": str(names.organization_id),
        "owner_name": names.owner_name,
        "template_id": str(names.template_id),
        "template_name": names.template_name,
        "template_display_name": names.template_display_name,
        "template_icon": names.template_icon,
        "initial_prompt": prompt,
        "updated_at": format_rfc3339(updated_at),
    }
    if names.owner_avatar_url:
        fields["owner_avatar_url"] = names.owner_avatar_url
    return fields


def changed_fields(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the sorted names of the fields that differ between two core documents, or exist in one of them only."""
    changed = [name for name, content in new.items() if old.get(name, _ABSENT) != content]
    changed += old.keys() - new.keys()
    changed.sort()
    return tuple(changed)


_ABSENT = object()
_NIL = str(UUID(int=0))


def _id(identifier: UUID | None) -> str | None:
    return None if identifier is None else str(identifier)
