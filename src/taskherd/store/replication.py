"""How far a standby has replayed what the primary has written. The statements are for ``ReadPool``.

Positions in the write-ahead log (LSNs) are numbers of bytes.
https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-RECOVERY-CONTROL
"""

from __future__ import annotations

from typing import Final, NamedTuple

from taskherd.store.read_pool import ReadPool

_POSITION: Final = """
SELECT CASE WHEN {condition} THEN CAST(pg_wal_lsn_diff({position}, '0/0') AS bigint) END AS position,
       (SELECT system_identifier FROM pg_control_system()) AS cluster,
       (SELECT oid FROM pg_database WHERE datname = current_database()) AS database
"""

_WRITTEN: Final = _POSITION.format(condition="NOT pg_is_in_recovery()", position="pg_current_wal_lsn()")
_REPLAYED: Final = _POSITION.format(condition="pg_is_in_recovery()", position="pg_last_wal_replay_lsn()")


class DatabaseId(NamedTuple):
    """What a database and its copies on standbys have in common, and no other database has."""

    cluster: int
    database: int


class WalPosition(NamedTuple):
    """A position in the write-ahead log of the server that has this database."""

    database: DatabaseId
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


async def _position(pool: ReadPool, statement: str) -> WalPosition | None:
    row = await pool.fetch_one(statement)
    if row is None or row["position"] is None:
        return None
    return WalPosition(DatabaseId(int(row["cluster"]), int(row["database"])), int(row["position"]))
