"""Ack frames for deliveries that are acknowledged in any order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from taskherd.broker.ack_tracker import Acks, AckTracker


class FakeBroker:
    """RabbitMQ's handling of acks: an unknown tag is an error."""

    def __init__(self, delivered: int) -> None:
        self.unacked = set(range(1, delivered + 1))

    def apply(self, acks: Acks) -> None:
        """Apply ``acks``; fail on a tag that is not unacknowledged."""
        for tag in acks.single:
            self.unacked.remove(tag)
        if acks.up_to is not None:
            assert acks.up_to in self.unacked
            self.unacked = {tag for tag in self.unacked if tag > acks.up_to}


@given(st.lists(st.lists(st.integers(1, 30), max_size=12), max_size=12))
def test_exactly_the_acknowledged_tags_are_acked(batches: list[list[int]]) -> None:
    """For any order and repetition, exactly the tags that were not acknowledged stay unacknowledged at the broker."""
    broker, tracker = FakeBroker(30), AckTracker()
    acknowledged: set[int] = set()
    for batch in batches:
        broker.apply(tracker.acknowledge(batch))
        acknowledged |= set(batch)
        assert broker.unacked == set(range(1, 31)) - acknowledged


def test_a_contiguous_run_takes_one_frame() -> None:
    """A thousand deliveries acknowledged in order take one frame."""
    assert AckTracker().acknowledge(range(1, 1001)) == Acks(1000, ())


def test_all_before_the_first_that_is_open_take_one_frame() -> None:
    """Those after it have one each; once it is acknowledged, one frame takes it and what was acknowledged with it."""
    tracker = AckTracker()
    assert tracker.acknowledge([5, 3, 1, 2]) == Acks(3, (5,))
    assert tracker.acknowledge([3, 5]) == tracker.acknowledge([]) == Acks(None, ())
    assert tracker.acknowledge([4, 6, 8]) == Acks(6, (8,))


def test_a_delivery_that_stays_unacknowledged_costs_no_memory() -> None:
    """Only the tags that are not acknowledged are remembered, not those after them that are."""
    tracker = AckTracker()
    for tag in range(2, 10_000):
        assert tracker.acknowledge([tag]) == Acks(None, (tag,))
    assert tracker._open == {1}
    assert tracker.acknowledge([1]) == Acks(1, ())
