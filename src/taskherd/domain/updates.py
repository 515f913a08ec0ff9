"""The effect of one batch on one task, as a value: the task before and after, and all that has to be saved or sent."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from taskherd.domain.value import value

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from taskherd.backoff import Backoff
    from taskherd.domain.agent_requests import RequestLedger
    from taskherd.domain.command_results import CommandAccepted, CommandRefused
    from taskherd.domain.handle_command import CommandContext
    from taskherd.domain.inbox import QueuedInput
    from taskherd.domain.liveness import Timeouts
    from taskherd.domain.recovery import RecoveryPolicy
    from taskherd.domain.reports import InputOutcomeReport, TaskLog
    from taskherd.domain.request_values import RequestState
    from taskherd.domain.task import Task, TaskState
    from taskherd.domain.usage import UsageLedger


@value(frozen=True, slots=True)
class Cause:
    """Why a task changed: ``kind`` is report, command or sweep; ``type`` is the message type or the sweep's finding.

    ``outcome`` is that of an interrupt, or the state of a request, for the report about it. ``request`` is the title of
    the agent's request that the message is about, and ``answer`` in words what it was answered.
    """

    kind: str
    type: str
    id: UUID | None = None
    actor_id: UUID | None = None
    outcome: str | None = None
    request: str | None = None
    answer: str | None = None


@value(frozen=True, slots=True)
class AcceptedInput:
    """An accepted user input, to be appended to the inbox; one that ``steers`` goes before those that do not."""

    input_id: UUID
    content: str
    actor_id: UUID
    steers: bool = False


@value(frozen=True, slots=True)
class TimerCheck:
    """The sweeper's check of the timers of a task.

    Attributes:
        watermark: the start of drained time; None while silence is inconclusive; the check then has no
            effect.
        mass_held: True while a mass loss is held: no agent is marked as lost.
        silence_counted_at: when the sweeper last counted the silent agents, None for now. An agent that was not
            overdue then is not marked as lost, because the decision about a mass loss did not count it. A check that is
            carried out more than half of ``liveness.MAX_SKEW`` later has no effect either: the next sweep makes one.
        expired_inputs: user inputs that no runner picked up in time.
        erase: the retention time of the task, which is deleted, has passed.
    """

    watermark: datetime | None
    mass_held: bool = False
    silence_counted_at: datetime | None = None
    expired_inputs: tuple[UUID, ...] = ()
    erase: bool = False


@dataclass(slots=True)
class TaskUpdate:
    """The task before and after a batch, and what else has to be saved or sent. Mutable while messages are applied.

    Attributes:
        before: the task as it was loaded, or None if it does not exist.
        task: the task with all messages applied so far.
        core_document: the stored part of the document as JSON, first as it was loaded, later as it is saved.
        queue: the first queued user inputs as they were loaded, in order, see ``inbox.send_next``.
        sent_input: the user input to send to the agent now.
        requested_builds: the numbers of the builds to send work requests for.
        closed_requests: the numbers of the builds whose work requests are closed.
        superseded: the task states from just before a later build became the latest.
        inputs_failed: True if the task's delete fails all inputs without an outcome.
        timed_out: the transition of the build that timed out.
        inputs_expired: number of user inputs that no runner picked up in time.
        requeued_input: the user input in flight that the agent did not get before an interrupt ended it.
        opened_interrupt: the interrupt to send a work request for.
        closed_interrupt: the interrupt whose work request is closed.
        interrupt_expired: True if nothing was reported in time about the interrupt.
        erased: True if the contents of the task are erased.
        usage: the task's usage by build and model, if it is loaded or reported.
        requests: the requests of the task's agent that the batch refers to, if they are loaded or reported.
        shown_requests: how the other requests show now that show differently than before.
        opened_answers: the requests whose answers are to be delivered, each with the runner, None if that is not known.
        closed_answers: the requests whose answers are no longer to be delivered, or to another runner.
    """

    before: Task | None
    task: Task | None
    core_document: str = ""
    queue: Sequence[QueuedInput] = ()
    command_result: CommandAccepted | CommandRefused | None = None
    sent_input: UUID | None = None
    requested_builds: list[int] = field(default_factory=list)
    closed_requests: list[int] = field(default_factory=list)
    superseded: list[TaskState] = field(default_factory=list)
    logs: list[TaskLog] = field(default_factory=list)
    new_inputs: list[AcceptedInput] = field(default_factory=list)
    input_outcomes: list[InputOutcomeReport] = field(default_factory=list)
    inputs_failed: bool = False
    timed_out: str | None = None
    inputs_expired: int = 0
    requeued_input: UUID | None = None
    opened_interrupt: UUID | None = None
    closed_interrupt: UUID | None = None
    interrupt_expired: bool = False
    delete_retried: bool = False
    erased: bool = False
    cause: Cause | None = None
    usage: UsageLedger | None = None
    requests: RequestLedger | None = None
    shown_requests: dict[UUID, RequestState] = field(default_factory=dict)
    opened_answers: dict[UUID, str | None] = field(default_factory=dict)
    closed_answers: list[UUID] = field(default_factory=list)

    @property
    def existing_task(self) -> Task:
        """The task, for callers that know that it exists."""
        if self.task is None:
            raise AssertionError
        return self.task

    def note_cause(self, cause: Cause) -> None:
        """Set the cause of the update; a command stays it, whatever reports and timer checks follow in the batch."""
        if self.cause is None or self.cause.kind != "command":
            self.cause = cause


@value(frozen=True, slots=True)
class UpdateContext:
    """What the decisions of a batch depend on: timeouts, recovery policies, and the rows loaded for it.

    ``policies`` are those of template versions that differ from ``default_policy``.

    Of the user inputs that the batch refers to, each as (task id, input id), ``known_inputs`` exist and belong to that
    task, and ``open_inputs`` also have no outcome yet.
    """

    timeouts: Timeouts
    delete_backoff: Backoff
    command_context: CommandContext
    default_policy: RecoveryPolicy
    policies: Mapping[UUID, RecoveryPolicy] = field(default_factory=dict)
    open_inputs: frozenset[tuple[UUID, UUID]] = frozenset()
    known_inputs: frozenset[tuple[UUID, UUID]] = frozenset()

    def policy_of(self, task: Task) -> RecoveryPolicy:
        """Return the recovery policy of the task's template version."""
        return self.policies.get(task.template_version_id, self.default_policy)
