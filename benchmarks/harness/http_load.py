"""A cheap HTTP load generator: keep-alive connections, each of which sends its next request after a response.

It runs in a separate process, so that its CPU and garbage collector do not disturb the server. It reads the plan as
JSON from stdin and prints the result as JSON.
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
"""Seconds at the start that are not counted, while connections, statements and caches are created."""
_HEAD_END = b"\r\n\r\n"
_LENGTH = b"content-length: "


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """The requests that each connection sends in turn, starting at a different one; each must return ``status``."""

    port: int
    requests: list[str]
    connections: int
    seconds: float
    status: int


@dataclass(frozen=True, slots=True)
class LoadResult:
    """Responses per second, and seconds from request to the last byte of the response."""

    rate: float
    p50: float
    p99: float

    @property
    def description(self) -> str:
        """The result in one line."""
        return f"{self.rate:,.0f}/s, p50 {self.p50 * 1e3:.1f} ms, p99 {self.p99 * 1e3:.1f} ms"


def run(plan: LoadPlan) -> LoadResult:
    """Send the requests from a separate process; raise ``RuntimeError`` on an unexpected response."""
    command = [sys.executable, "-m", "benchmarks.harness.http_load"]
    done = subprocess.run(
        command, input=json.dumps(asdict(plan)), capture_output=True, text=True, timeout=plan.seconds + 60, check=False
    )
    if done.returncode != 0:
        message = f"the load generator failed: {done.stderr.strip()[-500:]}"
        raise RuntimeError(message)
    return LoadResult(**json.loads(done.stdout))


def request(method: str, path: str, token: str, headers: str = "", body: str = "") -> str:
    """Return a request as it is sent; ``headers`` are complete lines."""
    if body:
        headers += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return f"{method} {path} HTTP/1.1\r\nHost: bench\r\nCoder-Session-Token: {token}\r\n{headers}\r\n{body}"


class _Client(asyncio.Protocol):
    """One connection."""

    def __init__(self, plan: LoadPlan, first: int, responses: list[tuple[float, float]]) -> None:
        self._requests = [each.encode() for each in plan.requests]
        self._next = first
        self._status = f"HTTP/1.1 {plan.status} ".encode()
        self._responses = responses
        self._buffer = b""
        self._size = 0
        self._sent_at = 0.0
        self.failed: str | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # the type for sockets
        self._transport = transport
        self._send()

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        if not self._size:
            end = self._buffer.find(_HEAD_END)
            if end < 0:
                return
            if not self._buffer.startswith(self._status):
                self.failed = self._buffer[:300].decode("latin-1")
                self._transport.abort()
                return
            self._size = end + len(_HEAD_END) + self._length(end)
        if len(self._buffer) >= self._size:
            now = time.perf_counter()
            self._responses.append((now, now - self._sent_at))
            self._buffer, self._size = b"", 0
            self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        self.failed = self.failed or f"the connection was closed ({exc})"

    def _length(self, end: int) -> int:
        at = self._buffer.find(_LENGTH, 0, end)
        return int(self._buffer[at + len(_LENGTH) : self._buffer.find(b"\r", at)]) if at >= 0 else 0

    def _send(self) -> None:
        self._next = (self._next + 1) % len(self._requests)
        self._sent_at = time.perf_counter()
        self._transport.write(self._requests[self._next])

    def stop(self) -> None:
        self._transport.abort()


async def _connect(plan: LoadPlan, number: int, responses: list[tuple[float, float]]) -> _Client:
    client = _Client(plan, number * len(plan.requests) // plan.connections, responses)
    await asyncio.get_running_loop().create_connection(lambda: client, "127.0.0.1", plan.port)
    return client


async def _load(plan: LoadPlan) -> LoadResult:
    responses: list[tuple[float, float]] = []
    clients = [await _connect(plan, number, responses) for number in range(plan.connections)]
    began = time.perf_counter() + WARM_UP
    await asyncio.sleep(WARM_UP + plan.seconds)
    for client in clients:
        if client.failed:
            raise RuntimeError(client.failed)
        client.stop()
    counted = [seconds for at, seconds in responses if at >= began]
    cuts = statistics.quantiles(counted, n=100)
    return LoadResult(len(counted) / plan.seconds, cuts[49], cuts[98])


if __name__ == "__main__":
    print(json.dumps(asdict(uvloop.run(_load(LoadPlan(**json.load(sys.stdin)))))))
