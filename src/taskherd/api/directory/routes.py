"""The directory routes, and the two that clients call before they sign in."""

from __future__ import annotations

from typing import Final

from taskherd import __version__
from taskherd.api.context import RequestContext
from taskherd.api.directory import templates, users
from taskherd.api.directory.schemas import (
    BuildInfoOut,
    KeyOut,
    OrganizationOut,
    ParameterOut,
    PresetOut,
    TemplateOut,
    TemplateVersionOut,
    UserOut,
    UsersList,
)
from taskherd.api.http.responses import BufferedResponse, json
from taskherd.api.http.route import Auth, ResponseSpec, Route

CODER_VERSION: Final = "v2.34.0"
"""The version of Coder whose Tasks API this implements; VS Code hides its panel for a later one."""
_ORGANIZATION: Final = "/organizations/{organization}"


async def build_info(_request: RequestContext) -> BufferedResponse:
    """Return the version of this server."""
    return json(
        {
            "version": f"{CODER_VERSION}+taskherd.{__version__}",
            "external_url": "",
            "dashboard_url": "",
            "telemetry": False,
            "workspace_proxy": False,
            "agent_api_version": "",
            "provisioner_api_version": "",
            "upgrade_message": "",
            "deployment_id": "",
        }
    )


ROUTES: Final = (
    Route(
        method="GET",
        path="/buildinfo",
        handler=build_info,
        summary="Get build info",
        responses={200: ResponseSpec("The version of Coder's API and of taskherd.", BuildInfoOut)},
        auth=Auth.NONE,
        tag="general",
    ),
    Route(
        method="GET",
        path="/users/first",
        handler=users.first,
        summary="Check whether an initial user was created",
        responses={200: ResponseSpec("An initial user exists.", dict[str, str])},
        auth=Auth.NONE,
        tag="users",
    ),
    Route(
        method="GET",
        path="/users",
        handler=users.list_users,
        summary="Get users",
        description="Returns the users who share an organization with the caller.",
        query=users.UsersQuery,
        responses={200: ResponseSpec("The users.", UsersList)},
        compressed=True,
        tag="users",
    ),
    Route(
        method="GET",
        path="/users/{user}",
        handler=users.get,
        summary="Get a user by name or ID",
        responses={200: ResponseSpec("The user.", UserOut)},
        tag="users",
    ),
    Route(
        method="GET",
        path="/users/{user}/organizations",
        handler=users.organizations,
        summary="Get the organizations of a user",
        responses={200: ResponseSpec("The organizations that the user and the caller share.", list[OrganizationOut])},
        tag="users",
    ),
    Route(
        method="POST",
        path="/users/{user}/keys",
        handler=users.key,
        summary="Create a session key",
        description=(
            "Creates a token of the caller, or of a user of whose organizations the caller is an admin. It ends after"
            " seven days, or with the token of this request, or once the caller could create it no more;"
            " `taskherd token` lists and revokes it as any other."
        ),
        responses={
            201: ResponseSpec("The token, which cannot be shown again.", KeyOut),
            409: ResponseSpec("Too many tokens of the user are valid, or the presented one was created from 8 others."),
        },
        tag="users",
    ),
    Route(
        method="GET",
        path="/organizations",
        handler=users.own_organizations,
        summary="Get organizations",
        responses={200: ResponseSpec("The caller's organizations, the default one first.", list[OrganizationOut])},
        tag="organizations",
    ),
    Route(
        method="GET",
        path=_ORGANIZATION,
        handler=templates.organization,
        summary="Get an organization by name or ID, or the default one",
        responses={200: ResponseSpec("The organization.", OrganizationOut)},
        tag="organizations",
    ),
    Route(
        method="GET",
        path=f"{_ORGANIZATION}/templates",
        handler=templates.list_of_organization,
        summary="Get the templates of an organization",
        query=templates.TemplatesQuery,
        responses={200: ResponseSpec("The templates.", list[TemplateOut])},
        compressed=True,
        tag="templates",
    ),
    Route(
        method="GET",
        path=f"{_ORGANIZATION}/templates/{{template}}",
        handler=templates.get,
        summary="Get a template of an organization",
        responses={200: ResponseSpec("The template.", TemplateOut)},
        tag="templates",
    ),
    Route(
        method="GET",
        path=f"{_ORGANIZATION}/templates/{{template}}/versions/{{version}}",
        handler=templates.version_by_name,
        summary="Get a version of a template by name",
        responses={200: ResponseSpec("The version.", TemplateVersionOut)},
        tag="templates",
    ),
    Route(
        method="GET",
        path="/templates",
        handler=templates.list_templates,
        summary="Get all templates",
        query=templates.TemplatesQuery,
        responses={200: ResponseSpec("The templates of the caller's organizations.", list[TemplateOut])},
        compressed=True,
        tag="templates",
    ),
    Route(
        method="GET",
        path="/templates/{template}",
        handler=templates.by_id,
        summary="Get a template by ID",
        responses={200: ResponseSpec("The template.", TemplateOut)},
        tag="templates",
    ),
    Route(
        method="GET",
        path="/templateversions/{version}",
        handler=templates.version,
        summary="Get a template version by ID",
        responses={200: ResponseSpec("The version.", TemplateVersionOut)},
        tag="templates",
    ),
    Route(
        method="GET",
        path="/templateversions/{version}/presets",
        handler=templates.presets,
        summary="Get the presets of a template version",
        responses={200: ResponseSpec("The presets, the default one first.", list[PresetOut])},
        tag="templates",
    ),
    Route(
        method="GET",
        path="/templateversions/{version}/rich-parameters",
        handler=templates.rich_parameters,
        summary="Get the parameters of a template version",
        responses={200: ResponseSpec("The prompt, then the parameters that presets set, by name.", list[ParameterOut])},
        tag="templates",
    ),
)
