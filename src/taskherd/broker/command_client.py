"""Calls over RabbitMQ: messages are published with a confirm, and replies arrive on an exclusive queue.

The API sends its commands in this way, a runner its claims. A message whose reply queue was lost is published again, so
its consumer must execute a repeated one only once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from uuid import uuid4

import structlog

from taskherd.broker import topology
from taskherd.broker.consumer import Consumer, Source
from taskherd.broker.publisher import PublishOutcome
from taskherd.errors import Unavailable

if TYPE_CHECKING:
    from aiormq.abc import AbstractChannel

    from taskherd.broker.connection import SupervisedConnection
    from taskherd.broker.delivery import Delivery
    from taskherd.broker.publisher import Publisher

log = structlog.get_logger(__name__)

MAX_WAITING: Final = 1_000
"""Maximum number of concurrent calls, and of replies in the reply queue."""

Trace: TypeAlias = Callable[[], dict[str, str]]
"""A function that returns the trace headers for a call."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The body and headers of a reply."""

    body: bytes
    headers: Mapping[str, Any]


class _ReplyQueueLost(Exception):  # noqa: N818 - not an error; never leaves this module
    """The reply queue was replaced while a call was waiting."""


class CommandClient:
    """A client that publishes commands or claims to one exchange and waits for the reply to each."""

    def __init__(
        self,
        consuming: SupervisedConnection,
        publisher: Publisher,
        exchange: str,
        *,
        timeout: float,
        trace: Trace = dict,
        on_waiting: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Create the client; it receives replies while ``run`` runs.

        Args:
            consuming: the connection that receives replies; ``publisher`` must use another one.
            publisher: publishes the messages.
            exchange: the exchange for the messages, with a queue of the same name.
            timeout: seconds that each call waits for its reply.
            trace: returns the trace headers for a call.
            on_waiting: called with the number of waiting calls whenever it changes.
        """
        self._trace = trace
        self._publisher = publisher
        self._exchange = exchange
        self._timeout = timeout
        self._on_waiting = on_waiting
        self._consumer = Consumer(consuming, self._prepare, prefetch=MAX_WAITING, on_error=self._on_error)
        self._queue = ""
        self._queue_ready = asyncio.Event()
        self._waiting: dict[str, asyncio.Future[Reply]] = {}

    async def run(self) -> None:
        """Consume replies until stopped."""
        self._consumer.start()
        try:
            while deliveries := await self._consumer.next_batch(MAX_WAITING, 0):
                for delivery in deliveries:
                    self._resolve(delivery)
                await self._consumer.ack(deliveries)
        finally:
            await self._consumer.close()

    async def stop(self) -> None:
        """Stop consuming replies, after the buffered ones were passed to their calls."""
        await self._consumer.stop()

    async def call(self, routing_key: str, body: bytes, *, no_expiry: bool = False) -> Reply:
        """Publish a message and return the reply.

        By default the message expires when the call times out; with ``no_expiry`` it stays in its queue.

        Raises:
            Unavailable: no reply arrived in time; the message may or may not have been processed, or may be later.
        """
        if len(self._waiting) >= MAX_WAITING:
            raise Unavailable(f"{MAX_WAITING} calls are waiting for a reply already")
        deadline = asyncio.get_running_loop().time() + self._timeout
        try:
            async with asyncio.timeout_at(deadline):
                while True:
                    await self._queue_ready.wait()
                    try:
                        return await self._call_once(routing_key, body, None if no_expiry else deadline)
                    except _ReplyQueueLost:
                        continue
        except TimeoutError:
            raise Unavailable(f"no reply to {routing_key} within {self._timeout:g} s") from None

    async def _call_once(self, routing_key: str, body: bytes, deadline: float | None) -> Reply:
        loop = asyncio.get_running_loop()
        correlation_id = uuid4().hex
        reply: asyncio.Future[Reply] = loop.create_future()
        self._waiting[correlation_id] = reply
        self._on_waiting(len(self._waiting))
        try:
            outcome = await self._publisher.publish(
                self._exchange,
                routing_key,
                body,
                headers={**self._trace()} or None,
                mandatory=True,
                expiration=None if deadline is None else max(0.1, deadline - loop.time()),
                reply_to=self._queue,
                correlation_id=correlation_id,
            )
            if outcome is PublishOutcome.UNROUTED:
                raise Unavailable(
                    f"no queue is bound to exchange {self._exchange}; `taskherd topology apply` binds one"
                )
            return await reply
        finally:
            del self._waiting[correlation_id]
            if reply.done() and not reply.cancelled():
                reply.exception()  # retrieve it, or asyncio warns that it was never retrieved
            self._on_waiting(len(self._waiting))

    def _resolve(self, delivery: Delivery) -> None:
        waiting = self._waiting.get(delivery.correlation_id or "")
        if waiting is not None and not waiting.done():
            waiting.set_result(Reply(delivery.body, delivery.headers))

    async def _prepare(self, channel: AbstractChannel) -> Sequence[Source]:
        await topology.check(channel, [self._exchange], [self._exchange])
        self._queue = await topology.declare_exclusive_queue(channel, length=MAX_WAITING)
        self._queue_ready.set()
        for waiting in self._waiting.values():  # their replies go to the previous queue, which is lost
            if not waiting.done():
                waiting.set_exception(_ReplyQueueLost())
        return [Source(self._queue)]

    def _on_error(self, reason: str) -> None:
        self._queue_ready.clear()
        log.warning("cannot receive replies, retrying", reason=reason)
