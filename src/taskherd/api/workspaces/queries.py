"""Looking up builds and workspaces, and asking for a build as older clients do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeAlias, assert_never
from uuid import UUID

from taskherd.api.commands import command_id_of, give
from taskherd.api.http.ids import uuid_of
from taskherd.api.http.responses import Answer, json, not_found
from taskherd.api.workspaces import builds as rendering
from taskherd.domain.commands import Pause, Resume
from taskherd.domain.reports import rfc3339
from taskherd.store import builds

if TYPE_CHECKING:
    from taskherd.api.context import Ask
    from taskherd.store.reader import Reader, Row

Look: TypeAlias = "Callable[[Reader, UUID, UUID], Awaitable[Row | None]]"
"""One of the look-ups of `store.builds`."""


async def found(ask: Ask, look: Look) -> Row:
    """The build that the path's `{id}` leads to; raises the 404 where there is none for the caller."""
    identifier = uuid_of(ask.params["id"])
    row = None if identifier is None else await look(ask.house.reader, ask.caller.user_id, identifier)
    if row is None:
        raise not_found()
    return row


async def build(ask: Ask) -> Answer:
    """One build."""
    return json(rendering.shown(await found(ask, builds.build)))


async def workspace(ask: Ask) -> Answer:
    """One workspace."""
    return json(_workspace(await found(ask, builds.latest_of_workspace)))


async def ask_for_build(ask: Ask) -> Answer:
    """Start or stop the workspace of a task: its resume or pause under the name that it had before tasks had any."""
    row = await found(ask, builds.latest_of_workspace)
    common = {"command_id": command_id_of(ask), "task_id": row["task_id"], "actor_id": ask.caller.user_id}
    match ask.body.transition:
        case "start":
            done = await give(ask, Resume(**common))
        case "stop":
            done = await give(ask, Pause(**common))
        case _:
            assert_never(ask.body.transition)
    told = rendering.asked(done.task, ask.body.transition, ask.caller.user_id, ask.caller.username)
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
        "latest_build": rendering.shown(row),
        "outdated": row["active_version_id"] != row["template_version_id"],
        "health": {"healthy": healthy, "failing_agents": [] if healthy else [agent]},
        "created_at": rfc3339(row["task_created_at"]),
        "updated_at": updated_at,
        "last_used_at": updated_at,
    }
