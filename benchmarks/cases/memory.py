"""The worker's resident memory while many messages wait, at its highest."""

from __future__ import annotations

import asyncio
import signal

import psutil

from benchmarks.harness.contenders import WORKER
from benchmarks.harness.services import BenchmarkServices, children
from benchmarks.harness.workload import Workload

WATCHED = 20.0
"""Seconds at work; the buffer is full, and every path has been taken, within the first few."""
LITTLE = 2_000


async def measure(stage: BenchmarkServices, waiting: int) -> int:
    """The most bytes that a worker holds: at work on this many waiting messages, or after a few when it is none."""
    work = Workload(10_000, waiting or LITTLE)
    await stage.set_up(work)
    await stage.wait(work)
    process = children(stage, WORKER.module)
    try:
        highest, loop = 0, asyncio.get_running_loop()
        until = loop.time() + WATCHED
        while loop.time() < until:
            highest = max(highest, psutil.Process(process.pid).memory_info().rss)
            await asyncio.sleep(0.2)
        return highest
    finally:
        stage.backlogs.pop(work, None)
        process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(process.wait, 40)
