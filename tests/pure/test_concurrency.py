"""When the next batch starts while another one runs."""

from __future__ import annotations

import asyncio
from functools import partial
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest

from taskherd.worker.concurrency import BatchFootprint, BatchScheduler, isolate_possible_poison

LONG = 60.0


async def steps() -> None:
    """Let others run for a while."""
    for _ in range(10):
        await asyncio.sleep(0)


async def run_batch(scheduler: BatchScheduler, size: int) -> asyncio.Event:
    """Start a batch that ends when the returned event is set."""
    end = asyncio.Event()

    async def batch(_previous: asyncio.Task[None] | None) -> None:
        await end.wait()

    await scheduler.submit(BatchFootprint(frozenset({uuid4()}), size, alone=False), batch)
    return end


async def test_a_batch_that_is_not_smaller_starts_beside_the_running_one() -> None:
    """Without a running batch any size may start; of two running ones, one must end first."""
    async with asyncio.TaskGroup() as group:
        scheduler = BatchScheduler(group)
        await scheduler.wait_slot(lambda: 0, LONG)
        first = await run_batch(scheduler, 3)
        await scheduler.wait_slot(lambda: 3, LONG)
        second = await run_batch(scheduler, 3)
        third = asyncio.create_task(scheduler.wait_slot(lambda: 10, LONG))
        await steps()
        assert not third.done()
        first.set()
        await third
        second.set()


async def test_a_smaller_batch_waits_for_the_running_one_to_end() -> None:
    """It grows in the meantime."""
    async with asyncio.TaskGroup() as group:
        scheduler = BatchScheduler(group)
        running = await run_batch(scheduler, 3)
        smaller = asyncio.create_task(scheduler.wait_slot(lambda: 2, LONG))
        await steps()
        assert not smaller.done()
        running.set()
        await smaller


async def test_a_smaller_batch_does_not_wait_for_one_that_is_held_up() -> None:
    """The running batch may wait for a lock, which holds up others for no longer than ``max_wait``."""
    async with asyncio.TaskGroup() as group:
        scheduler = BatchScheduler(group)
        running = await run_batch(scheduler, 3)
        async with asyncio.timeout(LONG):
            await scheduler.wait_slot(lambda: 1, 0.05)
        assert not running.is_set()
        assert scheduler.in_flight == 3
        running.set()


async def submitted(scheduler: BatchScheduler, footprint: BatchFootprint, ends: asyncio.Event) -> asyncio.Task[None]:
    """Submit a batch that ends with the event, and let others run for a while."""

    async def batch(_previous: asyncio.Task[None] | None) -> None:
        await ends.wait()

    submitting = asyncio.create_task(scheduler.submit(footprint, batch))
    await steps()
    return submitting


ONE, TWO, THREE = (frozenset({UUID(int=number)}) for number in (1, 2, 3))


@pytest.mark.parametrize(
    ("running", "following", "waits"),
    [
        (BatchFootprint(ONE, 1, alone=False), BatchFootprint(TWO, 1, alone=False), False),
        (BatchFootprint(ONE, 1, alone=False), BatchFootprint(frozenset(), 1, alone=False), False),
        (BatchFootprint(ONE | TWO, 1, alone=False), BatchFootprint(TWO | THREE, 1, alone=False), True),
        (BatchFootprint(ONE, 1, alone=True), BatchFootprint(TWO, 1, alone=False), True),
        (BatchFootprint(ONE, 1, alone=False), BatchFootprint(TWO, 1, alone=True), True),
    ],
)
async def test_a_batch_waits_for_one_with_which_it_conflicts(
    running: BatchFootprint, following: BatchFootprint, *, waits: bool
) -> None:
    """One of the same task, or one that runs alone; it starts when that has ended."""
    async with asyncio.TaskGroup() as group:
        scheduler, ends = BatchScheduler(group), asyncio.Event()
        await submitted(scheduler, running, ends)
        submitting = await submitted(scheduler, following, ends)
        assert submitting.done() is not waits
        assert scheduler.in_flight == 2 - waits
        ends.set()
        await submitting


async def test_no_more_than_two_batches_run_at_a_time() -> None:
    """Each knows the one before it, after which it ends."""
    previous: list[asyncio.Task[None] | None] = []
    ends = [asyncio.Event() for _ in range(3)]
    async with asyncio.TaskGroup() as group:
        scheduler = BatchScheduler(group)

        async def batch(before: asyncio.Task[None] | None, end: asyncio.Event) -> None:
            previous.append(before)
            await end.wait()

        footprints = [BatchFootprint(tasks, 1, alone=False) for tasks in (ONE, TWO, THREE)]
        submitting = [
            asyncio.create_task(scheduler.submit(footprint, partial(batch, end=end)))
            for footprint, end in zip(footprints, ends, strict=True)
        ]
        await steps()
        assert [each.done() for each in submitting] == [True, True, False]
        ends[1].set()
        await submitting[2]
        await steps()
        first, second, third = previous
        assert (first, second is None, third is None, second is third) == (None, False, False, False)
        for end in ends:
            end.set()


@pytest.mark.parametrize(
    ("running", "full", "waits"), [(0, False, False), (1, False, True), (1, True, False), (2, True, True)]
)
async def test_a_batch_that_is_not_full_waits_for_all_others(running: int, *, full: bool, waits: bool) -> None:
    """A full one for a place."""
    async with asyncio.TaskGroup() as group:
        scheduler, ends = BatchScheduler(group), asyncio.Event()
        for tasks in (ONE, TWO)[:running]:
            await submitted(scheduler, BatchFootprint(tasks, 1, alone=False), ends)
        waiting = asyncio.create_task(scheduler.wait_idle(lambda: full))
        await steps()
        assert waiting.done() is not waits
        ends.set()
        await waiting


def test_possible_poison_is_a_batch_of_its_own() -> None:
    """The others stay together, in their order."""
    kinds = "..p.pp.."
    deliveries: list[Any] = [SimpleNamespace(possible_poison=kind == "p", tag=tag) for tag, kind in enumerate(kinds)]
    parts = [[deliveries.index(each) for each in part] for part in isolate_possible_poison(deliveries)]
    assert parts == [[0, 1], [2], [3], [4], [5], [6, 7]]
    assert list(isolate_possible_poison([])) == []
    assert len(list(isolate_possible_poison(deliveries[:3]))) == 2
