"""What the directory's routes give, as models for the OpenAPI document; the names are Coder's, capitals and all."""

from __future__ import annotations

from typing import Literal
from uuid import UUID

from pydantic import BaseModel


class UserOut(BaseModel):
    """A person; the organizations are those that the caller belongs to as well."""

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
    """People, by name."""

    users: list[UserOut]
    count: int


class KeyOut(BaseModel):
    """A token to sign in with."""

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
    """What tasks can be made from."""

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
    """The job that imported a version; there is none to wait for here."""

    id: UUID
    status: Literal["succeeded"]


class TemplateVersionOut(BaseModel):
    """One version of a template; an archived one is left out of the directory and makes no new tasks."""

    id: UUID
    template_id: UUID
    organization_id: UUID
    name: str
    message: str
    archived: bool
    job: VersionJobOut


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
