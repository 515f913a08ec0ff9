"""Handlers that look up builds and workspaces, and one that requests a build."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias, assert_never
from uuid import UUID

from pydantic import Field

from taskherd.api.commands import command_id_of, repeated_delete, send_command
from taskherd.api.directory import templates
from taskherd.api.http.errors import HTTPError, not_found
from taskherd.api.http.ids import is_searchable, parse_uuid
from taskherd.api.http.query_parameters import QueryModel, whole_number
from taskherd.api.http.responses import BufferedResponse, json
from taskherd.api.workspaces import builds as build_documents
from taskherd.api.workspaces.resources import MAX_STATUSES, latest_status
from taskherd.domain.commands import Delete, Pause, Resume
from taskherd.domain.reports import format_rfc3339
from taskherd.store import builds, task_queries
from taskherd.store.task_queries import TaskRef

if TYPE_CHECKING:
    from taskherd.api.context import RequestContext
    from taskherd.store.read_pool import Reader, Row

MAX_BUILDS: Final = 100
MAX_OFFSET: Final = 100_000
BuildLookup: TypeAlias = "Callable[[Reader, UUID, UUID], Awaitable[Row | None]]"
"""A query of ``store.builds`` for one build."""


async def get_or_404(request: RequestContext, lookup: BuildLookup) -> Row:
    """Return the row of the build for the path's ``{id}``. Raise a 404 if the caller may not see it."""
    path_id = parse_uuid(request.params["id"])
    row = None if path_id is None else await lookup(request.reader, request.caller.user_id, path_id)
    if row is None:
        raise not_found()
    return row


async def build(request: RequestContext) -> BufferedResponse:
    """Return one build."""
    return json(build_documents.build_json(await get_or_404(request, builds.build)))


async def workspace(request: RequestContext) -> BufferedResponse:
    """Return one workspace."""
    return await workspace_response(request, await get_or_404(request, builds.latest_of_workspace))


async def workspace_by_name(request: RequestContext) -> BufferedResponse:
    """Return the workspace of a user's task, by the task's name."""
    return await workspace_response(request, await of_task_or_404(request, await _task_of_name(request)))


async def _task_of_name(request: RequestContext) -> UUID:
    user, name = request.user(), request.params["workspace"]
    task_id = None
    if is_searchable(name) and (isinstance(user, UUID) or is_searchable(user)):
        task_id = await task_queries.find_id(request.reader, TaskRef(request.caller.user_id, user, name))
    if task_id is None:
        raise not_found()
    return task_id


async def of_task_or_404(request: RequestContext, task_id: UUID) -> Row:
    """Return the row of a task's latest build. Raise a 404 if the caller may not see it."""
    row = await builds.of_task(request.reader, request.caller.user_id, task_id)
    if row is None:
        raise not_found()
    return row


async def workspace_response(request: RequestContext, row: Row, status: int = 200) -> BufferedResponse:
    """Return a response with one workspace, from the row of its latest build."""
    return json(await full_workspace(request, row), status)


async def full_workspace(request: RequestContext, row: Row) -> dict[str, Any]:
    """Return the JSON of a workspace with all that its app has reported in the latest build."""
    statuses: Sequence[Row] = ()
    if row["agent_id"] is not None:
        page = await builds.app_statuses(request.reader, row["task_id"], row["number"], MAX_STATUSES)
        statuses = page.rows
    return workspace_json(row, statuses)


async def build_parameters(request: RequestContext) -> BufferedResponse:
    """Return the parameters of a build: the prompt, and what the task's preset sets."""
    row = await get_or_404(request, builds.build)
    caller = request.caller.user_id
    task = await task_queries.task(request.reader, TaskRef(caller, caller, row["task_id"]))
    if task is None:
        raise not_found()
    values = {**templates.preset_parameters(row["parameters"]), templates.PROMPT_PARAMETER: task["prompt"]}
    return json([{"name": name, "value": value} for name, value in sorted(values.items())])


class BuildsQuery(QueryModel):
    """Query parameters of the list of builds."""

    limit: Annotated[int, whole_number(0, MAX_BUILDS, empty=0)] = Field(
        0, description=f"Maximum number of builds, at most {MAX_BUILDS}. Empty or 0: as many as possible."
    )
    offset: Annotated[int, whole_number(0, MAX_OFFSET, empty=0)] = Field(0, description="Number of builds to skip.")


async def list_builds(request: RequestContext) -> BufferedResponse:
    """Return the builds of a workspace, the newest first."""
    query = request.parameters(BuildsQuery)
    row = await get_or_404(request, builds.latest_of_workspace)
    limit = query.limit or MAX_BUILDS
    rows = await builds.all_of_task(request.reader, request.caller.user_id, row["task_id"], limit, query.offset)
    return json([build_documents.build_json(each) for each in rows])


async def request_build(request: RequestContext) -> BufferedResponse:
    """Start, stop or delete a workspace: resume, pause or delete its task, as clients did before tasks had routes."""
    result = await send_command(request, await _build_command(request))
    body = build_documents.requested_build_json(
        result.task, request.body.transition, request.caller.user_id, request.caller.username
    )
    return json(body["workspace_build"], 201)


async def _build_command(request: RequestContext) -> Resume | Pause | Delete:
    """Return the command for the requested build. Raise a 404 if the caller may not see the workspace."""
    try:
        row = await get_or_404(request, builds.latest_of_workspace)
    except HTTPError:
        repeated = await _repeated_delete(request)
        if repeated is None:
            raise
        return repeated
    common = {"command_id": command_id_of(request), "task_id": row["task_id"], "actor_id": request.caller.user_id}
    match request.body.transition:
        case "start":
            return Resume(**common)
        case "stop":
            return Pause(**common)
        case "delete":
            return Delete(**common)
        case _:
            assert_never(request.body.transition)


async def _repeated_delete(request: RequestContext) -> Delete | None:
    path_id, caller = parse_uuid(request.params["id"]), request.caller.user_id
    if path_id is None or request.body.transition != "delete":
        return None
    return await repeated_delete(request, TaskRef(caller, caller, path_id))


def workspace_json(row: Row, statuses: Sequence[Row] | None = None) -> dict[str, Any]:
    """Return the JSON of a workspace, from the row of its latest build; ``statuses`` as in ``resources_json``.

    Before a runner has reported the workspace, it has the id of its task.
    """
    agent = row["agent_id"]
    healthy = agent is None or bool(row["healthy"])
    updated_at = format_rfc3339(row["task_updated_at"])
    workspace_id = row["workspace_id"] or row["task_id"]
    return {
        "id": workspace_id,
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
        "template_allow_user_cancel_workspace_jobs": False,
        "template_require_active_version": False,
        "template_use_classic_parameter_flow": True,
        "task_id": row["task_id"],
        "latest_build": {**build_documents.build_json(row, statuses), "workspace_id": workspace_id},
        "latest_app_status": latest_status(row),
        "outdated": row["active_version_id"] != row["template_version_id"],
        "health": {"healthy": healthy, "failing_agents": [] if healthy else [agent]},
        "created_at": format_rfc3339(row["task_created_at"]),
        "updated_at": updated_at,
        "last_used_at": updated_at,
        "deleting_at": None,
        "dormant_at": None,
        "next_start_at": None,
        "automatic_updates": "never",
        "allow_renames": False,
        "favorite": False,
        "is_prebuild": False,
    }
