"""From publishing a report to getting its event, at a steady rate."""

from __future__ import annotations

import asyncio
import signal
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import aio_pika
import orjson

from benchmarks.harness.services import NAMES, BenchmarkServices, children
from benchmarks.harness.workload import Workload, task_id

if TYPE_CHECKING:
    from aio_pika.abc import AbstractIncomingMessage

RATE = 500
"""Reports a second, each of another task, each with a change that is told."""

WARM_UP = 1.0
TAIL = 3.0
_TICK = 0.01


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds from publish to delivery, and how many never came."""

    p50: float
    p99: float
    lost: int


async def measure(stage: BenchmarkServices, module: str, seconds: float) -> Latency:
    """Publish at ``RATE`` for so long, after a warm-up that does not count, and see when each event arrives."""
    work = Workload(10_000, int(RATE * (seconds + WARM_UP)), first=1_000)
    await stage.set_up(work)
    process = children(stage, module)
    try:
        async with await aio_pika.connect(stage.amqp_url, timeout=10) as connection:
            arrivals = await _listen(connection)
            departures = await _send(connection, int(RATE * (seconds + WARM_UP)))
            until = time.monotonic() + TAIL
            while departures.keys() - arrivals.keys() and time.monotonic() < until:  # noqa: ASYNC110 - of another process, which sends no event
                await asyncio.sleep(_TICK)
    finally:
        process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(process.wait, 40)
    counted = sorted(departures, key=departures.__getitem__)[int(RATE * WARM_UP) :]
    took = [arrivals[name] - departures[name] for name in counted if name in arrivals]
    cuts = statistics.quantiles(took, n=100)
    return Latency(cuts[49], cuts[98], len(counted) - len(took))


async def _listen(connection: aio_pika.abc.AbstractConnection) -> dict[str, float]:
    """Note when the event about each status message arrives; it is the report itself that a bare peer sends back."""
    arrivals: dict[str, float] = {}

    async def arrived(message: AbstractIncomingMessage) -> None:
        now = time.monotonic()
        said = orjson.loads(message.body)
        for event in said if isinstance(said, list) else [said]:
            told = event["data"]["task"]["current_state"] if "data" in event else event
            arrivals.setdefault(told["message"], now)

    channel = await connection.channel()
    queue = await channel.declare_queue(exclusive=True, arguments={"x-queue-type": "classic"}, timeout=10)
    await queue.bind(NAMES.events, "#", timeout=10)
    await queue.consume(arrived, no_ack=True)
    return arrivals


async def _send(connection: aio_pika.abc.AbstractConnection, count: int) -> dict[str, float]:
    """Publish one report for each tick of an even clock; first wait until somebody consumes."""
    channel = await connection.channel(publisher_confirms=False)
    while (await channel.declare_queue(NAMES.reports, passive=True)).declaration_result.consumer_count == 0:  # noqa: ASYNC110 - of another process, which sends no event
        await asyncio.sleep(_TICK)
    exchange = await channel.get_exchange(NAMES.reports, ensure=False)
    departures: dict[str, float] = {}
    began = time.monotonic()
    for number in range(count):
        late = began + number / RATE - time.monotonic()
        if late > 0:
            await asyncio.sleep(late)
        text = f"latency {number}"
        body = orjson.dumps(
            {"type": "app.status", "task_id": str(task_id(number % 10_000)), "build_number": 1, "seq": number + 10**9}
            | {"state": "working", "message": text}
        )
        message = aio_pika.Message(body, content_type="application/json", delivery_mode=2)
        departures[text] = time.monotonic()
        await exchange.publish(message, str(task_id(number % 10_000)))
    return departures
