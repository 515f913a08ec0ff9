"""What all followers share: their context and protocol, the errors of inputs, and the report of an exit."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeAlias
from uuid import UUID

from taskherd.directory_file.run import RunConfig
from taskherd.domain.reports import AgentState, Health, InterruptOutcome, Lifecycle, LogEntry, LogSource
from taskherd.errors import TaskherdError
from taskherd.observability.failpoints import Failpoint
from taskherd.observability.metrics import Metrics
from taskherd.runner import log_ids
from taskherd.runner.activity import ProcessMonitor
from taskherd.runner.agents import output
from taskherd.runner.agents.final_room import FinalRoom
from taskherd.runner.agents.log_budget import LogBudget
from taskherd.runner.agents.words import last_words
from taskherd.runner.journal import InputDelivery, Journal
from taskherd.runner.listeners import Peer
from taskherd.runner.outbox import Checkpoint, Outbox
from taskherd.runner.reporter import Reporter
from taskherd.runner.workspaces.folders import RunFolder
from taskherd.runner.workspaces.processes import ExitRecord, ShimHandle
from taskherd.runner.workspaces.terminals import TerminalCommand

MAX_STATUS = 160
"""Maximum length, in characters, of a status message that is made from an agent's output."""
TAIL_BYTES = 16 * 1024
"""Bytes at the end of an agent's output in which its last words are looked for."""
ENTRIES_PER_REPORT = 4
"""Maximum number of log entries in one report, so that it fits a message."""
NOT_RUNNING = "The agent is not running."
"""The error of an input for an agent that has exited."""
NOT_FOLLOWED = "The runner failed to follow the agent; its log says why."
"""The error of an input that was not given to the agent because of that."""

RecordAttempt: TypeAlias = Callable[[], Awaitable[None]]
"""A function that records on disk that the agent may have received an input from now on."""


class NotDelivered(TaskherdError):  # noqa: N818 - named for its meaning, as the errors in ``errors``
    """The agent did not receive the input."""


class NotInterrupted(TaskherdError):  # noqa: N818 - as above
    """What the agent does could not be ended."""


class DeliveryUnknown(TaskherdError):  # noqa: N818 - as above
    """It is unknown whether the agent received the input."""


class AnswerOutcome(StrEnum):
    """What became of an answer to a request of an agent."""

    DONE = "done"
    """It was recorded, and is given to the agent."""
    REPEATED = "repeated"
    """The request is closed already; what closed it is reported again."""
    IGNORED = "ignored"
    """No such request of this agent is known, or this is no answer to it."""
    LATER = "later"
    """Nothing can be recorded yet: it is still being found out what an earlier runner has given the agent."""


class FollowerWithoutRequests:
    """A follower whose agent opens its requests itself, over HTTP, and fetches the answers."""

    def answer(self, *_: object) -> AnswerOutcome:
        """Ignore an answer: none is meant for this runner."""
        return AnswerOutcome.IGNORED


def _do_nothing() -> None:
    """Do nothing: the agent has exited."""


def _pass_failpoint(_: Failpoint) -> None:
    """Do nothing: no failpoint is armed."""


@dataclass(frozen=True, slots=True)
class AgentContext:
    """Everything that a follower of an agent uses."""

    run: RunConfig
    journal: Journal
    folder: RunFolder
    reporter: Reporter
    outbox: Outbox
    metrics: Metrics
    save: Callable[[], Awaitable[None]]
    deliver_once: Callable[[UUID, str], Awaitable[str | None]]
    """Deliver an input at most once; return an error message, or None if it was delivered or attempted before."""
    processes: ProcessMonitor
    log_budget: LogBudget
    work: Path
    """The task's folder ``work``."""
    workdir: Path
    """The agent's working directory."""
    start_command: Callable[[RunFolder, TerminalCommand], ShimHandle]
    """Start a command beside the agent, in a new run folder, with its user, sandbox and cgroup; ``OSError`` if not."""
    identify_peer: Callable[[int], Awaitable[Peer]]
    """Return who has the other end of the connection from this port to that which the agent was given."""
    mcp_servers: Sequence[dict[str, Any]] = ()
    """The MCP servers that an agent is given, as ACP describes them."""
    interrupt_agent: Callable[[], None] = _do_nothing
    """Send SIGINT to the agent's process group."""
    stop_agent: Callable[[], None] = _do_nothing
    """End the agent and its descendants: SIGTERM, the template's ``grace``, SIGKILL."""
    failpoint: Callable[[Failpoint], None] = _pass_failpoint
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once the agent is to be stopped, or what an ended one has left is no longer to be waited for."""

    def final_room(self) -> FinalRoom:
        """Return the room for the agent's last output."""
        return FinalRoom(self.outbox, self.stopping)

    def note_left_out(self, size: int) -> str:
        """Count output that is not read because the agent is stopped and there is no room; return what the log says."""
        self.metrics.runner_output_lost.inc(size)
        return f"{size} bytes of output were left out: the task was stopped while its reports could not be sent"

    @property
    def prompt(self) -> str:
        """The prompt that this build's agent is given, or "" if it is given none."""
        start = self.journal.start
        return start.prompt if start is not None and self.journal.gives_prompt else ""

    def log_all_but_last(self, entries: list[LogEntry]) -> list[LogEntry]:
        """Count entries against the log's budget, and report them, but return those of the last report."""
        size = sum(len(entry.content.encode(errors="replace")) + len(entry.data or "") for entry in entries)
        self.log_budget.spend(len(entries), size)
        starts = range(0, len(entries), ENTRIES_PER_REPORT)
        for start in starts[:-1]:
            self.reporter.log(entries[start : start + ENTRIES_PER_REPORT])
        return entries[starts[-1] :] if starts else []

    async def post_prompt(self) -> str | None:
        """Deliver the prompt as the first input, at most once. Return an error message, or None."""
        prompt_id = self.journal.prompt_id
        if prompt_id is None or not self.prompt:
            return None
        error = await self.deliver_once(prompt_id, self.prompt)
        if self.journal.inputs.get(prompt_id) is InputDelivery.DELIVERED:
            self.journal.record_prompt()
            await self.save()
        return error

    @property
    def unsettled_prompt(self) -> UUID | None:
        """The id of the prompt if a runner has recorded that it gives it to the agent, and no outcome; else None."""
        prompt_id = self.journal.prompt_id
        if prompt_id is None or self.journal.inputs.get(prompt_id) is not InputDelivery.DELIVERING:
            return None
        return prompt_id

    def recover_prompt(self, *, is_given: bool) -> None:
        """Record what became of the prompt, if its runner died meanwhile; it is given again if need be."""
        prompt_id = self.unsettled_prompt
        if is_given:
            self.conclude_prompt()
        elif prompt_id is not None:
            del self.journal.inputs[prompt_id]

    def conclude_prompt(self) -> None:
        """Record that the agent was given its prompt, if it ended before that was noted."""
        prompt_id = self.unsettled_prompt
        if prompt_id is not None:
            self.journal.record_input(prompt_id, InputDelivery.DELIVERED)
            self.journal.record_prompt()

    @property
    def checkpoint(self) -> Checkpoint:
        """The last checkpoint of this run's follower; empty if there is none yet."""
        checkpoint = self.outbox.checkpoint
        return checkpoint if checkpoint.get("build") == self.reporter.build_number else {}


