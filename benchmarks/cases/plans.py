"""The plan of every hot statement, as the worker's own calls get it: from ``auto_explain`` in the worker's own session.

Twice: at a million tasks with a million rows of history and true statistics; and with the plans that were made when all
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
from taskherd.domain.lease import HeartbeatSummary, Lease
from taskherd.store import commands, inputs, leases, outbox, parked, partitions, requests, stats, tasks
from taskherd.store.engine import open_engine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    import asyncpg
    from sqlalchemy.ext.asyncio import AsyncConnection

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
_KEPT = ("tasks", "task_prompts", "leases")

Plan: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Explained:
    """A statement as it ran: milliseconds, blocks, WAL bytes, and its plan."""

    name: str
    took: float
    plan: Plan

    @property
    def blocks(self) -> int:
        """Blocks touched in the shared buffers, found there or read."""
        return int(self.plan["Shared Hit Blocks"] + self.plan["Shared Read Blocks"])

    @property
    def read(self) -> int:
        """Blocks that had to be read."""
        return int(self.plan["Shared Read Blocks"])

    @property
    def wal(self) -> float:
        """KiB of write-ahead log."""
        return sum(float(node.get("WAL Bytes", 0)) for node in [self.plan]) / 1024

    @property
    def scans(self) -> str:
        """How it came by its rows: scan, what of, estimated and real number of rows."""
        return "; ".join(dict.fromkeys(_scan(node) for node in _nodes(self.plan) if "Relation Name" in node))


def _nodes(plan: Plan) -> Iterator[Plan]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from _nodes(child)


def _scan(node: Plan) -> str:
    of = node.get("Index Name") or node["Relation Name"]
    real = node["Actual Rows"] * node["Actual Loops"]
    kind = node.get("Operation") or node["Node Type"]
    if kind in ("Insert", "Update", "Delete"):
        return f"{kind} `{of}`"
    loops = f" in {node['Actual Loops']:,} looks" if node["Actual Loops"] > 1 else ""
    return f"{kind} `{of}` {real:,.0f} (est. {node['Plan Rows'] * node['Actual Loops']:,.0f}){loops}"


Call: TypeAlias = Callable[["Bench"], Awaitable[object]]


class Bench:
    """A session that hears what it runs; the batch that its calls are about, and what they leave for each other."""

    def __init__(self, connection: AsyncConnection, admin: asyncpg.Connection, many: int) -> None:
        self.connection = connection
        self.admin = admin
        self.now = datetime.now(UTC)
        self._many = many
        self._turn = 0
        self.places: list[int] = []
        self.saved: list[list[tasks.StoredTask]] = []
        self.next()

    def next(self) -> None:
        """Turn to another thousand tasks, spread evenly."""
        self._turn += 1
        step = self._many // BATCH
        self.places = [(place * step + self._turn) % self._many for place in range(BATCH)]
        self.now = datetime.now(UTC)

    @property
    def ids(self) -> list[UUID]:
        """Their ids, sorted."""
        return sorted(task_id(place) for place in self.places)

    def beats(self) -> list[HeartbeatSummary]:
        """A heartbeat of each."""
        held = sorted((task_id(place), agent_id(place)) for place in self.places)
        return [HeartbeatSummary(task, 1, agent, 10_000_000 + self._turn, self.now, self.now) for task, agent in held]

    def leases(self) -> list[Lease]:
        """A lease of each."""
        return [
            Lease(beat.task_id, 1, beat.agent_id, beat.seq, beat.observed_at, beat.last_heartbeat_at)
            for beat in self.beats()
        ]

    async def save(self) -> None:
        """Lock the batch and save it with a change of each."""
        rows = await tasks.lock(self.connection, self.ids)
        saved = [saved_task(row, f"step {self._turn}", self.now) for row in rows]
        self.saved.append(saved)
        await tasks.save(self.connection, saved, [event(row) for row in saved])

    async def mark(self) -> None:
        """Take a batch that was saved out of the outbox, the latest first."""
        await outbox.mark_published(self.connection, [(row.task.id, row.task.version) for row in self.saved.pop()])


async def _unpublished(bench: Bench) -> None:
    await bench.admin.execute(_UNPUBLISHED, WAITING)


CALLS: dict[str, Call] = {
    "tasks.lock, tasks.save": lambda b: b.save(),
    "outbox.published": lambda b: b.mark(),
    "leases.touch": lambda b: leases.touch(b.connection, b.beats()),
    "leases.load": lambda b: leases.load(b.connection, b.ids),
    "leases.upsert": lambda b: leases.upsert(b.connection, b.leases()),
    "outbox.due": lambda b: outbox.due(b.connection, b.now, BATCH),
    "tasks.due": lambda b: tasks.due(b.connection, b.now, 500),
    "leases.census": lambda b: leases.count(b.connection, b.now - timedelta(days=1)),
    "leases.silent": lambda b: leases.silent(b.connection, b.now - timedelta(days=1), 20_000),
    "requests.due": lambda b: requests.due(b.connection, b.now, 200, first=5, most=60),
    "requests.answered": lambda b: requests.delete_answered(b.connection, [(each, 1) for each in b.ids]),
    "inputs.first_queued": lambda b: inputs.first_queued(b.connection, dict.fromkeys(b.ids, 2)),
    "commands.claim": lambda b: commands.claim(b.connection, [(uuid4(), b"0")], b.now),
    "parked.read": lambda b: parked.read(b.connection, b.ids),
    "stats.counts": lambda b: stats.counts(b.connection),
    "partitions.prune_feed": lambda b: partitions.prune_feed(b.connection, b.now - timedelta(days=90), 500),
}
"""The calls of a batch, of a sweep and of the housekeeping."""

BACKLOG: dict[str, Call] = {f"outbox.due, {WAITING:,} waiting": CALLS["outbox.due"]}


async def measure(stage: BenchmarkServices, _reports: int, say: Callable[[str], None]) -> str:
    """Both tables."""
    parts = []
    for title, tasks_, empty in (
        (f"{MANY:,} tasks, {MANY:,} rows of history, true statistics", MANY, False),
        (f"{FEW:,} tasks, planned when there were none", FEW, True),
    ):
        say(title)
        found = await _explained(stage, tasks_, empty=empty)
        parts += [f"{title}:", _table(found)]
        say(parts[-1])
    return "\n\n".join(parts)


def _table(found: list[Explained]) -> str:
    lines = ["| statement | ms | blocks | read | WAL, KiB | how it finds its rows |", "|---|---:|---:|---:|---:|---|"]
    lines += [
        f"| `{one.name}` | {one.took:.1f} | {one.blocks:,} | {one.read:,} | {one.wal:,.0f} | {one.scans} |"
        for one in found
    ]
    return "\n".join(lines)


async def _explained(stage: BenchmarkServices, many: int, *, empty: bool) -> list[Explained]:
    await stage.copy(await stage.template(many), NAME)
    url = with_database(stage.admin_url, NAME)
    try:
        async with connected(url) as admin:
            await admin.execute(_HISTORY)
            if empty:
                await _set_aside(admin)
            else:
                await admin.execute("VACUUM (ANALYZE)")
            async with _session(url) as (connection, heard):
                bench = Bench(connection, admin, many)
                for call in CALLS.values():  # makes the plans, and warms up
                    await _called(bench, call)
                if empty:
                    await _put_back(admin)
                found = [one for name, call in CALLS.items() for one in await _heard(bench, heard, name, call)]
                await _unpublished(bench)
                if not empty:
                    await admin.execute("ANALYZE outbox")
                return found + [one for name, call in BACKLOG.items() for one in await _heard(bench, heard, name, call)]
    finally:
        await stage.drop(NAME)


async def _set_aside(admin: asyncpg.Connection) -> None:
    for table in _KEPT:
        await admin.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
        await admin.execute(f"CREATE TABLE kept_{table} AS TABLE {table}")
        await admin.execute(f"TRUNCATE {table}")
    await admin.execute("ALTER TABLE outbox SET (autovacuum_enabled = off)")
    await admin.execute("VACUUM (ANALYZE) outbox")


async def _put_back(admin: asyncpg.Connection) -> None:
    for table in _KEPT:
        await admin.execute(f"INSERT INTO {table} TABLE kept_{table} ON CONFLICT DO NOTHING")


@asynccontextmanager
async def _session(url: str) -> AsyncIterator[tuple[AsyncConnection, list[str]]]:
    engine = open_engine(url, size=1, application_name="bench", command_timeout=300)
    heard: list[str] = []
    try:
        async with engine.connect() as connection:
            driver = (await connection.get_raw_connection()).driver_connection
            assert driver is not None
            driver.add_log_listener(lambda _, message: heard.append(message.message))
            await driver.execute(_EXPLAIN)
            yield connection, heard
    finally:
        await engine.dispose()


async def _called(bench: Bench, call: Call) -> None:
    bench.next()
    await call(bench)
    await bench.connection.commit()


async def _heard(bench: Bench, heard: list[str], name: str, call: Call) -> list[Explained]:
    """Call twice and tell of the second time, when what it needs is in memory."""
    await _called(bench, call)
    heard.clear()
    await _called(bench, call)
    await bench.connection.exec_driver_sql("SELECT 1")  # by then all that was said before has come
    names = name.split(", ") if name in CALLS else [name]
    found: list[Explained] = []
    for said in heard:
        took, _, rest = said.partition("plan:")
        plan = json.loads(rest)["Plan"] if rest else None
        if plan is None or not any("Relation Name" in node for node in _nodes(plan)):
            continue
        title = names[min(len(found), len(names) - 1)]
        found.append(Explained(title, float(took.split()[1]), plan))
    return found
