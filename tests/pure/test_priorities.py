"""The assignment of partitions to workers by consumer priority."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from taskherd.broker import topology


def test_priorities_distribute_queues_and_move_only_those_of_a_lost_worker() -> None:
    """Each of four workers gets about a quarter of the queues; if one leaves, only its queues move."""
    workers = ("a", "b", "c", "d")
    queues = [f"taskherd.reports.{number}" for number in range(4000)]

    def owner(queue: str, candidates: Sequence[str]) -> str:
        return max(candidates, key=lambda worker: topology.consumer_priority(worker, queue))

    before = {queue: owner(queue, workers) for queue in queues}
    after = {queue: owner(queue, workers[1:]) for queue in queues}
    assert all(900 < count < 1100 for count in Counter(before.values()).values())
    assert all(after[queue] == before[queue] for queue in queues if before[queue] != "a")
    priorities = [topology.consumer_priority("a", queue) for queue in queues]
    assert 0 <= min(priorities) < 2**22
    assert 2**31 - 2**22 < max(priorities) < 2**31
