"""The plans of the frequent statements, reported by ``auto_explain`` in the session that calls the store.

Measured twice: with a million tasks, a million rows of history and current statistics; and with plans made while all
tables were empty, as a worker has them in the first minute after its installation.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import UUID, uuid4

from benchmarks.harness.services import BenchmarkServices, connected, with_database
from benchmarks.harness.sql_loop import BATCH, event, saved_task
from benchmarks.harness.workload import agent_id, task_id
from taskherd.domain.directory import TemplatePool
from taskherd.domain.lease import HeartbeatSummary, Lease
from taskherd.store import (
    command_preconditions,
    inputs,
    leases,
    outbox,
    parked_reports,
    partitions,
    stats,
    tasks,
    work_requests,
)
from taskherd.store.engine import dispose, open_engine, transaction

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    import asyncpg
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from benchmarks.harness.run import Run

MANY, FEW = 1_000_000, 10_000
WAITING = 100_000
NAME = "bench_plans"
_EXPLAIN = """
LOAD 'auto_explain';
SET auto_explain.log_min_duration = 0; SET auto_explain.log_level = notice; SET auto_explain.log_format = json;
SET auto_explain.log_analyze = on; SET auto_explain.log_buffers = on; SET auto_explain.log_wal = on;
SET auto_explain.log_parameter_max_length = 0;
"""
_HISTORY = """
INSERT INTO task_events (task_id, version, occurred_at, kind, document, changes, cause, prompt_version)
SELECT id, -row_number() OVER (), now() - interval '1 minute', 'updated', document, '{current_state}', '{}', 1
FROM tasks
"""
_UNPUBLISHED = """
INSERT INTO outbox SELECT task_id, version, occurred_at FROM task_events WHERE version < 0 LIMIT $1
"""
_EMPTIED = ("tasks", "task_prompts", "leases")

Plan: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Explained:
    """An executed statement: its duration in milliseconds, and its plan with blocks and WAL."""

    name: str
    milliseconds: float
    plan: Plan

    @property
    def blocks(self) -> int:
        """Blocks accessed, from shared buffers or read."""
        return int(self.plan["Shared Hit Blocks"] + self.plan["Shared Read Blocks"])

    @property
    def read(self) -> int:
        """Blocks read into shared buffers."""
        return int(self.plan["Shared Read Blocks"])

    @property
    def wal(self) -> float:
        """Write-ahead log in KiB."""
        return sum(float(node.get("WAL Bytes", 0)) for node in [self.plan]) / 1024

    @property
    def scans(self) -> str:
        """Each scan with its table or index, and the actual and estimated number of rows."""
        return "; ".join(dict.fromkeys(_scan(node) for node in _nodes(self.plan) if "Relation Name" in node))


def _nodes(plan: Plan) -> Iterator[Plan]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from _nodes(child)


def _scan(node: Plan) -> str:
    relation = node.get("Index Name") or node["Relation Name"]
    actual = node["Actual Rows"] * node["Actual Loops"]
    kind = node.get("Operation") or node["Node Type"]
    if kind in ("Insert", "Update", "Delete"):
        return f"{kind} `{relation}`"
    loops = f" in {node['Actual Loops']:,} loops" if node["Actual Loops"] > 1 else ""
    return f"{kind} `{relation}` {actual:,.0f} (est. {node['Plan Rows'] * node['Actual Loops']:,.0f}){loops}"


Call: TypeAlias = Callable[["StoreCalls"], Awaitable[object]]


class StoreCalls:
    """Calls of the store on one connection: the current batch of tasks, and the state shared between calls."""

    connection: AsyncConnection
    """In the transaction of the current call."""

    def __init__(self, engine: AsyncEngine, admin: asyncpg.Connection, tasks_: int) -> None:
        self.engine = engine
        self.admin = admin
        self.now = datetime.now(UTC)
        self._tasks = tasks_
        self._step = 0
        self._indexes: list[int] = []
        self.saved: list[list[tasks.StoredTask]] = []
        self.next()

    def next(self) -> None:
        """Select the next thousand tasks, spread evenly."""
        self._step += 1
        spacing = self._tasks // BATCH
        self._indexes = [(index * spacing + self._step) % self._tasks for index in range(BATCH)]
        self.now = datetime.now(UTC)

    @property
    def ids(self) -> list[UUID]:
        """The ids of the batch, sorted."""
        return sorted(task_id(index) for index in self._indexes)

    def heartbeats(self) -> list[HeartbeatSummary]:
        """Return a heartbeat of each task of the batch."""
        agents = sorted((task_id(index), agent_id(index)) for index in self._indexes)
        return [HeartbeatSummary(task, 1, agent, 10_000_000 + self._step, self.now, self.now) for task, agent in agents]

    def leases(self) -> list[Lease]:
        """Return a lease of each task of the batch."""
        return [
            Lease(each.task_id, 1, each.agent_id, each.seq, each.observed_at, each.last_heartbeat_at)
            for each in self.heartbeats()
        ]

    async def save(self) -> None:
        """Lock the batch and save a change of each task."""
        rows = await tasks.lock(self.connection, self.ids)
        saved = [saved_task(row, f"step {self._step}", self.now) for row in rows]
        self.saved.append(saved)
        await tasks.save(self.connection, saved, [event(row) for row in saved])

    async def mark_published(self) -> None:
        """Remove the batch saved last from the outbox."""
        await outbox.mark_published(self.connection, [(row.task.id, row.task.version) for row in self.saved.pop()])


def _name(*functions: Callable[..., object]) -> str:
    """Return the names of functions of the store as ``module.function``, separated by commas."""
    return ", ".join(f"{each.__module__.rpartition('.')[2]}.{each.__qualname__}" for each in functions)


CALLS: dict[str, Call] = {
    _name(tasks.lock, tasks.save): lambda b: b.save(),
    _name(outbox.mark_published): lambda b: b.mark_published(),
    _name(leases.renew): lambda b: leases.renew(b.connection, b.heartbeats()),
    _name(leases.lock): lambda b: leases.lock(b.connection, b.ids),
    _name(leases.upsert): lambda b: leases.upsert(b.connection, b.leases()),
    _name(outbox.stale): lambda b: outbox.stale(b.connection, b.now, b.now + timedelta(days=1), BATCH),
    _name(tasks.due): lambda b: tasks.due(b.connection, b.now, 500),
    _name(leases.scan): lambda b: leases.scan(
        b.connection,
        [4 * first for first in range(256)],
        4,
        before=b.now - timedelta(days=1),
        until=b.now + timedelta(days=1),
        time_limit=timedelta(seconds=60),
    ),
    _name(work_requests.pick_due): lambda b: work_requests.pick_due(
        b.connection, b.now, 200, first_delay=5, max_delay=60
    ),
    _name(work_requests.delete_of_builds): lambda b: work_requests.delete_of_builds(
        b.connection, [(each, 1) for each in b.ids]
    ),
    _name(inputs.first_queued): lambda b: inputs.first_queued(b.connection, dict.fromkeys(b.ids, 2)),
    _name(command_preconditions.lock_and_read): lambda b: command_preconditions.lock_and_read(
        b.connection, command_preconditions.References([uuid4()], [uuid4()], [uuid4()], [(uuid4(), "name")]), 100
    ),
    _name(parked_reports.lock): lambda b: parked_reports.lock(b.connection, b.ids),
    _name(stats.counts): lambda b: stats.counts(b.connection, [TemplatePool("claude", "default")]),
    _name(partitions.prune_feed): lambda b: partitions.prune_feed(b.connection, b.now - timedelta(days=90), 500, b.now),
}
"""The calls of a batch, of a sweep and of maintenance."""

BACKLOG: dict[str, Call] = {f"{_name(outbox.stale)}, {WAITING:,} waiting": CALLS[_name(outbox.stale)]}


async def measure(run: Run) -> str:
    """Return both tables."""
    parts = []
    for title, tasks_, planned_empty in (
        (f"{MANY:,} tasks, {MANY:,} rows of history, current statistics", MANY, False),
        (f"{FEW:,} tasks, planned while the tables were empty", FEW, True),
    ):
        run.log(title)
        statements = await _explain(run.services, tasks_, planned_empty=planned_empty)
        parts += [f"{title}:", _table(statements)]
        run.log(parts[-1])
    return "\n\n".join(parts)


def _table(statements: list[Explained]) -> str:
    lines = [
        "| statement | ms | blocks | blocks read | WAL, KiB | scans: rows (estimate) |",
        "|---|---:|---:|---:|---:|---|",
    ]
    lines += [
        f"| `{one.name}` | {one.milliseconds:.1f} | {one.blocks:,} | {one.read:,} | {one.wal:,.0f} | {one.scans} |"
        for one in statements
    ]
    return "\n".join(lines)


async def _explain(services: BenchmarkServices, tasks_: int, *, planned_empty: bool) -> list[Explained]:
    await services.copy(await services.template(tasks_), NAME)
    url = with_database(services.admin_url, NAME)
    try:
        async with connected(url) as admin:
            await admin.execute(_HISTORY)
            if planned_empty:
                await _empty_tables(admin)
            else:
                await admin.execute("VACUUM (ANALYZE)")
            async with _session(url) as (engine, notices):
                calls = StoreCalls(engine, admin, tasks_)
                for call in CALLS.values():  # makes the plans and warms up
                    await _execute(calls, call)
                if planned_empty:
                    await _refill_tables(admin)
                statements = [one for name, call in CALLS.items() for one in await _plans(calls, notices, name, call)]
                await admin.execute(_UNPUBLISHED, WAITING)
                if not planned_empty:
                    await admin.execute("ANALYZE outbox")
                return statements + [
                    one for name, call in BACKLOG.items() for one in await _plans(calls, notices, name, call)
                ]
    finally:
        await services.drop(NAME)


async def _empty_tables(admin: asyncpg.Connection) -> None:
    for table in _EMPTIED:
        await admin.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
        await admin.execute(f"CREATE TABLE kept_{table} AS TABLE {table}")
        await admin.execute(f"TRUNCATE {table}")
    await admin.execute("ALTER TABLE outbox SET (autovacuum_enabled = off)")
    await admin.execute("VACUUM (ANALYZE) outbox")


async def _refill_tables(admin: asyncpg.Connection) -> None:
    for table in _EMPTIED:
        await admin.execute(f"INSERT INTO {table} TABLE kept_{table} ON CONFLICT DO NOTHING")


@asynccontextmanager
async def _session(url: str) -> AsyncIterator[tuple[AsyncEngine, list[str]]]:
    engine = open_engine(url, size=1, application_name="bench", command_timeout=300)
    notices: list[str] = []
    try:
        async with engine.connect() as connection:  # the only one
            driver = (await connection.get_raw_connection()).driver_connection
            assert driver is not None
            driver.add_log_listener(lambda _, message: notices.append(message.message))
            await driver.execute(_EXPLAIN)
        yield engine, notices
    finally:
        await dispose(engine)


async def _execute(calls: StoreCalls, call: Call) -> None:
    calls.next()
    async with transaction(calls.engine) as calls.connection:
        await call(calls)


async def _plans(calls: StoreCalls, notices: list[str], name: str, call: Call) -> list[Explained]:
    """Call twice and return the plans of the second call, which finds its blocks in memory."""
    await _execute(calls, call)
    notices.clear()
    await _execute(calls, call)
    async with transaction(calls.engine):
        pass  # its replies follow all earlier notices
    names = name.split(", ") if name in CALLS else [name]
    statements: list[Explained] = []
    for notice in notices:
        duration, _, explained = notice.partition("plan:")
        plan = json.loads(explained)["Plan"] if explained else None
        if plan is None or not any("Relation Name" in node for node in _nodes(plan)):
            continue
        title = names[min(len(statements), len(names) - 1)]
        statements.append(Explained(title, float(duration.split()[1]), plan))
    return statements
