"""The directory's routes, and the two that clients ask before they have signed in."""

from __future__ import annotations

from typing import Final

from taskherd import __version__
from taskherd.api.context import RequestContext
from taskherd.api.directory import templates, users
from taskherd.api.directory.schemas import (
    KeyOut,
    OrganizationOut,
    PresetOut,
    TemplateOut,
    TemplateVersionOut,
    UserOut,
    UsersList,
)
from taskherd.api.http.responses import BufferedResponse, json
from taskherd.api.http.route import Auth, ResponseSpec, Route

SPOKEN: Final = "v2.34.0"
"""The version of Coder whose Tasks API this is; VS Code hides its panel for a later one."""
_ORGANIZATION: Final = "/organizations/{organization}"


async def build_info(_ask: RequestContext) -> BufferedResponse:
    """What this server is."""
    return json({"version": f"{SPOKEN}+taskherd.{__version__}", "external_url": "", "dashboard_url": ""})


ROUTES: Final = (
    Route(
        method="GET",
        path="/buildinfo",
        handler=build_info,
        summary="Build info",
        responses={200: ResponseSpec("The version of Coder's API that this speaks, and our own.", dict[str, str])},
        auth=Auth.NONE,
        tag="general",
    ),
    Route(
        method="GET",
        path="/users/first",
        handler=users.first,
        summary="Check initial user created",
        responses={200: ResponseSpec("There is one.", dict[str, str])},
        auth=Auth.NONE,
        tag="users",
    ),
    Route(
        method="GET",
        path="/users",
        handler=users.list_users,
        summary="Get users",
        description="Those whom the caller shares an organization with.",
        query=users.UsersQuery,
        responses={200: ResponseSpec("The people.", UsersList)},
        tag="users",
    ),
    Route(
        method="GET",
        path="/users/{user}",
        handler=users.get,
        summary="Get user by name",
        responses={200: ResponseSpec("The person.", UserOut)},
        tag="users",
    ),
    Route(
        method="GET",
        path="/users/{user}/organizations",
        handler=users.organizations,
        summary="Get organizations by user",
        responses={200: ResponseSpec("The organizations that the user and the caller share.", list[OrganizationOut])},
        tag="users",
    ),
    Route(
        method="POST",
        path="/users/{user}/keys",
        handler=users.key,
        summary="Create new session key",
        description="Gives the caller's own token again, so that revoking it ends all that was done with it.",
        responses={201: ResponseSpec("The token.", KeyOut)},
        tag="users",
    ),
    Route(
        method="GET",
        path=_ORGANIZATION,
        handler=templates.organization,
        summary="Get organization by name, ID or as the default",
        responses={200: ResponseSpec("The organization.", OrganizationOut)},
        tag="organizations",
    ),
    Route(
        method="GET",
        path=f"{_ORGANIZATION}/templates",
        handler=templates.list_of_organization,
        summary="Get templates by organization",
        query=templates.TemplatesQuery,
        responses={200: ResponseSpec("The templates.", list[TemplateOut])},
        tag="templates",
    ),
    Route(
        method="GET",
        path=f"{_ORGANIZATION}/templates/{{template}}",
        handler=templates.get,
        summary="Get templates by organization and template name",
        responses={200: ResponseSpec("The template.", TemplateOut)},
        tag="templates",
    ),
    Route(
        method="GET",
        path=f"{_ORGANIZATION}/templates/{{template}}/versions/{{version}}",
        handler=templates.version_by_name,
        summary="Get template version by organization, template, and name",
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
        tag="templates",
    ),
    Route(
        method="GET",
        path="/templateversions/{version}",
        handler=templates.version,
        summary="Get template version by ID",
        responses={200: ResponseSpec("The version.", TemplateVersionOut)},
        tag="templates",
    ),
    Route(
        method="GET",
        path="/templateversions/{version}/presets",
        handler=templates.presets,
        summary="Get template version presets",
        responses={200: ResponseSpec("The presets, the default first.", list[PresetOut])},
        tag="templates",
    ),
)
