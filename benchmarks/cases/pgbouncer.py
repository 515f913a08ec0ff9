"""What it costs to bring the guards of sessions through PgBouncer: defaults of the role, or ``SET LOCAL``.

The ways take turns on one connection each, so that other load on the machine affects all alike.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg

from taskherd.store import role_settings
from taskherd.store.engine import session_settings
from tests.harness.pgbouncer import running_pgbouncer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from benchmarks.harness.run import Run

TURNS = 15
STATEMENTS = 300
"""Statements in each turn."""

_READ = "SELECT $1::int"
_LOCAL = "; ".join(
    f"SET LOCAL {name} = '{value}'"
    for name, value in session_settings("").items()
    if name not in {"application_name", "timezone"}
)


async def _single(connection: Any) -> None:
    await connection.fetchval(_READ, 1)


async def _transaction(connection: Any) -> None:
    await connection.execute("BEGIN")
    await connection.fetchval(_READ, 1)
    await connection.execute("COMMIT")


async def _local_with_begin(connection: Any) -> None:
    await connection.execute(f"BEGIN; {_LOCAL}")
    await connection.fetchval(_READ, 1)
    await connection.execute("COMMIT")


async def _local_by_itself(connection: Any) -> None:
    await connection.execute("BEGIN")
    await connection.execute(_LOCAL)
    await connection.fetchval(_READ, 1)
    await connection.execute("COMMIT")


async def measure(run: Run) -> str:
    """Return a table of microseconds per statement, each the median of all turns."""
    url = run.services.admin_url
    await role_settings.apply(url)
    ways: dict[str, tuple[bool, Callable[[Any], Awaitable[None]]]] = {
        "a single read, without PgBouncer": (False, _single),
        "a single read, guards of the role": (True, _single),
        "a transaction of one read, without PgBouncer": (False, _transaction),
        "the same, guards of the role": (True, _transaction),
        "the same, `SET LOCAL` in the query of `BEGIN`": (True, _local_with_begin),
        "the same, `SET LOCAL` as a query of its own": (True, _local_by_itself),
    }
    spent: dict[str, list[float]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory(prefix="taskherd-pgbouncer-") as folder:
        async with running_pgbouncer(url, Path(folder), print, pool_mode="transaction") as bouncer:
            direct, pooled = await asyncpg.connect(url), await asyncpg.connect(bouncer.url())
            for _ in range(TURNS):
                for name, (through, execute) in ways.items():
                    began = time.perf_counter()
                    for _ in range(STATEMENTS):
                        await execute(pooled if through else direct)
                    spent[name].append((time.perf_counter() - began) / STATEMENTS)
            await direct.close()
            await pooled.close()
    rows = "\n".join(f"| {name} | {statistics.median(each) * 1e6:.0f} |" for name, each in spent.items())
    return f"| statement, on one connection | µs |\n|---|---:|\n{rows}"
