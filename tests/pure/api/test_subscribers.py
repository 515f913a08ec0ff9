"""The subscribers of the change feed: what each gets, how much waits for it, and when it must resume."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest

from taskherd.api import change_feed
from taskherd.api.change_feed import ChangeFeed, Subscriber
from taskherd.api.changes import Change, ChangeFilter
from taskherd.api.http.errors import HTTPError
from taskherd.broker.connection import SupervisedConnection
from taskherd.broker.topology import TopologyNames
from taskherd.errors import Unavailable
from taskherd.observability.metrics import Metrics
from taskherd.store.read_pool import ReadPool
from tests.pure.api.test_changes import ALICE, ANY, change

BOB = UUID(int=0xB)
METRIC = "taskherd_api_followers"


def at(position: int, *, viewer: UUID = ALICE, **fields: Any) -> Change:
    """Return the change at a position that one user may see."""
    found = change({}, position=position, **fields)
    found.viewers = {viewer}
    return found


def positions(changes: list[Change]) -> list[int]:
    """Return the positions of changes."""
    return [each.position for each in changes]


async def received(subscriber: Subscriber) -> list[int]:
    """Return the positions of what waits for a subscriber."""
    return positions(list(await subscriber.next(0.001)))


def new_feed() -> ChangeFeed:
    """Return a feed that has read up to position 5, without servers."""
    connection = SupervisedConnection("amqp://127.0.0.1:1/", "test")
    reader: ReadPool = object()  # type: ignore[assignment]
    feed = ChangeFeed(
        connection, TopologyNames("p"), reader, Metrics(), nullable_ids_as_objects=False, most_of_user=500
    )
    feed._position = 5
    return feed


async def test_a_subscriber_gets_the_changes_after_its_position_that_match() -> None:
    """In order, each once; none if none came in time."""
    subscriber = Subscriber(ChangeFilter(ALICE, status="active"), after=3)
    for each in (at(3), at(4), change({"status": "paused"}, position=5), at(6)):
        subscriber.offer(each)
    assert await received(subscriber) == [4, 6]
    assert await received(subscriber) == []
    assert not subscriber.ended


async def test_a_subscriber_is_woken_by_a_change_and_by_its_end() -> None:
    """It need not wait for its timeout."""
    subscriber = Subscriber(ANY, after=0)
    for change_or_end, expected in ((at(1), [1]), (None, [])):
        waiting = asyncio.create_task(subscriber.next(60))
        await asyncio.sleep(0)
        subscriber.end() if change_or_end is None else subscriber.offer(change_or_end)
        async with asyncio.timeout(30):
            assert positions(list(await waiting)) == expected
    async with asyncio.timeout(30):
        assert not await subscriber.next(60)


async def test_a_subscriber_for_whom_too_many_changes_wait_must_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the limit they wait; one more drops them all, and nothing follows that would leave a gap."""
    monkeypatch.setattr(change_feed, "MAX_BACKLOG", 2)
    subscriber = Subscriber(ANY, after=0)
    for position in (1, 2):
        subscriber.offer(at(position))
    assert await received(subscriber) == [1, 2]
    for position in (3, 4, 5, 6):
        subscriber.offer(at(position))
    assert subscriber.ended
    assert await received(subscriber) == []


async def test_a_subscriber_for_whom_too_many_bytes_wait_must_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has received does not count."""
    size = len(at(1).frame)
    monkeypatch.setattr(change_feed, "MAX_BACKLOG_BYTES", 2 * size)
    subscriber = Subscriber(ANY, after=0)
    for first in (1, 3):
        subscriber.offer(at(first))
        subscriber.offer(at(first + 1))
        assert await received(subscriber) == [first, first + 1]
    for position in (5, 6, 7):
        assert not subscriber.ended
        subscriber.offer(at(position))
    assert subscriber.ended


async def test_500_changes_or_8_mib_wait_for_a_subscriber() -> None:
    """As many as a client misses in a moment; of large ones fewer, to the byte."""
    many, large = Subscriber(ANY, after=0), Subscriber(ANY, after=0)
    for position in range(1, 501):
        many.offer(at(position))
    for position in range(1, 9):
        prompt = "x" * (1024 * 1024 - len(at(position, prompt="").frame))
        large.offer(at(position, prompt=prompt))
    assert (many.ended, large.ended) == (False, False)
    many.offer(at(501))
    large.offer(at(9))
    assert (many.ended, large.ended) == (True, True)


async def test_only_who_may_see_a_change_gets_it() -> None:
    """Each subscriber of a user, and none of another's."""
    feed = new_feed()
    mine, too = feed.subscribe(ANY, 5), feed.subscribe(ANY, 7)
    others = feed.subscribe(ChangeFilter(BOB), 5)
    assert mine is not None
    assert too is not None
    assert others is not None
    for each in (at(6), at(7, viewer=BOB), at(8), at(9, kind=None, erased="yes")):
        feed._distribute(each)
    assert [await received(each) for each in (mine, too, others)] == [[6, 8], [8], [7]]
    feed.unsubscribe(mine)
    feed.unsubscribe(mine)
    feed._distribute(at(10))
    assert (mine.ended, await received(mine), await received(too)) == (True, [], [10])
    feed._distribute(at(11, viewer=BOB, kind=None, erased=None))
    assert (too.ended, others.ended) == (True, True)  # an event was pruned before they got it
    for subscriber in (too, others):
        feed.unsubscribe(subscriber)
    assert not feed._subscribers


