"""What goes into the corridor and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from taskherd.core.value import value

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from taskherd.core.commands import Command
    from taskherd.core.outcome import ReportOutcome
    from taskherd.core.reports import Report
    from taskherd.core.task import Task
    from taskherd.core.turn import Look
    from taskherd.wire.events import Kind


@value(frozen=True, slots=True)
class Batch:
    """Inputs in the order in which they came. The place in its list is what an outcome is told by."""

    reports: Sequence[Report] = ()
    command: Command | None = None
    looks: Mapping[UUID, Look] = field(default_factory=dict)


@value(frozen=True, slots=True)
class Change:
    """A committed change of a task's document, to tell. ``own``: the own part, as text; ``cause``: as JSON."""

    task: Task
    kind: Kind
    own: str
    changes: tuple[str, ...]
    cause: str


@dataclass(slots=True)
class Outcome:
    """What a batch came to: an outcome for each report, the reply to the command, and the changes to tell."""

    now: datetime
    outcomes: list[ReportOutcome]
    reply: bytes | None = None
    repeated: bool = False
    changes: list[Change] = field(default_factory=list)
    requested: int = 0
    gave_up: list[str] = field(default_factory=list)
    deletes_retried: int = 0