class Follower(Protocol):
    """A follower of one agent, while the agent runs."""

    needs_port: ClassVar[bool]
    """True if agents of this kind serve AgentAPI, so that a port must be chosen for it."""
    initial_health: ClassVar[Health]
    """The app's health when the start build succeeds."""

    @property
    def start_outcome(self) -> str | None:
        """Why the agent could not be started, "" if nothing says so, None as long as its start has to wait for that."""

    async def follow(self) -> None:
        """Report what the agent does, until cancelled."""

    async def deliver(self, text: str, record_attempt: RecordAttempt) -> None:
        """Deliver an input, after awaiting ``record_attempt``. Raise ``NotDelivered`` or ``DeliveryUnknown``."""

    @property
    def is_at_work(self) -> bool:
        """Whether the agent is at work, so that there is something to interrupt."""

    def answer(self, request_id: UUID, option_id: str | None, text: str | None) -> AnswerOutcome:
        """Give the agent the answer to a request that its runner has opened, at most once."""

    async def interrupt(self) -> InterruptOutcome:
        """End what the agent does, in the end by ending the agent, and return when that is done.

        The outcome is that of our own record, whatever the agent claims. Raise ``NotInterrupted``.
        """

    async def conclude(self, agent_exit: ExitRecord) -> None:
        """Report the remaining output and the exit, after the agent has exited."""


def report_exit(context: AgentContext, agent_exit: ExitRecord, state: str, last_output: str, words: str) -> None:
    """Report how the agent ended, and the state that is true from then on, with its last output if there is any.

    ``state`` is the state that the agent reported last, or "" if it reports none; ``words`` are its last words.
    """
    reporter = context.reporter
    reporter.agent_exit(agent_exit.why, agent_exit.code, agent_exit.signal, words)
    if agent_exit.reason == "stopped":
        return
    if agent_exit.reason == "interrupted":
        reporter.status(AgentState.IDLE, agent_exit.describe())
        reporter.health(Health.DISABLED)
        return
    if not context.journal.ready_reported:  # otherwise the task would be starting for ever
        reporter.lifecycle(Lifecycle.START_ERROR)
    if agent_exit.succeeded:
        final = AgentState(context.run.on_exit)
        if state not in {final, AgentState.COMPLETE, AgentState.FAILED} or state == AgentState.COMPLETE != final:
            reporter.status(final, last_output or "The agent has completed its task.")
        reporter.health(Health.DISABLED)
        return
    description = agent_exit.describe()
    message = f"{description} Last output: {last_output}" if last_output else description
    reporter.status(AgentState.FAILED, message)
    reporter.health(Health.UNHEALTHY)


def log_last_output(context: AgentContext, agent_exit: ExitRecord) -> str:
    """Return the last words of an agent whose output is not its log; if it failed, append them to the log."""
    words = last_words(output.tail(context.folder.output, TAIL_BYTES))
    if words and agent_exit.reason != "stopped" and not agent_exit.succeeded:
        text = f"taskherd: the agent's last output:\n{words}"
        context.reporter.log([context.reporter.entry(log_ids.LAST_OUTPUT_ID, LogSource.OUTPUT, text)])
    return words


def shorten(text: str) -> str:
    """Return the text, cut to ``MAX_STATUS`` characters."""
    return text if len(text) <= MAX_STATUS else f"{text[: MAX_STATUS - 1]}…"
