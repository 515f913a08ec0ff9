"""The cost of uvicorn and Starlette as the server of a worker's operations port, in start-up time and memory.

Each process imports everything that a worker imports and serves the port. Its ``/livez`` is requested until it
responds; then each path is requested a few times, and the resident memory is read.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final
from urllib.error import HTTPError
from urllib.request import urlopen

import psutil
import uvloop
from prometheus_client import generate_latest

from taskherd.dev import ports
from taskherd.observability.metrics import Metrics
from taskherd.observability.readiness import Readiness
from taskherd.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.harness.run import Run

ROUNDS: Final = 7
REQUESTS: Final = 20
MAX_START: Final = 0.100
"""CPU seconds that uvicorn and Starlette may add to a start, which hardly waits for anything else."""
MAX_MEMORY: Final = 10 * 2**20
"""Bytes of resident memory that they may add."""
START_TIMEOUT: Final = 30.0
_POLL: Final = 0.002
_PATHS: Final = ("/livez", "/readyz", "/metrics")


@dataclass(frozen=True, slots=True)
class ServerCost:
    """Seconds and CPU seconds from start until ``/livez`` responds, and resident bytes after some requests."""

    start: float
    cpu: float
    memory: float


async def serve_ops(port: int) -> None:
    """Serve the operations port as a worker does."""
    import taskherd.worker.app  # noqa: F401, PLC0415 - each process imports only what it serves with
    from taskherd.observability.ops import OpsServer  # noqa: PLC0415

    await OpsServer(Metrics(), Readiness("consumers")).start("127.0.0.1", port)
    await asyncio.Event().wait()


async def serve_bare(port: int) -> None:
    """Serve without uvicorn and Starlette, checks or limits: no hand-written server could cost less."""
    stub: Any = ModuleType("taskherd.observability.ops")
    stub.OpsServer = object
    sys.modules[stub.__name__] = stub
    import taskherd.worker.app  # noqa: F401, PLC0415 - as above

    assert not {"uvicorn", "starlette", "httptools"} & sys.modules.keys()
    registry = Metrics().registry

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        body = generate_latest(registry) if b"/metrics" in head else b"ok\n"
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(body), body))
        writer.close()

    await asyncio.start_server(respond, "127.0.0.1", port)
    await asyncio.Event().wait()


SERVERS: Final[Mapping[str, Any]] = {"bare": serve_bare, "uvicorn": serve_ops}


async def measure(run: Run) -> str:
    """Measure both servers in turns and return the table of medians."""
    costs: dict[str, list[ServerCost]] = {kind: [] for kind in SERVERS}
    for kind in SERVERS:
        await asyncio.to_thread(_cost, kind)  # compiles the imported modules
    for number in range(ROUNDS):
        for kind, measured in costs.items():
            measured.append(await asyncio.to_thread(_cost, kind))
            run.log(f"round {number + 1}: {kind}: {measured[-1].start * 1e3:.0f} ms until /livez responded")
    lines = ["| server | start, median (range) | CPU | resident memory |", "|---|---:|---:|---:|"]
    medians = {kind: _median(measured) for kind, measured in costs.items()}
    for kind, measured in costs.items():
        starts = sorted(cost.start for cost in measured)
        median = medians[kind]
        lines.append(
            f"| {kind} | {median.start * 1e3:.0f} ms ({starts[0] * 1e3:.0f} to {starts[-1] * 1e3:.0f}) "
            f"| {median.cpu * 1e3:.0f} ms | {median.memory / 2**20:.1f} MiB |"
        )
    start, cpu, memory = (
        getattr(medians["uvicorn"], name) - getattr(medians["bare"], name) for name in ("start", "cpu", "memory")
    )
    lines.append(f"| difference | {start * 1e3:+.0f} ms | {cpu * 1e3:+.0f} ms | {memory / 2**20:+.1f} MiB |")
    limits = f"{MAX_START * 1e3:.0f} ms of CPU and {MAX_MEMORY / 2**20:.0f} MiB"
    if cpu < MAX_START and memory < MAX_MEMORY:
        lines += ["", f"Within the limits of {limits}."]
    else:
        lines += ["", f"Over the limits of {limits}."]
        run.fail(f"the operations port costs more than {limits}")
    return "\n".join(lines)


def _cost(kind: str) -> ServerCost:
    """Start one process, measure and stop it."""
    [port] = ports.find_free([None])
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.cases.ops", kind, str(port)])
    try:
        while not _responds(port, "/livez"):
            if process.poll() is not None or time.perf_counter() - began > START_TIMEOUT:
                raise RuntimeError(f"the {kind} server did not start")
            time.sleep(_POLL)
        start, used = time.perf_counter() - began, psutil.Process(process.pid).cpu_times()
        for _ in range(REQUESTS):
            for path in _PATHS:
                _responds(port, path)
        return ServerCost(start, used.user + used.system, psutil.Process(process.pid).memory_info().rss)
    finally:
        process.kill()
        process.wait()


def _responds(port: int, path: str) -> bool:
    try:
        with urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as response:
            return bool(response.read())
    except HTTPError:
        return True
    except OSError:
        return False


def _median(costs: list[ServerCost]) -> ServerCost:
    return ServerCost(
        statistics.median(cost.start for cost in costs),
        statistics.median(cost.cpu for cost in costs),
        statistics.median(cost.memory for cost in costs),
    )


if __name__ == "__main__":
    Settings()
    uvloop.run(SERVERS[sys.argv[1]](int(sys.argv[2])))
