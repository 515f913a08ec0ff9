"""Send work requests: new ones immediately from memory, and from the database those that are due.

A request that the broker does not confirm is due again later, like one that no runner answers, so nothing waits for it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, TypeAlias

from taskherd import retry
from taskherd.errors import Retry, Unavailable
from taskherd.store.engine import StatementTimeout
from taskherd.worker import work_requests

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from taskherd.store.work_request_details import WorkRequestDetails
    from taskherd.store.work_requests import WorkRequestRow
    from taskherd.worker.context import WorkerContext

    StartedRequest: TypeAlias = tuple[WorkRequestRow, WorkRequestDetails]

MAX_BUFFER = 20_000
"""Maximum number of new requests in memory; further ones are sent when their second attempt is due."""

MAX_BUFFER_BYTES = 32 * 1024 * 1024
"""Size of their prompts, and of those that are being sent, at which further ones are left too."""

MAX_SENDING = 4
"""Maximum number of batches of new requests that wait for the broker's confirm at the same time."""

GROW_AFTER = 60.0
"""Seconds after which more due requests are read at once again, because an attempt that fails takes seconds."""


class RequestSender:
    """Buffers new work requests; ``run`` sends them, and those that are due."""

    def __init__(self, context: WorkerContext, every: float, monotonic: Callable[[], float] = monotonic) -> None:
        """Create the sender. It looks for due requests ``every`` seconds. ``monotonic`` returns seconds."""
        self._context = context
        self._every = every
        self._monotonic = monotonic
        self._limit = work_requests.MAX_REQUESTS
        """Number of due requests that are read at once now: fewer while that takes too long."""
        self._grow_at = 0.0
        """The monotonic time from which on it may be twice as many."""
        self._requests: deque[StartedRequest] = deque()
        self._bytes = 0
        self._slots = asyncio.Semaphore(MAX_SENDING)
        self._added, self._due = asyncio.Event(), asyncio.Event()
        self._stopping = False

    def send(self, requests: Sequence[StartedRequest]) -> None:
        """Buffer work requests whose first attempt is committed, as far as there is room."""
        for request in requests:
            if len(self._requests) >= MAX_BUFFER or self._bytes >= MAX_BUFFER_BYTES:
                break
            self._requests.append(request)
            self._bytes += _size(request)
        self._added.set()

    def wake(self) -> None:
        """Send the requests that are due now."""
        self._due.set()

    async def run(self) -> None:
        """Send until stopped, then what is left in memory."""
        async with asyncio.TaskGroup() as loops:
            loops.create_task(self._due_loop(), name="relay due requests")
            await self._new_loop()

    def stop(self) -> None:
        """Make ``run`` send what is left in memory, and end."""
        self._stopping = True
        self._added.set()
        self._due.set()

    async def _new_loop(self) -> None:
        async with asyncio.TaskGroup() as sending:
            while self._requests or not self._stopping:
                await self._added.wait()
                self._added.clear()
                while self._requests:
                    await self._send_once(sending)

    async def _send_once(self, sending: asyncio.TaskGroup) -> None:
        """Start to send the next new requests."""
        await self._slots.acquire()
        requests = [self._requests.popleft() for _ in range(min(work_requests.MAX_REQUESTS, len(self._requests)))]
        task = sending.create_task(
            work_requests.send(self._context, requests, self._context.now()), name="relay requests"
        )
        task.add_done_callback(lambda _: self._on_sent(requests))

    def _on_sent(self, requests: Sequence[StartedRequest]) -> None:
        self._bytes -= sum(map(_size, requests))
        self._slots.release()

    async def _due_loop(self) -> None:
        failures = 0
        while not self._stopping:
            await retry.wait(self._due, self._every)
            self._due.clear()
            try:
                await self._send_due_once()
                failures = 0
            except (Unavailable, Retry) as error:
                failures += 1
                self._context.on_error(str(error))
                await asyncio.sleep(retry.delay(failures))

    async def _send_due_once(self) -> None:
        """Send all due work requests. Raises ``Unavailable`` if the database is, or reading takes too long."""
        while not self._stopping:
            self._grow()
            try:
                sent = await work_requests.send_due(self._context, self._context.now(), self._limit)
            except StatementTimeout:
                self._limit, self._grow_at = max(1, self._limit // 2), self._monotonic() + GROW_AFTER
                raise
            if not sent:
                break

    def _grow(self) -> None:
        if (now := self._monotonic()) >= self._grow_at:
            self._limit, self._grow_at = min(2 * self._limit, work_requests.MAX_REQUESTS), now + GROW_AFTER


def _size(request: StartedRequest) -> int:
    """Return the size of a request's prompt, the largest part of it."""
    return len(request[1].prompt)
