"""The names of exchanges and queues, and on how many channels partitions are declared."""

from __future__ import annotations

import pytest

from taskherd.broker import topology
from taskherd.broker.topology import TopologyNames


def test_all_names_have_the_prefix() -> None:
    """So several installations can share a broker."""
    names = TopologyNames("p")
    assert names.exchanges == ("p.dead", "p.reports", "p.commands", "p.claims", "p.events", "p.wakeups", "p.work")
    assert names.queues == ("p.dead", "p.reports", "p.commands", "p.claims")
    assert (names.report_hash, names.partition(7)) == ("p.reports.hash", "p.reports.7")
    assert names.work_queue("r") == "p.work.r"
    assert names.report_queues() == names.report_queues(1) == ("p.reports",)
    assert names.report_queues(2) == ("p.reports", "p.reports.0", "p.reports.1")
    assert TopologyNames().reports == "taskherd.reports"


@pytest.mark.parametrize(
    ("partitions", "channels"), [(1, 1), (8, 1), (9, 2), (16, 2), (17, 3), (64, 8), (65, 8), (1_000, 8)]
)
def test_eight_partitions_are_worth_a_channel(partitions: int, channels: int) -> None:
    """There are 8 channels at most."""
    assert topology.channels_for(partitions) == channels
