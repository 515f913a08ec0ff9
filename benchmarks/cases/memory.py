"""The worker's highest resident memory while many messages wait."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

import psutil

from benchmarks.harness.contenders import WORKER
from benchmarks.harness.run import Row
from benchmarks.harness.services import BenchmarkServices, start_process
from benchmarks.harness.workload import Workload

if TYPE_CHECKING:
    from benchmarks.harness.run import Run

WAITING = 1_000_000
DURATION = 20.0
"""Seconds of work; the buffer is full, and every code path was used, within the first few."""
FEW = 2_000
"""Messages for the measurement without a backlog."""


async def measure(run: Run) -> None:
    """Compare the resident memory with many messages waiting with none."""
    few, many = await _highest(run.services, FEW), await _highest(run.services, WAITING)
    run.record(
        f"resident memory: {few / 2**20:.0f} MiB with no message waiting, {many / 2**20:.0f} MiB with {WAITING:,}"
    )
    run.rows.append(
        Row(
            f"resident memory, {WAITING:,} messages waiting",
            f"{many / 2**20:.0f} MiB",
            "no message waiting",
            f"{few / 2**20:.0f} MiB",
            (many - few) / 2**20,
            50,
            at_most=True,
            unit="MiB more",
        )
    )


async def _highest(services: BenchmarkServices, messages: int) -> int:
    """Return the highest resident memory of a worker, in bytes, while it processes ``messages``."""
    work = Workload(10_000, messages)
    await services.prepare(work)
    await services.fill_queue(work)
    process = start_process(services, WORKER.module)
    try:
        highest, loop = 0, asyncio.get_running_loop()
        until = loop.time() + DURATION
        while loop.time() < until:
            highest = max(highest, psutil.Process(process.pid).memory_info().rss)
            await asyncio.sleep(0.2)
        return highest
    finally:
        services.backlogs.pop(work, None)
        process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(process.wait, 40)
