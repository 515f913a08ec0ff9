"""The errors of taskherd, sorted by what to do next.

TaskherdError
├── Malformed      the input is at fault     -> dead-letter it, with its reason; go on with the rest
├── Unavailable    something outside is away -> hold what is in hand, wait with backoff, try again
├── Retry          a transaction lost a race -> run it again at once
└── Misconfigured  the installation is wrong -> refuse to start, naming the setting and what was expected

A command that is understood and refused is none of these: that is a verdict, hence a value (`core`).
"""

# ruff: noqa: N818 - an error here is named for what it says, and sorted by what to do next

from __future__ import annotations

from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterable


class TaskherdError(Exception):
    """Whatever taskherd raises on purpose."""


class Malformed(TaskherdError):
    """An input that can't be taken as it is; `reason` is a short stable code, `detail` is for people."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


class Unavailable(TaskherdError):
    """The database, the broker or the network did not do its part; the same may well succeed later."""


class Retry(TaskherdError):
    """A transaction lost a race, or met a plan from before a migration of the schema; run it again."""


class Misconfigured(TaskherdError):
    """One or more settings are wrong; `wrong` holds a (setting, what is wrong and what was expected) pair for each."""

    def __init__(self, setting: str, expected: str) -> None:
        super().__init__(setting, expected)
        self.wrong: tuple[tuple[str, str], ...] = ((setting, expected),)

    @classmethod
    def several(cls, wrong: Iterable[tuple[str, str]]) -> Self:
        """Return one error that names all of `wrong`, which holds at least one pair."""
        pairs = tuple(wrong)
        error = cls(*pairs[0])
        error.wrong = pairs
        return error

    @property
    def setting(self) -> str:
        """The first setting that is wrong."""
        return self.wrong[0][0]

    @property
    def expected(self) -> str:
        """What is wrong with the first setting and what was expected of it."""
        return self.wrong[0][1]

    def __str__(self) -> str:
        """Return a line for each wrong setting."""
        return "\n".join(f"{setting}: {expected}" for setting, expected in self.wrong)
