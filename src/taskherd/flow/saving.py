"""The last third of the corridor: one statement for each table that a batch touches, then what is to be told.

A task's document is compared as text with the one that its row holds: they differ, or nothing happened that a reader
could see. Then the version rises by one, and the row, the event and its place in the outbox are written together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson

from taskherd.core import lease as leasing
from taskherd.core.obey import Refused
from taskherd.core.outcome import ReportOutcome
from taskherd.core.turn import Cause, due_at
from taskherd.core.value import replace
from taskherd.core.view import view
from taskherd.flow import aside, builds
from taskherd.flow.batch import Change
from taskherd.flow.loading import digest
from taskherd.store import commands as command_log
from taskherd.store import directory, leases, tasks
from taskherd.store.engine import Retry
from taskherd.wire import document, events, replies

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from taskherd.core.commands import Command
    from taskherd.core.turn import Turn
    from taskherd.core.view import View
    from taskherd.flow.batch import Outcome
    from taskherd.flow.ground import Ground
    from taskherd.flow.loading import Scene


CLASH = Refused(409, replies.USED_BEFORE)


async def save(connection: AsyncConnection, ground: Ground, scene: Scene, outcome: Outcome) -> None:
    """Write what the turns came to, and note in the outcome what is to be told of it."""
    batch, turns = scene.batch, scene.turns
    now = outcome.now
    await aside.save_inbox(connection, turns, now)
    await aside.save_logs(connection, turns, now)
    saved: list[tasks.StoredTask] = []
    created: list[tasks.StoredTask] = []
    changes: list[Change] = []
    for task_id, turn in turns.items():
        if turn.task is None:
            continue
        if turn.before is not None and turn.task is turn.before and task_id not in batch.looks:
            continue
        seen = view(turn.task.memory, turn.task.name)
        own, change = _change(turn, seen, now)
        if change:
            turn.task = change.task
            changes.append(change)
        turn.own = own
        look = batch.looks.get(task_id)
        due = due_at(turn.task.memory, look.since if look else None, now, ground.patience)
        if turn.before is None:
            created.append(tasks.StoredTask(turn.task, seen.status.value, own, due))
        else:
            moved = look is not None or due != scene.rows[task_id].due_at
            saved.append(tasks.StoredTask(turn.task, seen.status.value, own, due, moved))
    if created and len(await tasks.insert_tasks(connection, created)) < len(created):
        raise Retry("a task of that name or id was created meanwhile")
    if saved or changes:
        await tasks.save(connection, saved, [_event(change) for change in changes])
    await _save_prompts(connection, changes)
    await _save_leases(connection, scene)
    await aside.save_requests(connection, turns, now, outcome)
    await builds.save(connection, turns, now)
    await aside.park(connection, ground, scene, outcome)
    if batch.command:
        outcome.reply = await _reply(connection, scene, batch.command, outcome)
    outcome.changes.extend(changes)
    told = {change.task.id for change in changes}
    for task_id, turn in turns.items():
        _tell_outcomes(turn, outcome, changed=task_id in told)


def _change(turn: Turn, seen: View, now: datetime) -> tuple[str, Change | None]:
    """The task's own part of its document as text, and the change if a reader can see one."""
    task, before = turn.known, turn.before
    said = document.own(seen, task)
    own = orjson.dumps(said).decode()
    if before is None:
        changed = tuple(sorted({*said, "initial_prompt"}))
        return own, Change(task, events.Kind.CREATED, own, changed, _cause(turn))
    if before.deleted_at is not None:
        return own, None
    if task.deleted_at is not None:  # told with the last document: asking for the delete's build is not part of it
        task = replace(task, version=before.version + 1, updated_at=now)
        return turn.own, Change(task, events.Kind.DELETED, turn.own, (), _cause(turn))
    if own == turn.own and task.prompt == before.prompt:
        return own, None
    changed = document.changes(orjson.loads(turn.own), said)
    version = before.version + 1
    prompt_version = task.prompt_version
    if task.prompt != before.prompt:
        changed, prompt_version = tuple(sorted({*changed, "initial_prompt"})), version
    task = replace(task, version=version, updated_at=now, prompt_version=prompt_version)
    return own, Change(task, events.Kind.UPDATED, own, changed, _cause(turn))


def _cause(turn: Turn) -> str:
    cause = turn.cause or Cause("sweep", "task.looked_at")
    if cause.id is not None or cause.actor_id is not None:
        return _cause_text(cause)
    text = _CAUSES.get((cause.kind, cause.type))
    if text is None:
        text = _CAUSES[cause.kind, cause.type] = _cause_text(cause)
    return text


_CAUSES: dict[tuple[str, str], str] = {}
"""The texts of causes that are only a kind and a type: one for each type of report, and what sweeps find."""


def _cause_text(cause: Cause) -> str:
    """A cause as events carry it; what is not known is left out."""
    said = {"kind": cause.kind, "type": cause.type, "id": cause.id, "actor_id": cause.actor_id}
    return orjson.dumps({name: str(value) for name, value in said.items() if value is not None}).decode()


def _event(change: Change) -> tasks.TaskEvent:
    return tasks.TaskEvent(change.task, change.kind.value, change.own, change.changes, change.cause)


async def _save_prompts(connection: AsyncConnection, changes: Sequence[Change]) -> None:
    new = [
        change.task
        for change in changes
        if change.kind is not events.Kind.CREATED and change.task.prompt_version == change.task.version
    ]
    if new:
        await tasks.add_prompts(connection, new)


async def _save_leases(connection: AsyncConnection, scene: Scene) -> None:
    """Give every task whose lease was looked up the lease that it now has, or none."""
    now_leased = []
    for task_id in sorted(scene.moved):
        task = scene.turns[task_id].task
        if task is not None and task.deleted_at is None:
            lease = leasing.of(task_id, task.memory)
            if lease is not None:
                now_leased.append(lease)
    if now_leased:
        await leases.upsert(connection, now_leased)
    ended = sorted(scene.leases - {lease.task_id for lease in now_leased})
    if ended:
        await leases.remove(connection, ended)


async def _reply(connection: AsyncConnection, scene: Scene, command: Command, outcome: Outcome) -> bytes:
    """The reply to the command: what the same command got before, or what is kept for it from now on."""
    if scene.replied:
        outcome.repeated = True
        same = scene.replied.digest == digest(command)
        return scene.replied.reply.encode() if same else replies.refused(CLASH)
    turn = scene.turns[command.task_id]
    answer = turn.answer
    if answer is None:
        raise AssertionError
    if isinstance(answer, Refused):
        reply = replies.refused(answer)
    else:
        task = turn.known
        pair = (task.owner_id, task.template_version_id)
        names = (await directory.names(connection, [pair]))[pair]
        rendered = document.render(orjson.loads(turn.own), task.prompt, names, task.updated_at)
        reply = replies.accepted(rendered, task.version, input_id=answer.input_id, queued=answer.queued)
    await command_log.record(connection, [(command.command_id, reply.decode())])
    return reply


def _tell_outcomes(turn: Turn, outcome: Outcome, *, changed: bool) -> None:
    """A report that was applied and changed nothing that a reader could see is unchanged."""
    for index, became in turn.outcomes:
        if index >= 0 and became is not ReportOutcome.PARKED:
            applied = became is ReportOutcome.APPLIED
            outcome.outcomes[index] = ReportOutcome.UNCHANGED if applied and not changed else became
