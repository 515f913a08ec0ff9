"""How big tables are and what their updates leave behind, as PostgreSQL counts it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    import asyncpg

TABLES = ("tasks", "leases", "task_events", "task_feed", "outbox", "task_deadlines")

# A partitioned table is the sum of its parts.
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
    """A table at one time: bytes of it and of its indexes, rows living and dead, updates and vacuums until then.

    ``moved``: updates that had to go to another page. An update that is neither heap-only nor moved changed an index.
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
        """Which share of the updates was heap-only."""
        return self.hot / self.updates if self.updates else 1.0


async def read(connection: asyncpg.Connection) -> dict[str, TableSize]:
    """The tables that change with every report."""
    return {row[0]: TableSize(*row[1:]) for row in await connection.fetch(_READ, list(TABLES))}


def table(early: Mapping[str, TableSize], last: Mapping[str, TableSize], hours: float, first: str, end: str) -> str:
    """Both times side by side; ``hours`` lie between them."""
    lines = [
        f"| table | MiB {first} | {end} | an hour | indexes {first} | {end} | an hour | HOT updates | dead | vacuums |",
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
