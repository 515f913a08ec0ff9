"""When the next batch starts while another one runs."""

from __future__ import annotations

import asyncio
from uuid import uuid4

from taskherd.worker.concurrency import BatchFootprint, BatchScheduler

LONG = 60.0


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
        done, _ = await asyncio.wait({third}, timeout=0.05)
        assert not done
        first.set()
        await third
        second.set()


async def test_a_smaller_batch_waits_for_the_running_one_to_end() -> None:
    """It grows in the meantime."""
    async with asyncio.TaskGroup() as group:
        scheduler = BatchScheduler(group)
        running = await run_batch(scheduler, 3)
        smaller = asyncio.create_task(scheduler.wait_slot(lambda: 2, LONG))
        done, _ = await asyncio.wait({smaller}, timeout=0.05)
        assert not done
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
