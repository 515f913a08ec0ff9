"""The loops of the change feed, without a broker and a database."""

from __future__ import annotations

import asyncio
from typing import NoReturn

import pytest
from structlog.testing import capture_logs

from taskherd import retry
from taskherd.api import change_feed
from taskherd.api.change_feed import MIN_READ_INTERVAL, ChangeFeed
from taskherd.broker.connection import SupervisedConnection
from taskherd.broker.consumer import Consumer
from taskherd.broker.topology import TopologyNames
from taskherd.errors import Retry, Unavailable
from taskherd.observability.metrics import Metrics
from taskherd.store import feed as store_feed
from taskherd.store.read_pool import ReadPool


@pytest.mark.parametrize("loop", ["_consume_wakeups", "_read"])
async def test_an_unexpected_error_of_either_loop_ends_the_feed(monkeypatch: pytest.MonkeyPatch, loop: str) -> None:
    """It ends the API with that error. Without wakeups, changes would be late, and nothing would say so."""
    closed: list[Consumer] = []

    async def fail(_: ChangeFeed) -> NoReturn:
        raise RuntimeError("unexpected")

    async def close(consumer: Consumer) -> None:
        closed.append(consumer)

    monkeypatch.setattr(ChangeFeed, loop, fail)
    monkeypatch.setattr(Consumer, "close", close)
    feed = new_feed()
    async with asyncio.timeout(30):
        with pytest.raises(RuntimeError, match="unexpected"):
            await feed.run()
    assert closed == [feed._wakeups]


async def test_the_feed_rests_without_subscribers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wakeup then costs nothing; with the first subscriber it is read, and after the last one no more."""
    polls = 0
    polled = asyncio.Event()

    async def poll(_: ChangeFeed) -> None:
        nonlocal polls
        polls += 1
        polled.set()

    monkeypatch.setattr(ChangeFeed, "poll", poll)
    feed = new_feed()
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


async def test_an_outage_delays_the_reads_of_the_feed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer with each failure in a row, until a read succeeds; the log says why. The next read checks the position."""
    outcomes: list[Exception | None] = [Unavailable("away"), Retry("again"), None, Unavailable("away")]
    delays: list[int] = []

    async def poll(feed: ChangeFeed) -> None:
        feed._wakeup.set()
        outcome = outcomes.pop(0)
        if not outcomes:
            feed.stop()
        if outcome is not None:
            raise outcome

    def delay(failures: int) -> float:
        delays.append(failures)
        return 0

    monkeypatch.setattr(ChangeFeed, "poll", poll)
    monkeypatch.setattr(retry, "delay", delay)
    feed = new_feed()
    with capture_logs() as lines:
        async with asyncio.timeout(30), feed.subscription(None):
            await feed._read()
    assert delays == [1, 2, 1]
    assert feed._empty_polls == change_feed.POLLS_PER_CHECK
    event = {"event": "cannot read the change feed", "log_level": "warning"}
    assert lines == [{**event, "reason": reason} for reason in ("away", "again", "away")]


async def test_the_feed_is_read_from_its_newest_change_for_its_subscribers_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without any, or once the process stops, nothing is read."""
    asked: list[str] = []
    reader: ReadPool = object()  # type: ignore[assignment]

    async def latest(pool: ReadPool) -> int:
        assert pool is reader
        asked.append("latest")
        return 7

    async def changes_after(pool: ReadPool, after: int, limit: int) -> store_feed.FeedPage:
        assert pool is reader
        asked.append(f"{limit} after {after}")
        return store_feed.FeedPage(after, [], more=False)

    monkeypatch.setattr(store_feed, "latest", latest)
    monkeypatch.setattr(store_feed, "changes_after", changes_after)
    feed = new_feed(reader)
    await feed.poll()
    assert asked == []
    async with feed.subscription(None):
        await feed.poll()
        assert await feed.position() == 7
        await feed.poll()
        assert asked == ["latest", *[f"{change_feed.PAGE_SIZE} after 7"] * 2]
        feed.stop()
        await feed.poll()
    assert len(asked) == 3


async def test_a_wakeup_is_followed_by_several_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """More changes may follow before the next one; after that, the feed is read every few seconds only."""
    waits: list[float] = []
    woken = [True, False, False, False, True, False]

    async def wait(feed: ChangeFeed, seconds: float) -> bool:
        waits.append(seconds)
        if len(waits) == len(woken):
            feed.stop()
        return woken[len(waits) - 1]

    async def poll(_: ChangeFeed) -> None:
        await asyncio.sleep(0)

    monkeypatch.setattr(change_feed, "READ_DELAYS", (0.0, 0.25))
    monkeypatch.setattr(change_feed, "MIN_READ_INTERVAL", 0)
    monkeypatch.setattr(ChangeFeed, "_woken", wait)
    monkeypatch.setattr(ChangeFeed, "poll", poll)
    feed = new_feed()
    async with asyncio.timeout(30), feed.subscription(None):
        await feed._read()
    assert waits == [0.0, 0.25, 5.0, 5.0, 5.0, 0.25]


async def test_a_wakeup_counts_once() -> None:
    """The next read waits for another one, or until it is due."""
    feed = new_feed()
    feed._wakeup.set()
    assert [await feed._woken(0.001), await feed._woken(0.001)] == [True, False]


def new_feed(reader: ReadPool | None = None) -> ChangeFeed:
    """Return a feed without servers."""
    connection = SupervisedConnection("amqp://127.0.0.1:1/", "test")
    pool: ReadPool = reader or object()  # type: ignore[assignment]
    return ChangeFeed(connection, TopologyNames("p"), pool, Metrics(), nullable_ids_as_objects=False, most_of_user=500)


async def _iterations(feed: ChangeFeed) -> None:
    """Wake the feed, and give its loop the time of several reads."""
    for _ in range(20):
        feed._wakeup.set()
        await asyncio.sleep(MIN_READ_INTERVAL)
