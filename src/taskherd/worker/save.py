"""Save a folded batch: derive the visible changes, then write everything with one statement per table.

Each task's document is compared as text with the stored one. If they differ, the version rises by one, and the row, the
event and its outbox entry are written in one statement.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import orjson

from taskherd.domain import lease as lease_module
from taskherd.domain.command_results import COMMAND_ID_REUSED, CommandAccepted, CommandRefused
from taskherd.domain.commands import Send
from taskherd.domain.task_update import due_at
from taskherd.domain.updates import Cause
from taskherd.domain.value import replace
from taskherd.domain.view import derive_view, is_running, runs_alike
from taskherd.errors import Retry
from taskherd.messages import document, events, replies, shown_state
from taskherd.messages.commands import digest
from taskherd.observability.failpoints import Failpoint
from taskherd.store import builds, command_log, directory, erasure, leases, running_tasks, tasks, work_requests
from taskherd.store.task_creation import AddedRows, insert_tasks
from taskherd.worker import related_rows
from taskherd.worker.agent_requests import save_requests
from taskherd.worker.batch import CommandReply, CommittedChange
from taskherd.worker.build_rows import changed_builds
from taskherd.worker.index_rows import Documents, changed_index
from taskherd.worker.usage import save_usage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from taskherd.domain.commands import Command
    from taskherd.domain.directory import DirectoryNames
    from taskherd.domain.lease import Lease
    from taskherd.domain.liveness import Timeouts
    from taskherd.domain.task import Task
    from taskherd.domain.updates import TaskUpdate
    from taskherd.domain.view import TaskView
    from taskherd.store import AsyncConnection
    from taskherd.store.command_log import RecordedCommand
    from taskherd.store.task_index import IndexedTask
    from taskherd.worker.batch import BatchResult
    from taskherd.worker.context import WorkerContext
    from taskherd.worker.directory_cache import DirectoryCache
    from taskherd.worker.load import LoadedBatch


@dataclass(slots=True)
class Writes:
    """The rows of tasks and leases that a folded batch writes, and the changes to publish."""

    created: list[tasks.StoredTask] = field(default_factory=list)
    saved: list[tasks.StoredTask] = field(default_factory=list)
    changes: list[CommittedChange] = field(default_factory=list)
    leases: list[Lease] = field(default_factory=list)
    ended_leases: list[UUID] = field(default_factory=list)
    started: list[tuple[UUID, UUID]] = field(default_factory=list)
    """The tasks that run now and did not before, each with its owner."""
    ended: list[UUID] = field(default_factory=list)
    indexed: list[IndexedTask] = field(default_factory=list)
    """What the index should have of the tasks for which that changes."""
    deadlines: dict[UUID, datetime | None] = field(default_factory=dict)
    """When to check the tasks next that a timer check has not changed; None for those that need no further one."""


def derive_writes(loaded: LoadedBatch, timeouts: Timeouts, now: datetime) -> Writes:
    """Derive the writes of a folded batch, and store each task's new version and document in its update."""
    checks = loaded.batch.timer_checks
    writes = Writes()
    for task_id, update in loaded.updates.items():
        if update.task is None:
            continue
        check, is_new = checks.get(task_id), update.before is None
        is_same = update.task is update.before
        if is_same and check is None:
            continue
        # without a watermark silence counts from now on: the next one of the worker that sweeps is later
        watermark = (check.watermark or now) if check else None
        due = due_at(update.task.state, watermark, now, timeouts, loaded.update_context.policy_of(update.task))
        if is_same:
            writes.deadlines[task_id] = due
            continue
        view = derive_view(update.task.state, update.task.name)
        core, change, documents = _change(update, view, now)
        if change:
            update.task = change.task
            writes.changes.append(change)
        indexed = changed_index(loaded, update, documents, change)
        if indexed:
            writes.indexed.append(indexed)
        update.core_document = core
        if not (is_new or check or update.task.deleted_at):
            due = _not_later(due, loaded.rows[task_id].due_at, now)
        due_moved = is_new or check is not None or due != loaded.rows[task_id].due_at
        row = tasks.StoredTask(update.task, view.status.value, core, due, due_moved)
        (writes.created if is_new else writes.saved).append(row)
        _derive_running(writes, update.task, None if is_new else loaded.rows[task_id].task)
    _derive_leases(loaded, writes)
    return writes


