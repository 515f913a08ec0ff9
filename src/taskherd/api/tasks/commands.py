"""Changing tasks: each request becomes a command, and is answered when the worker has committed it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from uuid import UUID, uuid4, uuid5

from taskherd.api.commands import command_id_of, give, key_of
from taskherd.api.http.ids import findable
from taskherd.api.http.responses import Answer, Refusal, empty, json, not_found
from taskherd.api.tasks import documents
from taskherd.api.tasks.queries import whose
from taskherd.api.workspaces import builds
from taskherd.domain.commands import Create, Delete, Pause, Resume, Send, UpdateInput
from taskherd.domain.handle_command import NO_VERSION
from taskherd.messages import texts
from taskherd.store import task_queries

if TYPE_CHECKING:
    from taskherd.api.context import Ask

NIL: Final = UUID(int=0)
_NAME_TOLD: Final = 1_000
"""Characters of a name that the worker is told; one this long is refused either way."""


async def create(ask: Ask) -> Answer:
    """Create a task for the path's user; the same Idempotency-Key again gives the same task."""
    body = ask.body
    version = body.template_version_id or NIL
    owner = await _owner(ask, version)
    command_id = command_id_of(ask)
    keyed = key_of(ask) is not None
    done = await give(
        ask,
        Create(
            command_id=command_id,
            task_id=uuid5(command_id, "task") if keyed else uuid4(),
            actor_id=ask.caller.user_id,
            owner_id=owner,
            template_version_id=version,
            template_version_preset_id=body.template_version_preset_id,
            input=texts.clean(body.input or "", {}),
            name=(body.name or "")[:_NAME_TOLD],
            display_name=(body.display_name or "").strip()[:_NAME_TOLD],
        ),
    )
    objects = ask.house.settings.api_nullable_ids == "object"
    return Answer(200 if keyed and done.repeated else 201, documents.replied(done.task, objects=objects))


async def _owner(ask: Ask, version: UUID) -> UUID:
    """Whom the task is for: the caller, or somebody whom they administer, with what that organization has."""
    user = ask.user()
    if user == ask.caller.user_id:
        return ask.caller.user_id
    if isinstance(user, str) and not findable(user):
        raise not_found()
    found = await task_queries.owner(ask.house.reader, ask.caller.user_id, user, version)
    if found is None:
        raise not_found()
    owner, may = found
    if not may:
        raise Refusal(NO_VERSION.status, NO_VERSION.message)
    return owner


async def delete(ask: Ask) -> Answer:
    """Delete a task: hidden at once, its workspace taken down when the build under way has ended."""
    await give(ask, Delete(**await _common(ask)))
    return empty(202)


async def update_input(ask: Ask) -> Answer:
    """Replace the prompt of a paused task."""
    await give(ask, UpdateInput(**await _common(ask), input=texts.clean(ask.body.input or "", {})))
    return empty(204)


async def send(ask: Ask) -> Answer:
    """Say something to a task's agent; while it is busy that waits in its inbox."""
    done = await give(ask, Send(**await _common(ask), input=texts.clean(ask.body.input or "", {})))
    return empty(204, {"X-Taskherd-Queued": "true"} if done.queued else None)


async def pause(ask: Ask) -> Answer:
    """Stop a task's workspace."""
    return await _build(ask, Pause(**await _common(ask)), "stop")


async def resume(ask: Ask) -> Answer:
    """Start a task's workspace again."""
    return await _build(ask, Resume(**await _common(ask)), "start")


async def _build(ask: Ask, command: Pause | Resume, transition: str) -> Answer:
    done = await give(ask, command)
    return json(builds.asked(done.task, transition, ask.caller.user_id, ask.caller.username), 202)


async def _common(ask: Ask) -> dict[str, UUID]:
    """The fields that every command for the path's task has; raises the 404 where there is none for the caller."""
    task_id = await task_queries.target(ask.house.reader, whose(ask))
    if task_id is None:
        raise not_found()
    return {"command_id": command_id_of(ask), "task_id": task_id, "actor_id": ask.caller.user_id}
