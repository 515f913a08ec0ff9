"""The demo's scenarios: the job of each task, and what happens to it."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum


class Role(StrEnum):
    """What happens to a task in addition to its job."""

    PLAIN = "does its job"
    FAILS = "checks a file with a mistake in it"
    FIXES = "fixes a bug in a git repository"
    ANSWERS = "answers the inputs that are sent to it"
    PAUSED = "is paused while it works, then resumed"
    CRASHES = "crashes while it works"
    HANGS = "hangs until its timeout"
    DELETED = "is deleted while it works"
    SELF_REPORTING = "reports its own status, over HTTP"
    GARBAGE = "is the subject of invalid messages"


@dataclass(frozen=True, slots=True)
class Scenario:
    """One task of the demo: its agent's job, its prompt, its role, and its unique name."""

    job: str
    prompt: str
    role: Role = Role.PLAIN
    name: str = field(default="", init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", f"{self.job}-{secrets.token_hex(2)}")


def scenarios() -> Sequence[Scenario]:
    """Return the twelve scenarios of one demo, with names that no other demo used."""
    return (
        Scenario("compile", "Compile the source"),
        Scenario("fixer", "Make the tests pass", Role.FIXES),
        Scenario("answers", "Answer questions about the source", Role.ANSWERS),
        Scenario("count", "Count the functions", Role.PAUSED),
        Scenario("seeded", "Compile three drafts", Role.FAILS),
        Scenario("tokens", "Tokenize every module", Role.CRASHES),
        Scenario("hashes", "Hash every file", Role.HANGS),
        Scenario("lint", "Lint each package", Role.DELETED),
        Scenario("lock", "Check the lock file", Role.SELF_REPORTING),
        Scenario("docstrings", "Check the docstrings", Role.GARBAGE),
        Scenario("tests", "Run some pure tests"),
        Scenario("contract", "Check the AsyncAPI document"),
    )
