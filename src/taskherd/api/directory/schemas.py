"""Response bodies of the directory routes, for the OpenAPI document. Names and their case are Coder's."""

from __future__ import annotations

from typing import Literal
from uuid import UUID

from pydantic import BaseModel

from taskherd.api.workspaces.schemas import JobTemplateOut


class BuildInfoOut(BaseModel):
    """The version of Coder's API and of taskherd; the other fields are empty."""

    version: str
    external_url: str
    dashboard_url: str
    telemetry: bool
    workspace_proxy: bool
    agent_api_version: str
    provisioner_api_version: str
    upgrade_message: str
    deployment_id: str


class UserOut(BaseModel):
    """A user; the organizations are those that the caller also belongs to."""

    id: UUID
    username: str
    name: str
    email: str
    avatar_url: str
    status: Literal["active"]
    login_type: Literal["token"]
    organization_ids: list[UUID]
    roles: list[str]
    has_ai_seat: bool


class UsersList(BaseModel):
    """Users, ordered by name."""

    users: list[UserOut]
    count: int


class KeyOut(BaseModel):
    """A new token, which cannot be shown again."""

    key: str


class OrganizationOut(BaseModel):
    """An organization."""

    id: UUID
    name: str
    display_name: str
    description: str
    icon: str
    is_default: bool
    default_org_member_roles: list[str]


class AutostopOut(BaseModel):
    """When workspaces have to stop: never."""

    days_of_week: list[str]
    weeks: int


class AutostartOut(BaseModel):
    """When workspaces may start by themselves: never."""

    days_of_week: list[str]


class TemplateOut(BaseModel):
    """A template for tasks; schedules and limits are those of a template without any."""

    id: UUID
    organization_id: UUID
    organization_name: str
    organization_display_name: str
    organization_icon: str
    name: str
    display_name: str
    description: str
    icon: str
    active_version_id: UUID
    active_user_count: Literal[-1]
    build_time_stats: dict[str, str]
    deprecated: bool
    deprecation_message: str
    deleted: bool
    default_ttl_ms: int
    activity_bump_ms: int
    time_til_autostop_notify_ms: int
    autostop_requirement: AutostopOut
    autostart_requirement: AutostartOut
    allow_user_autostart: bool
    allow_user_autostop: bool
    allow_user_cancel_workspace_jobs: bool
    failure_ttl_ms: int
    time_til_dormant_ms: int
    time_til_dormant_autodelete_ms: int
    require_active_version: bool
    max_port_share_level: Literal["owner"]
    cors_behavior: Literal["simple"]
    use_classic_parameter_flow: bool
    disable_module_cache: bool


class VersionJobInput(BaseModel):
    """What a job of a version worked on."""

    template_version_id: UUID


class VersionJobOut(BaseModel):
    """The job that imported a version; it has always succeeded."""

    id: UUID
    status: Literal["succeeded"]
    organization_id: UUID
    type: Literal["template_version_import"]
    tags: dict[str, str]
    queue_position: int
    queue_size: int
    logs_overflowed: bool
    input: VersionJobInput
    metadata: JobTemplateOut


class TemplateVersionOut(BaseModel):
    """A version of a template; no task can be created from an archived one."""

    id: UUID
    template_id: UUID
    organization_id: UUID
    name: str
    message: str
    readme: str
    archived: bool
    has_external_agent: bool
    job: VersionJobOut


class ParameterOptionOut(BaseModel):
    """A value that a parameter may have. Templates declare none."""

    name: str
    description: str
    value: str
    icon: str


class ParameterOut(BaseModel):
    """A parameter of a version: the prompt, or one that a preset sets. Every value is text."""

    name: str
    display_name: str
    description: str
    description_plaintext: str
    type: Literal["string"]
    form_type: Literal["input", "textarea"]
    mutable: bool
    default_value: str
    icon: str
    options: list[ParameterOptionOut]
    required: bool
    ephemeral: bool


class PresetParameterOut(BaseModel):
    """A parameter that a preset sets."""

    Name: str
    Value: str


class PresetOut(BaseModel):
    """A named set of parameters."""

    ID: UUID
    Name: str
    Default: bool
    DesiredPrebuildInstances: None
    Description: str
    Icon: str
    Parameters: list[PresetParameterOut]
