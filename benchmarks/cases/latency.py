"""Time from publishing a report to receiving its event, at a steady rate, compared with a bare round trip."""

from __future__ import annotations

import asyncio
import signal
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import aio_pika
import orjson

from benchmarks.harness.contenders import WORKER
from benchmarks.harness.run import Row
from benchmarks.harness.services import TOPOLOGY_NAMES, BenchmarkServices, start_process
from benchmarks.harness.workload import Workload, task_id

if TYPE_CHECKING:
    from aio_pika.abc import AbstractIncomingMessage

    from benchmarks.harness.run import Run

RATE = 500
"""Reports per second, each of another task, each with a change that is published."""

ROUND_TRIP = "bare publish, commit, publish"
WARM_UP = 1.0
DRAIN_TIMEOUT = 3.0
_POLL = 0.01


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds from publish to delivery, and the number of events that were not received."""

    p50: float
    p99: float
    lost: int


async def measure(run: Run) -> None:
    """Compare the time from report to event with a bare round trip through queue and database."""
    seconds = 2.0 if run.options.quick else 20.0
    run.log(f"latency: {RATE} app.status per second over 10,000 tasks for {seconds:g} s, from publish to delivery")
    results: dict[str, list[Latency]] = {"taskherd worker": [], ROUND_TRIP: []}
    modules = (WORKER.module, "benchmarks.peers.roundtrip")
    for number in range(run.rounds):
        for (name, latencies), module in zip(results.items(), modules, strict=True):
            one = await _latency(run.services, module, seconds)
            latencies.append(one)
            run.record(
                f"round {number + 1}: {name}: p50 {one.p50 * 1e3:.1f} ms, p99 {one.p99 * 1e3:.1f} ms, lost {one.lost}"
            )
    worker, round_trip = (statistics.median(one.p99 for one in latencies) for latencies in results.values())
    run.rows.append(
        Row(
            f"report to event, p99, {RATE}/s",
            f"{worker * 1e3:.1f} ms",
            ROUND_TRIP,
            f"{round_trip * 1e3:.1f} ms",
            worker / round_trip,
            1.5,
            at_most=True,
        )
    )


async def _latency(services: BenchmarkServices, module: str, seconds: float) -> Latency:
    """Publish at ``RATE`` for ``seconds`` after a warm-up that is not counted, and time the arrival of each event."""
    work = Workload(10_000, int(RATE * (seconds + WARM_UP)), first=1_000)
    await services.prepare(work)
    process = start_process(services, module)
    try:
        async with await aio_pika.connect(services.amqp_url, timeout=10) as connection:
            received = await _record_events(connection)
            published = await _publish_reports(connection, int(RATE * (seconds + WARM_UP)))
            until = time.monotonic() + DRAIN_TIMEOUT
            while published.keys() - received.keys() and time.monotonic() < until:  # noqa: ASYNC110 - of another process, which sends no event
                await asyncio.sleep(_POLL)
    finally:
        process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(process.wait, 40)
    counted = sorted(published, key=published.__getitem__)[int(RATE * WARM_UP) :]
    delays = [received[text] - published[text] for text in counted if text in received]
    cuts = statistics.quantiles(delays, n=100)
    return Latency(cuts[49], cuts[98], len(counted) - len(delays))


async def _record_events(connection: aio_pika.abc.AbstractConnection) -> dict[str, float]:
    """Return a dict that fills with the arrival time of each status message; the bare peer sends the report back."""
    received: dict[str, float] = {}

    async def on_message(message: AbstractIncomingMessage) -> None:
        now = time.monotonic()
        events = orjson.loads(message.body)
        for event in events if isinstance(events, list) else [events]:
            status = event["data"]["task"]["current_state"] if "data" in event else event
            received.setdefault(status["message"], now)

    channel = await connection.channel()
    queue = await channel.declare_queue(exclusive=True, arguments={"x-queue-type": "classic"}, timeout=10)
    await queue.bind(TOPOLOGY_NAMES.events, "#", timeout=10)
    await queue.consume(on_message, no_ack=True)
    return received


async def _publish_reports(connection: aio_pika.abc.AbstractConnection, count: int) -> dict[str, float]:
    """Wait for a consumer, then publish ``count`` reports at ``RATE``; return the time of each by its message."""
    channel = await connection.channel(publisher_confirms=False)
    while (await channel.declare_queue(TOPOLOGY_NAMES.reports, passive=True)).declaration_result.consumer_count == 0:  # noqa: ASYNC110 - of another process, which sends no event
        await asyncio.sleep(_POLL)
    exchange = await channel.get_exchange(TOPOLOGY_NAMES.reports, ensure=False)
    published: dict[str, float] = {}
    began = time.monotonic()
    for number in range(count):
        early = began + number / RATE - time.monotonic()
        if early > 0:
            await asyncio.sleep(early)
        text = f"latency {number}"
        body = orjson.dumps(
            {"type": "app.status", "task_id": str(task_id(number % 10_000)), "build_number": 1, "seq": number + 10**9}
            | {"state": "working", "message": text}
        )
        message = aio_pika.Message(body, content_type="application/json", delivery_mode=2)
        published[text] = time.monotonic()
        await exchange.publish(message, str(task_id(number % 10_000)))
    return published