def _derive_running(writes: Writes, task: Task, stored: Task | None) -> None:
    """Note whether a task has started or ended to run since it was stored; the delete of one always ends it."""
    if stored is not None and runs_alike(task, stored):
        return
    runs = is_running(task)
    if runs and (stored is None or not is_running(stored)):
        writes.started.append((task.id, task.owner_id))
    elif not runs and stored is not None and (is_running(stored) or task.deleted_at != stored.deleted_at):
        writes.ended.append(task.id)


def _not_later(due: datetime | None, stored: datetime | None, now: datetime) -> datetime | None:
    """Return the stored time of a task's next timer check instead of ``due`` if it is earlier and still to come.

    A check before it is necessary only sets the next time. Otherwise every report of a working agent would write it.
    """
    if stored is None or stored <= now:
        return due
    return stored if due is None else min(due, stored)


def _derive_leases(loaded: LoadedBatch, writes: Writes) -> None:
    """Derive the leases to write of the tasks whose leases were looked up, and those to delete."""
    kept: set[UUID] = set()
    for task_id in sorted(loaded.lease_checked & loaded.updates.keys()):
        task = loaded.updates[task_id].task
        if task is not None and task.deleted_at is None:
            lease = lease_module.lease_of(task_id, task.state)
            if lease is not None:
                kept.add(task_id)
                stored = loaded.leases.get(task_id)
                if stored is None or lease != stored:
                    writes.leases.append(lease)
    writes.ended_leases = sorted(loaded.leases.keys() - kept)


async def save_batch(
    connection: AsyncConnection, context: WorkerContext, loaded: LoadedBatch, writes: Writes, result: BatchResult
) -> None:
    """Write a folded batch, and add the replies to its commands to the result.

    Raises:
        Retry: another transaction has created a task with the same name or id.
    """
    updates, now = loaded.updates, result.now
    result.replies = await _replies(connection, context.directory_cache, loaded)
    added = AddedRows(
        events=[_event(change) for change in writes.changes if change.kind is events.EventKind.CREATED],
        builds=changed_builds(updates, now),
        requests=_new_requests(context, loaded, result),
        running=writes.started,
        commands=_executed(loaded, result.replies, now),
        indexed=[row for row in writes.indexed if updates[row.task_id].before is None],
    )
    await related_rows.save_inbox(connection, updates, now)
    await save_requests(context, connection, updates)
    await related_rows.save_logs(connection, updates, context.log_limits, now)
    changed = [_event(change) for change in writes.changes if change.kind is not events.EventKind.CREATED]
    if writes.saved:
        indexed = [row for row in writes.indexed if updates[row.task_id].before is not None]
        await tasks.save(connection, writes.saved, changed, indexed)
    if writes.deadlines:
        await tasks.save_deadlines(connection, writes.deadlines)
    if writes.ended:
        await running_tasks.delete(connection, writes.ended)
    await _save_prompts(connection, writes.changes)
    if writes.leases:
        await leases.upsert(connection, writes.leases)
    if writes.ended_leases:
        await leases.delete(connection, writes.ended_leases)
    await related_rows.close_requests(connection, updates)
    await _add(connection, writes.created, added)
    if any(update.opened_interrupt or update.closed_interrupt for update in updates.values()):
        context.failpoint(Failpoint.INTERRUPT_SAVED)
    await related_rows.save_claims(connection, loaded.batch.claims, result.decisions, now)
    await _erase(connection, loaded, now)
    await save_usage(connection, updates, now)


def _new_requests(
    context: WorkerContext, loaded: LoadedBatch, result: BatchResult
) -> list[work_requests.WorkRequestRow]:
    """Return the new work requests. Those of new tasks are sent from memory, so their first attempt is counted now.

    Of a runner that a parked report names it is not known yet whether requests may go to it.
    """
    requests: list[work_requests.WorkRequestRow] = []
    for row in related_rows.new_requests(loaded.updates, result.now):
        details = related_rows.request_details(loaded.updates[row.task_id], loaded.entries)
        if details is None or row.target_runner is not None:
            result.has_due_requests = True
            requests.append(row)
        else:
            started = context.request_retry.first_attempt(row, result.now)
            result.started_requests.append((started, details))
            requests.append(started)
    return requests


