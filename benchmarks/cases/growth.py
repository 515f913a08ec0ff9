"""The cost of a report with a thousand and with a million tasks: CPU, memory, statements and blocks."""

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

from benchmarks.harness.contenders import WORKER, Measured, measure_process
from benchmarks.harness.services import BenchmarkServices, connected, start_process
from benchmarks.harness.workload import Workload
from taskherd.dev import ports

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from benchmarks.harness.run import Run

SIZES = (1_000, 100_000, 1_000_000)

# Counts COMMIT and BEGIN separately, and leaves out the queries of the benchmark itself.
_STATEMENTS = """
SELECT sum(calls) FILTER (WHERE query !~* '^(begin|commit|rollback)'), sum(calls) FILTER (WHERE query ~* '^commit'),
       sum(total_exec_time), sum(shared_blks_hit + shared_blks_read), sum(shared_blks_read), sum(wal_bytes)
FROM pg_stat_statements WHERE dbid = $1 AND query !~ 'FROM outbox\\)$'
"""


@dataclass(frozen=True, slots=True)
class RunCost:
    """The cost of one run: ``measured`` for the worker, the other fields for the database, summed over all batches."""

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
        """The row of the table."""
        cells = [
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
        return f"| {self.tasks:,} | {' | '.join(cells)} |"


HEADER = (
    "| tasks | reports/s | worker's CPU, µs per report | database's CPU, µs per report | worker's memory, MiB "
    "| reports per batch | statements per batch | commits per batch | server time, ms per batch "
    "| blocks accessed per report | blocks read per report | WAL, KiB per report |"
    "\n|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
)


async def measure(run: Run) -> str:
    """Return the table; each size is measured once, since all but the rate is counted, not timed."""
    lines = [HEADER]
    async with _counting_statements(run.services):
        for tasks in SIZES:
            cost = await _cost(run.services, Workload(tasks, run.options.reports))
            lines.append(cost.line)
            run.log(cost.line)
    return "\n".join(lines)


@asynccontextmanager
async def _counting_statements(services: BenchmarkServices) -> AsyncIterator[None]:
    """Enable ``pg_stat_statements``; an external server must have it enabled already."""
    await _preload(services, "SET shared_preload_libraries = 'pg_stat_statements'")
    try:
        async with connected(services.admin_url) as admin:
            await admin.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
        yield
    finally:
        await _preload(services, "RESET shared_preload_libraries")


async def _preload(services: BenchmarkServices, setting: str) -> None:
    if services.node is not None:
        async with connected(services.admin_url) as admin:
            await admin.execute(f"ALTER SYSTEM {setting}")
        await asyncio.to_thread(services.node.restart)


async def _cost(services: BenchmarkServices, work: Workload) -> RunCost:
    await services.prepare(work)
    await services.fill_queue(work)
    async with connected(services.admin_url) as admin, connected(services.database_url) as connection:
        await admin.execute("SELECT pg_stat_statements_reset()")
        database = await connection.fetchval("SELECT oid FROM pg_database WHERE datname = current_database()")
        pid = await connection.fetchval("SELECT pg_backend_pid()")
        server = psutil.Process(pid).parent()
        assert server is not None
        (port,) = ports.find_free([None])
        process = start_process(services, WORKER.module, TASKHERD_OPS_PORT=str(port))
        try:
            before = database_cpu(server)
            measured = await measure_process(services, WORKER, work, process)
            used = database_cpu(server) - before
            batches = await asyncio.to_thread(_batches, port)
        finally:
            process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(process.wait, 40)
        row = await _counted(admin, database)
    return RunCost(work.tasks, measured, batches, *row, used, work.reports)


async def _counted(admin: asyncpg.Connection, database: int) -> tuple[int, int, float, int, int, int]:
    row = await admin.fetchrow(_STATEMENTS, database)
    return int(row[0]), int(row[1]), float(row[2]), int(row[3]), int(row[4]), int(row[5])


def database_cpu(server: psutil.Process) -> float:
    """Return the CPU seconds of the database server and of all its child processes, including those that exited."""
    total = 0.0
    for process in (server, *server.children()):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def _batches(port: int) -> int:
    """Return the number of batches from the worker's metrics."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
        match = re.search(r"^taskherd_batch_size_count (\d+)", response.read().decode(), re.MULTILINE)
    assert match is not None
    return int(match[1])
