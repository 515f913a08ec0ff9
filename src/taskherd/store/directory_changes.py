"""What applying a directory file changes, for people to read beforehand, and how much it may deactivate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from taskherd.errors import TaskherdError

MAX_DEACTIVATED_SHARE: Final = 0.1
"""Share of the active entries of a kind that may be deactivated without being allowed explicitly."""
ORGANIZATION: Final = "organization"


class EntryAction(StrEnum):
    """What becomes of an entry."""

    ADDED = "added"
    CHANGED = "changed"
    REACTIVATED = "reactivated"
    DEACTIVATED = "deactivated"


@dataclass(frozen=True, slots=True)
class EntryChange:
    """A change of one entry.

    ``kind``: such as ``user``. ``name``: with the names around it, such as ``acme/claude/v1``. ``fields``: what changes
    of an entry that exists; never values, which may be secret.
    """

    action: EntryAction
    kind: str
    name: str
    fields: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DirectoryChanges:
    """All changes, and how many entries of each kind are active before.

    ``emptied``: what organizations that stay would have none of any more: ``memberships of the organization acme``.
    """

    changes: tuple[EntryChange, ...]
    active: Mapping[str, int]
    emptied: tuple[str, ...] = ()

    def count(self, action: EntryAction, kind: str | None = None) -> int:
        """Return how many entries, or entries of a kind, an action concerns."""
        return sum(each.action is action and kind in {None, each.kind} for each in self.changes)

    @property
    def summary(self) -> str:
        """The number of entries for each action."""
        return ", ".join(f"{self.count(action)} {action.value}" for action in EntryAction)

    @property
    def excessive(self) -> tuple[str, ...]:
        """Why these changes must be allowed explicitly; empty if they need not be."""
        reasons = [
            f"the organization {each.name} as a whole"
            for each in self.changes
            if each.action is EntryAction.DEACTIVATED and each.kind == ORGANIZATION
        ]
        reasons += [f"all {each}" for each in self.emptied]
        for kind, active in self.active.items():
            deactivated = self.count(EntryAction.DEACTIVATED, kind)
            if deactivated > active * MAX_DEACTIVATED_SHARE:
                reasons.append(f"{deactivated} of {active} active {kind} entries, more than a tenth")
        return tuple(reasons)


class TooManyDeactivated(TaskherdError):  # noqa: N818 - named as the errors in ``errors``
    """Applying the file would deactivate so much that it must be allowed explicitly."""

    def __init__(self, reasons: tuple[str, ...]) -> None:
        self.reasons = reasons
        super().__init__("; ".join(reasons))
