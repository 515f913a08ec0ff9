from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from taskherd.broker.ack_tracker import Acks, AckTracker


class FakeBroker:
    """What RabbitMQ does with acks: an unknown tag closes the channel."""

    def __init__(self, delivered: int) -> None:
        self.unacked = set(range(1, delivered + 1))

    def take(self, acks: Acks) -> None:
        """Forget what `acks` names; fails on a tag that is not unacked."""
        for tag in acks.single:
            self.unacked.remove(tag)
        if acks.up_to is not None:
            assert acks.up_to in self.unacked
            self.unacked = {tag for tag in self.unacked if tag > acks.up_to}


@given(st.lists(st.lists(st.integers(1, 30), max_size=12), max_size=12))
def test_exactly_what_is_settled_is_acknowledged(batches: list[list[int]]) -> None:
    """Whatever the order and repetition, the broker is left with exactly the tags that nobody settled."""
    broker, outstanding = FakeBroker(30), AckTracker()
    settled: set[int] = set()
    for batch in batches:
        broker.take(outstanding.settle(batch))
        settled |= set(batch)
        assert broker.unacked == set(range(1, 31)) - settled


def test_a_covered_prefix_takes_one_frame() -> None:
    """A thousand deliveries taken in order are acknowledged with one frame."""
    assert AckTracker().settle(range(1, 1001)) == Acks(1000, ())
