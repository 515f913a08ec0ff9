"""The errors of taskherd, grouped by how to handle them.

TaskherdError
├── Malformed      a value from outside is invalid   -> refuse what depends on it, with the reason and detail
├── Unavailable    a dependency cannot be reached    -> keep the work in progress, retry it with backoff
├── Retry          a transaction conflicted          -> run it again, after a short backoff
└── Misconfigured  a setting is missing or wrong     -> refuse to start; name the setting and the expected value

Two results are returned as values, not raised: a refused command (``domain.handle_command``), and an invalid message,
which its consumer dead-letters (``messages.decoding.InvalidMessage``).
"""

# ruff: noqa: N818 - an error is named for its condition, which decides how it is handled

from __future__ import annotations

from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterable


class TaskherdError(Exception):
    """Base class of all errors that taskherd raises deliberately."""


class Malformed(TaskherdError):
    """A template or a reply is invalid; ``reason`` is a short stable code, ``detail`` an explanation for people."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


class Unavailable(TaskherdError):
    """The database, the broker or another dependency cannot be reached; the same operation may succeed later."""


class Retry(TaskherdError):
    """A transaction conflicted with another, or used a plan from before a migration; run it again."""


class Misconfigured(TaskherdError):
    """One or more settings are wrong; ``wrong`` contains a pair (setting, problem and expected value) for each."""

    def __init__(self, setting: str, expected: str) -> None:
        super().__init__(setting, expected)
        self.wrong: tuple[tuple[str, str], ...] = ((setting, expected),)

    @classmethod
    def several(cls, wrong: Iterable[tuple[str, str]]) -> Self:
        """Return one error for all pairs in ``wrong``, of which there must be at least one."""
        pairs = tuple(wrong)
        error = cls(*pairs[0])
        error.wrong = pairs
        return error

    @property
    def setting(self) -> str:
        """The first wrong setting."""
        return self.wrong[0][0]

    @property
    def expected(self) -> str:
        """The problem of the first wrong setting, and the expected value."""
        return self.wrong[0][1]

    def __str__(self) -> str:
        """Return one line per wrong setting."""
        return "\n".join(f"{setting}: {expected}" for setting, expected in self.wrong)
