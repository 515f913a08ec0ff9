"""What the benchmark of the board computes from what it measures."""

from __future__ import annotations

import pytest

from benchmarks.cases.board.feeds import Arrivals
from benchmarks.cases.board.figures import Figure, growth, percentile
from benchmarks.cases.board.weight import Weight, weigh


def test_a_percentile_counts_each_value_as_often_as_it_is_there() -> None:
    """The smallest value that a share of all values does not exceed."""
    counts = {5: 98, 900: 1, 7: 1}
    assert [percentile(counts, share) for share in (0.5, 0.98, 0.99, 1)] == [5, 5, 7, 900]
    with pytest.raises(ValueError, match="no values"):
        percentile({}, 0.99)


def test_growth_is_that_of_the_highest_values() -> None:
    """What goes up and down does not grow; what is higher in the second half does."""
    assert growth([1.0, 3.0, 2.0, 3.0]) == 0
    assert growth([1.0, 2.0, 3.0, 4.0]) == 2


def test_a_figure_says_whether_its_target_is_met() -> None:
    """A value above the target is not met; without a target there is nothing to say."""
    assert Figure("p99", 100.0, "ms", 100.0).line == "| p99 | 100 ms | ≤ 100 ms | yes |"
    assert Figure("p99", 100.4, "ms", 100.0, "all").line == "| p99 | 100 ms (all) | ≤ 100 ms | **no** |"
    assert Figure("CPU", 1.25, "%").line == "| CPU | 1.2 % |  |  |"


def test_a_file_weighs_once_and_each_answer_of_the_api() -> None:
    """A file that is asked for twice comes from the cache; an answer that is read twice is sent twice."""
    entries = [("/", 1, 2), ("/assets/1/a.js", 10, 30), ("/assets/1/a.js", 10, 30)]
    entries += [("/api/v2/tasks", 100, 100), ("/api/v2/tasks", 100, 100)]
    loaded = [{"name": name, "encodedBodySize": size, "decodedBodySize": full} for name, size, full in entries]
    assert weigh(loaded) == Weight(files=2, file_bytes=11, decoded_bytes=32, answers=2, answer_bytes=200)


def test_an_event_is_late_by_the_time_since_its_report_was_due() -> None:
    """Reports are due at an even rate; only changes of tasks count, and resets by themselves."""
    arrivals = Arrivals(expected=1, rate=1_000)
    arrivals.take(b'event: task.snapshot\ndata: {"message":"step 1: reading"}', 0.0)
    arrivals.take(b"event: reset\ndata: {}", 0.0)
    assert (arrivals.events, arrivals.resets) == (0, 1)
    arrivals.take(b'id: 7\nevent: task.updated\ndata: {"message":"step 2000: reading"}', 2.025)
    assert arrivals.delays == {25: 1}
