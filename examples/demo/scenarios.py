"""Who plays in the demo: each part's work and what shall become of its task."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum


class Role(StrEnum):
    """What happens to a task besides its work."""

    PLAIN = "does its work"
    FAILS = "checks a file with a mistake in it"
    FIXES = "mends a bug in a git repository"
    SENT = "is driven by what is sent to it"
    PAUSED = "is paused while it works, and resumed"
    CRASHES = "crashes while it works"
    HANGS = "hangs, and is timed out"
    DELETED = "is deleted while it works"
    SELF_REPORTING = "reports for itself, over HTTP"
    GARBAGE = "has somebody send garbage about it"


@dataclass(frozen=True, slots=True)
class Scenario:
    """One task of the demo: the job its agent does, the prompt it is created with, its role, and its own name."""

    job: str
    prompt: str
    role: Role = Role.PLAIN
    name: str = field(default="", init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", f"{self.job}-{secrets.token_hex(2)}")


def scenarios() -> Sequence[Scenario]:
    """The dozen of one demo, each with a name that no other demo gave."""
    return (
        Scenario("compile", "Compile the source"),
        Scenario("fixer", "Make the tests pass", Role.FIXES),
        Scenario("answers", "Answer questions about the source", Role.SENT),
        Scenario("count", "Count the functions", Role.PAUSED),
        Scenario("seeded", "Compile three drafts", Role.FAILS),
        Scenario("tokens", "Tokenise every module", Role.CRASHES),
        Scenario("hashes", "Hash every file", Role.HANGS),
        Scenario("lint", "Lint each package", Role.DELETED),
        Scenario("lock", "Check the lock file", Role.SELF_REPORTING),
        Scenario("docstrings", "Look for docstrings", Role.GARBAGE),
        Scenario("tests", "Run some pure tests"),
        Scenario("contract", "Check the AsyncAPI document"),
    )
