"""Deliveries and a consumer that has them, without a broker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, cast

from aiormq.abc import AbstractChannel
from pamqp.commands import Basic
from pamqp.common import FieldTable

from taskherd.broker.connection import SupervisedConnection
from taskherd.broker.consumer import Consumer
from taskherd.broker.delivery import Delivery
from taskherd.broker.subscription import Source

REPLY_TO = "replies-of-a-test"


class Message(Delivery):
    """A delivery with this tag by this user of RabbitMQ, in this trace; it wants a reply or not."""

    exchange, routing_key, may_have_trace = "commands", "key", False

    def __init__(
        self, body: bytes, tag: int, *, reply_to: str = REPLY_TO, sender: str | None = None, trace: str = ""
    ) -> None:
        super().__init__(body, tag, redelivered=False)
        headers: FieldTable | None = {"traceparent": trace} if trace else None
        self._properties = Basic.Properties(reply_to=reply_to, correlation_id=str(tag), user_id=sender, headers=headers)

    @property
    def properties(self) -> Basic.Properties:
        """The properties."""
        return self._properties


async def _no_sources(_: AbstractChannel) -> Sequence[Source]:
    return ()


class Buffer(Consumer):
    """A consumer with these deliveries; it stops when it is told to."""

    def __init__(self) -> None:
        super().__init__(cast("SupervisedConnection", None), _no_sources, prefetch=1)
        self.deliveries: list[Delivery] = []
        self.asked: list[tuple[int, float]] = []
        self.waits: list[tuple[int, float]] = []
        self.acked: list[int] = []
        self.changed, self.acks_allowed = asyncio.Event(), asyncio.Event()
        self.acks_allowed.set()
        self.stopped = False

    @property
    def buffered(self) -> int:
        """Number of deliveries."""
        return len(self.deliveries)

    @property
    def has_stopped(self) -> bool:
        """True once it has been told to stop."""
        return self.stopped

    def put(self, *deliveries: Delivery) -> None:
        """Deliver messages."""
        self.deliveries += deliveries
        self.changed.set()

    async def next_batch(self, limit: int, wait: float, _enough: int | None = None) -> list[Delivery]:
        """Return the deliveries; wait for one."""
        self.asked.append((limit, wait))
        while not self.deliveries and not self.stopped:
            await self.wait_for_change()
        taken, self.deliveries = self.deliveries[:limit], self.deliveries[limit:]
        return taken

    async def wait_for_change(self) -> None:
        """Wait until something is delivered, or ``changed`` is set."""
        if not self.deliveries and not self.stopped:
            self.changed.clear()
            await self.changed.wait()

    def has_batch(self, limit: int) -> bool:
        """Return whether so many deliveries are there."""
        return len(self.deliveries) >= limit

    async def wait_buffered(self, count: int, wait: float) -> None:
        """Wait for no message, but let others run, and note for what it was."""
        self.waits.append((count, wait))
        await asyncio.sleep(0)

    async def ack(self, deliveries: Sequence[Delivery]) -> bool:
        """Note what is acknowledged, once that is allowed."""
        await self.acks_allowed.wait()
        self.acked += [delivery.delivery_tag for delivery in deliveries]
        return True


async def until(condition: Callable[[], Any]) -> None:
    """Let the consumer run until the condition is true, and a little longer."""
    for _ in range(10_000):
        if condition():
            break
        await asyncio.sleep(0)
    assert condition()
    for _ in range(50):
        await asyncio.sleep(0)
