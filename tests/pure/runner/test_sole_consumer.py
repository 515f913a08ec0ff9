"""Whether a runner is the only consumer of the queue of its name, by how many there are and when."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from taskherd.errors import Unavailable
from taskherd.runner.sole_consumer import CONFIRM_EVERY, LOOK_EVERY, MAX_LINGERING, SoleConsumer


class Queue:
    """A queue with so many consumers, of which the runner may be one, and the time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.count = 0
        self.consumes = False
        self.asked = 0
        self.sole = SoleConsumer("r-1", self._count, lambda: self.consumes, clock=lambda: self.now)

    async def _count(self) -> int:
        self.asked += 1
        return self.count

    async def begin(self, *, others: int = 0) -> None:
        """Have the runner consume, beside these others."""
        self.count = 0
        await self.sole.check()
        self.consumes, self.count = True, 1 + others


@pytest.fixture
async def queue() -> Queue:
    """Return a queue without a consumer."""
    return Queue()


async def test_a_name_that_is_taken_is_refused(queue: Queue) -> None:
    """Until it is free; the log says it once."""
    queue.count = 1
    with capture_logs() as logged:
        for _ in range(2):
            with pytest.raises(
                Unavailable, match=r"another runner has the name r-1: its queue has a consumer\. "
            ) as no:
                await queue.sole.check()
            assert str(no.value) == queue.sole.problem
    assert [(entry["log_level"], entry["runner"]) for entry in logged] == [("error", "r-1")]
    queue.count = 0
    await queue.sole.check()
    assert queue.sole.problem is None
    assert not queue.sole.is_confirmed


async def test_a_runner_that_is_alone_is_let_in_again(queue: Queue) -> None:
    """Whoever consumes then; before it has looked, only if the consumer is its own."""
    await queue.begin()
    await queue.sole.check()
    queue.consumes = False
    with pytest.raises(Unavailable):
        await queue.sole.check()
    queue.consumes = True
    assert queue.sole.look_after == CONFIRM_EVERY
    assert await queue.sole.look()
    assert queue.sole.is_confirmed
    assert queue.sole.problem is None
    assert queue.sole.look_after == LOOK_EVERY
    queue.consumes, queue.count = False, 1
    asked = queue.asked
    await queue.sole.check()
    assert queue.asked == asked


async def test_two_that_come_at_the_same_time_both_begin_anew(queue: Queue) -> None:
    """It tells nobody whose the name is; who comes first then has it."""
    await queue.begin(others=1)
    assert not await queue.sole.look()
    assert not queue.sole.is_confirmed
    queue.consumes, queue.count = False, 1
    with pytest.raises(Unavailable):
        await queue.sole.check()


@pytest.mark.parametrize(("consumes", "count"), [(False, 1), (False, 2), (True, 0)])
async def test_what_is_not_known_changes_nothing(queue: Queue, *, consumes: bool, count: int) -> None:
    """A runner that is not subscribed, or a queue whose leader does not answer, says nothing about the name."""
    queue.consumes, queue.count = consumes, count
    assert await queue.sole.look()
    assert not queue.sole.is_confirmed


async def test_a_second_consumer_is_another_runners_if_it_stays(queue: Queue) -> None:
    """The runner goes on, and says so until the other one is gone; one of its own is gone before."""
    await queue.begin()
    await queue.sole.look()
    queue.count = 2
    for queue.now in (100.0, 99.0 + MAX_LINGERING):
        assert await queue.sole.look()
        assert queue.sole.problem is None
    await queue.sole.check()  # it has connected again, so the second one may be its own
    queue.now += MAX_LINGERING
    assert await queue.sole.look()
    assert queue.sole.problem is None
    queue.now += MAX_LINGERING
    with capture_logs() as logged:
        for _ in range(2):
            assert await queue.sole.look()
            assert "another runner has the name r-1" in str(queue.sole.problem)
    assert len(logged) == 1
    queue.count = 1
    assert await queue.sole.look()
    assert queue.sole.problem is None
    queue.count = 2
    assert await queue.sole.look()
    assert queue.sole.problem is None, "it has not stayed yet"
