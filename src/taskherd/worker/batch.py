"""The batch that ``reconcile`` applies, and its result."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from taskherd.domain.value import value
from taskherd.store.engine import STATEMENT_BUGS, DataError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from taskherd.domain.claims import BuildClaim, ClaimDecision
    from taskherd.domain.command_results import CommandRefused
    from taskherd.domain.commands import Command
    from taskherd.domain.directory import TemplatePool
    from taskherd.domain.outcome import DeadLetterReason, ReportOutcome
    from taskherd.domain.reports import Report
    from taskherd.domain.task import Task
    from taskherd.domain.updates import TimerCheck
    from taskherd.domain.usage import UsageAmounts
    from taskherd.messages.document import Ending
    from taskherd.messages.events import EventKind
    from taskherd.store.work_request_details import WorkRequestDetails
    from taskherd.store.work_requests import WorkRequestRow
    from taskherd.worker.agent_events import AgentEvent
    from taskherd.worker.sender_pools import Pools


MESSAGE_ERRORS = (
    DataError,
    *STATEMENT_BUGS,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
)
"""Errors attributable to a single message: PostgreSQL rejects one of its values, or it triggers a bug."""


@value(frozen=True, slots=True)
class Batch:
    """Messages in the order received; ``timer_checks`` by task id.

    ``report_pools`` and ``claim_pools`` have for each report and claim the pools of whose tasks its sender may speak;
    they are empty if senders are not checked.

    Outcomes match reports, replies commands, and decisions claims, by index. There is at most one command for each
    task and with each command id, so that each has an event, a version and a reply of its own.
    """

    reports: Sequence[Report] = ()
    commands: Sequence[Command] = ()
    claims: Sequence[BuildClaim] = ()
    report_pools: Sequence[Pools] = ()
    claim_pools: Sequence[Pools] = ()
    timer_checks: Mapping[UUID, TimerCheck] = field(default_factory=dict)


@value(frozen=True, slots=True)
class CommandReply:
    """The reply to a command, as it is sent.

    Attributes:
        refusal: why the command was refused, None if it was accepted.
        repeated: whether the command was executed before, and this is its recorded reply.
    """

    body: bytes
    refusal: CommandRefused | None = None
    repeated: bool = False

    @property
    def outcome(self) -> str:
        """The label of the command's outcome in metrics."""
        if self.repeated:
            return "repeated"
        return "accepted" if self.refusal is None else "refused"


@value(frozen=True, slots=True)
class CommittedChange:
    """A change of a task's document, to be published after the commit.

    Attributes:
        core_document: the stored part of the document, as JSON text.
        changes: the names of the changed fields.
        cause: the cause of the change, as JSON text.
        ending: whether the task completed or failed with this change, None if it did neither.
    """

    task: Task
    kind: EventKind
    core_document: str
    changes: tuple[str, ...]
    cause: str
    ending: Ending | None = None


@dataclass(slots=True)
class ParkingChanges:
    """Reports to park, by index in the batch, and the row ids of parked reports that were folded."""

    new: dict[int, Report] = field(default_factory=dict)
    folded: list[int] = field(default_factory=list)


@dataclass(slots=True)
class BatchResult:
    """The result of a batch.

    Attributes:
        outcomes: one for each report, by the report's index in the batch.
        decisions: one for each claim, or why it is refused, by the claim's index in the batch.
        replies: one for each command, by the command's index in the batch.
        changes: the changes to publish.
        has_due_requests: whether there are new work requests to read and send.
        started_requests: the new work requests whose first attempt is counted already, to be sent from memory.
        given_up: type, template and pool of the work requests that timed out: of builds and of inputs.
        deletes_retried: number of deletes that were requested again after a failure.
        agent_events: what happened to agents.
        new_usage: what agents used since the last report, with their templates and pools.
    """

    now: datetime
    outcomes: list[ReportOutcome]
    decisions: list[ClaimDecision | DeadLetterReason] = field(default_factory=list)
    replies: list[CommandReply] = field(default_factory=list)
    changes: list[CommittedChange] = field(default_factory=list)
    has_due_requests: bool = False
    started_requests: list[tuple[WorkRequestRow, WorkRequestDetails]] = field(default_factory=list)
    given_up: list[tuple[str, TemplatePool]] = field(default_factory=list)
    deletes_retried: int = 0
    agent_events: list[AgentEvent] = field(default_factory=list)
    new_usage: list[tuple[TemplatePool, UsageAmounts]] = field(default_factory=list)
