"""Events to many watchers: from publishing a report to each of a thousand readers having its event."""

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
from benchmarks.harness.services import NAMES

if TYPE_CHECKING:
    from benchmarks.harness.api_databases import ApiDatabase
    from benchmarks.harness.services import BenchmarkServices

WATCHERS: Final = 1_000
REPORTS: Final = 20
EVERY: Final = 0.5
"""Seconds between two reports, each of which is told to every watcher."""
_WITHIN: Final = 60.0
_MESSAGE: Final = b'"message":"at '
_READY: Final = "watching"


@dataclass(frozen=True, slots=True)
class WatchPlan:
    """Whom to watch, from how many connections, and how many events each is to get."""

    port: int
    request: str
    watchers: int
    events: int


@dataclass(frozen=True, slots=True)
class Delays:
    """Seconds from publishing a report until a watcher has its event."""

    p50: float
    p99: float
    worst: float


async def measure(stage: BenchmarkServices, house: ApiDatabase, port: int) -> Delays:
    """Have a process of its own watch, and report about one of the watched tasks meanwhile."""
    asked = request("GET", "/api/v2/tasks/watch?q=owner:me", house.token)
    wanted = WatchPlan(port, asked, WATCHERS, REPORTS)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.cases.watching", stdin=subprocess.PIPE, stdout=subprocess.PIPE, limit=1 << 20
    )
    assert process.stdin is not None
    assert process.stdout is not None
    async with asyncio.timeout(_WITHIN + REPORTS * EVERY):
        process.stdin.write(json.dumps(asdict(wanted)).encode() + b"\n")
        ready = await process.stdout.readline()
        if ready.decode().strip() != _READY:
            message = f"the watchers did not come up: {ready.decode()}"
            raise RuntimeError(message)
        await _report(stage, str(house.mine[0]))
        told = Delays(**json.loads(await process.stdout.readline()))
        await process.wait()
    return told


async def _report(stage: BenchmarkServices, task: str) -> None:
    async with await aio_pika.connect(stage.amqp_url, timeout=10) as connection:
        exchange = await (await connection.channel()).get_exchange(NAMES.reports, ensure=False)
        for number in range(REPORTS):
            said: dict[str, Any] = {
                "type": "app.status",
                "task_id": task,
                "build_number": 1,
                "seq": 1_000_000 + number,
                "state": "working",
                "message": f"at {time.monotonic():.6f}",
                "uri": "",
            }
            await exchange.publish(aio_pika.Message(orjson.dumps(said)), task, timeout=10)
            await asyncio.sleep(EVERY)


class _Watcher(asyncio.Protocol):
    """One reader; it notes when which event came, by the time that the event carries."""

    def __init__(self, wanted: WatchPlan, took: list[float], heard: asyncio.Event, ready: asyncio.Semaphore) -> None:
        self._wanted = wanted
        self._took = took
        self._heard = heard
        self._ready = ready
        self._held = b""
        self._live = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # what sockets give
        transport.write(self._wanted.request.encode())

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        self._held += data
        *frames, self._held = self._held.split(b"\n\n")
        for frame in frames:
            if not self._live and b"up to date" in frame:
                self._live = True
                self._ready.release()
            at = frame.find(_MESSAGE)
            if at >= 0 and b"task.updated" in frame:
                self._took.append(now - float(frame[at + len(_MESSAGE) : frame.index(b'"', at + len(_MESSAGE))]))
        if len(self._took) >= self._wanted.watchers * self._wanted.events:
            self._heard.set()


async def _watch(wanted: WatchPlan) -> None:
    loop = asyncio.get_running_loop()
    took: list[float] = []
    heard, ready = asyncio.Event(), asyncio.Semaphore(0)
    for _ in range(wanted.watchers):
        await loop.create_connection(lambda: _Watcher(wanted, took, heard, ready), "127.0.0.1", wanted.port)
    async with asyncio.timeout(_WITHIN):
        for _ in range(wanted.watchers):
            await ready.acquire()
    print(_READY, flush=True)
    async with asyncio.timeout(_WITHIN):
        await heard.wait()
    cuts = statistics.quantiles(took, n=100)
    print(json.dumps(asdict(Delays(cuts[49], cuts[98], max(took)))), flush=True)


if __name__ == "__main__":
    uvloop.run(_watch(WatchPlan(**json.loads(sys.stdin.readline()))))
