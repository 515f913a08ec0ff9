"""Events to many watchers: the time from publishing a report until each of a thousand clients has its event."""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import aio_pika
import orjson
import uvloop

from benchmarks.harness.http_load import request
from benchmarks.harness.services import TOPOLOGY_NAMES

if TYPE_CHECKING:
    from benchmarks.harness.api_databases import ApiDatabase
    from benchmarks.harness.services import BenchmarkServices

WATCHERS: Final = 1_000
REPORTS: Final = 20
EVERY: Final = 0.5
"""Seconds between two reports, each of which becomes an event to every watcher."""
_TIMEOUT: Final = 60.0
_MESSAGE: Final = b'"message":"at '
_READY: Final = "watching"


@dataclass(frozen=True, slots=True)
class WatchPlan:
    """The request to send, the number of connections, and the number of events that each shall receive."""

    port: int
    request: str
    watchers: int
    events: int


@dataclass(frozen=True, slots=True)
class Delays:
    """Seconds from publishing a report until a watcher has its event."""

    p50: float
    p99: float
    maximum: float


async def measure(services: BenchmarkServices, database: ApiDatabase, port: int) -> Delays:
    """Watch from a separate process while reports about one of the tasks are published."""
    watch = request("GET", "/api/v2/tasks/watch?q=owner:me", database.token)
    plan = WatchPlan(port, watch, WATCHERS, REPORTS)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.cases.watching", stdin=subprocess.PIPE, stdout=subprocess.PIPE, limit=1 << 20
    )
    assert process.stdin is not None
    assert process.stdout is not None
    async with asyncio.timeout(_TIMEOUT + REPORTS * EVERY):
        process.stdin.write(json.dumps(asdict(plan)).encode() + b"\n")
        ready = await process.stdout.readline()
        if ready.decode().strip() != _READY:
            message = f"the watchers did not connect: {ready.decode()}"
            raise RuntimeError(message)
        await _publish(services, str(database.own_tasks[0]))
        delays = Delays(**json.loads(await process.stdout.readline()))
        await process.wait()
    return delays


async def _publish(services: BenchmarkServices, task: str) -> None:
    async with await aio_pika.connect(services.amqp_url, timeout=10) as connection:
        exchange = await (await connection.channel()).get_exchange(TOPOLOGY_NAMES.reports, ensure=False)
        for number in range(REPORTS):
            report: dict[str, Any] = {
                "type": "app.status",
                "task_id": task,
                "build_number": 1,
                "seq": 1_000_000 + number,
                "state": "working",
                "message": f"at {time.monotonic():.6f}",
                "uri": "",
            }
            await exchange.publish(aio_pika.Message(orjson.dumps(report)), task, timeout=10)
            await asyncio.sleep(EVERY)


class _Watcher(asyncio.Protocol):
    """One client; it compares the arrival of each event with the time in its message."""

    def __init__(self, plan: WatchPlan, delays: list[float], done: asyncio.Event, ready: asyncio.Semaphore) -> None:
        self._plan = plan
        self._delays = delays
        self._done = done
        self._ready = ready
        self._buffer = b""
        self._live = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # the type for sockets
        transport.write(self._plan.request.encode())

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        self._buffer += data
        *frames, self._buffer = self._buffer.split(b"\n\n")
        for frame in frames:
            if not self._live and b"up to date" in frame:
                self._live = True
                self._ready.release()
            at = frame.find(_MESSAGE)
            if at >= 0 and b"task.updated" in frame:
                self._delays.append(now - float(frame[at + len(_MESSAGE) : frame.index(b'"', at + len(_MESSAGE))]))
        if len(self._delays) >= self._plan.watchers * self._plan.events:
            self._done.set()


async def _watch(plan: WatchPlan) -> None:
    loop = asyncio.get_running_loop()
    delays: list[float] = []
    done, ready = asyncio.Event(), asyncio.Semaphore(0)
    for _ in range(plan.watchers):
        await loop.create_connection(lambda: _Watcher(plan, delays, done, ready), "127.0.0.1", plan.port)
    async with asyncio.timeout(_TIMEOUT):
        for _ in range(plan.watchers):
            await ready.acquire()
    print(_READY, flush=True)
    async with asyncio.timeout(_TIMEOUT):
        await done.wait()
    cuts = statistics.quantiles(delays, n=100)
    print(json.dumps(asdict(Delays(cuts[49], cuts[98], max(delays)))), flush=True)


if __name__ == "__main__":
    uvloop.run(_watch(WatchPlan(**json.loads(sys.stdin.readline()))))
