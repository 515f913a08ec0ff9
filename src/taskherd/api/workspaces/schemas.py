"""What the workspaces' routes take and give, as models."""

from __future__ import annotations

from typing import Literal
from uuid import UUID

from pydantic import BaseModel, Field

from taskherd.api.workspaces.builds import BuildOut


class NewBuild(BaseModel):
    """A build to ask for; a workspace is taken down by deleting its task."""

    transition: Literal["start", "stop"]


class WorkspaceHealthOut(BaseModel):
    """Whether the workspace's agent is well."""

    healthy: bool
    failing_agents: list[UUID]


class WorkspaceOut(BaseModel):
    """A workspace, with its latest build."""

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
    """One step of a build; ids rise."""

    id: int
    created_at: str
    log_source: Literal["provisioner"] = "provisioner"
    log_level: Literal["info", "error"]
    stage: str
    output: str


class AgentLogOut(BaseModel):
    """One step of an agent's life; ids rise."""

    id: int
    created_at: str
    output: str
    level: Literal["info", "error"]
    source_id: UUID = Field(description="The agent's.")
