"""Response bodies of the directory routes, for the OpenAPI document. Names and their case are Coder's."""

from __future__ import annotations

from typing import Literal
from uuid import UUID

from pydantic import BaseModel


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


class TemplateOut(BaseModel):
    """A template for tasks."""

    id: UUID
    organization_id: UUID
    organization_name: str
    organization_display_name: str
    name: str
    display_name: str
    description: str
    icon: str
    active_version_id: UUID
    deprecated: bool


class VersionJobOut(BaseModel):
    """The job that imported a version; it has always succeeded."""

    id: UUID
    status: Literal["succeeded"]


class TemplateVersionOut(BaseModel):
    """A version of a template; no task can be created from an archived one."""

    id: UUID
    template_id: UUID
    organization_id: UUID
    name: str
    message: str
    archived: bool
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
    Description: str
    Icon: str
    Parameters: list[PresetParameterOut]
