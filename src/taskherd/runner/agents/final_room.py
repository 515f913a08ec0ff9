"""Room for the last output of an agent that has ended: reading it waits for the broker as it does while agents run."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from taskherd.runner.outbox import Outbox

STOP_WAIT: Final = 5.0
"""Seconds for which the last output of an agent waits for room once the agent is to be stopped."""
LAST_BYTES: Final = 256 * 1024
"""Number of bytes at the end of the output that are read without room: they say how the agent has ended."""


class FinalRoom:
    """The room for one agent's last output; ``stopping`` is set once the agent is to be stopped, running or not."""

    def __init__(self, outbox: Outbox, stopping: asyncio.Event) -> None:
        self._outbox = outbox
        self._stopping = stopping
        self._ends_at: float | None = None
        self._is_over = False

    async def wait(self) -> bool:
        """Wait until the outbox has room, and return True.

        Return False, from then on, if it has none ``STOP_WAIT`` seconds after ``stopping`` was set: a stop or delete
        must not wait for the broker.
        """
        if self._outbox.full and not self._is_over:
            room, end = asyncio.create_task(self._outbox.wait_room()), asyncio.create_task(self._wait_end())
            try:
                await asyncio.wait({room, end}, return_when=asyncio.FIRST_COMPLETED)
                self._is_over = not room.done()
            finally:
                room.cancel()
                end.cancel()
                await asyncio.gather(room, end, return_exceptions=True)
        return not self._is_over

    async def _wait_end(self) -> None:
        await self._stopping.wait()
        now = asyncio.get_running_loop().time()
        self._ends_at = self._ends_at or now + STOP_WAIT
        await asyncio.sleep(self._ends_at - now)
