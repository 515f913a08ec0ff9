"""How long a batch waits, by the rate at which reports come."""

from __future__ import annotations

import math

import pytest

from taskherd.worker.pacing import Pace


class Stream:
    """Deliveries at a rate, in batches."""

    def __init__(self) -> None:
        self.time = 1_000.0
        self.pace = Pace(lambda: self.time)

    def run(self, rate: float, seconds: float, every: float = 0.01, buffered: int = 0) -> float:
        """Let deliveries come, and return how long the next batch waits, of which so many are there."""
        for number in range(round(seconds / every)):
            self.time += every
            self.pace.note(int(rate * every * (number + 1)) - int(rate * every * number))
        return self.pace.wait(buffered)


def test_nothing_waits_at_first() -> None:
    """The first batch of a worker does not wait, however many deliveries it has to expect."""
    stream = Stream()
    assert stream.pace.wait(0) == 0
    stream.pace.note(600)
    assert stream.pace.wait(0) == 0, "nothing came before the first batch"
    stream.pace.note(1)
    assert stream.pace.wait(0) > 0


@pytest.mark.parametrize(
    ("rate", "wait"),
    [
        (100, 0),
        (500, 0),
        (750, pytest.approx(0.1, rel=0.35)),
        (900, pytest.approx(0.2, rel=0.15)),
        (2_000, pytest.approx(200 / 2_000, rel=0.15)),
        (20_000, 200 / 3_600),
    ],
)
@pytest.mark.parametrize("every", [0.01, 0.04, 0.1])
def test_batches_wait_until_they_are_to_have_enough(rate: float, wait: float, every: float) -> None:
    """Whatever the size of batches is, they wait by the rate: not at all at first, never longer than is allowed."""
    measured = Stream().run(rate, 10, every)
    assert measured == wait
    assert measured <= 0.2


def test_what_is_there_already_shortens_the_wait() -> None:
    """A batch waits for what is missing, at the rate at which it comes."""
    half = Stream().run(2_000, 10, buffered=100)
    assert half == pytest.approx(Stream().run(2_000, 10) / 2)
    assert Stream().run(2_000, 10, buffered=200) == Stream().run(2_000, 10, buffered=400) == 0


def test_a_burst_is_forgotten() -> None:
    """After a burst batches do not wait for long: its weight fades with the seconds."""
    stream = Stream()
    assert stream.run(20_000, 5) > 0
    stream.time += 1.8
    assert stream.pace.wait(0) == 0


def test_a_single_large_batch_is_no_rate_for_long() -> None:
    """A backlog that was taken at once makes only the batches of the next second wait."""
    stream = Stream()
    stream.pace.note(1_000)
    assert stream.pace.wait(0) == 0.2
    assert stream.run(100, 2) == 0


@pytest.mark.parametrize(
    ("rate", "buffered", "wait"),
    [
        (600, 0, 0),
        (750, 0, 0.1),
        (900, 0, 0.2),
        (1_000, 0, 0.2),
        (2_000, 100, 0.05),
        (2_000, 199, 0.0005),
        (5_000, 0, 1 / 18),
    ],
)
def test_how_long_a_batch_waits_at_a_rate(rate: int, buffered: int, wait: float) -> None:
    """A part of the wait from 600 deliveries a second on, and all of it from 900 on, until there are to be 200."""
    stream = Stream()
    stream.pace.note(rate)
    assert stream.pace.wait(buffered) == pytest.approx(wait, rel=1e-9)


def test_a_delivery_loses_most_of_its_weight_in_a_second() -> None:
    """As much of what is left in each further one."""
    stream = Stream()
    stream.pace.note(2_000)
    for decayed in (2_000 / math.e, 2_000 / math.e**2):
        stream.time += 1
        expected = min(1.0, max(0.0, decayed - 600) / 300) * min(0.2, 200 / decayed)
        assert stream.pace.wait(0) == pytest.approx(expected, rel=1e-9)
