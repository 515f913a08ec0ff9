"""Sizes, dead rows and updates of tables, from PostgreSQL's statistics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    import asyncpg

TABLES = ("tasks", "leases", "task_events", "task_feed", "outbox", "task_deadlines")

# A partitioned table is the sum of its partitions.
_READ = """
SELECT p.parent, sum(pg_table_size(s.relid))::bigint, sum(pg_indexes_size(s.relid))::bigint,
       sum(s.n_live_tup)::bigint, sum(s.n_dead_tup)::bigint, sum(s.n_tup_upd)::bigint, sum(s.n_tup_hot_upd)::bigint,
       sum(s.n_tup_newpage_upd)::bigint, sum(s.autovacuum_count)::bigint
FROM unnest($1::text[]) AS p(parent)
JOIN pg_stat_user_tables AS s ON s.relid = p.parent::regclass
    OR s.relid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = p.parent::regclass)
GROUP BY p.parent
"""


@dataclass(frozen=True, slots=True)
class TableSize:
    """A table at one time: bytes of the table and its indexes, live and dead rows, updates and vacuums so far.

    ``moved``: updates that went to another page. An update that is neither heap-only nor moved changed an index.
    """

    table: int
    indexes: int
    live: int
    dead: int
    updates: int
    hot: int
    moved: int
    vacuums: int

    @property
    def hot_share(self) -> float:
        """Share of heap-only updates."""
        return self.hot / self.updates if self.updates else 1.0


async def read(connection: asyncpg.Connection) -> dict[str, TableSize]:
    """Return the sizes of the tables that change with every report."""
    return {row[0]: TableSize(*row[1:]) for row in await connection.fetch(_READ, list(TABLES))}


def table(early: Mapping[str, TableSize], last: Mapping[str, TableSize], hours: float, first: str, end: str) -> str:
    """Return a table of both times, which are ``hours`` apart."""
    times = f"{first} | {end} | per hour"
    lines = [
        f"| table | MiB {times} | indexes, MiB {times} | HOT updates | dead rows | vacuums |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name in TABLES:
        before, after = early[name], last[name]
        updates = after.updates - before.updates
        cells = [
            *(f"{size / 2**20:,.1f}" for size in (before.table, after.table, (after.table - before.table) / hours)),
            *(f"{size / 2**20:,.1f}" for size in (before.indexes, after.indexes)),
            f"{(after.indexes - before.indexes) / 2**20 / hours:,.1f}",
            f"{(after.hot - before.hot) / updates:.2%} of {updates:,}" if updates else "-",
            f"{after.dead:,}",
            str(after.vacuums - before.vacuums),
        ]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)
