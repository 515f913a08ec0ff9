"""The demo's scenarios: the job of each task, and what happens to it."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from taskherd.dev import first_steps

ADMIN: Final = first_steps.USER
"""The person who owns most tasks, and who may change all, as an administrator."""
MEMBER: Final = "bob"
"""A person who owns one task."""


PERMITTED: Final = "uname -a > build.txt"
REJECTED: Final = "rm build.txt"
QUESTION: Final = "What is the release called?"
"""What the agent with ``Role.ASKS`` asks, in this order."""
NAME: Final = "Aurora"
"""The answer to the question."""
ENDLESS: Final = "tail -f /dev/null"
"""The command that the agent with ``Role.INTERRUPTED`` runs until it is interrupted."""
LATER: Final = "Say goodbye with `echo goodbye`."
"""The input that waits for the end of its turn."""
STEER: Final = "Stop watching, and say what time it is with `date`."
"""The input that comes with the interrupt, and goes first."""


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
    ASKS = "asks people for permission, and a question"
    INTERRUPTED = "is interrupted and steered by another person"


@dataclass(frozen=True, slots=True)
class Scenario:
    """One task of the demo: its agent's job, its prompt, its role, its owner, and its unique name."""

    job: str
    prompt: str
    role: Role = Role.PLAIN
    owner: str = ADMIN
    name: str = field(default="", init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", f"{self.job}-{secrets.token_hex(2)}")


def scenarios() -> Sequence[Scenario]:
    """Return the fourteen scenarios of one demo, with names that no other demo used."""
    return (
        Scenario("compile", "Compile the source"),
        Scenario("fixer", "Make the tests pass", Role.FIXES),
        Scenario("release", f"Note the build with `{PERMITTED}`, clean up with `{REJECTED}`. {QUESTION}", Role.ASKS),
        Scenario("watch", f"Watch the log with `{ENDLESS}`.", Role.INTERRUPTED, MEMBER),
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


def staying_scenarios() -> Mapping[Scenario, str]:
    """Return further scenarios for ``STAY``, each with the state in which it is left for who looks at the board."""
    return {
        Scenario("seeded", "Compile three drafts of the release", Role.FAILS): "failed",
        Scenario("tokens", "Tokenize every module again", Role.CRASHES): "failed",
        Scenario("answers", "Answer more questions about the source", Role.ANSWERS): "idle",
        Scenario("watch", f"Watch the log with `{ENDLESS}` until somebody stops it.", Role.INTERRUPTED): "working",
        Scenario("release", "Say good morning with `echo good morning`", Role.ASKS): "idle",
        Scenario("release", f"Write the title of the release notes. {QUESTION}", Role.ASKS, MEMBER): "idle",
        Scenario("compile", "Compile the source before the release"): "working",
    }
