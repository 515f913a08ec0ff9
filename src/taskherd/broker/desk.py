"""Where commands are given: published with a confirm, answered on this process's own queue, matched by correlation.

A command that is published again is done once, by its `command_id`. So one whose reply queue was lost is given again,
and one that was not answered in time may be given again by whoever asked for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from uuid import UUID, uuid4

import orjson
import structlog

from taskherd.broker import topology
from taskherd.broker.consume import Intake, Source
from taskherd.broker.publish import Published
from taskherd.errors import Unavailable

if TYPE_CHECKING:
    from aiormq.abc import AbstractChannel

    from taskherd.broker.connection import Link
    from taskherd.broker.delivery import Delivery
    from taskherd.broker.publish import Publisher
    from taskherd.broker.topology import Names

log = structlog.get_logger(__name__)

WAITING_MOST: Final = 1_000
"""Commands that may wait for their replies at once, and replies that the queue holds."""

Trace: TypeAlias = Callable[[], dict[str, str]]
"""What tells the headers of the trace that a command belongs to."""


@dataclass(frozen=True, slots=True)
class Order:
    """A command to give, in the fields of its message; a `lasting` one is kept when nobody waits for its reply."""

    type: str
    command_id: UUID
    task_id: UUID
    actor_id: UUID
    fields: dict[str, Any]
    lasting: bool = False

    def encode(self) -> bytes:
        """The message's body."""
        common = {"command_id": self.command_id, "task_id": self.task_id, "actor_id": self.actor_id}
        return orjson.dumps({"type": self.type, **common, **self.fields}, default=str)  # asyncpg's UUIDs are its own


@dataclass(frozen=True, slots=True)
class Reply:
    """What the worker replied, and the headers of its message."""

    told: dict[str, Any]
    headers: Mapping[str, Any]


class _AskAgain(Exception):  # noqa: N818 - not an error: the queue for replies is a new one; never leaves this module
    pass


class Desk:
    """Gives commands and waits for the reply to each, at most `timeout` seconds; tells `waiting` how many do."""

    def __init__(
        self,
        consuming: Link,
        publisher: Publisher,
        names: Names,
        *,
        timeout: float,
        trace: Trace = dict,
        waiting: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._trace = trace
        self._publisher = publisher
        self._names = names
        self._timeout = timeout
        self._told_waiting = waiting
        self._intake = Intake(consuming, self._prepare, prefetch=WAITING_MOST, on_trouble=self._trouble)
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
            while deliveries := await self._intake.batch(WAITING_MOST, 0):
                for delivery in deliveries:
                    self._hand_over(delivery)
                await self._intake.ack(deliveries)
        finally:
            await self._intake.close()

    async def stop(self) -> None:
        """Take no more replies once those at hand are handed over."""
        await self._intake.stop()

    async def give(self, order: Order) -> Reply:
        """Give a command and return its reply.

        Raises Unavailable when none came in time: whether it was, or will be, carried out is unknown then.
        """
        if len(self._waiting) >= WAITING_MOST:
            raise Unavailable("too many commands wait for the worker")
        deadline = asyncio.get_running_loop().time() + self._timeout
        try:
            async with asyncio.timeout_at(deadline):
                while True:
                    await self._open.wait()
                    try:
                        return await self._give_once(order, deadline)
                    except _AskAgain:
                        continue
        except TimeoutError:
            raise Unavailable(f"no reply to {order.type} within {self._timeout:g} s") from None

    async def _give_once(self, order: Order, deadline: float) -> Reply:
        loop = asyncio.get_running_loop()
        correlation = uuid4().hex
        reply: asyncio.Future[Reply] = loop.create_future()
        self._waiting[correlation] = reply
        self._told_waiting(len(self._waiting))
        try:
            published = await self._publisher.publish(
                self._names.commands,
                order.type,
                order.encode(),
                headers={**self._trace()} or None,
                mandatory=True,
                expiration=None if order.lasting else max(0.1, deadline - loop.time()),
                reply_to=self._queue,
                correlation_id=correlation,
            )
            if published is Published.UNROUTED:
                raise Unavailable(f"no queue takes {self._names.commands}")
            return await reply
        finally:
            del self._waiting[correlation]
            if reply.done() and not reply.cancelled():
                reply.exception()  # seen, also where nobody got to wait for it
            self._told_waiting(len(self._waiting))

    def _hand_over(self, delivery: Delivery) -> None:
        waiting = self._waiting.get(delivery.correlation_id or "")
        if waiting is not None and not waiting.done():
            waiting.set_result(Reply(orjson.loads(delivery.body), delivery.headers))

    async def _prepare(self, channel: AbstractChannel) -> Sequence[Source]:
        await topology.check(channel, self._names)
        self._queue = await topology.declare_own_queue(channel, length=WAITING_MOST)
        self._open.set()
        for waiting in self._waiting.values():  # their replies went to the queue before, which is gone
            if not waiting.done():
                waiting.set_exception(_AskAgain())
        return [Source(self._queue)]

    def _trouble(self, reason: str) -> None:
        self._open.clear()
        log.warning("waiting for replies", reason=reason)
