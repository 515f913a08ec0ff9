"""The task document, the JSON that the API, the events and the replies all carry; the one place that renders it.

It has two parts. What comes from the task itself (``core_document``) is kept with the task, and a change of it makes a
new version. What comes from the directory, the prompt and ``updated_at`` is added when the document is rendered.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import orjson
from pydantic import BaseModel

from taskherd.domain.reports import Lifecycle, rfc3339
from taskherd.domain.view import Status

if TYPE_CHECKING:
    from collections.abc import Mapping

    from taskherd.domain.directory import DirectoryNames
    from taskherd.domain.task import Task
    from taskherd.domain.view import TaskView


class CurrentStateOut(BaseModel):
    """What the agent says it is doing; ``state`` is working, idle, complete or failed."""

    timestamp: datetime
    state: str
    message: str
    uri: str


class AgentHealthOut(BaseModel):
    """Whether the agent is well; ``reason`` is there when it is not."""

    healthy: bool
    reason: str | None = None


class TaskDocument(BaseModel):
    """A task as readers see it. Fields with a default are left out when empty."""

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
    created_at: datetime
    updated_at: datetime


def core_document(view: TaskView, task: Task) -> dict[str, Any]:
    """The part that is kept with the task, in JSON's own types. Two that are equal are one version of the document."""
    said: dict[str, Any] = {
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
        "created_at": rfc3339(task.created_at),
    }
    if view.workspace_status:
        said["workspace_status"] = str(view.workspace_status)
    if view.workspace_build_number:
        said["workspace_build_number"] = view.workspace_build_number
    if view.health is not None:
        reason = {} if view.health.reason is None else {"reason": view.health.reason}
        said["workspace_agent_health"] = {"healthy": view.health.healthy, **reason}
    state = view.current_state
    if state is not None:
        said["current_state"] = {
            "timestamp": rfc3339(state.timestamp),
            "state": state.state,
            "message": state.message,
            "uri": state.uri,
        }
    return said


def render(core: Mapping[str, Any], prompt: str, names: DirectoryNames, updated_at: datetime) -> dict[str, Any]:
    """The whole document from its own part, with what the directory says now; ``updated_at`` is in UTC."""
    return {**core, **_added(prompt, names, updated_at)}


def render_json(core: str, prompt: str, names: DirectoryNames, updated_at: datetime) -> bytes:
    """The same document as JSON, from its own part as the stored JSON text, which is not parsed for it."""
    return core.rstrip()[:-1].encode() + b"," + orjson.dumps(_added(prompt, names, updated_at))[1:]


def with_nullable_ids(document: dict[str, Any]) -> dict[str, Any]:
    """The document with each id that may be absent as ``{"uuid", "valid"}``, as the published page shows them."""
    for name in ("workspace_id", "workspace_agent_id", "workspace_app_id"):
        value = document[name]
        document[name] = {"uuid": value or _NIL, "valid": value is not None}
    return document


def _added(prompt: str, names: DirectoryNames, updated_at: datetime) -> dict[str, Any]:
    """The part of a document that is not kept with the task."""
    added = {
        "organization_id": str(names.organization_id),
        "owner_name": names.owner_name,
        "template_id": str(names.template_id),
        "template_name": names.template_name,
        "template_display_name": names.template_display_name,
        "template_icon": names.template_icon,
        "initial_prompt": prompt,
        "updated_at": rfc3339(updated_at),
    }
    if names.owner_avatar_url:
        added["owner_avatar_url"] = names.owner_avatar_url
    return added


def changed_fields(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the fields that differ between two own parts, sorted; a field that came or went counts."""
    differ = [name for name, content in new.items() if old.get(name, _ABSENT) != content]
    differ += old.keys() - new.keys()
    differ.sort()
    return tuple(differ)


_ABSENT = object()
_NIL = str(UUID(int=0))


def _id(identifier: UUID | None) -> str | None:
    return None if identifier is None else str(identifier)
