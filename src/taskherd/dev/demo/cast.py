"""Who plays in the demo: each part's work and what shall become of its task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from uuid import UUID, uuid4


class Role(StrEnum):
    """What happens to a task besides its work."""

    PLAIN = "does its work"
    FAILS = "checks a file with a mistake in it"
    KILLED = "its agent is killed with -9"
    DELETED = "is deleted while it works"
    EARLY = "reports before its create"
    GARBAGE = "sends garbage in between"
    PAUSED = "is paused when it is done"


@dataclass(frozen=True, slots=True)
class Part:
    """One task of the demo: the job its agent does, the prompt it is created with, and its role."""

    job: str
    prompt: str
    role: Role = Role.PLAIN
    task_id: UUID = field(default_factory=uuid4)
    agent_id: UUID = field(default_factory=uuid4)


def parts() -> Sequence[Part]:
    """The dozen of one demo, each with ids of its own."""
    return (
        Part("compile", "Compile the source"),
        Part("tokens", "Tokenise every module", Role.KILLED),
        Part("hashes", "Hash every file", Role.DELETED),
        Part("seeded", "Compile three drafts", Role.FAILS),
        Part("docstrings", "Look for docstrings", Role.GARBAGE),
        Part("count", "Count the functions", Role.PAUSED),
        Part("lint", "Lint each package"),
        Part("migrations", "Parse the migrations"),
        Part("tests", "Run some pure tests"),
        Part("lock", "Check the lock file"),
        Part("contract", "Check the AsyncAPI document"),
        Part("layers", "Check the layers", Role.EARLY),
    )
