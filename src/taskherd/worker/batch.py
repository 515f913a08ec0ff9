"""What goes into the corridor and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from taskherd.domain.value import value
from taskherd.store.engine import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from taskherd.domain.commands import Command
    from taskherd.domain.outcome import ReportOutcome
    from taskherd.domain.reports import Report
    from taskherd.domain.task import Task
    from taskherd.domain.task_update import TimerCheck
    from taskherd.messages.events import EventKind


POISON = (DataError, ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)
"""What one message can raise in its batch: PostgreSQL rejects a value, or the message exposes a bug of ours."""


@value(frozen=True, slots=True)
class Batch:
    """Inputs in the order in which they came; ``timer_checks`` by task id."""

    reports: Sequence[Report] = ()
    command: Command | None = None
    timer_checks: Mapping[UUID, TimerCheck] = field(default_factory=dict)


@value(frozen=True, slots=True)
class CommittedChange:
    """A change of a task's document, to publish once committed. ``core_document``: the own part, as text; ``cause``.

    As JSON.
    """

    task: Task
    kind: EventKind
    core_document: str
    changes: tuple[str, ...]
    cause: str


@dataclass(slots=True)
class Parking:
    """What a batch changes about parked reports: ``new`` ones by index, and the row ids of those that were folded."""

    new: dict[int, Report] = field(default_factory=dict)
    folded: list[int] = field(default_factory=list)


@dataclass(slots=True)
class BatchResult:
    """What became of a batch.

    Attributes:
        outcomes: one for each report, by the report's index in the batch.
        reply: the reply to the command.
        repeated: whether the reply was given before.
        changes: what to publish.
        requested: whether there are new work requests to send.
        timed_out: the transitions of builds that were given up.
        deletes_retried: how many deletes were requested again after a failure.
    """

    now: datetime
    outcomes: list[ReportOutcome]
    reply: bytes | None = None
    repeated: bool = False
    changes: list[CommittedChange] = field(default_factory=list)
    requested: bool = False
    timed_out: list[str] = field(default_factory=list)
    deletes_retried: int = 0
