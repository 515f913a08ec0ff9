"""Looking up builds and workspaces, and asking for a build as older clients do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeAlias, assert_never
from uuid import UUID

from taskherd.api.commands import command_id_of, send_command
from taskherd.api.http.ids import parse_uuid
from taskherd.api.http.responses import BufferedResponse, json, not_found
from taskherd.api.workspaces import builds as rendering
from taskherd.domain.commands import Pause, Resume
from taskherd.domain.reports import rfc3339
from taskherd.store import builds

if TYPE_CHECKING:
    from taskherd.api.context import RequestContext
    from taskherd.store.reader import Reader, Row

BuildLookup: TypeAlias = "Callable[[Reader, UUID, UUID], Awaitable[Row | None]]"
"""One of the look-ups of `store.builds`."""


async def get_or_404(request: RequestContext, look: BuildLookup) -> Row:
    """The build that the path's `{id}` leads to; raises the 404 where there is none for the caller."""
    identifier = parse_uuid(request.params["id"])
    row = None if identifier is None else await look(request.api.reader, request.caller.user_id, identifier)
    if row is None:
        raise not_found()
    return row


async def build(request: RequestContext) -> BufferedResponse:
    """One build."""
    return json(rendering.build_json(await get_or_404(request, builds.build)))


async def workspace(request: RequestContext) -> BufferedResponse:
    """One workspace."""
    return json(_workspace(await get_or_404(request, builds.latest_of_workspace)))


async def request_build(request: RequestContext) -> BufferedResponse:
    """Start or stop the workspace of a task: its resume or pause under the name that it had before tasks had any."""
    row = await get_or_404(request, builds.latest_of_workspace)
    common = {"command_id": command_id_of(request), "task_id": row["task_id"], "actor_id": request.caller.user_id}
    match request.body.transition:
        case "start":
            done = await send_command(request, Resume(**common))
        case "stop":
            done = await send_command(request, Pause(**common))
        case _:
            assert_never(request.body.transition)
    told = rendering.requested_build_json(
        done.task, request.body.transition, request.caller.user_id, request.caller.username
    )
    return json(told["workspace_build"], 201)


def _workspace(row: Row) -> dict[str, Any]:
    agent = row["agent_id"]
    healthy = agent is None or bool(row["healthy"])
    updated_at = rfc3339(row["task_updated_at"])
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
        "latest_build": rendering.build_json(row),
        "outdated": row["active_version_id"] != row["template_version_id"],
        "health": {"healthy": healthy, "failing_agents": [] if healthy else [agent]},
        "created_at": rfc3339(row["task_created_at"]),
        "updated_at": updated_at,
        "last_used_at": updated_at,
    }
