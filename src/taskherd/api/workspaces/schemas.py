"""Request and response bodies of the routes of workspaces, builds and agents."""

from __future__ import annotations

from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, Field

from taskherd.messages.document import AgentHealthOut


class JobTemplateOut(BaseModel):
    """The template of a job."""

    template_id: UUID
    template_name: str
    template_display_name: str
    template_icon: str
    template_version_name: str


class BuildJobMetadataOut(JobTemplateOut):
    """The template and the workspace of a build's job."""

    workspace_id: UUID
    workspace_name: str
    workspace_build_transition: Literal["start", "stop", "delete"]


class BuildJobInputOut(BaseModel):
    """What a build's job works on."""

    workspace_build_id: UUID


class JobOut(BaseModel):
    """The provisioner's job of a build, with the build's ``id``. Unknown: superseded before its result was reported."""

    id: UUID
    status: Literal["pending", "running", "succeeded", "canceling", "canceled", "failed", "unknown"]
    created_at: str
    started_at: str | None = None
    completed_at: str | None = None
    error: str | None = None
    organization_id: UUID
    initiator_id: UUID
    type: Literal["workspace_build"]
    tags: dict[str, str]
    queue_position: int
    queue_size: int
    logs_overflowed: bool
    input: BuildJobInputOut
    metadata: BuildJobMetadataOut


class AppStatusOut(BaseModel):
    """What an app reported."""

    id: UUID
    created_at: str
    workspace_id: UUID
    agent_id: UUID
    app_id: UUID
    state: Literal["working", "idle", "complete", "failure"]
    needs_user_attention: bool
    message: str
    uri: str
    icon: str


class AppOut(BaseModel):
    """The program of the agent; ``statuses`` are what it reported in the build, newest first, at most 100."""

    id: UUID
    url: str
    external: bool
    slug: str
    display_name: str
    icon: str
    subdomain: bool
    sharing_level: Literal["owner"]
    healthcheck: dict[str, Any]
    health: Literal["initializing", "healthy", "unhealthy"]
    hidden: bool
    open_in: str
    statuses: list[AppStatusOut]


class AgentOut(BaseModel):
    """The agent of a build."""

    id: UUID
    parent_id: None
    created_at: str
    updated_at: str
    status: Literal["connecting", "connected", "disconnected"]
    lifecycle_state: str
    name: str
    resource_id: UUID
    architecture: str
    operating_system: str
    environment_variables: dict[str, str]
    logs_length: int
    logs_overflowed: bool
    version: str
    api_version: str
    apps: list[AppOut]
    connection_timeout_seconds: int
    troubleshooting_url: str
    subsystems: list[str]
    health: AgentHealthOut
    display_apps: list[str]
    log_sources: list[str]
    scripts: list[str]
    startup_script_behavior: str


class ResourceOut(BaseModel):
    """What a build started."""

    id: UUID
    created_at: str
    job_id: UUID
    workspace_transition: Literal["start", "stop", "delete"]
    type: str
    name: str
    hide: bool
    icon: str
    agents: list[AgentOut]
    metadata: list[str]
    daily_cost: int


class ParameterValueOut(BaseModel):
    """A parameter of a build."""

    name: str
    value: str


class BuildOut(BaseModel):
    """A build; ``status`` is that of the workspace (pending, starting, running, stopping, stopped, …)."""

    id: UUID
    build_number: int
    transition: Literal["start", "stop", "delete"]
    status: str
    job: JobOut
    workspace_id: UUID
    workspace_name: str
    workspace_owner_id: UUID
    workspace_owner_name: str
    workspace_owner_avatar_url: str | None = None
    template_version_id: UUID
    template_version_name: str
    template_version_preset_id: UUID | None
    initiator_id: UUID
    initiator_name: str
    reason: str
    resources: list[ResourceOut]
    daily_cost: int
    has_ai_task: bool
    has_external_agent: bool
    created_at: str
    updated_at: str


class RequestedBuild(BaseModel):
    """The build that was requested."""

    workspace_build: BuildOut
    workspace_build_id: UUID


class NewBuild(BaseModel):
    """A build to request: start resumes the workspace's task, stop pauses it, delete deletes it."""

    transition: Literal["start", "stop", "delete"]
    on_success: None = Field(None, description="Builds that follow another are refused; request them one by one.")
    dry_run: Literal[False] | None = Field(None, description="Dry runs are refused.")


class ParameterValue(BaseModel):
    """The value of a parameter."""

    name: str
    value: str


class NewWorkspace(BaseModel):
    """A workspace to create, for a new task. The parameter ``AI Prompt`` is its prompt; presets set the others."""

    name: str | None = None
    template_id: UUID | None = Field(None, description="Its active version is used, unless a version is given.")
    template_version_id: UUID | None = None
    template_version_preset_id: UUID | None = None
    rich_parameter_values: list[ParameterValue] | None = None


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
    template_allow_user_cancel_workspace_jobs: bool
    template_require_active_version: bool
    template_use_classic_parameter_flow: bool
    task_id: UUID
    latest_build: BuildOut
    latest_app_status: AppStatusOut | None
    outdated: bool
    health: WorkspaceHealthOut
    created_at: str
    updated_at: str
    last_used_at: str
    deleting_at: None
    dormant_at: None
    next_start_at: None
    automatic_updates: Literal["never"]
    allow_renames: bool
    favorite: bool
    is_prebuild: bool


class WorkspacesList(BaseModel):
    """Workspaces, and how many match in all."""

    workspaces: list[WorkspaceOut]
    count: int


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
