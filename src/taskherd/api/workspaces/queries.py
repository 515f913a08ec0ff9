"""Handlers that look up builds and workspaces, and one that requests a build."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeAlias, assert_never
from uuid import UUID

from taskherd.api.commands import command_id_of, send_command
from taskherd.api.http.errors import not_found
from taskherd.api.http.ids import parse_uuid
from taskherd.api.http.responses import BufferedResponse, json
from taskherd.api.workspaces import builds as build_documents
from taskherd.domain.commands import Pause, Resume
from taskherd.domain.reports import format_rfc3339
from taskherd.store import builds

if TYPE_CHECKING:
    from taskherd.api.context import RequestContext
    from taskherd.store.read_pool import ReadPool, Row

BuildLookup: TypeAlias = "Callable[[ReadPool, UUID, UUID], Awaitable[Row | None]]"
"""A query of ``store.builds`` for one build."""


async def get_or_404(request: RequestContext, lookup: BuildLookup) -> Row:
    """Return the row of the build for the path's ``{id}``. Raise a 404 if the caller may not see it."""
    path_id = parse_uuid(request.params["id"])
    row = None if path_id is None else await lookup(request.api.reader, request.caller.user_id, path_id)
    if row is None:
        raise not_found()
    return row


async def build(request: RequestContext) -> BufferedResponse:
    """Return one build."""
    return json(build_documents.build_json(await get_or_404(request, builds.build)))


async def workspace(request: RequestContext) -> BufferedResponse:
    """Return one workspace."""
    return json(_workspace_json(await get_or_404(request, builds.latest_of_workspace)))


async def request_build(request: RequestContext) -> BufferedResponse:
    """Start or stop a workspace: resume or pause its task, as clients did before tasks had routes for that."""
    row = await get_or_404(request, builds.latest_of_workspace)
    common = {"command_id": command_id_of(request), "task_id": row["task_id"], "actor_id": request.caller.user_id}
    match request.body.transition:
        case "start":
            result = await send_command(request, Resume(**common))
        case "stop":
            result = await send_command(request, Pause(**common))
        case _:
            assert_never(request.body.transition)
    body = build_documents.requested_build_json(
        result.task, request.body.transition, request.caller.user_id, request.caller.username
    )
    return json(body["workspace_build"], 201)


def _workspace_json(row: Row) -> dict[str, Any]:
    agent = row["agent_id"]
    healthy = agent is None or bool(row["healthy"])
    updated_at = format_rfc3339(row["task_updated_at"])
    return {
        "id": row["workspace_id"],
        "name": row["workspace_name"],
        "owner_id": row["owner_id"],
        "owner_name": row["username"],
        "owner_avatar_url": row["avatar_url"],
        "organization_id": row["organization_id"],
        "organization_name": row["organization_name"],
        "template_id": row["template_id"],
        "template_name": row["template_name"],
        "template_display_name": row["template_display_name"],
        "template_icon": row["template_icon"],
        "template_active_version_id": row["active_version_id"],
        "task_id": row["task_id"],
        "latest_build": build_documents.build_json(row),
        "outdated": row["active_version_id"] != row["template_version_id"],
        "health": {"healthy": healthy, "failing_agents": [] if healthy else [agent]},
        "created_at": format_rfc3339(row["task_created_at"]),
        "updated_at": updated_at,
        "last_used_at": updated_at,
    }
