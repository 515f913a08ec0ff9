"""Runners and pools, each of which has a queue of work requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection


@dataclass(frozen=True, slots=True)
class WorkTargets:
    """The pools of the directory, its runners with their pools, and the runners that said hello with theirs.

    ``heard_at`` is when they said it last.
    """

    directory_pools: frozenset[str]
    listed: Mapping[str, str]
    said_hello: Mapping[str, str]
    heard_at: Mapping[str, datetime] = field(default_factory=dict)

    @property
    def pools(self) -> frozenset[str]:
        """Names of all pools."""
        return self.directory_pools | {*self.listed.values(), *self.said_hello.values()}

    @property
    def runners(self) -> frozenset[str]:
        """Names of all runners."""
        return frozenset({*self.listed, *self.said_hello})


LOCK: Final = text("SELECT pg_advisory_xact_lock(hashtextextended('taskherd runners', 0))")

POOLS: Final = text("SELECT DISTINCT COALESCE(NULLIF(run->>'pool', ''), 'default') FROM template_versions")

LISTED: Final = text("SELECT name, pool FROM runners WHERE active")

HELLOS: Final = text("SELECT name, pool, hello_at FROM runner_hellos")

RECORD: Final = text("""
INSERT INTO runner_hellos (name, pool, hello_at)
SELECT name, pool, :now FROM unnest(CAST(:name AS text[]), CAST(:pool AS text[])) AS h(name, pool)
ORDER BY name
ON CONFLICT (name) DO UPDATE SET pool = excluded.pool, hello_at = excluded.hello_at
""")

IDLE: Final = text("SELECT name FROM runner_hellos WHERE hello_at < :before ORDER BY hello_at LIMIT :limit")

TOUCH: Final = text("UPDATE runner_hellos SET hello_at = :now WHERE name = :name")

FORGET: Final = text("DELETE FROM runner_hellos WHERE name = :name AND hello_at < :before RETURNING pool")


async def lock(connection: AsyncConnection) -> None:
    """Wait until no other transaction adds or forgets runners, and keep others waiting until this one ends."""
    await connection.execute(LOCK)


async def targets(connection: AsyncConnection) -> WorkTargets:
    """Return all pools and runners."""
    hellos = (await connection.execute(HELLOS)).all()
    return WorkTargets(
        frozenset(pool for (pool,) in await connection.execute(POOLS)),
        {name: pool for name, pool in await connection.execute(LISTED)},  # noqa: C416 - a row is not a tuple to mypy
        {name: pool for name, pool, _ in hellos},
        {name: hello_at for name, _, hello_at in hellos},
    )


async def record_hellos(connection: AsyncConnection, pools: Mapping[str, str], now: datetime) -> None:
    """Record that these runners, each with its pool, said hello."""
    await connection.execute(RECORD, {"name": list(pools), "pool": list(pools.values()), "now": now})


async def idle(connection: AsyncConnection, before: datetime, limit: int) -> Sequence[str]:
    """Return up to ``limit`` runners that said no hello since ``before``, those that are silent longest first."""
    return [name for (name,) in await connection.execute(IDLE, {"before": before, "limit": limit})]


async def touch(connection: AsyncConnection, name: str, now: datetime) -> None:
    """Treat a runner as if it had said hello now."""
    await connection.execute(TOUCH, {"name": name, "now": now})


async def forget(connection: AsyncConnection, name: str, before: datetime) -> str | None:
    """Forget a runner unless it said hello since ``before``; return its pool, or None if it was not forgotten."""
    return (await connection.execute(FORGET, {"name": name, "before": before})).scalar_one_or_none()
