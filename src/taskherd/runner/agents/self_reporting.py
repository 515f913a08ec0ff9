"""Agents that report their own status, over HTTP or MCP; the runner sends heartbeats and reports their exit."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, ClassVar

from taskherd.domain.reports import Health
from taskherd.runner.agents import stdin
from taskherd.runner.agents.context import report_exit

if TYPE_CHECKING:
    from taskherd.runner.agents.context import AgentContext, RecordAttempt
    from taskherd.runner.workspaces.processes import AgentExit


class SelfReportingFollower:
    """The follower of a self-reporting agent: it follows nothing."""

    needs_port: ClassVar[bool] = False
    initial_health: ClassVar[Health] = Health.HEALTHY

    def __init__(self, context: AgentContext) -> None:
        self._context = context

    async def follow(self) -> None:
        """Report that the agent is ready, then wait until cancelled."""
        if not self._context.journal.ready_reported:
            self._context.reporter.ready()
            self._context.journal.ready_reported = True
            await self._context.save()
        await asyncio.Event().wait()

    async def deliver(self, text: str, record_attempt: RecordAttempt) -> None:
        """Write an input to the agent's stdin. Raise ``NotDelivered`` or ``DeliveryUnknown``."""
        await stdin.deliver(self._context, text, record_attempt)

    def conclude(self, agent_exit: AgentExit) -> None:
        """Report a failure, which the agent can no longer report itself; after success only the health changes."""
        if agent_exit.succeeded:
            self._context.reporter.health(Health.DISABLED)
        else:
            report_exit(self._context, agent_exit, "", "")
