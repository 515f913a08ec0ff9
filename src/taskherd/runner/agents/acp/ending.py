"""Give up an agent that does not keep to the protocol, and judge how an agent has ended."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from taskherd.runner.agents.interrupting import as_interrupted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from taskherd.runner.agents.acp.parts import Parts
    from taskherd.runner.workspaces.processes import ExitRecord


class AgentEnding:
    """The end of one agent."""

    def __init__(self, parts: Parts, checkpoint: Mapping[str, Any]) -> None:
        self._parts = parts
        self._reason: str | None = checkpoint.get("ended_because")
        """Why the agent is given up although it has a session; None if it is not."""
        self._has_begun = False
        journal, build_number = parts.context.journal, parts.context.reporter.build_number
        if journal.start is None or journal.start.build_number == build_number:  # else it is that of a later agent
            journal.ended_because = journal.ended_because or self._reason

    def checkpoint(self) -> dict[str, Any]:
        """Return what the next runner needs."""
        return {"ended_because": self._reason}

    def fail(self, reason: str) -> None:
        """Give the agent up: its start fails, or ``stop`` ends it once the reason is recorded."""
        parts, journal = self._parts, self._parts.context.journal
        journal.ended_because = journal.ended_because or reason
        if parts.opening.session is None:
            parts.opening.fail(reason)
        else:
            self._reason = self._reason or reason
            parts.conversation.add_notice(reason)
        parts.recorder.commit()

    def stop(self) -> None:
        """Stop an agent that was given up, once; if an earlier runner has, that ends the agent's grace time."""
        if self._reason is not None and not self._has_begun:
            self._has_begun = True
            self._parts.context.stop_agent()

    async def end(self, reason: str) -> None:
        """End the agent; its exit is reported with this reason, which is on disk before if that can be written."""
        if not self._has_begun:
            self.fail(reason)
            with suppress(OSError):
                await self._parts.context.save()
            self.stop()

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
