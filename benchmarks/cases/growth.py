"""What a report costs when there are many tasks: CPU, memory, statements and blocks, at a thousand and at a million."""

from __future__ import annotations

import asyncio
import re
import signal
import urllib.request
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import asyncpg
import psutil

from benchmarks.harness.contenders import WORKER, Measured, watched
from benchmarks.harness.services import BenchmarkServices, children, connected
from benchmarks.harness.workload import Workload
from taskherd.dev import ports

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

SIZES = (1_000, 100_000, 1_000_000)

# COMMIT and BEGIN apart from what stands between them; what the benchmark itself asked is left out.
_STATEMENTS = """
SELECT sum(calls) FILTER (WHERE query !~* '^(begin|commit|rollback)'), sum(calls) FILTER (WHERE query ~* '^commit'),
       sum(total_exec_time), sum(shared_blks_hit + shared_blks_read), sum(shared_blks_read), sum(wal_bytes)
FROM pg_stat_statements WHERE dbid = $1 AND query !~ 'FROM outbox\\)$'
"""


@dataclass(frozen=True, slots=True)
class Cost:
    """A run's cost; ``measured`` of the worker, the others of the database, as sums over all batches."""

    tasks: int
    measured: Measured
    batches: int
    statements: int
    commits: int
    server_ms: float
    blocks: int
    read: int
    wal: int
    database_cpu: float
    reports: int

    @property
    def line(self) -> str:
        """A line of the table."""
        each = [
            f"{self.measured.rate:,.0f}",
            f"{self.measured.cpu:.0f}",
            f"{self.database_cpu / self.reports * 1e6:.0f}",
            f"{self.measured.resident / 2**20:.0f}",
            f"{self.reports / self.batches:,.0f}",
            f"{self.statements / self.batches:.1f}",
            f"{self.commits / self.batches:.1f}",
            f"{self.server_ms / self.batches:.1f}",
            f"{self.blocks / self.reports:.1f}",
            f"{self.read / self.reports:.2f}",
            f"{self.wal / self.reports / 1024:.1f}",
        ]
        return f"| {self.tasks:,} | {' | '.join(each)} |"


HEADER = (
    "| tasks | reports/s | worker's CPU, µs a report | database's CPU, µs a report | worker's memory, MiB "
    "| reports a batch | statements a batch | commits a batch | server time, ms a batch | blocks touched a report "
    "| blocks read a report | WAL, KiB a report |\n|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
)


async def measure(stage: BenchmarkServices, reports: int, say: Callable[[str], None]) -> str:
    """The table; each size once, since costs are counted and not timed, but for the rate."""
    lines = [HEADER]
    async with _counting(stage):
        for tasks in SIZES:
            cost = await _cost(stage, Workload(tasks, reports))
            lines.append(cost.line)
            say(cost.line)
    return "\n".join(lines)


@asynccontextmanager
async def _counting(stage: BenchmarkServices) -> AsyncIterator[None]:
    """Have the server count statements meanwhile; one that is not ours must do so already."""
    await _preload(stage, "SET shared_preload_libraries = 'pg_stat_statements'")
    try:
        async with connected(stage.admin_url) as admin:
            await admin.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
        yield
    finally:
        await _preload(stage, "RESET shared_preload_libraries")


async def _preload(stage: BenchmarkServices, setting: str) -> None:
    if stage.node is not None:
        async with connected(stage.admin_url) as admin:
            await admin.execute(f"ALTER SYSTEM {setting}")
        await asyncio.to_thread(stage.node.restart)


async def _cost(stage: BenchmarkServices, work: Workload) -> Cost:
    await stage.set_up(work)
    await stage.wait(work)
    async with connected(stage.admin_url) as admin, connected(stage.database_url) as connection:
        await admin.execute("SELECT pg_stat_statements_reset()")
        database = await connection.fetchval("SELECT oid FROM pg_database WHERE datname = current_database()")
        pid = await connection.fetchval("SELECT pg_backend_pid()")
        server = psutil.Process(pid).parent()
        assert server is not None
        (port,) = ports.claim([None])
        process = children(stage, WORKER.module, TASKHERD_OPS_PORT=str(port))
        try:
            before = _cpu(server)
            measured = await watched(stage, WORKER, work, process)
            used = _cpu(server) - before
            batches = await asyncio.to_thread(_batches, port)
        finally:
            process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(process.wait, 40)
        row = await _counted(admin, database)
    return Cost(work.tasks, measured, batches, *row, used, work.reports)


async def _counted(admin: asyncpg.Connection, database: int) -> tuple[int, int, float, int, int, int]:
    row = await admin.fetchrow(_STATEMENTS, database)
    return int(row[0]), int(row[1]), float(row[2]), int(row[3]), int(row[4]), int(row[5])


def _cpu(server: psutil.Process) -> float:
    """Seconds of CPU of the database server and of all processes that it has started, also those that ended."""
    total = 0.0
    for process in (server, *server.children()):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def _batches(port: int) -> int:
    """How many batches the worker says it has taken."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        found = re.search(r"^taskherd_batch_size_count (\d+)", answer.read().decode(), re.MULTILINE)
    assert found is not None
    return int(found[1])
