"""Find out whether a silent agent has reacted to SIGINT: from its output and its processes, not from what it says."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Final

from taskherd.runner.activity import LOOK_INTERVAL, ActivityWatch
from taskherd.runner.agents import output
from taskherd.runner.agents.interrupting import has_exited

if TYPE_CHECKING:
    from taskherd.runner.agents.context import AgentContext

QUIET_TIME: Final = 3.0
"""Maximum number of seconds without output after which an agent is quiet; a shorter ``idle_after`` counts."""
_POLL_INTERVAL: Final = 0.1


class InterruptReaction:
    """The reaction of an agent to an interrupt; create it before the signal is sent.

    An agent that neither writes anything nor ends a process that it started has not reacted: it may ignore the signal,
    and wait for a model in the middle of its turn.
    """

    def __init__(self, context: AgentContext) -> None:
        self._context = context
        self._activity = ActivityWatch(context.processes, context.folder)
        self._size = output.size(context.folder.output)
        self._children: frozenset[int] = frozenset()

    async def wait(self, quiet: float, seconds: float) -> bool:
        """Wait until the agent has exited, or has reacted and is quiet. Return False if that takes too long.

        Args:
            quiet: seconds without output, at the end of which no process of the agent runs or uses CPU.
            seconds: seconds to wait at most.
        """
        loop = asyncio.get_running_loop()
        deadline, silent_since, look_at = loop.time() + seconds, loop.time(), 0.0
        size, has_reacted = self._size, False
        while loop.time() < deadline:
            if has_exited(self._context):
                return True
            now, latest = loop.time(), output.size(self._context.folder.output)
            if latest != size:
                size, has_reacted, silent_since = latest, True, now
            if now >= look_at:
                look_at = now + LOOK_INTERVAL
                has_reacted = await self._has_ended_process() or has_reacted
                is_working = await self._activity.is_working()
                if has_reacted and is_working is False and now - silent_since >= quiet:
                    return True
            await asyncio.sleep(_POLL_INTERVAL)
        return has_exited(self._context)

    async def _has_ended_process(self) -> bool:
        """Return whether a process has ended that the agent had started before an earlier look."""
        table = await self._context.processes.table()
        try:
            agent = json.loads(self._context.folder.started.read_text())["agent"]
        except (OSError, ValueError, KeyError, TypeError):
            return False
        before, self._children = self._children, frozenset(table.below(agent))
        return bool(before - self._children)
