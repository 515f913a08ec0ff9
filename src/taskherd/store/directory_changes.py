"""What applying a directory file changes, for people to read beforehand, and how much it may deactivate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, TypeAlias
from uuid import UUID

from taskherd.errors import TaskherdError

MAX_DEACTIVATED_SHARE: Final = 0.1
"""Share of the active entries of a kind that may be deactivated without being allowed explicitly."""
ORGANIZATION: Final = "organization"
SHOWN_FIELDS: Final = frozenset(
    {
        "name", "display_name", "username", "email", "github_com_user_id", "role", "description", "active_version_id",
        "pool", "is_default",
    }
)  # fmt: skip
"""Fields whose values are shown; others, such as those of `run`, parameters and URLs, may contain secrets."""
MAX_SHOWN: Final = 100
"""Maximum length of a shown value, in characters."""

Value: TypeAlias = str | int | None


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
    of an entry that exists. ``values``: the old and the new value of those of them that are ``SHOWN_FIELDS``.
    """

    action: EntryAction
    kind: str
    name: str
    fields: tuple[str, ...] = ()
    values: Mapping[str, tuple[Value, Value]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DirectoryChanges:
    """All changes, and how many entries of each kind are active before.

    ``emptied``: what organizations that stay would have none of any more: ``memberships of the organization acme``.
    ``tokens``: how many tokens of users who are reactivated have not ended for good meanwhile.
    """

    changes: tuple[EntryChange, ...]
    active: Mapping[str, int]
    emptied: tuple[str, ...] = ()
    tokens: int = 0

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
        for kind, active in self.active.items():
            deactivated = self.count(EntryAction.DEACTIVATED, kind)
            if deactivated > active * MAX_DEACTIVATED_SHARE:
                reasons.append(f"{deactivated} of {active} active {kind} entries, more than a tenth")
        reasons += [f"all {each}" for each in self.emptied]
        return tuple(reasons)


def shown_value(value: Any) -> Value:
    """Return a value to be shown; a text is cut to ``MAX_SHOWN`` characters."""
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, str) and len(value) > MAX_SHOWN:
        return f"{value[: MAX_SHOWN - 1]}…"
    assert value is None or isinstance(value, str | int)
    return value


class TooManyDeactivated(TaskherdError):  # noqa: N818 - named as the errors in ``errors``
    """Applying the file would deactivate so much that it must be allowed explicitly."""

    def __init__(self, reasons: tuple[str, ...]) -> None:
        self.reasons = reasons
        super().__init__("; ".join(reasons))
