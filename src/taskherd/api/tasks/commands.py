"""Changing tasks: each request becomes a command, and is answered when the worker has committed it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from uuid import UUID, uuid4, uuid5

from taskherd.api.commands import command_id_of, key_of, send_command
from taskherd.api.http.ids import is_searchable
from taskherd.api.http.responses import BufferedResponse, HTTPError, empty, json, not_found
from taskherd.api.tasks import documents
from taskherd.api.tasks.queries import task_ref_of
from taskherd.api.workspaces import builds
from taskherd.domain.commands import Create, Delete, Pause, Resume, Send, UpdateInput
from taskherd.domain.handle_command import NO_VERSION
from taskherd.messages import texts
from taskherd.store import task_queries

if TYPE_CHECKING:
    from taskherd.api.context import RequestContext

NIL: Final = UUID(int=0)
_NAME_TOLD: Final = 1_000
"""Characters of a name that the worker is told; one this long is refused either way."""


async def create(request: RequestContext) -> BufferedResponse:
    """Create a task for the path's user; the same Idempotency-Key again gives the same task."""
    body = request.body
    version = body.template_version_id or NIL
    owner = await _owner(request, version)
    command_id = command_id_of(request)
    keyed = key_of(request) is not None
    done = await send_command(
        request,
        Create(
            command_id=command_id,
            task_id=uuid5(command_id, "task") if keyed else uuid4(),
            actor_id=request.caller.user_id,
            owner_id=owner,
            template_version_id=version,
            template_version_preset_id=body.template_version_preset_id,
            input=texts.sanitize(body.input or "", {}),
            name=(body.name or "")[:_NAME_TOLD],
            display_name=(body.display_name or "").strip()[:_NAME_TOLD],
        ),
    )
    objects = request.api.settings.api_nullable_ids == "object"
    return BufferedResponse(200 if keyed and done.repeated else 201, documents.render_reply(done.task, objects=objects))


async def _owner(request: RequestContext, version: UUID) -> UUID:
    """Whom the task is for: the caller, or somebody whom they administer, with what that organization has."""
    user = request.user()
    if user == request.caller.user_id:
        return request.caller.user_id
    if isinstance(user, str) and not is_searchable(user):
        raise not_found()
    found = await task_queries.owner(request.api.reader, request.caller.user_id, user, version)
    if found is None:
        raise not_found()
    owner, may = found
    if not may:
        raise HTTPError(NO_VERSION.status, NO_VERSION.message)
    return owner


async def delete(request: RequestContext) -> BufferedResponse:
    """Delete a task: hidden at once, its workspace taken down when the build under way has ended."""
    await send_command(request, Delete(**await _common(request)))
    return empty(202)


async def update_input(request: RequestContext) -> BufferedResponse:
    """Replace the prompt of a paused task."""
    await send_command(
        request, UpdateInput(**await _common(request), input=texts.sanitize(request.body.input or "", {}))
    )
    return empty(204)


async def send(request: RequestContext) -> BufferedResponse:
    """Say something to a task's agent; while it is busy that waits in its inbox."""
    done = await send_command(
        request, Send(**await _common(request), input=texts.sanitize(request.body.input or "", {}))
    )
    return empty(204, {"X-Taskherd-Queued": "true"} if done.queued else None)


async def pause(request: RequestContext) -> BufferedResponse:
    """Stop a task's workspace."""
    return await _build(request, Pause(**await _common(request)), "stop")


async def resume(request: RequestContext) -> BufferedResponse:
    """Start a task's workspace again."""
    return await _build(request, Resume(**await _common(request)), "start")


async def _build(request: RequestContext, command: Pause | Resume, transition: str) -> BufferedResponse:
    done = await send_command(request, command)
    return json(
        builds.requested_build_json(done.task, transition, request.caller.user_id, request.caller.username), 202
    )


async def _common(request: RequestContext) -> dict[str, UUID]:
    """The fields that every command for the path's task has; raises the 404 where there is none for the caller."""
    task_id = await task_queries.find_id(request.api.reader, task_ref_of(request))
    if task_id is None:
        raise not_found()
    return {"command_id": command_id_of(request), "task_id": task_id, "actor_id": request.caller.user_id}
