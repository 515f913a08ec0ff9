"""Agents that report for themselves, over HTTP or MCP: the runner keeps them alive and says when they are gone."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from taskherd.domain.reports import Health, Lifecycle
from taskherd.runner.agents import stdin
from taskherd.runner.agents.context import report_exit

if TYPE_CHECKING:
    from taskherd.runner.agents.context import AgentContext, Begin
    from taskherd.runner.workspaces.processes import AgentExit


class SelfReporting:
    """The follower of an agent that needs none."""

    def __init__(self, context: AgentContext) -> None:
        self._context = context

    async def follow(self) -> None:
        """Say that it is there, and no more."""
        if not self._context.journal.ready:
            self._context.reporter.lifecycle(Lifecycle.READY)
            self._context.journal.ready = True
            await self._context.save()
        await asyncio.Event().wait()

    async def deliver(self, text: str, begin: Begin) -> None:
        """Write it to the agent's stdin; raises `Undelivered` or `Unclear`."""
        await stdin.write(self._context.folder.input, text, begin)

    def conclude(self, exit_: AgentExit) -> None:
        """Say that it failed, where it did: then it can't do so itself any more."""
        if exit_.succeeded:
            self._context.reporter.health(Health.DISABLED)
        else:
            report_exit(self._context, exit_, "", "")
