"""Changes of tasks at a steady rate, through the real worker: reports, of which every second one changes its task."""

from __future__ import annotations

import asyncio
import signal
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import aio_pika

from benchmarks.cases.steady import drain, until_consumers
from benchmarks.harness import backlog
from benchmarks.harness.contenders import WORKER
from benchmarks.harness.services import TOPOLOGY_NAMES, start_process
from benchmarks.harness.workload import Workload

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from benchmarks.harness.services import BenchmarkServices

REPORTS_PER_CHANGE = 2


@dataclass(slots=True)
class Changes:
    """Changes that are being made.

    ``sent``: reports so far; ``began``: when, in seconds of the monotonic clock; ``made``: ends with the last.
    """

    sent: int = 0
    began: float = 0.0
    made: asyncio.Task[None] | None = None

    def on_sent(self, sent: int) -> None:
        """Record the number of reports published so far."""
        self.began = self.began or time.monotonic()
        self.sent = sent

    def publish(self, services: BenchmarkServices, tasks: int, rate: int, seconds: float) -> asyncio.Task[None]:
        """Begin to publish reports that make ``rate`` changes per second."""
        work = Workload(tasks, int(REPORTS_PER_CHANGE * rate * seconds))
        self.made = asyncio.create_task(
            backlog.publish_steadily(
                services.amqp_url,
                TOPOLOGY_NAMES.reports,
                work.messages(),
                REPORTS_PER_CHANGE * rate,
                self.on_sent,
            )
        )
        return self.made


@asynccontextmanager
async def running_worker(services: BenchmarkServices) -> AsyncIterator[Changes]:
    """Run a worker, which consumes, while the block runs, and end what is published at its end."""
    process = start_process(services, WORKER.module)
    draining = asyncio.create_task(asyncio.to_thread(drain, process))
    changes = Changes()
    try:
        async with await aio_pika.connect(services.amqp_url, timeout=10) as connection:
            await until_consumers(await connection.channel(), 1)
        yield changes
    finally:
        if changes.made is not None:
            changes.made.cancel()
        process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(process.wait, 40)
        await draining
