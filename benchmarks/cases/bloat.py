"""Fill factors and autovacuum settings: the space and dead rows left by updates at full speed.

The settings take turns, each on its own database, so that other load on the machine affects all alike.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from benchmarks.harness import table_sizes
from benchmarks.harness.services import BenchmarkServices, connected, with_database
from benchmarks.harness.sql_loop import SqlLoop
from taskherd.store.engine import open_engine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.harness.run import Run

SECONDS_PER_ROUND = 5.0
"""Seconds per setting in each round."""

ROUNDS = 4
VACUUM_ROUNDS = 60
"""Autovacuum runs once a minute, so it takes minutes to show."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Storage options of a table, and the statements that set them in a fresh database."""

    name: str
    table: Literal["tasks", "leases"]
    statements: tuple[str, ...] = ()


@dataclass(slots=True)
class Trial:
    """A setting, its database, and the measurements."""

    setting: Setting
    url: str
    loop: SqlLoop
    before: table_sizes.TableSize | None = None
    wal: int = 0
    seconds: list[float] = field(default_factory=list)


def _fill_factor(table: Literal["tasks", "leases"], factor: int, *others: str) -> Setting:
    options = ", ".join((f"fillfactor = {factor}", *others))
    name = f"`{table}`, {options}"
    return Setting(name, table, (f"ALTER TABLE {table} SET ({options})", f"VACUUM (FULL, ANALYZE) {table}"))


FILLS = (
    *(_fill_factor("tasks", factor) for factor in (100, 90, 80, 70, 50)),
    _fill_factor("tasks", 70, "toast_tuple_target = 2040"),
    *(_fill_factor("leases", factor) for factor in (100, 90, 70, 50)),
)

COLUMNS = (
    "setting",
    "HOT updates",
    "moved to another page",
    "MiB before",
    "after",
    "dead rows",
    "indexes, MiB",
    "µs per update",
    "slowest batch, ms",
    "WAL, KiB per update",
    "outbox, MiB",
    "autovacuums",
)

_OPTIONS = (
    "autovacuum_vacuum_scale_factor, autovacuum_vacuum_threshold, autovacuum_analyze_scale_factor, "
    "autovacuum_vacuum_cost_delay, autovacuum_vacuum_insert_scale_factor"
)
VACUUMS = (
    Setting("taskherd's autovacuum settings", "tasks"),
    Setting(
        "PostgreSQL's defaults",
        "tasks",
        tuple(f"ALTER TABLE {table} RESET ({_OPTIONS})" for table in ("tasks", "leases", "outbox", "task_deadlines")),
    ),
)


async def measure(run: Run) -> str:
    """Return the tables of fill factors: with batches of a tenth of the tasks, and of all tasks."""
    parts = []
    for tasks in (10_000, 1_000):
        title = f"{tasks:,} tasks, batches of 1,000, {SECONDS_PER_ROUND * ROUNDS:g} s each"
        run.log(title)
        parts += [f"{title}:", await _compare(run, FILLS, tasks, ROUNDS)]
    return "\n\n".join(parts)


async def measure_vacuums(run: Run) -> str:
    """Return the table that compares taskherd's autovacuum settings with PostgreSQL's defaults."""
    return await _compare(run, VACUUMS, 100_000, VACUUM_ROUNDS)


async def _compare(run: Run, settings: Sequence[Setting], tasks: int, rounds: int) -> str:
    services = run.services
    template = await services.template(tasks)
    lines = [
        f"| {' | '.join(COLUMNS)} |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    async with AsyncExitStack() as stack:
        trials = []
        for number, setting in enumerate(settings):
            name = f"bench_bloat_{number}"
            await services.copy(template, name)
            stack.push_async_callback(services.drop, name)
            trials.append(await _prepare(services, setting, name, tasks, stack))
        for _ in range(rounds):
            for trial in trials:
                await _turn(trial)
        await asyncio.sleep(2)  # the server updates its statistics after up to a second
        for trial in trials:
            line = await _line(trial)
            lines.append(line)
            run.log(line)
    return "\n".join(lines)


async def _prepare(
    services: BenchmarkServices, setting: Setting, name: str, tasks: int, stack: AsyncExitStack
) -> Trial:
    url = with_database(services.admin_url, name)
    async with connected(url) as connection:
        for statement in setting.statements:
            await connection.execute(statement)
        size = (await table_sizes.read(connection))[setting.table]
    engine = open_engine(url, size=1, application_name="bench", command_timeout=60)
    stack.push_async_callback(engine.dispose)
    return Trial(setting, url, SqlLoop(engine, tasks), size)


async def _turn(trial: Trial) -> None:
    work = trial.loop.save if trial.setting.table == "tasks" else trial.loop.renew_leases
    async with connected(trial.url) as connection:
        wal_before = await connection.fetchval("SELECT pg_current_wal_lsn()")
        until = time.monotonic() + SECONDS_PER_ROUND
        while time.monotonic() < until:
            began = time.perf_counter()
            await work()
            trial.seconds.append(time.perf_counter() - began)
        trial.wal += int(await connection.fetchval("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), $1)", wal_before))


async def _line(trial: Trial) -> str:
    async with connected(trial.url) as connection:
        sizes = await table_sizes.read(connection)
    before, after, done = trial.before, sizes[trial.setting.table], trial.loop.done
    assert before is not None
    updates = max(after.updates - before.updates, 1)
    spent = trial.loop.spent["save" if trial.setting.table == "tasks" else "renew_leases"]
    cells = (
        f"{(after.hot - before.hot) / updates:.2%}",
        f"{(after.moved - before.moved) / updates:.2%}",
        f"{before.table / 2**20:.1f}",
        f"{after.table / 2**20:.1f}",
        f"{after.dead:,}",
        f"{before.indexes / 2**20:.1f} → {after.indexes / 2**20:.1f}",
        f"{spent / done * 1e6:.1f}",
        f"{max(trial.seconds) * 1e3:.0f}",
        f"{trial.wal / done / 1024:.2f}",
        f"{(sizes['outbox'].table + sizes['outbox'].indexes) / 2**20:.1f}",
        str(sum(size.vacuums for size in sizes.values())),
    )
    return f"| {trial.setting.name} | {' | '.join(cells)} |"
