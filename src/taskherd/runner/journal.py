"""The journal of a task: its accepted requests and their progress, in a small file that is replaced atomically.

Accepted builds are executed even if this runner dies: the next one continues, and may repeat a part of the execution,
which is harmless. An input is delivered at most once.
"""

from __future__ import annotations

import hashlib
import os
from enum import StrEnum
from pathlib import Path
from typing import Literal, TypeAlias, assert_never
from uuid import UUID, uuid5

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from taskherd.domain.reports import InterruptOutcome
from taskherd.messages.work import WorkspaceDelete, WorkspaceStart, WorkspaceStop

MAX_RECORDED_INPUTS = 500
"""Maximum number of recorded inputs, the latest; the worker sends one at a time and repeats none with an outcome."""

MAX_RECORDED_INTERRUPTS = 50
"""Maximum number of recorded interrupts, the latest; the worker repeats only the last one, until it has an outcome."""

Transition: TypeAlias = Literal["start", "stop", "delete"]


class Phase(StrEnum):
    """Progress of the latest accepted build."""

    ACCEPTED = "accepted"
    """To be executed; the execution may have started."""
    DONE = "done"
    FAILED = "failed"


class InputDelivery(StrEnum):
    """Progress of an input."""

    DELIVERING = "delivering"
    """The agent may have received it."""
    DELIVERED = "delivered"
    FAILED = "failed"


class AcceptedInterrupt(BaseModel):
    """An interrupt that is being carried out."""

    interrupt_id: UUID
    build_number: int
    at_work: bool = Field(description="Whether the agent was at work when the interrupt was accepted.")
    outcome: InterruptOutcome | None = Field(
        None, description="What became of it, to be reported; null: not known yet."
    )
    detail: str | None = Field(None, description="The detail of the outcome.")


class Journal(BaseModel):
    """The state of one task that survives the runner, except its reports (see ``outbox``)."""

    model_config = ConfigDict(extra="ignore")

    task_id: UUID
    task_name: str
    build_number: int = Field(0, description="The highest accepted build number; 0 if none was.")
    transition: Transition = "stop"
    phase: Phase = Phase.DONE
    restart_reason: str | None = Field(
        None, description="Why the runner stopped the workspace of its own accord, to have it started again; else null."
    )
    exit_reported: bool = Field(default=False, description="Whether the exit of this build's agent was reported.")
    ready_reported: bool = Field(default=False, description="Whether this build's agent was reported as ready.")
    start: WorkspaceStart | None = Field(None, description="The latest start request.")
    gives_prompt: bool = Field(default=True, description="Whether this build's agent is given the prompt.")
    planned_build: int = Field(0, description="The build whose launch was planned last; what was before is gone then.")
    resumes: bool = Field(default=False, description="Whether that plan has the agent started by `resume_command`.")
    given_prompt: str = Field("", description="Digest of the prompt that an agent here was given last; empty if none.")
    agent_uid: int | None = Field(None, description="The user that the task's agents run as; null: the runner's.")
    acp_session: str | None = Field(None, description="The session of the agent that speaks ACP, to be continued.")
    stream_session: str | None = Field(None, description="The session in the agent's stream of events, likewise.")
    interrupted: bool = Field(default=False, description="Whether this build's agent is ended by an interrupt.")
    interrupt: AcceptedInterrupt | None = Field(None, description="The interrupt that is being carried out.")
    ended_interrupts: list[UUID] = Field(default_factory=list, description="The latest interrupts with an outcome.")
    ended_because: str | None = Field(None, description="Why the runner ends this build's agent; null: it does not.")
    port: int | None = Field(None, description="The port on which the agent serves AgentAPI.")
    inputs: dict[UUID, InputDelivery] = Field(default_factory=dict)
    seq_ceiling: int = Field(0, description="Upper bound of the seq of all reports so far.")

    def accept(self, request: WorkspaceStart | WorkspaceStop | WorkspaceDelete) -> None:
        """Record a request that is to be executed."""
        self.task_name = request.task_name or self.task_name
        match request:
            case WorkspaceStart():
                self.accept_build("start", request.build_number)
                if self.prompt_id is not None:
                    self.inputs.pop(self.prompt_id, None)
                self.start, self.port, self.exit_reported, self.ready_reported = request, None, False, False
                self.interrupted, self.ended_because = False, None
            case WorkspaceStop():
                self.accept_build("stop", request.build_number)
            case WorkspaceDelete():
                self.accept_build("delete", request.build_number)
            case _:
                assert_never(request)

    def accept_build(self, transition: Transition, build_number: int) -> None:
        """Record a build that is to be executed; a stop or delete may be the runner's own decision."""
        self.transition = transition
        self.build_number = build_number
        self.phase = Phase.ACCEPTED
        self.restart_reason = None

    def accept_drain(self, reason: str) -> None:
        """Record the runner's own decision to stop the workspace and have it started again."""
        self.accept_build("stop", self.build_number + 1)
        self.restart_reason = reason

    def is_superseded(self, request: WorkspaceStart | WorkspaceStop | WorkspaceDelete) -> bool:
        """Return whether a build as late as the requested one was accepted.

        The number of a build that was the runner's own decision may also be that of a request of the worker's for
        something else, which counts for more.
        """
        if request.build_number != self.build_number or self.restart_reason is None:
            return request.build_number <= self.build_number
        return isinstance(request, WorkspaceStop)

    @property
    def workspace_is_up(self) -> bool:
        """True while the workspace is up."""
        return self.transition == "start" and self.phase is Phase.DONE

    @property
    def prompt_id(self) -> UUID | None:
        """The id under which the prompt of the latest start is among ``inputs``; the worker knows no such input."""
        return None if self.start is None else uuid5(self.start.build_id, "prompt")

    def was_given(self, prompt: str) -> bool:
        """Return whether the prompt that an agent in this folder was given last is this one."""
        return self.given_prompt == _digest(prompt)

    def record_prompt(self) -> None:
        """Record that the agent was given the prompt of the latest start."""
        if self.start is not None:
            self.given_prompt = _digest(self.start.prompt)

    def record_interrupt(self, interrupt_id: UUID) -> None:
        """Record that an interrupt has an outcome, and drop the oldest one above ``MAX_RECORDED_INTERRUPTS``."""
        self.interrupt = None
        self.ended_interrupts = [*self.ended_interrupts, interrupt_id][-MAX_RECORDED_INTERRUPTS:]

    def record_input(self, input_id: UUID, delivery: InputDelivery) -> None:
        """Record the progress of an input, and drop the oldest one above ``MAX_RECORDED_INPUTS``.

        Not so the prompt: one that is not recorded is given.
        """
        self.inputs[input_id] = delivery
        while len(self.inputs) > MAX_RECORDED_INPUTS:
            del self.inputs[next(each for each in self.inputs if each != self.prompt_id)]


def write(path: Path, content: bytes) -> None:
    """Replace the journal on disk atomically and durably. Raise ``OSError`` if that fails."""
    temporary = path.with_suffix(".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:  # noqa: PTH123 - it contains the agent's token, so it is created with its mode
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _sync(path.parent)


def load(path: Path) -> Journal | None:
    """Return the journal at ``path``, or None if it does not exist or is damaged.

    Raise any other ``OSError``, such as for want of descriptors: then the task may be there.
    """
    try:
        return Journal.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValidationError):
        return None


def _digest(prompt: str) -> str:
    return hashlib.sha256(prompt.encode(errors="replace")).hexdigest()


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
