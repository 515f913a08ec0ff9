"""What was asked for one task and how far it is: a small file that is replaced whole, so that a crash finds it whole.

What is in it was done at most once, and what it says is to be done will be done, by this runner or the next.
"""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Literal, TypeAlias, assert_never
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from taskherd.messages.work import WorkspaceDelete, WorkspaceStart, WorkspaceStop

MAX_INPUTS = 500
"""How many inputs are remembered, the latest; the worker sends one at a time, and repeats none that has an outcome."""

Transition: TypeAlias = Literal["start", "stop", "delete"]


class Phase(StrEnum):
    """How far a build is."""

    ACCEPTED = "accepted"
    """It is to be done; perhaps it was begun."""
    DONE = "done"
    FAILED = "failed"


class InputDelivery(StrEnum):
    """How far an input is."""

    DELIVERING = "delivering"
    """It may have reached the agent."""
    DELIVERED = "delivered"
    FAILED = "failed"


class Journal(BaseModel):
    """All that is remembered of one task, beside its reports."""

    model_config = ConfigDict(extra="ignore")

    task_id: UUID
    task_name: str
    build_number: int = Field(0, description="The highest that was accepted; 0: none was.")
    transition: Transition = "stop"
    phase: Phase = Phase.DONE
    ended: bool = Field(default=False, description="Whether the end of the agent of this build was told.")
    ready: bool = Field(default=False, description="Whether the agent of this build was told to be ready.")
    start: WorkspaceStart | None = Field(None, description="The latest request to start.")
    port: int | None = Field(None, description="Where the agent serves AgentAPI.")
    inputs: dict[UUID, InputDelivery] = Field(default_factory=dict)
    seq_ceiling: int = Field(0, description="No report had a seq above this.")

    def accept(self, request: WorkspaceStart | WorkspaceStop | WorkspaceDelete) -> None:
        """Remember that this is to be done."""
        self.task_name = request.task_name
        self.build_number = request.build_number
        self.phase = Phase.ACCEPTED
        match request:
            case WorkspaceStart():
                self.transition = "start"
                self.start, self.port, self.ended, self.ready = request, None, False, False
            case WorkspaceStop():
                self.transition = "stop"
            case WorkspaceDelete():
                self.transition = "delete"
            case _:
                assert_never(request)

    @property
    def live(self) -> bool:
        """Whether there is a workspace that is up."""
        return self.transition == "start" and self.phase is Phase.DONE

    def note(self, input_id: UUID, how: InputDelivery) -> None:
        """Remember how far an input is, and forget the oldest of too many."""
        self.inputs[input_id] = how
        while len(self.inputs) > MAX_INPUTS:
            del self.inputs[next(iter(self.inputs))]


def write(path: Path, content: bytes) -> None:
    """Put a journal on disk: when this returns it survives whatever comes. Raises OSError."""
    beside = path.with_suffix(".new")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:  # noqa: PTH123 - the agent's token is in it, so its mode comes first
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    _sync(path.parent)


def load(path: Path) -> Journal | None:
    """The journal at `path`; None where there is none that can be read."""
    try:
        return Journal.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
