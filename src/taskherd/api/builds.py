"""A workspace build as people's tools see it, told from the task that it belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel

from taskherd.wire.work import build_id


class JobOut(BaseModel):
    """The provisioner's job of a build; `id` is the build's."""

    id: UUID
    status: str
    created_at: datetime


class BuildOut(BaseModel):
    """A build: `status` is the workspace's with this build (pending, starting, running, stopping, stopped, …)."""

    id: UUID
    build_number: int
    transition: Literal["start", "stop", "delete"]
    status: str
    job: JobOut
    workspace_id: UUID | None
    workspace_name: str
    workspace_owner_id: UUID
    workspace_owner_name: str
    template_version_id: UUID
    initiator_id: UUID | None
    initiator_name: str
    reason: str
    resources: list[Any]
    created_at: datetime
    updated_at: datetime


class BuildAsked(BaseModel):
    """The build that was asked for."""

    workspace_build: BuildOut
    workspace_build_id: UUID


def asked(task: Mapping[str, Any], transition: str, initiator_id: UUID, initiator_name: str) -> dict[str, Any]:
    """What a pause or resume answers: `task` is the document right after it."""
    identifier = str(build_id(UUID(task["id"]), task["workspace_build_number"]))
    at = task["updated_at"]
    build = {
        "id": identifier,
        "build_number": task["workspace_build_number"],
        "transition": transition,
        "status": "pending",
        "job": {"id": identifier, "status": "pending", "created_at": at},
        "workspace_id": task["workspace_id"],
        "workspace_name": task["workspace_name"],
        "workspace_owner_id": task["owner_id"],
        "workspace_owner_name": task["owner_name"],
        "template_version_id": task["template_version_id"],
        "initiator_id": str(initiator_id),
        "initiator_name": initiator_name,
        "reason": "task_manual_pause" if transition == "stop" else "task_resume",
        "resources": [],
        "created_at": at,
        "updated_at": at,
    }
    return {"workspace_build": build, "workspace_build_id": identifier}