async def _add(connection: AsyncConnection, created: Sequence[tasks.StoredTask], added: AddedRows) -> None:
    """Insert new tasks and other new rows. Raise ``Retry`` if another transaction has created or executed one."""
    if created:
        inserted = await insert_tasks(connection, created, added)
        if len(inserted.tasks) < len(created):
            raise Retry("a task with this name or id was created concurrently")
        recorded = inserted.commands
    else:
        if added.running:
            await running_tasks.add(connection, added.running)
        if added.requests:
            await work_requests.add(connection, added.requests)
        if added.builds:
            await builds.save(connection, added.builds)
        recorded = await command_log.record(connection, added.commands) if added.commands else 0
    if recorded < len(added.commands):
        raise Retry("a command with this id was executed concurrently")


def _change(update: TaskUpdate, view: TaskView, now: datetime) -> tuple[str, CommittedChange | None, Documents]:
    """Return the stored part of the task's document as JSON text, and the change if it is visible to readers.

    The documents are the stored parts before and after the batch as JSON types; before is empty if nothing changed.
    """
    task, before = update.existing_task, update.before
    fields = document.core_document(view, task)
    core = orjson.dumps(fields).decode()
    if before is None:
        changed = tuple(sorted({*fields, "initial_prompt"}))
        task = replace(task, state=replace(task.state, state_since=task.created_at))
        change = CommittedChange(task, events.EventKind.CREATED, core, changed, _cause(update))
        return core, change, Documents({}, fields)
    if before.deleted_at is not None:
        return core, None, Documents({}, fields)
    if task.deleted_at is not None:  # publish the last document, without the build that was requested for the delete
        task = replace(task, version=before.version + 1, updated_at=now)
        change = CommittedChange(task, events.EventKind.DELETED, update.core_document, (), _cause(update))
        return update.core_document, change, Documents({}, fields)
    if core == update.core_document and task.prompt == before.prompt:
        return core, None, Documents({}, fields)
    stored = orjson.loads(update.core_document)
    changed = document.changed_fields(stored, fields)
    version = before.version + 1
    prompt_version = task.prompt_version
    if task.prompt != before.prompt:
        changed, prompt_version = tuple(sorted({*changed, "initial_prompt"})), version
    state, ending = task.state, None
    if shown_state.may_be_another(stored, fields):
        if shown_state.is_another_state(stored, fields):
            state = replace(state, state_since=now)
        ending = document.ending_of(fields)
        if ending is document.ending_of(stored):
            ending = None
    task = replace(task, version=version, updated_at=now, prompt_version=prompt_version, state=state)
    change = CommittedChange(task, events.EventKind.UPDATED, core, changed, _cause(update), ending)
    return core, change, Documents(stored, fields)


def _cause(update: TaskUpdate) -> str:
    cause = update.cause or Cause("sweep", "task.looked_at")
    if cause.id is not None or cause.actor_id is not None:
        return _cause_text(cause)
    text = _CAUSES.get((cause.kind, cause.type))
    if text is None:
        text = _CAUSES[cause.kind, cause.type] = _cause_text(cause)
    return text


_CAUSES: dict[tuple[str, str], str] = {}
"""Cached texts of the causes that have only a kind and a type: one per type of report, and those of sweeps."""


def _cause_text(cause: Cause) -> str:
    """Return a cause as it appears in events, without the fields that are not set."""
    fields = {
        "kind": cause.kind,
        "type": cause.type,
        "id": cause.id,
        "actor_id": cause.actor_id,
        "outcome": cause.outcome,
        "request": cause.request,
        "answer": cause.answer,
    }
    return orjson.dumps({name: str(value) for name, value in fields.items() if value is not None}).decode()


def _event(change: CommittedChange) -> tasks.TaskEventRow:
    return tasks.TaskEventRow(change.task, change.kind.value, change.core_document, change.changes, change.cause)


