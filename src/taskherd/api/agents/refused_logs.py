"""What was refused of the logs of agents because they grew too fast, until the log of the task says so."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

MAX_TASKS: Final = 10_000
"""Maximum number of tasks whose refused entries are counted; of more, the one refused least recently is forgotten."""


@dataclass(frozen=True, slots=True)
class RefusedEntries:
    """How many entries of a task's log were refused, with how many bytes, and since when."""

    entries: int
    bytes: int
    since: datetime

    @property
    def notice(self) -> str:
        """The words for the log. An agent may send again what was refused, so this does not say that it is lost."""
        return (
            f"taskherd: the agent added to this log too fast. {self.entries} entries with {self.bytes} bytes were "
            f"refused since {self.since:%Y-%m-%dT%H:%M:%SZ}; what it sent again follows."
        )


class RefusedLogs:
    """The refused entries of each task that its log does not tell yet, in this process."""

    def __init__(self) -> None:
        self._by_task: OrderedDict[UUID, RefusedEntries] = OrderedDict()

    def add(self, task_id: UUID, refused: RefusedEntries) -> None:
        """Count entries that were refused, or those of a notice that could not be published."""
        earlier = self._by_task.pop(task_id, None)
        if earlier is not None:
            since = min(earlier.since, refused.since)
            refused = RefusedEntries(earlier.entries + refused.entries, earlier.bytes + refused.bytes, since)
        elif len(self._by_task) >= MAX_TASKS:
            self._by_task.popitem(last=False)
        self._by_task[task_id] = refused

    def take(self, task_id: UUID) -> RefusedEntries | None:
        """Return what was refused since the last call, for the notice in the task's log; None if nothing was."""
        return self._by_task.pop(task_id, None)
