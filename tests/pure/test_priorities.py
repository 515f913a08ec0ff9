"""Who gets which partition."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from taskherd.broker import topology


def test_priorities_are_spread_and_move_only_what_they_must() -> None:
    """Over many queues each of four workers wins about a quarter; without one of them no other queue changes hands."""
    workers = ("a", "b", "c", "d")
    queues = [f"taskherd.reports.{number}" for number in range(4000)]

    def holder(queue: str, among: Sequence[str]) -> str:
        return max(among, key=lambda worker: topology.priority(worker, queue))

    before = {queue: holder(queue, workers) for queue in queues}
    after = {queue: holder(queue, workers[1:]) for queue in queues}
    assert all(900 < count < 1100 for count in Counter(before.values()).values())
    assert all(after[queue] == before[queue] for queue in queues if before[queue] != "a")
    assert all(0 <= topology.priority("a", queue) < 2**31 for queue in queues)
