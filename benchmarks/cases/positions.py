"""Feed positions: how many changes a second get one, in the real tables and in a prototype with shards."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING
from uuid import UUID

from sqlalchemy import text

from benchmarks.harness.services import connected, with_database
from taskherd.store import outbox
from taskherd.store.engine import open_engine, transaction

if TYPE_CHECKING:
    import asyncpg
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from benchmarks.harness.run import Run

    Key = tuple[UUID, int]

NAME = "bench_positions"
CHANGES = 200_000
QUICK_CHANGES = 40_000
FEED = 1_000_000
"""Rows of the feed before the measurement, so that its indexes are not empty."""
SHARDS = 8


@dataclass(frozen=True, slots=True)
class Way:
    """One way to give positions; ``shards`` is 0 for the real tables."""

    shards: int
    size: int
    relays: int


WAYS = [Way(shards, size, relays) for shards in (0, SHARDS) for size in (1_000, 4_000) for relays in (1, 4)]

_FILL_FEED = """
INSERT INTO task_feed
SELECT nextval('task_feed_position'), md5('old' || g)::uuid, 1, now() FROM generate_series(1, $1) AS g
"""
_FILL_OUTBOX = "INSERT INTO outbox SELECT md5('task' || g)::uuid, 1, now() FROM generate_series(1, $1) AS g"
_KEYS = "SELECT md5('task' || g)::uuid AS task_id FROM generate_series(1, $1) AS g ORDER BY md5('order' || g)"

# The prototype: a row's shard follows from its task, each shard has its own lock, sequence and tables.
_SHARD = """
CREATE SEQUENCE feed_position_{n};
CREATE TABLE feed_{n} (position bigint PRIMARY KEY, task_id uuid NOT NULL, version bigint NOT NULL,
                       occurred_at timestamptz NOT NULL);
CREATE INDEX ON feed_{n} (task_id, version);
INSERT INTO feed_{n} SELECT nextval('feed_position_{n}'), md5('old' || {n} || '.' || g)::uuid, 1, now()
FROM generate_series(1, {rows}) AS g
"""


async def measure(run: Run) -> str:
    """Return a table of rates."""
    changes = QUICK_CHANGES if run.options.quick else CHANGES
    await run.services.copy(await run.services.template(1_000), NAME)
    url = with_database(run.services.admin_url, NAME)
    lines = [
        "| shards | changes per statement | at the same time | changes/s, median | highest |",
        "|---|---:|---:|---:|---:|",
    ]
    engine = open_engine(url, size=4, application_name="bench", command_timeout=120, lock_timeout=120)
    try:
        async with connected(url) as admin:
            await admin.execute(_FILL_FEED, FEED)
            for number in range(SHARDS):
                await admin.execute(_SHARD.format(n=number, rows=FEED // SHARDS))
            await admin.execute("VACUUM (ANALYZE)")
            rates: dict[Way, list[float]] = {way: [] for way in WAYS}
            for _ in range(run.rounds):
                for way in WAYS:
                    rates[way].append(await _rate(engine, admin, changes, way))
        for way, all_rates in rates.items():
            cells = (f"{way.shards or 'one sequence'}", f"{way.size:,}", f"{way.relays}", f"{median(all_rates):,.0f}")
            lines.append(f"| {' | '.join(cells)} | {max(all_rates):,.0f} |")
            run.log(lines[-1])
    finally:
        await engine.dispose()
        await run.services.drop(NAME)
    return "\n".join(lines)


async def _rate(engine: AsyncEngine, admin: asyncpg.Connection, changes: int, way: Way) -> float:
    await admin.execute("TRUNCATE outbox")
    await admin.execute(_FILL_OUTBOX, changes)
    await admin.execute("CHECKPOINT")
    ids = [UUID(int=row["task_id"].int) for row in await admin.fetch(_KEYS, changes)]
    by_shard: list[list[Key]] = [[] for _ in range(way.shards or 1)]
    for task_id in ids:
        by_shard[task_id.int % len(by_shard)].append((task_id, 1))
    batches = [
        (number, keys[start : start + way.size])
        for number, keys in enumerate(by_shard)
        for start in range(0, len(keys), way.size)
    ]
    batches.sort(key=lambda batch: batch[1][0])

    async def relay() -> None:
        while batches:
            number, keys = batches.pop()
            async with transaction(engine) as connection:
                marked = (
                    _mark_in_shard(connection, keys, number) if way.shards else outbox.mark_published(connection, keys)
                )
                assert await marked == len(keys)

    began = time.monotonic()
    await asyncio.gather(*(relay() for _ in range(way.relays)))
    return changes / (time.monotonic() - began)


async def _mark_in_shard(connection: AsyncConnection, keys: list[Key], shard: int) -> int:
    """Do what ``outbox.mark_published`` does, with the lock, the sequence and the table of one shard."""
    statement = str(outbox.MARK_PUBLISHED)
    for name, own in (
        ("taskherd feed", f"taskherd feed {shard}"),
        ("task_feed_position", f"feed_position_{shard}"),
        ("task_feed", f"feed_{shard}"),
    ):
        statement = statement.replace(name, own)
    ids = sorted(task_id for task_id, _ in keys)
    values = {"task_id": ids, "first": [1] * len(ids), "last": [1] * len(ids)}
    return int((await connection.execute(text(statement), values)).scalar_one())
