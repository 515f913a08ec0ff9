"""The loops of the change feed, without a broker and a database."""

from __future__ import annotations

import asyncio
from typing import NoReturn

import pytest

from taskherd.api.change_feed import MIN_READ_INTERVAL, ChangeFeed
from taskherd.broker.connection import SupervisedConnection
from taskherd.broker.topology import TopologyNames
from taskherd.observability.metrics import Metrics
from taskherd.store.read_pool import ReadPool


@pytest.mark.parametrize("loop", ["_consume_wakeups", "_read"])
async def test_an_unexpected_error_of_either_loop_ends_the_feed(monkeypatch: pytest.MonkeyPatch, loop: str) -> None:
    """It ends the API with that error. Without wakeups, changes would be late, and nothing would say so."""

    async def fail(_: ChangeFeed) -> NoReturn:
        raise RuntimeError("unexpected")

    monkeypatch.setattr(ChangeFeed, loop, fail)
    connection = SupervisedConnection("amqp://127.0.0.1:1/", "test")
    reader: ReadPool = object()  # type: ignore[assignment]
    feed = ChangeFeed(
        connection, TopologyNames("p"), reader, Metrics(), nullable_ids_as_objects=False, most_of_user=500
    )
    async with asyncio.timeout(30):
        with pytest.raises(RuntimeError, match="unexpected"):
            await feed.run()


async def test_the_feed_rests_without_subscribers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wakeup then costs nothing; with the first subscriber it is read, and after the last one no more."""
    polls = 0
    polled = asyncio.Event()

    async def poll(_: ChangeFeed) -> None:
        nonlocal polls
        polls += 1
        polled.set()

    monkeypatch.setattr(ChangeFeed, "poll", poll)
    connection = SupervisedConnection("amqp://127.0.0.1:1/", "test")
    reader: ReadPool = object()  # type: ignore[assignment]
    feed = ChangeFeed(
        connection, TopologyNames("p"), reader, Metrics(), nullable_ids_as_objects=False, most_of_user=500
    )
    reading = asyncio.create_task(feed._read())
    async with asyncio.timeout(30):
        for _ in range(2):
            await _iterations(feed)
            assert polls == 0
            async with feed.subscription(None):
                await polled.wait()
            await _iterations(feed)  # the loop may have been about to read
            polls = 0
            polled.clear()
        feed.stop()
        await reading


async def _iterations(feed: ChangeFeed) -> None:
    """Wake the feed, and give its loop the time of several reads."""
    for _ in range(20):
        feed._wakeup.set()
        await asyncio.sleep(MIN_READ_INTERVAL)
