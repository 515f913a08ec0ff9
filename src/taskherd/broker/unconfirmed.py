"""Publish what may be lost, without confirms: the caller never waits for the broker, not even for a hung node."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final

from taskherd import retry
from taskherd.broker.connection import SupervisedConnection
from taskherd.broker.patches.frame_writer import writer_of
from taskherd.broker.requests import REQUEST_TIMEOUT, map_errors
from taskherd.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiormq.channel import Channel

    from taskherd.broker.patches.frame_writer import Writer
    from taskherd.broker.publisher import OutgoingMessage

MAX_WAITING: Final = 1_000
"""Default maximum number of messages in memory; the oldest are dropped."""

MAX_BYTES: Final = 32 * 1024 * 1024
"""Maximum total size of their bodies: replies contain whole task documents, with prompts of up to 256 KiB."""

MAX_TOGETHER: Final = 100
"""Maximum number of messages that are sent with one write: the replies to a batch of commands."""


class UnconfirmedPublisher:
    """A publisher that sends messages in order, in the background, and drops those that it cannot send.

    The broker stops reading from a connection whose channel publishes to a queue or process that takes nothing, as on a
    hung node. ``connection`` must therefore be used by no publisher with confirms.
    """

    def __init__(
        self,
        connection: SupervisedConnection,
        on_error: Callable[[str], None] = lambda _: None,
        *,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        """Create the publisher; it sends while ``run`` runs, and calls ``on_error`` with the reason of each failure."""
        self._connection = connection
        self._on_error = on_error
        self._max_waiting = max_waiting
        self._waiting: deque[OutgoingMessage] = deque()
        self._bytes = 0
        self._offered = asyncio.Event()
        self._channel: Channel | None = None
        self._writer: Writer | None = None
        self._stopping = asyncio.Event()

    def offer(self, message: OutgoingMessage) -> None:
        """Have a message sent soon."""
        self._waiting.append(message)
        self._bytes += len(message.body)
        while len(self._waiting) > self._max_waiting or self._bytes > MAX_BYTES:
            self._next()
        self._offered.set()

    def stop(self) -> None:
        """Make ``run`` send what is waiting, or drop all of it if there is no connection, and end."""
        self._stopping.set()
        self._offered.set()

    async def run(self) -> None:
        """Send until stopped; a message that cannot be sent is dropped."""
        failures = 0
        while self._waiting or not self._stopping.is_set():
            await self._offered.wait()
            self._offered.clear()
            while self._waiting:
                try:
                    await self._send_waiting()
                    failures = 0
                except Unavailable as error:
                    failures += 1
                    self._on_error(str(error))
                    await retry.wait(self._stopping, retry.delay(failures))

    async def _send_waiting(self) -> None:
        """Send what waits with one write, up to ``MAX_TOGETHER``; if it cannot be sent, the oldest is dropped."""
        if self._channel is None or self._channel.is_closed:
            try:
                self._channel = await self._connection.channel()
            except Unavailable:
                self._drop()
                raise
            self._writer = writer_of(self._channel, REQUEST_TIMEOUT)
        messages = [self._next() for _ in range(min(MAX_TOGETHER, len(self._waiting)))]
        assert self._writer is not None
        try:
            with map_errors("publishing without a confirm"):
                async with asyncio.timeout(REQUEST_TIMEOUT):
                    await self._writer.write(messages)
        except Unavailable as error:
            if isinstance(error.__cause__, TimeoutError):
                self._connection.drop()  # it takes nothing, and would keep in memory all that is written to it
            raise

    def _next(self) -> OutgoingMessage:
        """Take the oldest message."""
        message = self._waiting.popleft()
        self._bytes -= len(message.body)
        return message

    def _drop(self) -> None:
        """Drop the oldest message; when stopping all of them, or each would take as long as a try to connect."""
        self._next()
        while self._stopping.is_set() and self._waiting:
            self._next()
