"""When a consumer counts as lost, by what the broker says of it; without a broker."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import cast

import pytest
from aiormq.abc import AbstractChannel

from taskherd.broker.connection import SupervisedConnection
from taskherd.broker.consumer import Consumer
from taskherd.broker.requests import REQUEST_TIMEOUT
from taskherd.broker.subscription import Source
from taskherd.errors import Misconfigured, Unavailable
from taskherd.worker import consumer_watchdog
from taskherd.worker.consumer_watchdog import ConsumerWatchdog


async def _nothing(_: AbstractChannel) -> Sequence[Source]:
    return ()


class Subscribed(Consumer):
    """A consumer that believes that it is subscribed, and of which the broker says ``counts``, one by one."""

    def __init__(self, *counts: int | Exception) -> None:
        super().__init__(cast("SupervisedConnection", None), _nothing, prefetch=1)
        self._counts = iter(counts)
        self.believes = True
        self.resubscribed = 0
        self.was_resubscribed = asyncio.Event()

    @property
    def consuming(self) -> bool:
        """What it believes."""
        return self.believes

    async def consumer_count(self) -> int:
        """Return what the broker says next."""
        count = next(self._counts)
        if isinstance(count, Exception):
            raise count
        return count

    def resubscribe(self) -> None:
        """Count how often it has subscribed again."""
        self.resubscribed += 1
        self.was_resubscribed.set()


def watchdog_of(consumers: Sequence[Consumer], connection: object = None) -> ConsumerWatchdog:
    """Return a watchdog of these consumers."""
    return ConsumerWatchdog(consumers, cast("SupervisedConnection", connection))


async def test_only_the_consumer_that_is_lost_subscribes_again() -> None:
    """Two checks in a row must miss it; a single one may come while it is about to subscribe."""
    lost, returning, present = Subscribed(0, 0, 1), Subscribed(0, 1, 0), Subscribed(1, 2, 1)
    watchdog = watchdog_of([lost, returning, present])
    assert [await watchdog.check_once() for _ in range(3)] == [0, 1, 0]
    assert (lost.resubscribed, returning.resubscribed, present.resubscribed) == (1, 0, 0)


async def test_a_consumer_that_stays_lost_has_as_much_time_each_time() -> None:
    """It does not subscribe again at each check, which would leave it no time to do so."""
    lost = Subscribed(0, 0, 0, 0, 0)
    watchdog = watchdog_of([lost])
    assert [await watchdog.check_once() for _ in range(5)] == [0, 1, 0, 1, 0]


async def test_a_consumer_that_is_not_subscribed_is_not_lost() -> None:
    """It subscribes by itself, and the checks before do not count."""
    subscribing = Subscribed(0, 0)
    watchdog = watchdog_of([subscribing])
    found = []
    for subscribing.believes in (True, False, False, True):
        found.append(await watchdog.check_once())
    assert (found, subscribing.resubscribed) == ([0, 0, 0, 0], 0)


@pytest.mark.parametrize("error", [Unavailable("a node hangs"), Misconfigured("queue", "is missing")])
async def test_a_broker_that_does_not_answer_says_nothing(error: Exception) -> None:
    """Neither that a consumer is there nor that it is lost, and the others are checked all the same."""
    silent, other = Subscribed(error, 0, error, 0), Subscribed(0, 0, 1, 1)
    watchdog = watchdog_of([silent, other])
    assert [await watchdog.check_once() for _ in range(4)] == [0, 1, 0, 1]
    assert (silent.resubscribed, other.resubscribed) == (1, 1)


async def test_the_checks_go_on_and_hold_up_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """One follows the other after an interval, in which everything else runs."""
    monkeypatch.setattr(consumer_watchdog, "EVERY", 0)
    lost = Subscribed(0, 0, *[1] * 100)
    running = asyncio.create_task(watchdog_of([lost]).run())
    await asyncio.wait_for(lost.was_resubscribed.wait(), 20)
    assert not running.done()
    running.cancel()
    await asyncio.wait({running})


async def test_their_connection_is_checked_more_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the node that it leads to hangs, each time as patiently as a request."""
    monkeypatch.setattr(consumer_watchdog, "NODE_EVERY", 0)
    checked: list[float] = []
    enough = asyncio.Event()

    class Connection:
        async def drop_if_hung(self, within: float) -> None:
            checked.append(within)
            if len(checked) == 3:
                enough.set()

    running = asyncio.create_task(watchdog_of([], Connection()).run())
    await asyncio.wait_for(enough.wait(), 20)
    running.cancel()
    await asyncio.wait({running})
    assert set(checked) == {REQUEST_TIMEOUT}
