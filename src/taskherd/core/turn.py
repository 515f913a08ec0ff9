"""A task's turn in a batch: all its inputs folded in order, and everything that follows from them, as one value.

Nothing is read or written here. The corridor fetches what a turn needs and saves what it says.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from taskherd.core import builds, fold, inbox, liveness
from taskherd.core.lease import plain
from taskherd.core.obey import Accepted, Refused, obey
from taskherd.core.outcome import ReportOutcome
from taskherd.core.reports import AgentHeartbeat, InputOutcome, TaskInput, TaskLog, WorkspaceBuild
from taskherd.core.value import replace, value
from taskherd.core.view import connected

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from taskherd.core.builds import Backoff
    from taskherd.core.commands import Command
    from taskherd.core.liveness import Patience
    from taskherd.core.obey import Surroundings
    from taskherd.core.reports import Report
    from taskherd.core.task import Memory, Task


@value(frozen=True, slots=True)
class Cause:
    """Why a task changed: a report, a command or a sweep; ``type`` is that of the message, or the sweep's finding."""

    kind: str
    type: str
    id: UUID | None = None
    actor_id: UUID | None = None


@value(frozen=True, slots=True)
class NewInput:
    """An input that was accepted, for the end of the inbox."""

    input_id: UUID
    content: str
    actor_id: UUID


@value(frozen=True, slots=True)
class Look:
    """The sweeper's visit to a task. ``since``: the watermark; None: silence proves nothing now.

    ``counted_at``: when the silent agents were counted last, None for now. No agent may be found silent that had a
    moment left then: it could be the first of a mass that nobody has counted.
    """

    since: datetime | None
    mass_held: bool = False
    counted_at: datetime | None = None
    expired_inputs: tuple[UUID, ...] = ()


@dataclass(slots=True)
class Turn:
    """The task before and after, and what is to be written and sent besides. Mutable while its inputs are folded.

    ``own`` is the text of the document's own part, as it was read and then as it is written; ``displaced`` are the
    memories right before a later build became the latest.
    """

    before: Task | None
    task: Task | None
    outcomes: list[tuple[int, ReportOutcome]] = field(default_factory=list)
    answer: Accepted | Refused | None = None
    own: str = ""
    sent: list[UUID] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)
    settled: list[int] = field(default_factory=list)
    displaced: list[Memory] = field(default_factory=list)
    logs: list[TaskLog] = field(default_factory=list)
    inputs: list[NewInput] = field(default_factory=list)
    decided: list[TaskInput] = field(default_factory=list)
    inbox_failed: bool = False
    gave_up: str | None = None
    cause: Cause | None = None

    @property
    def known(self) -> Task:
        """The task, where there is one by now; asked only then."""
        if self.task is None:
            raise AssertionError
        return self.task


@value(frozen=True, slots=True)
class Rules:
    """The timers and the surroundings that a turn is judged by."""

    patience: Patience
    delete_backoff: Backoff
    around: Surroundings
    open_inputs: frozenset[UUID] = frozenset()
    known_inputs: frozenset[UUID] = frozenset()


def take_report(turn: Turn, index: int, report: Report, now: datetime, rules: Rules) -> None:
    """Fold one report into the turn's task, which exists."""
    task = turn.known
    if task.deleted_at is not None and not isinstance(report, WorkspaceBuild):
        turn.outcomes.append((index, ReportOutcome.TOMBSTONE))
        return
    report = fold.numbered(report, task.memory)
    memory = task.memory
    if isinstance(report, TaskInput):
        _take_outcome(turn, index, report, now, rules)
        return
    folded = fold.fold(memory, report, now)
    turn.outcomes.append((index, folded.outcome))
    if folded.memory is not memory and not (turn.cause and isinstance(report, AgentHeartbeat)):
        turn.cause = Cause("report", report.type)
    if isinstance(report, TaskLog):
        turn.logs.append(report)
    if folded.memory is not memory:
        if isinstance(report, WorkspaceBuild) and folded.memory.number != memory.number:
            turn.displaced.append(memory)
        turn.task = replace(task, memory=_settle(turn, memory.unanswered, folded.memory))


