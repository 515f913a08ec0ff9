"""End an agent's turn: ask it to, then interrupt it (SIGINT), and in the end end the agent."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from taskherd.domain.reports import InterruptOutcome
from taskherd.runner.agents.interrupting import end_agent, has_exited, send_interrupt, settle_interrupt

if TYPE_CHECKING:
    from taskherd.runner.agents.acp.parts import Parts

CANCEL_TIMEOUT: Final = 10.0
"""Seconds within which a cancelled turn must end; then the agent is interrupted with SIGINT."""
INTERRUPT_TIMEOUT: Final = 5.0
"""Seconds within which the turn must end after SIGINT; then the agent is ended with SIGTERM and SIGKILL."""
_POLL_INTERVAL: Final = 0.1


class TurnCancellation:
    """Cancels the turn of one agent."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def cancel(self) -> None:
        """Ask the agent to end its turn, once, and answer its open requests as cancelled."""
        if not self._parts.turn.cancelled:
            self._parts.turn.cancelled = True
            self._parts.requests.cancel_all()
            self._parts.terminals.end_turn()
            self.notify()
            self._parts.report_state()

    def notify(self) -> None:
        """Record that the agent is asked to end its turn, if one is in flight."""
        self._parts.connection.notify("session/cancel", {"sessionId": self._parts.opening.session})

    async def interrupt(self) -> InterruptOutcome:
        """End the turn in flight, in the end by ending the agent. Raise ``NotInterrupted``.

        What the agent claims about it does not count.
        """
        context, turn = self._parts.context, self._parts.turn.number
        if turn is None:
            self._parts.requests.cancel_all()  # asked outside of a turn
            self._parts.report_state()
            return InterruptOutcome.ENDED
        self.cancel()
        if await self._ends(turn, CANCEL_TIMEOUT):
            return InterruptOutcome.STOPPED
        await send_interrupt(context)
        if not await self._ends(turn, INTERRUPT_TIMEOUT):
            return await end_agent(context)
        await settle_interrupt(context)
        return InterruptOutcome.STOPPED

    async def _ends(self, turn: int, seconds: float) -> bool:
        """Wait until that turn is not in flight or the agent has exited; return False if neither happens in time."""
        try:
            async with asyncio.timeout(seconds):
                while self._parts.turn.number == turn and not has_exited(self._parts.context):  # noqa: ASYNC110 - files
                    await asyncio.sleep(_POLL_INTERVAL)
        except TimeoutError:
            return False
        return True