async def test_who_is_behind_the_feed_catches_up_first() -> None:
    """A subscriber begins where the feed is, or later."""
    feed = new_feed()
    assert feed.subscribe(ANY, 4) is None
    assert feed.subscribe(ANY, 5) is not None
    feed._position = None
    assert feed.subscribe(ANY, 5) is None


async def test_the_number_of_subscribers_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that leaves makes room; with the last one the position is forgotten, since nobody reads the feed any more."""
    process = new_feed()
    for count, is_full in ((3_999, False), (4_000, True)):
        process._subscriber_count = count
        assert process.is_full is is_full
    monkeypatch.setattr(change_feed, "MAX_SUBSCRIBERS", 2)
    feed = new_feed()

    def followers() -> float | None:
        return feed._metrics.registry.get_sample_value(METRIC)

    async with feed.subscription(ALICE):
        async with feed.subscription(ALICE):
            assert (feed.is_full, followers()) == (True, 2)
            with pytest.raises(Unavailable, match="too many subscribers"):
                await feed.subscription(ALICE).__aenter__()
        assert (feed.is_full, followers(), feed._position) == (False, 1, 5)
    assert (followers(), feed._position) == (0, None)


async def test_the_number_of_subscribers_of_one_user_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is counted exactly, also after a refusal; others and agents have room, and nothing is kept of who left."""
    monkeypatch.setattr(change_feed, "MAX_SUBSCRIBERS", 5)
    feed = new_feed()
    feed._most_of_user = 2
    async with feed.subscription(ALICE), feed.subscription(None), feed.subscription(None):
        feed.check_room(ALICE)
        async with feed.subscription(ALICE):
            for _ in range(2):
                with pytest.raises(HTTPError) as refused:
                    feed.check_room(ALICE)
                assert refused.value.response.status == 429
                with pytest.raises(Unavailable, match="too many subscribers"):
                    await feed.subscription(ALICE).__aenter__()
            feed.check_room(BOB)
            async with feed.subscription(BOB):
                for user_id in (ALICE, BOB, UUID(int=0xC)):
                    with pytest.raises(HTTPError) as refused:
                        feed.check_room(user_id)
                    assert refused.value.response.status == 503
        feed.check_room(ALICE)
    assert not feed._count_by_user


async def test_a_feed_that_stops_ends_its_subscribers_and_takes_no_more() -> None:
    """One that was about to subscribe is ended at once."""
    feed = new_feed()
    subscriber = feed.subscribe(ANY, 5)
    assert subscriber is not None
    feed.stop()
    late = feed.subscribe(ANY, 5)
    assert late is not None
    assert (subscriber.ended, late.ended) == (True, True)
    with pytest.raises(Unavailable):
        await feed.subscription(ALICE).__aenter__()


async def test_a_feed_that_cannot_be_read_has_no_position(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while that is an outage."""
    monkeypatch.setattr(change_feed, "START_TIMEOUT", 0.001)
    with pytest.raises(Unavailable, match="cannot read the change feed"):
        await new_feed().position()


@pytest.mark.parametrize(("followers", "status"), [(3_999, None), (4_000, 503)])
async def test_a_process_has_room_for_4000_subscribers(followers: int, status: int | None) -> None:
    """The next one is told before anything is sent."""
    feed = new_feed()
    feed._subscriber_count = followers
    if status is None:
        feed.check_room(ALICE)
        async with feed.subscription(ALICE):
            assert feed.is_full
    else:
        with pytest.raises(HTTPError) as raised:
            feed.check_room(ALICE)
        assert raised.value.response.status == status