def _settle(turn: Turn, unanswered: int | None, after: Memory) -> Memory:
    """Stop asking for a build that was answered, or that a later one, which nobody asked for, has displaced."""
    if unanswered is None or (after.unanswered == unanswered and after.number == unanswered):
        return after
    turn.settled.append(unanswered)
    return after if after.unanswered is None else replace(after, unanswered=None)


def _take_outcome(turn: Turn, index: int, report: TaskInput, now: datetime, rules: Rules) -> None:
    if report.input_id not in rules.known_inputs:
        turn.outcomes.append((index, ReportOutcome.UNKNOWN_INPUT))
        return
    first = report.input_id in rules.open_inputs and all(report.input_id != known.input_id for known in turn.decided)
    turn.outcomes.append((index, ReportOutcome.APPLIED if first else ReportOutcome.STALE))
    if first and turn.task is not None:
        turn.decided.append(report)
        delivered = report.outcome is InputOutcome.DELIVERED
        memory = inbox.decided(turn.task.memory, report.input_id, now, delivered=delivered)
        turn.task = replace(turn.task, memory=memory)


def take_command(turn: Turn, command: Command, now: datetime, rules: Rules) -> None:
    """Carry out one command on the turn's task, which may not exist."""
    answer = obey(turn.task, command, now, rules.around)
    if isinstance(answer, Accepted):
        if answer.input is not None and answer.input_id is not None:
            turn.inputs.append(NewInput(answer.input_id, answer.input, command.actor_id))
        if answer.task.deleted_at is not None:
            turn.inbox_failed = True
        turn.task = answer.task
        turn.cause = Cause("command", command.type, command.command_id, command.actor_id)
    turn.answer = answer


def take_look(turn: Turn, look: Look, now: datetime, rules: Rules) -> None:
    """Notice what nobody reports: a silent agent, a build that nobody took up or that fell silent."""
    task = turn.task
    if task is None or look.since is None:
        return
    for input_id in look.expired_inputs:
        _expire(turn, task, input_id, now, rules)
    task = turn.task or task
    memory = task.memory
    after = liveness.give_up(memory, look.since, now, rules.patience)
    if after is not memory:
        turn.gave_up = after.build.report.transition.value
        turn.settled.append(after.number)
        turn.cause = Cause("sweep", "build.given_up")
    if not look.mass_held and task.deleted_at is None:
        judged = liveness.judge(after, look.since, look.counted_at or now, rules.patience)
        if judged is not after:
            turn.cause = Cause("sweep", "agent.silent")
        after = judged
    turn.task = replace(task, memory=after)


def _expire(turn: Turn, task: Task, input_id: UUID, now: datetime, rules: Rules) -> None:
    report = TaskInput(
        task_id=task.id,
        build_number=task.memory.number,
        seq=0,
        input_id=input_id,
        outcome=InputOutcome.FAILED,
        detail="No runner took the input in time.",
    )
    if input_id in rules.open_inputs:
        turn.decided.append(report)
        turn.task = replace(task, memory=inbox.decided(task.memory, input_id, now, delivered=False))


def conclude(turn: Turn, now: datetime, rules: Rules) -> None:
    """After the last input: carry a delete on, and note which builds were newly asked for."""
    task = turn.task
    if task is None:
        return
    if task.memory.deletion is not None:
        pursued = builds.pursue_delete(task.id, task.memory, now, rules.delete_backoff)
        if pursued.number != task.memory.number:
            turn.displaced.append(task.memory)
        task = replace(task, memory=pursued)
        turn.task = task
    before = turn.before.memory.asked if turn.before else {}
    turn.asked.extend(n for n in task.memory.asked if n not in before and n not in turn.settled)
    turn.asked.sort()


LOOK_AGAIN = timedelta(seconds=1)
"""A task that is due and stays as it is, is looked at again no sooner."""


def due_at(memory: Memory, since: datetime | None, now: datetime, patience: Patience) -> datetime | None:
    """When the sweeper is to look at a task with this memory again; None: not before something is said of it."""
    retry = memory.deletion.retry_at if memory.deletion else None
    times = [at for at in (liveness.deadline(memory, patience, now, since), inbox.due(memory), retry) if at is not None]
    if not plain(memory) and connected(memory):
        heard = memory.heard[memory.number]
        times.append((heard if liveness.credible(heard, now) else now) + patience.agent_lost_after)
    return max(min(times), now + LOOK_AGAIN) if times else None
