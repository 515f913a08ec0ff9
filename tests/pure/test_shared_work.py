"""Work that is done once for all who need it at the same time."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from taskherd.broker.shared_work import SharedWork
from taskherd.errors import Unavailable

NAME = "working"


class Work:
    """Work whose attempts end when a test says so; one that is cancelled ends only when the test lets it."""

    def __init__(self) -> None:
        self.attempts: list[asyncio.Future[int]] = []
        self.may_end = asyncio.Event()
        self.may_end.set()

    async def __call__(self) -> int:
        """Make an attempt."""
        self.attempts.append(asyncio.get_running_loop().create_future())
        try:
            return await self.attempts[-1]
        finally:
            await self.may_end.wait()


async def steps() -> None:
    """Let other tasks do what they can do now."""
    for _ in range(10):
        await asyncio.sleep(0)


async def start(shared: SharedWork[int], callers: int) -> list[asyncio.Task[int]]:
    """Start callers, and return them once they wait."""
    tasks = [asyncio.create_task(shared.result()) for _ in range(callers)]
    await steps()
    return tasks


def working() -> int:
    """Return how many attempts are in progress."""
    return sum(task.get_name() == NAME for task in asyncio.all_tasks())


async def test_callers_share_an_attempt() -> None:
    """All get its result or its error; whoever comes after its end starts another one, however soon."""
    work = Work()
    shared = SharedWork(NAME, work)
    early, late = await start(shared, 3), await start(shared, 2)
    assert len(work.attempts) == 1
    work.attempts[0].set_result(7)
    assert await asyncio.gather(*early, *late) == [7] * 5
    failing = await start(shared, 3)
    error = Unavailable("no broker")
    work.attempts[1].set_exception(error)
    after: list[asyncio.Task[int]] = []
    tasks = {task for task in asyncio.all_tasks() if task.get_name() == NAME}
    tasks.pop().add_done_callback(lambda _: after.append(asyncio.create_task(shared.result())))
    assert await asyncio.gather(*failing, return_exceptions=True) == [error] * 3
    await steps()
    assert len(work.attempts) == 3
    work.attempts[2].set_result(8)
    assert await after[0] == 8
    assert working() == 0


async def test_a_cancelled_caller_leaves_the_work_to_the_others() -> None:
    """Also the one that has begun it; the last one waits for its end, and a caller that comes meanwhile starts anew."""
    work = Work()
    shared = SharedWork(NAME, work)
    first, second, third = await start(shared, 3)
    for caller in (first, second):
        caller.cancel()
        await asyncio.wait({caller})
        assert caller.cancelled()
    assert not work.attempts[0].done()
    work.may_end.clear()
    third.cancel()
    await steps()
    assert work.attempts[0].cancelled()
    assert not third.done()
    (newcomer,) = await start(shared, 1)
    assert (len(work.attempts), working()) == (2, 2)
    work.may_end.set()
    await asyncio.wait({third})
    assert third.cancelled()
    assert not work.attempts[1].done()
    assert working() == 1
    work.attempts[1].set_result(7)
    assert await newcomer == 7


async def test_callers_that_leave_an_earlier_attempt_do_not_count() -> None:
    """One of an attempt that is being ended leaves the next one alone."""
    work = Work()
    shared = SharedWork(NAME, work)
    (early,) = await start(shared, 1)
    work.may_end.clear()
    ending = asyncio.create_task(shared.cancel())
    await steps()
    (late,) = await start(shared, 1)
    early.cancel()
    await asyncio.wait({early})
    assert early.cancelled()
    assert not work.attempts[1].done()
    work.may_end.set()
    await ending
    work.attempts[1].set_result(7)
    assert await late == 7


async def test_work_can_be_ended() -> None:
    """Its callers are told; there may be none, and the next one starts another attempt."""
    work = Work()
    shared = SharedWork(NAME, work)
    await shared.cancel()
    callers = await start(shared, 2)
    await shared.cancel()
    assert working() == 0
    for outcome in await asyncio.gather(*callers, return_exceptions=True):
        assert isinstance(outcome, Unavailable)
        assert str(outcome) == "working: cancelled"
    (another,) = await start(shared, 1)
    work.attempts[1].set_result(7)
    assert await another == 7
    await shared.cancel()


@pytest.mark.asyncio(loop_scope="function")
async def test_an_error_that_no_caller_waits_for_is_not_reported() -> None:
    """When all leave just as the work fails."""
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    work = Work()
    shared = SharedWork(NAME, work)
    callers = await start(shared, 2)
    (attempt,) = (task for task in asyncio.all_tasks() if task.get_name() == NAME)
    for caller in callers:
        attempt.add_done_callback(lambda _, caller=caller: caller.cancel())  # type: ignore[misc]
    work.attempts.pop().set_exception(Unavailable("no broker"))
    await asyncio.wait(callers)
    assert all(caller.cancelled() for caller in callers)
    assert attempt.done()
    del shared, work, attempt, caller, callers
    gc.collect()
    assert reported == []
