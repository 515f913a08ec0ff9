"""Handlers that change tasks: each request becomes a command, and is answered once the worker has committed it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from uuid import UUID, uuid4, uuid5

from taskherd.api.commands import command_id_of, idempotency_key_of, repeated_delete, send_command
from taskherd.api.http.errors import HTTPError, not_found, rate_limited
from taskherd.api.http.ids import is_searchable
from taskherd.api.http.responses import BufferedResponse, empty, json
from taskherd.api.tasks import documents
from taskherd.api.tasks.queries import task_ref_of
from taskherd.api.workspaces import builds
from taskherd.domain.command_results import NO_VERSION
from taskherd.domain.commands import Create, Delete, Interrupt, Pause, Resume, Send, UpdateInput, UpdateLabels
from taskherd.messages import texts
from taskherd.store import task_queries

if TYPE_CHECKING:
    from taskherd.api.commands import CommandResult
    from taskherd.api.context import RequestContext
    from taskherd.api.tasks.schemas import CreateTask

_NIL: Final = UUID(int=0)
_MAX_SENT_NAME: Final = 1_000
"""Number of characters of a name that are sent to the worker.

It only bounds the message; the worker applies the rules of ``domain.names`` and rejects a name of this length.
"""


async def create(request: RequestContext) -> BufferedResponse:
    """Create a task for the path's user. Repeating the request with the same Idempotency-Key returns the same task."""
    result = await create_task(request, request.body)
    status = 200 if idempotency_key_of(request) is not None and result.repeated else 201
    rendered = documents.render_reply(result.task, nullable_ids_as_objects=request.api.nullable_ids_as_objects)
    return BufferedResponse(status, rendered)


async def create_task(request: RequestContext, body: CreateTask) -> CommandResult:
    """Create the task that ``body`` describes for the path's user."""
    owner = await find_owner(request, request.user(), body.template_version_id)
    charge_create(request)
    has_key = idempotency_key_of(request) is not None
    return await send_command(request, create_command(request, body, owner, command_id_of(request), has_key=has_key))


def create_command(
    request: RequestContext, body: CreateTask, owner: UUID, command_id: UUID, *, has_key: bool
) -> Create:
    """Return the command that creates the task which ``body`` describes; with a key, always with the same task id."""
    return Create(
        command_id=command_id,
        task_id=uuid5(command_id, "task") if has_key else uuid4(),
        actor_id=request.caller.user_id,
        owner_id=owner,
        template_version_id=body.template_version_id or _NIL,
        template_version_preset_id=body.template_version_preset_id,
        input=texts.sanitize(body.input or "", {}),
        name=(body.name or "")[:_MAX_SENT_NAME],
        display_name=(body.display_name or "").strip()[:_MAX_SENT_NAME],
        labels=body.labels or None,
    )


def charge_create(request: RequestContext) -> None:
    """Count a create against the caller's rate. Raise a 429 if it exceeds it."""
    wait = request.api.rate_limits.creates.acquire(request.caller.user_id)
    if wait > 0:
        raise rate_limited(wait, "You have created too many tasks. Please wait.")


async def find_owner(request: RequestContext, user: UUID | str, version: UUID | None) -> UUID:
    """Return the id of the owner: the caller, or a member of an organization they administer that has the template."""
    if user == request.caller.user_id:
        return request.caller.user_id
    if isinstance(user, str) and not is_searchable(user):
        raise not_found()
    row = await task_queries.find_owner(request.reader, request.caller.user_id, user, version or _NIL)
    if row is None:
        raise not_found()
    owner, may_use_template = row
    if not may_use_template:
        raise HTTPError(NO_VERSION.status, NO_VERSION.message)
    return owner


async def delete(request: RequestContext) -> BufferedResponse:
    """Delete a task: it is hidden immediately, and its workspace is deleted once the current build has ended."""
    try:
        command = Delete(**await command_fields(request))
    except HTTPError:
        repeated = await repeated_delete(request, task_ref_of(request))
        if repeated is None:
            raise
        command = repeated
    await send_command(request, command)
    return empty(202)


async def update_input(request: RequestContext) -> BufferedResponse:
    """Replace the prompt of a paused task."""
    await send_command(
        request, UpdateInput(**await command_fields(request), input=texts.sanitize(request.body.input or "", {}))
    )
    return empty(204)


async def update_labels(request: RequestContext) -> BufferedResponse:
    """Set and remove labels of a task, and return the task."""
    result = await send_command(request, UpdateLabels(**await command_fields(request), labels=request.body.labels))
    as_objects = request.api.nullable_ids_as_objects
    return BufferedResponse(200, documents.render_reply(result.task, nullable_ids_as_objects=as_objects))


async def send(request: RequestContext) -> BufferedResponse:
    """Send an input to a task's agent; while the agent is busy, the input waits in the inbox, unless it answers it."""
    common, body = await command_fields(request), request.body
    text = texts.sanitize(body.input or "", {})
    result = await send_command(
        request,
        Send(
            command_id=common["command_id"],
            task_id=common["task_id"],
            actor_id=common["actor_id"],
            input=text,
            interrupt=bool(body.interrupt),
        ),
    )
    headers = {"X-Taskherd-Queued": "true"} if result.queued else {}
    if result.answered is not None:
        headers["X-Taskherd-Answered"] = str(result.answered)
    return empty(204, headers)


async def interrupt(request: RequestContext) -> BufferedResponse:
    """End what a task's agent does; a request during an interrupt joins it."""
    result = await send_command(request, Interrupt(**await command_fields(request)))
    return json({"interrupt_id": str(result.interrupt_id)}, 202)


async def pause(request: RequestContext) -> BufferedResponse:
    """Stop a task's workspace."""
    return await _build(request, Pause(**await command_fields(request)), "stop")


async def resume(request: RequestContext) -> BufferedResponse:
    """Start a task's workspace again."""
    return await _build(request, Resume(**await command_fields(request)), "start")


async def _build(request: RequestContext, command: Pause | Resume, transition: str) -> BufferedResponse:
    result = await send_command(request, command)
    return json(
        builds.requested_build_json(result.task, transition, request.caller.user_id, request.caller.username), 202
    )


async def command_fields(request: RequestContext) -> dict[str, UUID]:
    """Return the fields that all commands for the path's task have. Raise a 404 if the caller may not see it."""
    task_id = await task_queries.find_id(request.reader, task_ref_of(request))
    if task_id is None:
        raise not_found()
    return {"command_id": command_id_of(request), "task_id": task_id, "actor_id": request.caller.user_id}
