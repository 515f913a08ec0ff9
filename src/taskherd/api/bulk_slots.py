"""Limit the commands of batches and actions in flight: few while single commands are sent, else many.

Commands that arrive together are executed together, so those of a batch make what others wait for longer. A process
knows only its own users; between processes the worker lets users take turns.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

MAX_SLOTS: Final = 200
"""Maximum number of commands of batches and actions of one process that wait for a reply: two batches of a worker's."""
FEW_SLOTS: Final = 4
"""That number while single commands are sent too."""
QUIET: Final = 0.5
"""Seconds after a single command until all slots are used again."""


class BulkSlots:
    """The slots of one process; ``now`` is a monotonic clock in seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._single_at = -QUIET
        self._used = 0
        self._waiters: deque[asyncio.Future[None]] = deque()

    def note_single(self) -> None:
        """Leave room: a single command is sent, or was answered."""
        self._single_at = self._now()

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Hold a slot while the block runs; wait for it in turn."""
        await self._acquire()
        try:
            yield
        finally:
            self._used -= 1
            self._wake()

    async def _acquire(self) -> None:
        if not self._waiters and self._used < self._available():
            self._used += 1
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter  # the slot is counted by ``_wake``
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self._used -= 1
                self._wake()
            raise

    def _wake(self) -> None:
        """Give free slots to waiters. While there are waiters a slot is in use, so this is called again."""
        while self._waiters and self._used < self._available():
            waiter = self._waiters.popleft()
            if not waiter.done():
                self._used += 1
                waiter.set_result(None)

    def _available(self) -> int:
        return FEW_SLOTS if self._now() - self._single_at < QUIET else MAX_SLOTS
