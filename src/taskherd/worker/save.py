"""Save a batch: derive what changed for readers, then write it with one statement for each table.

A task's document is compared as text with the one in its row; only where they differ did something happen that a
reader can see. Then the version rises by one, and the row, the event and its entry in the outbox are written together.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import orjson

from taskherd.domain import lease as lease_module
from taskherd.domain.handle_command import CommandRefused
from taskherd.domain.task_update import Cause, due_at
from taskherd.domain.value import replace
from taskherd.domain.view import derive_view
from taskherd.errors import Retry
from taskherd.messages import document, events, replies
from taskherd.store import commands as command_log
from taskherd.store import directory, leases, tasks
from taskherd.worker import builds, related_rows
from taskherd.worker.batch import CommittedChange
from taskherd.worker.load import digest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from uuid import UUID

    from taskherd.domain.commands import Command
    from taskherd.domain.lease import Lease
    from taskherd.domain.liveness import Timeouts
    from taskherd.domain.task_update import TaskUpdate
    from taskherd.domain.view import TaskView
    from taskherd.store import AsyncConnection
    from taskherd.worker.batch import BatchResult
    from taskherd.worker.load import LoadedBatch


CLASH = CommandRefused(409, replies.USED_BEFORE)


@dataclass(slots=True)
class Writes:
    """What a folded batch writes to tasks and leases, and the changes to publish."""

    created: list[tasks.StoredTask] = field(default_factory=list)
    saved: list[tasks.StoredTask] = field(default_factory=list)
    changes: list[CommittedChange] = field(default_factory=list)
    leases: list[Lease] = field(default_factory=list)
    ended_leases: list[UUID] = field(default_factory=list)


def derive(loaded: LoadedBatch, timeouts: Timeouts, now: datetime) -> Writes:
    """Return what the updates of a folded batch come to; each update then holds its task's new version and document."""
    checks = loaded.batch.timer_checks
    writes = Writes()
    for task_id, update in loaded.updates.items():
        if update.task is None:
            continue
        if update.before is not None and update.task is update.before and task_id not in checks:
            continue
        seen = derive_view(update.task.state, update.task.name)
        own, change = _change(update, seen, now)
        if change:
            update.task = change.task
            writes.changes.append(change)
        update.core_document = own
        check = checks.get(task_id)
        due = due_at(update.task.state, check.watermark if check else None, now, timeouts)
        if update.before is None:
            writes.created.append(tasks.StoredTask(update.task, seen.status.value, own, due))
        else:
            moved = check is not None or due != loaded.rows[task_id].due_at
            writes.saved.append(tasks.StoredTask(update.task, seen.status.value, own, due, moved))
    _derive_leases(loaded, writes)
    return writes


def _derive_leases(loaded: LoadedBatch, writes: Writes) -> None:
    """Give every task whose lease was looked up the lease that it has now, or none."""
    for task_id in sorted(loaded.lease_checked & loaded.updates.keys()):
        task = loaded.updates[task_id].task
        if task is not None and task.deleted_at is None:
            lease = lease_module.lease_of(task_id, task.state)
            if lease is not None:
                writes.leases.append(lease)
    writes.ended_leases = sorted(loaded.leased - {lease.task_id for lease in writes.leases})


async def save(connection: AsyncConnection, loaded: LoadedBatch, writes: Writes, result: BatchResult) -> None:
    """Write what was decided for a batch, and put the command's reply into the result.

    Raises:
        Retry: a task of that name or id was created meanwhile.
    """
    updates, now = loaded.updates, result.now
    await related_rows.save_inbox(connection, updates, now)
    await related_rows.save_logs(connection, updates, now)
    if writes.created and len(await tasks.insert_tasks(connection, writes.created)) < len(writes.created):
        raise Retry("a task of that name or id was created meanwhile")
    if writes.saved or writes.changes:
        await tasks.save(connection, writes.saved, [_event(change) for change in writes.changes])
    await _save_prompts(connection, writes.changes)
    if writes.leases:
        await leases.upsert(connection, writes.leases)
    if writes.ended_leases:
        await leases.remove(connection, writes.ended_leases)
    await related_rows.save_requests(connection, updates, now)
    await builds.save(connection, updates, now)
    if loaded.batch.command:
        result.reply = await _reply(connection, loaded, loaded.batch.command, result)


