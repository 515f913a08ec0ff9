"""How long a batch waits, by the rate at which reports come."""

from __future__ import annotations

import pytest

from taskherd.worker.pacing import AVERAGED_OVER, ENOUGH, MAX_RATE, MAX_WAIT, WAITS_FROM, WAITS_LONGEST_FROM, Pace

BETWEEN = (WAITS_FROM + WAITS_LONGEST_FROM) / 2


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
    stream.pace.note(int(WAITS_FROM * AVERAGED_OVER))
    assert stream.pace.wait(0) == 0, "nothing came before the first batch"
    stream.pace.note(1)
    assert stream.pace.wait(0) > 0


@pytest.mark.parametrize(
    ("rate", "wait"),
    [
        (100, 0),
        (500, 0),
        (BETWEEN, pytest.approx(MAX_WAIT / 2, rel=0.35)),
        (WAITS_LONGEST_FROM, pytest.approx(MAX_WAIT, rel=0.15)),
        (2_000, pytest.approx(ENOUGH / 2_000, rel=0.15)),
        (20_000, ENOUGH / MAX_RATE),
    ],
)
@pytest.mark.parametrize("every", [0.01, 0.04, 0.1])
def test_batches_wait_until_they_are_to_have_enough(rate: float, wait: float, every: float) -> None:
    """Whatever the size of batches is, they wait by the rate: not at all at first, never longer than is allowed."""
    measured = Stream().run(rate, 10, every)
    assert measured == wait
    assert measured <= MAX_WAIT


def test_what_is_there_already_shortens_the_wait() -> None:
    """A batch waits for what is missing, at the rate at which it comes."""
    half = Stream().run(2_000, 10, buffered=ENOUGH // 2)
    assert half == pytest.approx(Stream().run(2_000, 10) / 2)
    assert Stream().run(2_000, 10, buffered=ENOUGH) == Stream().run(2_000, 10, buffered=2 * ENOUGH) == 0


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
    assert stream.pace.wait(0) == MAX_WAIT
    assert stream.run(100, 2) == 0
