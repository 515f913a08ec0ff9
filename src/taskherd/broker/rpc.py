"""Request and reply over RabbitMQ: a request is published with a confirm and answered on this process's own queue.

A call whose reply queue was lost is published again, so whatever answers must do a repeated request only once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from uuid import uuid4

import structlog

from taskherd.broker import topology
from taskherd.broker.consume import Consumer, Source
from taskherd.broker.publish import PublishOutcome
from taskherd.errors import Unavailable

if TYPE_CHECKING:
    from aiormq.abc import AbstractChannel

    from taskherd.broker.connection import SupervisedConnection
    from taskherd.broker.delivery import Delivery
    from taskherd.broker.publish import Publisher
    from taskherd.broker.topology import TopologyNames

log = structlog.get_logger(__name__)

MAX_WAITING: Final = 1_000
"""Calls that may wait for their replies at once, and replies that the queue holds."""

Trace: TypeAlias = Callable[[], dict[str, str]]
"""Returns the headers of the trace that a call belongs to."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The body and headers of a reply."""

    body: bytes
    headers: Mapping[str, Any]


class _ReplyQueueLost(Exception):  # noqa: N818 - handled by publishing again; never leaves this module
    pass


class CommandClient:
    """Publishes requests and waits for the reply to each, at most `timeout` seconds.

    `waiting` is called with the number of calls that wait, whenever it changes.
    """

    def __init__(
        self,
        consuming: SupervisedConnection,
        publisher: Publisher,
        names: TopologyNames,
        *,
        timeout: float,
        trace: Trace = dict,
        waiting: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._trace = trace
        self._publisher = publisher
        self._names = names
        self._timeout = timeout
        self._on_waiting = waiting
        self._intake = Consumer(consuming, self._prepare, prefetch=MAX_WAITING, on_trouble=self._on_error)
        self._queue = ""
        self._open = asyncio.Event()
        self._waiting: dict[str, asyncio.Future[Reply]] = {}

    @property
    def listening(self) -> bool:
        """Whether replies can reach us, as far as we know."""
        return self._intake.consuming

    async def run(self) -> None:
        """Take replies until stopped."""
        self._intake.start()
        try:
            while deliveries := await self._intake.batch(MAX_WAITING, 0):
                for delivery in deliveries:
                    self._resolve(delivery)
                await self._intake.ack(deliveries)
        finally:
            await self._intake.close()

    async def stop(self) -> None:
        """Take no more replies once those at hand are handed over."""
        await self._intake.stop()

    async def call(self, routing_key: str, body: bytes, *, no_expiry: bool = False) -> Reply:
        """Publish a request to the commands exchange and return the reply to it.

        With `no_expiry` the request stays in its queue even when no caller waits any longer.
        Raises Unavailable when no reply came in time: the request may have been carried out, or may be later.
        """
        if len(self._waiting) >= MAX_WAITING:
            raise Unavailable("too many calls wait for a reply")
        deadline = asyncio.get_running_loop().time() + self._timeout
        try:
            async with asyncio.timeout_at(deadline):
                while True:
                    await self._open.wait()
                    try:
                        return await self._call_once(routing_key, body, None if no_expiry else deadline)
                    except _ReplyQueueLost:
                        continue
        except TimeoutError:
            raise Unavailable(f"no reply to {routing_key} within {self._timeout:g} s") from None

    async def _call_once(self, routing_key: str, body: bytes, deadline: float | None) -> Reply:
        loop = asyncio.get_running_loop()
        correlation = uuid4().hex
        reply: asyncio.Future[Reply] = loop.create_future()
        self._waiting[correlation] = reply
        self._on_waiting(len(self._waiting))
        try:
            published = await self._publisher.publish(
                self._names.commands,
                routing_key,
                body,
                headers={**self._trace()} or None,
                mandatory=True,
                expiration=None if deadline is None else max(0.1, deadline - loop.time()),
                reply_to=self._queue,
                correlation_id=correlation,
            )
            if published is PublishOutcome.UNROUTED:
                raise Unavailable(f"no queue takes {self._names.commands}")
            return await reply
        finally:
            del self._waiting[correlation]
            if reply.done() and not reply.cancelled():
                reply.exception()  # retrieve it, or asyncio warns that it was never retrieved
            self._on_waiting(len(self._waiting))

    def _resolve(self, delivery: Delivery) -> None:
        waiting = self._waiting.get(delivery.correlation_id or "")
        if waiting is not None and not waiting.done():
            waiting.set_result(Reply(delivery.body, delivery.headers))

    async def _prepare(self, channel: AbstractChannel) -> Sequence[Source]:
        await topology.check(channel, self._names)
        self._queue = await topology.declare_exclusive_queue(channel, length=MAX_WAITING)
        self._open.set()
        for waiting in self._waiting.values():  # their replies went to the queue before this one, which is gone
            if not waiting.done():
                waiting.set_exception(_ReplyQueueLost())
        return [Source(self._queue)]

    def _on_error(self, reason: str) -> None:
        self._open.clear()
        log.warning("waiting for replies", reason=reason)
