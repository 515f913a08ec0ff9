"""Create a workspace: a task from a template's active version, as clients did before tasks had routes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from taskherd.api.directory import templates
from taskherd.api.http.errors import invalid, not_found
from taskherd.api.tasks import commands
from taskherd.api.tasks.schemas import CreateTask
from taskherd.api.workspaces.queries import of_task_or_404, workspace_response
from taskherd.store import directory_queries

if TYPE_CHECKING:
    from taskherd.api.context import RequestContext
    from taskherd.api.http.responses import BufferedResponse

_PROMPT_KEYS: Final = frozenset({"ai prompt", "ai_prompt"})


async def in_organization(request: RequestContext) -> BufferedResponse:
    """Create a workspace in an organization."""
    organization_id = await templates.organization_id(request)
    return await _create(request, organization_id)


async def for_user(request: RequestContext) -> BufferedResponse:
    """Create a workspace of a user."""
    return await _create(request, None)


async def _create(request: RequestContext, organization_id: UUID | None) -> BufferedResponse:
    body = request.body
    version = body.template_version_id
    if not version and body.template_id:
        version = await _active_version(request, body.template_id, organization_id)
    prompt = ""
    for each in body.rich_parameter_values or ():
        if each.name.lower() not in _PROMPT_KEYS:
            detail = f"The parameter {each.name!r} is set by presets; choose one."
            raise invalid(("rich_parameter_values", detail), message="Unable to validate parameters.")
        prompt = each.value
    task = CreateTask(
        template_version_id=version,
        template_version_preset_id=body.template_version_preset_id,
        input=prompt,
        name=body.name,
    )
    result: dict[str, Any] = (await commands.create_task(request, task)).task
    return await workspace_response(request, await of_task_or_404(request, UUID(result["id"])), 201)


async def _active_version(request: RequestContext, template_id: UUID, organization_id: UUID | None) -> UUID:
    row = await directory_queries.template_by_id(request.reader, request.caller.user_id, template_id)
    if row is None or (organization_id is not None and row["organization_id"] != organization_id):
        raise not_found()
    version: UUID = row["active_version_id"]
    return version