async def _erase(connection: AsyncConnection, loaded: LoadedBatch, now: datetime) -> None:
    """Erase the contents of the tasks whose tombstones this batch has saved."""
    updates = [update for update in loaded.updates.values() if update.erased]
    if not updates:
        return
    tasks_erased = [update.existing_task for update in updates]
    names = await directory.names(connection, [(task.owner_id, task.template_version_id) for task in tasks_erased])
    documents = {
        task.id: document.render_json(
            update.core_document, "", names[task.owner_id, task.template_version_id], task.updated_at
        ).decode()
        for task, update in zip(tasks_erased, updates, strict=True)
    }
    await erasure.finish(connection, documents, now)


async def _save_prompts(connection: AsyncConnection, changes: Sequence[CommittedChange]) -> None:
    new = [
        change.task
        for change in changes
        if change.kind is not events.EventKind.CREATED and change.task.prompt_version == change.task.version
    ]
    if new:
        await tasks.add_prompts(connection, new)


async def _replies(
    connection: AsyncConnection, directory_cache: DirectoryCache, loaded: LoadedBatch
) -> list[CommandReply]:
    """Return the reply to each command: the recorded one, or a new one."""
    commands = loaded.batch.commands
    if not commands:
        return []
    new = [command for command in commands if command.command_id not in loaded.recorded_replies]
    tasks_of = (loaded.updates[command.task_id].task for command in new)
    pairs = {(task.owner_id, task.template_version_id) for task in tasks_of if task is not None}
    names = await directory_cache.look_up(pairs, connection)
    replies_of = {command.command_id: _new_reply(loaded.updates[command.task_id], names) for command in new}
    for command in commands:
        recorded = loaded.recorded_replies.get(command.command_id)
        if recorded is not None:
            replies_of[command.command_id] = _recorded_reply(command, recorded)
    return [replies_of[command.command_id] for command in commands]


def _executed(
    loaded: LoadedBatch, replies_: Sequence[CommandReply], now: datetime
) -> list[command_log.ExecutedCommand]:
    """Return the commands that were not executed before, to record them with their replies."""
    return [
        command_log.ExecutedCommand(
            command.command_id,
            command.task_id,
            digest(command),
            replies.stored_reply(command, reply.body, reply.refusal),
            created_at=now,
            kept_until_erased=_is_answering_send(command, loaded.updates[command.task_id]),
        )
        for command, reply in zip(loaded.batch.commands, replies_, strict=True)
        if command.command_id not in loaded.recorded_replies
    ]


def _is_answering_send(command: Command, update: TaskUpdate) -> bool:
    """Return True if a send has answered a request: there is no input to recognize a repetition by."""
    result = update.command_result
    return isinstance(command, Send) and isinstance(result, CommandAccepted) and result.answered is not None


def _new_reply(update: TaskUpdate, names: Mapping[tuple[UUID, UUID], DirectoryNames]) -> CommandReply:
    command_result = update.command_result
    if command_result is None:
        raise AssertionError
    if isinstance(command_result, CommandRefused):
        return CommandReply(replies.refused_reply(command_result), command_result)
    task = update.existing_task
    task_names = names[task.owner_id, task.template_version_id]
    rendered = document.render(orjson.loads(update.core_document), task.prompt, task_names, task.updated_at)
    body = replies.accepted_reply(
        rendered,
        task.version,
        input_id=command_result.input_id,
        queued=command_result.queued,
        interrupt_id=command_result.interrupt_id,
        answered=None if command_result.answered is None else command_result.answered.report.request_id,
    )
    return CommandReply(body, repeated=command_result.repeated)


def _recorded_reply(command: Command, recorded: RecordedCommand) -> CommandReply:
    if recorded.digest != digest(command):
        return CommandReply(replies.refused_reply(COMMAND_ID_REUSED), COMMAND_ID_REUSED, repeated=True)
    body = replies.restored_reply(command, recorded.reply)
    decoded = replies.decode_reply(body)
    return CommandReply(body, decoded if isinstance(decoded, CommandRefused) else None, repeated=True)
