"""A worker subscribes again if the broker has lost its consumer."""

from __future__ import annotations

import asyncio

from taskherd.worker.consumer_watchdog import MAX_MISSING
from tests.harness.worker import TIMEOUT, WorkerHarness


async def lose_consumer(harness: WorkerHarness) -> None:
    """Let the broker forget the consumer of commands, while the worker believes that it is subscribed."""
    (subscription,) = harness.worker._commands._subscriptions.values()
    await subscription.channel.basic_cancel(subscription._tag)
    async with asyncio.timeout(TIMEOUT):
        while (await harness.queue_counts("commands"))[1]:  # noqa: ASYNC110 - the broker does not notify
            await asyncio.sleep(0.05)


async def test_a_consumer_that_the_broker_lost_is_replaced(harness: WorkerHarness) -> None:
    """After as many checks in a row as are needed, and not before; then commands are taken again."""
    await harness.create()
    watchdog = harness.worker._watchdog
    for _ in range(MAX_MISSING + 1):
        assert await watchdog.check_once() == 0
    await lose_consumer(harness)
    assert harness.worker._commands.consuming
    assert [await watchdog.check_once() for _ in range(MAX_MISSING)] == [0] * (MAX_MISSING - 1) + [1]
    await harness.create()
