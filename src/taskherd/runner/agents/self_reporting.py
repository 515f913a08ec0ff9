"""Agents that report their own status, over HTTP or MCP; the runner sends heartbeats and reports their exit."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, ClassVar, Final

from taskherd.domain.reports import ExitReason, Health, LogSource
from taskherd.runner.agents import stdin
from taskherd.runner.agents.context import (
    FollowerWithoutRequests,
    NotInterrupted,
    log_last_output,
    report_exit,
    shorten,
)
from taskherd.runner.agents.interrupting import as_interrupted
from taskherd.runner.log_ids import FIRST_INPUT_ID

if TYPE_CHECKING:
    from taskherd.domain.reports import InterruptOutcome
    from taskherd.runner.agents.context import AgentContext, RecordAttempt
    from taskherd.runner.workspaces.processes import ExitRecord


CANNOT_INTERRUPT: Final = (
    "Agents that report their own status (`agent: self`) cannot be interrupted. Pause the task to end its agent."
)


class SelfReportingFollower(FollowerWithoutRequests):
    """The follower of a self-reporting agent: it follows nothing."""

    needs_port: ClassVar[bool] = False
    initial_health: ClassVar[Health] = Health.HEALTHY
    start_outcome: str | None = ""

    def __init__(self, context: AgentContext) -> None:
        self._context = context
        self._is_new = not context.checkpoint
        self._inputs: int = context.checkpoint.get("inputs", 0)

    async def follow(self) -> None:
        """Log the prompt and report that the agent is ready, then wait until cancelled."""
        self._log_prompt()
        if not self._context.journal.ready_reported:
            self._context.reporter.ready()
            self._context.journal.ready_reported = True
            await self._context.save()
        await asyncio.Event().wait()

    async def deliver(self, text: str, record_attempt: RecordAttempt) -> None:
        """Write an input to the agent's stdin. Raise ``NotDelivered`` or ``DeliveryUnknown``."""
        await stdin.deliver(self._context, text, record_attempt)
        self._log_input(text)

    @property
    def is_at_work(self) -> bool:
        """False: only the agent knows."""
        return False

    async def interrupt(self) -> InterruptOutcome:
        """Raise ``NotInterrupted``: nothing says when such an agent's turn has ended."""
        raise NotInterrupted(CANNOT_INTERRUPT)

    async def conclude(self, agent_exit: ExitRecord) -> None:
        """Report how the agent ended and its final state, which it can no longer report itself."""
        agent_exit = as_interrupted(self._context, agent_exit)
        if agent_exit.why is not ExitReason.NOT_STARTED:
            self._log_prompt()
        words = log_last_output(self._context, agent_exit)
        report_exit(self._context, agent_exit, "", shorten(words.rpartition("\n")[2]), words)

    def _log_prompt(self) -> None:
        """Log the prompt, unless that was done: no runner may have followed the agent."""
        if self._is_new and self._context.prompt:
            self._is_new = False
            self._log_input(self._context.prompt)

    def _log_input(self, text: str) -> None:
        """Append the prompt or an input to the log; the agent's own entries have other ids."""
        entry = self._context.reporter.entry(FIRST_INPUT_ID + self._inputs, LogSource.INPUT, text)
        self._inputs += 1
        checkpoint = {"build": self._context.reporter.build_number, "inputs": self._inputs}
        self._context.reporter.log([entry], checkpoint=checkpoint)
