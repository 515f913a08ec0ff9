"""How far a standby has replayed what the primary has written. The statements are for ``ReadPool``.

Positions in the write-ahead log (LSNs) are numbers of bytes. They compare only within a timeline: a standby that still
follows the former primary after a failover may be beyond the position at which the new one began another timeline.
https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-RECOVERY-CONTROL
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from taskherd.store.read_pool import ReadPool

UNKNOWN_LSN: Final = "FFFFFFFF/FFFFFFFF"
"""The LSN that no standby reaches."""
_LSN: Final = re.compile(r"([0-9A-F]{1,8})/([0-9A-F]{1,8})", re.ASCII | re.IGNORECASE)

_POSITION: Final = """
SELECT CASE WHEN {condition} THEN CAST(pg_wal_lsn_diff({position}, '0/0') AS bigint) END AS position,
       CASE WHEN {condition} THEN {timeline} END AS timeline,
       (SELECT system_identifier FROM pg_control_system()) AS cluster,
       (SELECT oid FROM pg_database WHERE datname = current_database()) AS database
"""

_WRITTEN_LSN: Final = "SELECT CASE WHEN NOT pg_is_in_recovery() THEN CAST(pg_current_wal_lsn() AS text) END AS lsn"

_WRITTEN: Final = _POSITION.format(
    condition="NOT pg_is_in_recovery()",
    position="pg_current_wal_lsn()",
    timeline="CAST(CAST('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8) AS bit(32)) AS integer)",
)

# The first is what is received now, which only members of ``pg_read_all_stats`` may see; the others are written to disk
# now and then, within minutes, and never name a timeline before it is replayed.
_REPLAYED: Final = _POSITION.format(
    condition="pg_is_in_recovery()",
    position="pg_last_wal_replay_lsn()",
    timeline="""COALESCE(
           (SELECT received_tli FROM pg_stat_wal_receiver),
           GREATEST((SELECT timeline_id FROM pg_control_checkpoint()),
                    (SELECT min_recovery_end_timeline FROM pg_control_recovery())))""",
)


class DatabaseId(NamedTuple):
    """What a database and its copies on standbys have in common, and no other database has."""

    cluster: int
    database: int


class WalPosition(NamedTuple):
    """A position in the write-ahead log of the server that has this database."""

    database: DatabaseId
    timeline: int
    """The timeline that it writes or replays, or replayed some minutes ago; each promotion begins another."""
    position: int


async def written(primary: ReadPool) -> WalPosition | None:
    """Return the position up to which the primary has written; None if the server is a standby.

    A commit that was acknowledged is below it. Raise the errors of ``ReadPool.fetch``.
    """
    return await _position(primary, _WRITTEN)


async def replayed(standby: ReadPool) -> WalPosition | None:
    """Return the position up to which the standby shows changes; None if the server is not a standby.

    Raise the errors of ``ReadPool.fetch``.
    """
    return await _position(standby, _REPLAYED)


async def written_lsn(primary: ReadPool) -> str | None:
    """Return the position up to which the primary has written, as PostgreSQL prints it: ``16/B374D848``.

    A commit that was acknowledged is below it. Return None if the server is a standby. Raise the errors of
    ``ReadPool.fetch``.
    """
    row = await primary.fetch_one(_WRITTEN_LSN)
    return None if row is None else row["lsn"]


def parse_lsn(text: str) -> int | None:
    """Return the position that an LSN as PostgreSQL prints it names, None if it is not one."""
    match = _LSN.fullmatch(text)
    return None if match is None else int(match[1], 16) << 32 | int(match[2], 16)


async def _position(pool: ReadPool, statement: str) -> WalPosition | None:
    row = await pool.fetch_one(statement)
    if row is None or row["position"] is None:
        return None
    database = DatabaseId(int(row["cluster"]), int(row["database"]))
    return WalPosition(database, int(row["timeline"]), int(row["position"]))
