"""Publish the dead letters of a consumer in the background, and ack each delivery after the broker's confirm.

While the dead-letter queue takes no messages, valid ones are processed all the same; only when too many dead letters
wait does the consumer wait, too. A delivery that is rejected stays unacked until then, so the broker still has it.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import TYPE_CHECKING, TypeAlias

import structlog

from taskherd import retry
from taskherd.broker.dead_letters import publish_dead_letters
from taskherd.worker.dead_letters import dead_letter_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from taskherd.broker.consumer import Consumer
    from taskherd.broker.delivery import Delivery
    from taskherd.broker.publisher import OutgoingMessage
    from taskherd.messages.decoding import InvalidMessage
    from taskherd.worker.context import WorkerContext

log = structlog.get_logger(__name__)

Rejected: TypeAlias = "tuple[Delivery, InvalidMessage]"
"""A delivery, and why it, or an element of it, becomes a dead letter."""

MAX_WAITING = 1_000
"""Maximum number of dead letters that wait for their confirm before the consumer waits."""
MAX_BYTES_WAITING = 16 * 1024 * 1024
"""Maximum total size of their bodies."""
MAX_AT_ONCE = 256
"""Maximum number of dead letters that are published together."""
MAX_LOGGED = 5
"""Maximum number of dead letters in a log line."""


@dataclass(frozen=True, slots=True)
class _DeadLetter:
    delivery: Delivery
    invalid: InvalidMessage
    message: OutgoingMessage
    alone: bool = False
    """Whether it is published by itself: one that the broker refuses makes all that are published with it fail."""


class DeadLetterSender:
    """Publishes dead letters while ``sending``, and acks their deliveries."""

    def __init__(self, consumer: Consumer, context: WorkerContext) -> None:
        """Create the sender for the deliveries of ``consumer``."""
        self._consumer = consumer
        self._context = context
        self._waiting: list[_DeadLetter] = []
        self._added, self._removed = asyncio.Event(), asyncio.Event()
        self._finished = False

    async def add(self, rejected: Sequence[Rejected]) -> None:
        """Have dead letters published: all of a delivery together, because it is acked after the last one.

        Wait while they are too many. More than the maximum are accepted if no other waits.
        """
        if not rejected:
            return
        added = [_DeadLetter(*each, dead_letter_of(self._context, *each)) for each in rejected]
        while self._waiting and not _fit([*self._waiting, *added]):
            self._removed.clear()
            await self._removed.wait()
        self._waiting += added
        self._added.set()

    @asynccontextmanager
    async def sending(self) -> AsyncIterator[None]:
        """Publish dead letters during the block, and what is left at its end."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._run(), name="dead letters")
            try:
                yield
            finally:
                self._finished = True
                self._added.set()

    async def _run(self) -> None:
        failures = 0
        while self._waiting or not self._finished:
            await self._added.wait()
            self._added.clear()
            while self._waiting:
                failures = 0 if await self._send_once() else failures + 1
                if failures and self._context.stopping.is_set():
                    self._abandon()
                elif failures:
                    await retry.wait(self._context.stopping, retry.delay(failures))
                    self._drop_lost()

    async def _send_once(self) -> bool:
        """Publish the first that wait, and ack the deliveries whose dead letters are all confirmed.

        Return False if some were not confirmed; they are published again after the others, one at a time.
        """
        sent = self._next()
        obstacles = await publish_dead_letters(self._context.dead_publisher, [each.message for each in sent])
        done = [each for each, obstacle in zip(sent, obstacles, strict=True) if obstacle is None]
        failed = [each for each, obstacle in zip(sent, obstacles, strict=True) if obstacle is not None]
        self._replace([*self._waiting[len(sent) :], *(replace(each, alone=True) for each in failed)])
        self._count(done)
        waiting = {id(each.delivery) for each in self._waiting}
        await self._consumer.ack([*{each.delivery: None for each in done if id(each.delivery) not in waiting}])
        if failed:
            self._context.metrics.batch_failures.labels("broker").inc()
            self._context.on_unconfirmed(f"{len(failed)} dead letters: {next(filter(None, obstacles))}")
        return not failed

    def _next(self) -> list[_DeadLetter]:
        """Return the first that wait and are published together, or the first one that is published alone."""
        return [*takewhile(lambda each: not each.alone, self._waiting[:MAX_AT_ONCE])] or self._waiting[:1]

    def _count(self, done: Sequence[_DeadLetter]) -> None:
        for each in done:
            reason = each.invalid.reason.value
            self._context.metrics.dead_lettered.labels(reason).inc()
            self._context.rates.count_dead_letter(reason, self._context.now())
        if done:
            first = [(each.invalid.reason.value, each.invalid.detail[:100]) for each in done[:MAX_LOGGED]]
            log.warning("dead letters published", count=len(done), first=first)

    def _drop_lost(self) -> None:
        """Drop what the broker delivers again, because the channel is lost: it is rejected again, too."""
        self._replace([each for each in self._waiting if self._consumer.holds(each.delivery)])

    def _abandon(self) -> None:
        log.warning("dead letters abandoned, the broker redelivers their messages", count=len(self._waiting))
        self._replace([])

    def _replace(self, waiting: list[_DeadLetter]) -> None:
        self._waiting = waiting
        self._removed.set()


def _fit(dead_letters: Sequence[_DeadLetter]) -> bool:
    size = sum(len(each.message.body) for each in dead_letters)
    return len(dead_letters) <= MAX_WAITING and size <= MAX_BYTES_WAITING
