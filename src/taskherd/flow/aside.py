"""What a batch writes beside its tasks: inbox, log, requests to runners, and reports that wait for their task."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID, uuid5

from taskherd.core import fold, inbox
from taskherd.core.outcome import ReportOutcome
from taskherd.core.reports import canonical
from taskherd.core.value import replace
from taskherd.store import inputs, logs, parked, requests

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from taskherd.core.turn import Turn
    from taskherd.flow.batch import Outcome
    from taskherd.flow.ground import Ground
    from taskherd.flow.loading import Scene


async def save_inbox(connection: AsyncConnection, turns: Mapping[UUID, Turn], now: datetime) -> None:
    """Put new inputs at the end, note outcomes, fail what a deleted task still had, and let the next ones go."""
    new = [(task_id, item) for task_id, turn in turns.items() for item in turn.inputs]
    if new:
        rows = [inputs.NewInput(item.input_id, task_id, item.content, now, item.actor_id) for task_id, item in new]
        await inputs.append(connection, rows)
    decided = [report for turn in turns.values() for report in turn.decided]
    if decided:
        outcomes = [inputs.Outcome(said.input_id, said.outcome.value, now, said.detail) for said in decided]
        await inputs.decided(connection, outcomes)
    gone = [task_id for task_id, turn in turns.items() if turn.inbox_failed]
    if gone:
        await inputs.fail_all(connection, gone, now, "The task was deleted.")
    ready = [task_id for task_id, turn in turns.items() if _may_send(turn, now)]
    if ready:
        going = await inputs.next_queued(connection, ready)
        await inputs.sent(connection, [row.input_id for row in going], now)
        for row in going:
            turn = turns[row.task_id]
            task = turn.known
            turn.task = replace(task, memory=inbox.sent(task.memory, row.input_id))
            turn.sent.append(row.input_id)
        for task_id in set(ready) - {row.task_id for row in going}:  # all that waited were decided unsent
            task = turns[task_id].known
            turns[task_id].task = replace(task, memory=inbox.emptied(task.memory))


def _may_send(turn: Turn, now: datetime) -> bool:
    task = turn.task
    return (
        task is not None and task.deleted_at is None and task.memory.inbox.queued > 0 and inbox.ready(task.memory, now)
    )


async def save_logs(connection: AsyncConnection, turns: Mapping[UUID, Turn], now: datetime) -> None:
    """Append the entries that were said, in order."""
    entries = [
        logs.LogEntry(report.task_id, report.key[0], entry.id, report.seq, entry.type.value, entry.content, entry.time)
        for turn in turns.values()
        for report in turn.logs
        for entry in report.entries
    ]
    if entries:
        await logs.append(connection, entries, now)


async def save_requests(
    connection: AsyncConnection, turns: Mapping[UUID, Turn], now: datetime, outcome: Outcome
) -> None:
    """Ask for what was newly asked for, and stop asking for what was answered, given up or decided."""
    settled = [(task_id, number) for task_id, turn in turns.items() for number in turn.settled]
    if settled:
        await requests.answered(connection, settled)
    over = [(task_id, said.input_id) for task_id, turn in turns.items() for said in turn.decided]
    if over:
        await requests.answered_inputs(connection, over)
    gone = [task_id for task_id, turn in turns.items() if turn.inbox_failed]
    if gone:
        open_ones = await requests.of_tasks(connection, gone)
        await requests.remove(connection, [row.request_id for row in open_ones if row.input_id is not None])
    new = [row for turn in turns.values() for row in _requests(turn, now)]
    if new:
        await requests.add(connection, new)
    outcome.requested += len(new)
    outcome.gave_up.extend(turn.gave_up for turn in turns.values() if turn.gave_up)
    outcome.deletes_retried += sum(_retried_delete(turn) for turn in turns.values())


def _retried_delete(turn: Turn) -> bool:
    after = turn.task.memory.deletion if turn.task else None
    before = turn.before.memory.deletion if turn.before else None
    return after is not None and after.attempts > max(1, before.attempts if before else 1)


def _requests(turn: Turn, now: datetime) -> list[requests.WorkRequest]:
    task = turn.task
    if task is None or not (turn.asked or turn.sent):
        return []
    runner = task.memory.runner.report.runner if task.memory.runner else None

    def request(identity: UUID, number: int, kind: str, input_id: UUID | None) -> requests.WorkRequest:
        return requests.WorkRequest(identity, task.id, number, kind, input_id, runner, 0, now, now, None)

    builds = [
        request(uuid5(task.id, f"request/{number}"), number, f"workspace.{task.memory.asked[number].value}", None)
        for number in turn.asked
    ]
    return builds + [request(input_id, task.memory.number, "agent.input", input_id) for input_id in turn.sent]


async def park(connection: AsyncConnection, ground: Ground, scene: Scene, outcome: Outcome) -> None:
    """Park what has no task yet, and take out what was folded with its create. What was refused stays, and expires."""
    batch, turns = scene.batch, scene.turns
    waiting = [index for turn in turns.values() for index, became in turn.outcomes if became is ReportOutcome.PARKED]
    if waiting:
        reports = [fold.numbered(batch.reports[index], None) for index in waiting]
        rows = [parked.ToPark(report.task_id, outcome.now, canonical(report)) for report in reports]
        overflowed = set(await parked.park(connection, rows, ground.terms.parked_most))
        for place, index in enumerate(waiting):
            outcome.outcomes[index] = ReportOutcome.PARKED_OVERFLOW if place in overflowed else ReportOutcome.PARKED
    if scene.parked and batch.command:
        turn = turns[batch.command.task_id]
        refused = {-1 - index for index, became in turn.outcomes if index < 0 and became.dead_letter_reason}
        if turn.task is not None:
            await parked.remove(connection, [row for row, _ in scene.parked if row not in refused])
