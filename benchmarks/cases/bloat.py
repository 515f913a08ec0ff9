"""Room in the pages and vacuuming: what updates as fast as the database can leave behind, with one setting and another.

All settings take turns on databases of their own, so that the machine's moods hit all alike.
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
    from collections.abc import Callable, Sequence

TURN = 5.0
"""Seconds for which a setting is at work before it is the next one's turn."""

TURNS = 4
VACUUM_TURNS = 60
"""Autovacuum comes round once a minute, so it takes minutes to see it."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A way to keep a table: statements that make it so in a fresh database."""

    name: str
    table: Literal["tasks", "leases"]
    statements: tuple[str, ...] = ()


@dataclass(slots=True)
class Trial:
    """A setting, its database at work, and what was seen."""

    setting: Setting
    url: str
    grind: SqlLoop
    before: table_sizes.TableSize | None = None
    wal: int = 0
    seconds: list[float] = field(default_factory=list)


def _filled(table: Literal["tasks", "leases"], factor: int, *more: str) -> Setting:
    options = ", ".join((f"fillfactor = {factor}", *more))
    name = f"`{table}`, {options}"
    return Setting(name, table, (f"ALTER TABLE {table} SET ({options})", f"VACUUM (FULL, ANALYZE) {table}"))


FILLS = (
    *(_filled("tasks", factor) for factor in (100, 90, 80, 70, 50)),
    _filled("tasks", 70, "toast_tuple_target = 2040"),
    *(_filled("leases", factor) for factor in (100, 90, 70, 50)),
)

COLUMNS = (
    "setting",
    "HOT updates",
    "moved",
    "MiB before",
    "after",
    "dead",
    "indexes, MiB",
    "µs an update",
    "slowest batch, ms",
    "WAL, KiB an update",
    "outbox, MiB",
    "autovacuums",
)

_OURS = (
    "autovacuum_vacuum_scale_factor, autovacuum_vacuum_threshold, autovacuum_analyze_scale_factor, "
    "autovacuum_vacuum_cost_delay, autovacuum_vacuum_insert_scale_factor"
)
VACUUMS = (
    Setting("our autovacuum settings", "tasks"),
    Setting(
        "PostgreSQL's defaults",
        "tasks",
        tuple(f"ALTER TABLE {table} RESET ({_OURS})" for table in ("tasks", "leases", "outbox", "task_deadlines")),
    ),
)


async def measure(stage: BenchmarkServices, _reports: int, say: Callable[[str], None]) -> str:
    """Both tables of fill factors: tasks in batches of a tenth of them, and of all of them."""
    parts = []
    for tasks in (10_000, 1_000):
        title = f"{tasks:,} tasks, batches of 1,000, {TURN * TURNS:g} s each"
        say(title)
        parts += [f"{title}:", await _compared(stage, FILLS, tasks, TURNS, say)]
    return "\n\n".join(parts)


async def vacuums(stage: BenchmarkServices, _reports: int, say: Callable[[str], None]) -> str:
    """Our autovacuum settings beside the defaults."""
    return await _compared(stage, VACUUMS, 100_000, VACUUM_TURNS, say)


async def _compared(
    stage: BenchmarkServices, settings: Sequence[Setting], tasks: int, turns: int, say: Callable[[str], None]
) -> str:
    template = await stage.template(tasks)
    lines = [
        f"| {' | '.join(COLUMNS)} |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    async with AsyncExitStack() as stack:
        trials = []
        for number, setting in enumerate(settings):
            name = f"bench_bloat_{number}"
            await stage.copy(template, name)
            stack.push_async_callback(stage.drop, name)
            trials.append(await _ready(stage, setting, name, tasks, stack))
        for _ in range(turns):
            for trial in trials:
                await _turn(trial)
        await asyncio.sleep(2)  # the server's counts come with a delay of a second
        for trial in trials:
            line = await _line(trial)
            lines.append(line)
            say(line)
    return "\n".join(lines)


async def _ready(stage: BenchmarkServices, setting: Setting, name: str, tasks: int, stack: AsyncExitStack) -> Trial:
    url = with_database(stage.admin_url, name)
    async with connected(url) as connection:
        for statement in setting.statements:
            await connection.execute(statement)
        body = (await table_sizes.read(connection))[setting.table]
    engine = open_engine(url, size=1, application_name="bench", command_timeout=60)
    stack.push_async_callback(engine.dispose)
    return Trial(setting, url, SqlLoop(engine, tasks), body)


async def _turn(trial: Trial) -> None:
    work = trial.grind.save if trial.setting.table == "tasks" else trial.grind.touch
    async with connected(trial.url) as connection:
        at = await connection.fetchval("SELECT pg_current_wal_lsn()")
        until = time.monotonic() + TURN
        while time.monotonic() < until:
            began = time.perf_counter()
            await work()
            trial.seconds.append(time.perf_counter() - began)
        trial.wal += int(await connection.fetchval("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), $1)", at))


async def _line(trial: Trial) -> str:
    async with connected(trial.url) as connection:
        found = await table_sizes.read(connection)
    before, after, done = trial.before, found[trial.setting.table], trial.grind.done
    assert before is not None
    updates = max(after.updates - before.updates, 1)
    spent = trial.grind.spent["save" if trial.setting.table == "tasks" else "touch"]
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
        f"{(found['outbox'].table + found['outbox'].indexes) / 2**20:.1f}",
        str(sum(body.vacuums for body in found.values())),
    )
    return f"| {trial.setting.name} | {' | '.join(cells)} |"
