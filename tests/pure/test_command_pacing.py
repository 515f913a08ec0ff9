"""Which commands wait for others to share their batch with, without a broker."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast
from uuid import UUID

import pytest

from taskherd.broker.consumer import Consumer
from taskherd.observability.metrics import Metrics
from taskherd.worker.command_consumer import CommandConsumer
from tests.harness.contexts import partial_context

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiormq.abc import AbstractChannel

    from taskherd.broker.connection import SupervisedConnection
    from taskherd.broker.subscription import Source
    from taskherd.worker.command_order import WaitingCommand
    from taskherd.worker.relay import Relay

ALICE, BOB = UUID(int=1), UUID(int=2)


async def _no_sources(_: AbstractChannel) -> Sequence[Source]:
    return ()


class Buffer(Consumer):
    """A consumer with so many deliveries in its buffer; what is waited for is noted as (count, seconds)."""

    def __init__(self, deliveries: int = 0) -> None:
        super().__init__(cast("SupervisedConnection", None), _no_sources, prefetch=1)
        self.deliveries = deliveries
        self.waits: list[tuple[int, float]] = []

    @property
    def buffered(self) -> int:
        """Number of deliveries."""
        return self.deliveries

    async def wait_buffered(self, count: int, wait: float) -> None:
        """Note the wait."""
        self.waits.append((count, wait))


def make_consumer(buffer: Buffer, *, in_progress: int, waiting: int = 0) -> CommandConsumer:
    """Return a consumer that has executed so many commands at a time, and has taken others out of the buffer."""
    consumer = CommandConsumer(buffer, partial_context(metrics=Metrics()), cast("Relay", None))
    consumer._note_in_progress(in_progress)
    consumer._waiting = cast("list[WaitingCommand]", [None] * waiting)
    return consumer


@pytest.mark.parametrize(
    ("in_progress", "buffered", "waiting", "ready"),
    [(4, 2, 1, 0), (4, 2, 2, 4), (8, 7, 0, 0), (9, 2, 1, 3), (0, 3, 0, 3)],
)
async def test_a_few_commands_wait_for_as_many_as_were_in_progress(
    in_progress: int, buffered: int, waiting: int, ready: int
) -> None:
    """A batch of few is ready when as many wait as there were before; after many, whatever waits is ready."""
    assert make_consumer(Buffer(buffered), in_progress=in_progress, waiting=waiting)._ready() == ready


async def test_few_commands_after_many_wait_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """For half a second, in which a small batch is no sign of few callers, nor are those who still wait for a reply."""
    now = 1000.0
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now)
    buffer = Buffer(2)
    consumer = make_consumer(buffer, in_progress=9)
    consumer._note_in_progress(4)

    def ready_at(time: float) -> int:
        nonlocal now
        now = time
        return consumer._ready()

    assert [ready_at(time) for time in (1000.25, 1000.499, 1000.5, 1001.0)] == [2, 2, 0, 0]
    many = make_consumer(buffer, in_progress=9)
    now = 1002.0
    assert many._ready() == 2
    await many._wait_for_few()
    assert buffer.waits == []


async def test_the_wait_for_a_few_ends_soon_after_the_latest_replies(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is for as many as are missing of those who have got their replies; several actors wait for nobody."""
    now = 1000.0
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now)
    buffer = Buffer(1)
    consumer = make_consumer(buffer, in_progress=4, waiting=1)
    consumer._answered_at = now - 0.005
    await consumer._wait_for_few()
    ((count, seconds),) = buffer.waits
    assert count == 3
    assert seconds == pytest.approx(0.015)
    consumer._note_actor(ALICE)
    consumer._note_actor(ALICE)
    await consumer._wait_for_few()
    assert len(buffer.waits) == 2
    consumer._note_actor(BOB)
    await consumer._wait_for_few()
    many = make_consumer(buffer, in_progress=9)
    await many._wait_for_few()
    assert len(buffer.waits) == 2
