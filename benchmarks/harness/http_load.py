"""A client of HTTP that costs little: keep-alive connections on bare sockets, each asking again once it is answered.

Run as a process of its own, so that neither its CPU nor its collector disturbs whom it asks: it reads what to ask as
JSON on stdin and tells what it saw as JSON on stdout.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass

import uvloop

WARM_UP = 1.0
"""Seconds at the start that don't count: connections, statements and caches come to be."""
_HEAD_END = b"\r\n\r\n"
_LENGTH = b"content-length: "


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """What to ask: each connection goes round the requests, beginning at another one; all must get `status`."""

    port: int
    requests: list[str]
    connections: int
    seconds: float
    status: int


@dataclass(frozen=True, slots=True)
class LoadResult:
    """Answers a second, and seconds from asking to the last byte."""

    rate: float
    p50: float
    p99: float

    @property
    def describe(self) -> str:
        """In words."""
        return f"{self.rate:,.0f}/s, p50 {self.p50 * 1e3:.1f} ms, p99 {self.p99 * 1e3:.1f} ms"


def run(wanted: LoadPlan) -> LoadResult:
    """Ask from a process of its own. Raises where an answer is not as wanted."""
    run = [sys.executable, "-m", "benchmarks.harness.http_load"]
    done = subprocess.run(
        run, input=json.dumps(asdict(wanted)), capture_output=True, text=True, timeout=wanted.seconds + 60, check=False
    )
    if done.returncode != 0:
        message = f"the load failed: {done.stderr.strip()[-500:]}"
        raise RuntimeError(message)
    return LoadResult(**json.loads(done.stdout))


def request(method: str, path: str, token: str, headers: str = "", body: str = "") -> str:
    """A request as it goes over the wire; `headers` are whole lines."""
    if body:
        headers += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return f"{method} {path} HTTP/1.1\r\nHost: bench\r\nCoder-Session-Token: {token}\r\n{headers}\r\n{body}"


class _Client(asyncio.Protocol):
    """One connection."""

    def __init__(self, wanted: LoadPlan, first: int, took: list[tuple[float, float]]) -> None:
        self._requests = [each.encode() for each in wanted.requests]
        self._next = first
        self._status = f"HTTP/1.1 {wanted.status} ".encode()
        self._took = took
        self._held = b""
        self._whole = 0
        self._asked = 0.0
        self.failed: str | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # what sockets give
        self._transport = transport
        self._ask()

    def data_received(self, data: bytes) -> None:
        self._held = self._held + data if self._held else data
        if not self._whole:
            end = self._held.find(_HEAD_END)
            if end < 0:
                return
            if not self._held.startswith(self._status):
                self.failed = self._held[:300].decode("latin-1")
                self._transport.abort()
                return
            self._whole = end + len(_HEAD_END) + self._length(end)
        if len(self._held) >= self._whole:
            now = time.perf_counter()
            self._took.append((now, now - self._asked))
            self._held, self._whole = b"", 0
            self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        self.failed = self.failed or f"the connection was closed ({exc})"

    def _length(self, end: int) -> int:
        at = self._held.find(_LENGTH, 0, end)
        return int(self._held[at + len(_LENGTH) : self._held.find(b"\r", at)]) if at >= 0 else 0

    def _ask(self) -> None:
        self._next = (self._next + 1) % len(self._requests)
        self._asked = time.perf_counter()
        self._transport.write(self._requests[self._next])

    def stop(self) -> None:
        self._transport.abort()


async def _load(wanted: LoadPlan) -> LoadResult:
    loop = asyncio.get_running_loop()
    took: list[tuple[float, float]] = []
    clients: list[_Client] = []
    for number in range(wanted.connections):
        client = _Client(wanted, number * len(wanted.requests) // wanted.connections, took)
        await loop.create_connection(lambda client=client: client, "127.0.0.1", wanted.port)
        clients.append(client)
    began = time.perf_counter() + WARM_UP
    await asyncio.sleep(WARM_UP + wanted.seconds)
    for client in clients:
        if client.failed:
            raise RuntimeError(client.failed)
        client.stop()
    counted = [seconds for at, seconds in took if at >= began]
    cuts = statistics.quantiles(counted, n=100)
    return LoadResult(len(counted) / wanted.seconds, cuts[49], cuts[98])


if __name__ == "__main__":
    print(json.dumps(asdict(uvloop.run(_load(LoadPlan(**json.load(sys.stdin)))))))