def _change(update: TaskUpdate, seen: TaskView, now: datetime) -> tuple[str, CommittedChange | None]:
    """The task's own part of its document as text, and the change if a reader can see one."""
    task, before = update.existing_task, update.before
    fields = document.core_document(seen, task)
    own = orjson.dumps(fields).decode()
    if before is None:
        changed = tuple(sorted({*fields, "initial_prompt"}))
        return own, CommittedChange(task, events.EventKind.CREATED, own, changed, _cause(update))
    if before.deleted_at is not None:
        return own, None
    if task.deleted_at is not None:  # with its last document, which the request for the delete's build is not part of
        task = replace(task, version=before.version + 1, updated_at=now)
        return update.core_document, CommittedChange(
            task, events.EventKind.DELETED, update.core_document, (), _cause(update)
        )
    if own == update.core_document and task.prompt == before.prompt:
        return own, None
    changed = document.changed_fields(orjson.loads(update.core_document), fields)
    version = before.version + 1
    prompt_version = task.prompt_version
    if task.prompt != before.prompt:
        changed, prompt_version = tuple(sorted({*changed, "initial_prompt"})), version
    task = replace(task, version=version, updated_at=now, prompt_version=prompt_version)
    return own, CommittedChange(task, events.EventKind.UPDATED, own, changed, _cause(update))


def _cause(update: TaskUpdate) -> str:
    cause = update.cause or Cause("sweep", "task.looked_at")
    if cause.id is not None or cause.actor_id is not None:
        return _cause_text(cause)
    text = _CAUSES.get((cause.kind, cause.type))
    if text is None:
        text = _CAUSES[cause.kind, cause.type] = _cause_text(cause)
    return text


_CAUSES: dict[tuple[str, str], str] = {}
"""Cached texts of causes that are only a kind and a type: one for each type of report, and those of sweeps."""


def _cause_text(cause: Cause) -> str:
    """Return a cause as events carry it, without the fields that are not known."""
    fields = {"kind": cause.kind, "type": cause.type, "id": cause.id, "actor_id": cause.actor_id}
    return orjson.dumps({name: str(value) for name, value in fields.items() if value is not None}).decode()


def _event(change: CommittedChange) -> tasks.TaskEvent:
    return tasks.TaskEvent(change.task, change.kind.value, change.core_document, change.changes, change.cause)


async def _save_prompts(connection: AsyncConnection, changes: Sequence[CommittedChange]) -> None:
    new = [
        change.task
        for change in changes
        if change.kind is not events.EventKind.CREATED and change.task.prompt_version == change.task.version
    ]
    if new:
        await tasks.add_prompts(connection, new)


async def _reply(connection: AsyncConnection, loaded: LoadedBatch, command: Command, result: BatchResult) -> bytes:
    """Return the reply to the command: the one that it got before, or a new one, which is recorded."""
    if loaded.recorded_reply:
        result.repeated = True
        same = loaded.recorded_reply.digest == digest(command)
        return loaded.recorded_reply.reply.encode() if same else replies.refused_reply(CLASH)
    update = loaded.updates[command.task_id]
    answer = update.command_result
    if answer is None:
        raise AssertionError
    if isinstance(answer, CommandRefused):
        reply = replies.refused_reply(answer)
    else:
        task = update.existing_task
        pair = (task.owner_id, task.template_version_id)
        names = (await directory.names(connection, [pair]))[pair]
        rendered = document.render(orjson.loads(update.core_document), task.prompt, names, task.updated_at)
        reply = replies.accepted_reply(rendered, task.version, input_id=answer.input_id, queued=answer.queued)
    await command_log.record(connection, [(command.command_id, reply.decode())])
    return reply
