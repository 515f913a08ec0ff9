"""Give up an agent that does not keep to the protocol, and judge how an agent has ended."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from taskherd.runner.agents.interrupting import as_interrupted

if TYPE_CHECKING:
    from taskherd.runner.agents.acp.parts import Parts
    from taskherd.runner.workspaces.processes import ExitRecord


class AgentEnding:
    """The end of one agent."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._has_begun = False

    def fail(self, reason: str) -> None:
        """Give the agent up: its start fails, or it is ended."""
        parts, journal = self._parts, self._parts.context.journal
        if parts.opening.session is None:
            parts.opening.fail(reason)
        else:
            parts.conversation.add_notice(reason)
        parts.recorder.commit()
        journal.ended_because = journal.ended_because or reason
        if parts.opening.session is not None and not self._has_begun:
            self._has_begun = True
            parts.context.stop_agent()

    async def end(self, reason: str) -> None:
        """End the agent; its exit is reported with this reason."""
        if not self._has_begun:
            self.fail(reason)
            await self._parts.context.save()

    def judge(self, agent_exit: ExitRecord) -> ExitRecord:
        """Return how the agent ended, with what only this side knows."""
        parts, journal = self._parts, self._parts.context.journal
        if parts.opening.session is None:
            return replace(agent_exit, reason="not started", detail=parts.opening.failure or agent_exit.describe())
        if (interrupted := as_interrupted(parts.context, agent_exit)) is not agent_exit:
            return interrupted
        if journal.ended_because is not None:
            return replace(agent_exit, reason="exited", ended_because=journal.ended_because)
        if parts.turn.is_open and agent_exit.succeeded:
            return replace(agent_exit, ended_because="The agent ended with exit status 0 in the middle of its turn.")
        return agent_exit
