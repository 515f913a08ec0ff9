"""What uvicorn and Starlette cost a worker as the server of its operations port, in start and memory.

`python -m benchmarks.ops` needs no services. Each process imports all that a worker does, serves the port and is asked
for /livez until it answers; then each path is asked for a few times, and the resident memory is read.
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
from urllib.error import URLError
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

ROUNDS: Final = 7
REQUESTS: Final = 20
MAX_START: Final = 0.100
"""Seconds of start that uvicorn and Starlette may cost: CPU seconds, since a start hardly waits for anything else."""
MAX_MEMORY: Final = 10 * 2**20
WITHIN: Final = 30.0
_POLL: Final = 0.002
_PATHS: Final = ("/livez", "/readyz", "/metrics")


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds and CPU seconds from the process's start until /livez answers; its resident bytes after some requests."""

    start: float
    cpu: float
    memory: float


async def serve_ops(port: int) -> None:
    """Serve as a worker does."""
    import taskherd.worker.app  # noqa: F401, PLC0415 - each process imports only what it serves with
    from taskherd.observability.ops import OpsServer  # noqa: PLC0415

    await OpsServer(Metrics(), Readiness("consumers")).start("127.0.0.1", port)
    await asyncio.Event().wait()


async def serve_bare(port: int) -> None:
    """Serve without uvicorn and Starlette, and without any check or bound: no server of our own could cost less."""
    stub: Any = ModuleType("taskherd.observability.ops")
    stub.OpsServer = object
    sys.modules[stub.__name__] = stub
    import taskherd.worker.app  # noqa: F401, PLC0415 - as above

    assert not {"uvicorn", "starlette", "httptools"} & sys.modules.keys()
    registry = Metrics().registry

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        body = generate_latest(registry) if b"/metrics" in head else b"ok\n"
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(body), body))
        writer.close()

    await asyncio.start_server(answer, "127.0.0.1", port)
    await asyncio.Event().wait()


SERVERS: Final[Mapping[str, Any]] = {"bare": serve_bare, "uvicorn": serve_ops}


def measure(kind: str) -> Cost:
    """Start one process and end it again."""
    [port] = ports.claim([None])
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.ops", kind, str(port)])
    try:
        while not _answers(port, "/livez"):
            if process.poll() is not None or time.perf_counter() - began > WITHIN:
                message = f"{kind} did not come up"
                raise RuntimeError(message)
            time.sleep(_POLL)
        start, used = time.perf_counter() - began, psutil.Process(process.pid).cpu_times()
        for _ in range(REQUESTS):
            for path in _PATHS:
                _answers(port, path)
        return Cost(start, used.user + used.system, psutil.Process(process.pid).memory_info().rss)
    finally:
        process.kill()
        process.wait()


def _answers(port: int, path: str) -> bool:
    try:
        with urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as response:
            return bool(response.read())
    except URLError as error:
        return hasattr(error, "code")
    except OSError:
        return False


def main() -> None:
    """Measure in turns and print the medians."""
    costs: dict[str, list[Cost]] = {kind: [] for kind in SERVERS}
    for kind in SERVERS:
        measure(kind)  # compiles what is imported
    for _ in range(ROUNDS):
        for kind, found in costs.items():
            found.append(measure(kind))
    print("| server | start, median (range) | its CPU | resident memory |\n|---|---:|---:|---:|")
    medians = {kind: _median(found) for kind, found in costs.items()}
    for kind, found in costs.items():
        starts = sorted(cost.start for cost in found)
        middle = medians[kind]
        print(
            f"| {kind} | {middle.start * 1e3:.0f} ms ({starts[0] * 1e3:.0f} to {starts[-1] * 1e3:.0f}) "
            f"| {middle.cpu * 1e3:.0f} ms | {middle.memory / 2**20:.1f} MiB |"
        )
    start = medians["uvicorn"].start - medians["bare"].start
    cpu = medians["uvicorn"].cpu - medians["bare"].cpu
    memory = medians["uvicorn"].memory - medians["bare"].memory
    print(f"| difference | {start * 1e3:+.0f} ms | {cpu * 1e3:+.0f} ms | {memory / 2**20:+.1f} MiB |")
    verdict = "within" if cpu < MAX_START and memory < MAX_MEMORY else "beyond"
    print(f"\n{verdict} the bound of {MAX_START * 1e3:.0f} ms and {MAX_MEMORY / 2**20:.0f} MiB")


def _median(found: list[Cost]) -> Cost:
    return Cost(
        statistics.median(cost.start for cost in found),
        statistics.median(cost.cpu for cost in found),
        statistics.median(cost.memory for cost in found),
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        import uvloop

        from taskherd.settings import Settings

        Settings()

        uvloop.run(SERVERS[sys.argv[1]](int(sys.argv[2])))
    else:
        main()
