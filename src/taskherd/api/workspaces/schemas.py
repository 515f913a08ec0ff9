"""Request and response bodies of the routes of workspaces, builds and agents."""

from __future__ import annotations

from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, Field


class JobOut(BaseModel):
    """The provisioner's job of a build, with the build's ``id``. Unknown: superseded before its result was reported."""

    id: UUID
    status: Literal["pending", "running", "succeeded", "canceling", "canceled", "failed", "unknown"]
    created_at: str
    started_at: str | None = None
    completed_at: str | None = None
    error: str | None = None


class BuildOut(BaseModel):
    """A build; ``status`` is that of the workspace (pending, starting, running, stopping, stopped, …)."""

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
    created_at: str
    updated_at: str


class RequestedBuild(BaseModel):
    """The build that was requested."""

    workspace_build: BuildOut
    workspace_build_id: UUID


class NewBuild(BaseModel):
    """A build to request. To delete a workspace, delete its task."""

    transition: Literal["start", "stop"]


class WorkspaceHealthOut(BaseModel):
    """The health of the workspace's agent."""

    healthy: bool
    failing_agents: list[UUID]


class WorkspaceOut(BaseModel):
    """A workspace with its latest build."""

    id: UUID
    name: str
    owner_id: UUID
    owner_name: str
    owner_avatar_url: str
    organization_id: UUID
    organization_name: str
    template_id: UUID
    template_name: str
    template_display_name: str
    template_icon: str
    template_active_version_id: UUID
    task_id: UUID
    latest_build: BuildOut
    outdated: bool
    health: WorkspaceHealthOut
    created_at: str
    updated_at: str
    last_used_at: str


class BuildLogOut(BaseModel):
    """One step of a build; ids increase."""

    id: int
    created_at: str
    log_source: Literal["provisioner"] = "provisioner"
    log_level: Literal["info", "error"]
    stage: str
    output: str


class AgentLogOut(BaseModel):
    """One step in the lifecycle of an agent; ids increase."""

    id: int
    created_at: str
    output: str
    level: Literal["info", "error"]
    source_id: UUID = Field(description="ID of the agent.")
