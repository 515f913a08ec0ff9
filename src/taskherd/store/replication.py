"""How far a standby has replayed what the primary has written. The statements are for ``ReadPool``.

Positions in the write-ahead log (LSNs) are numbers of bytes.
https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-RECOVERY-CONTROL
"""

from __future__ import annotations

from typing import Final

from taskherd.store.read_pool import ReadPool

_WRITTEN: Final = """
SELECT CASE WHEN NOT pg_is_in_recovery()
       THEN CAST(pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0') AS bigint) END AS position
"""

_REPLAYED: Final = """
SELECT CASE WHEN pg_is_in_recovery()
       THEN CAST(pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '0/0') AS bigint) END AS position
"""


async def written(primary: ReadPool) -> int | None:
    """Return the position up to which the primary has written; None if the server is a standby.

    A commit that was acknowledged is below it. Raise the errors of ``ReadPool.fetch``.
    """
    return await _position(primary, _WRITTEN)


async def replayed(standby: ReadPool) -> int | None:
    """Return the position up to which the standby shows changes; None if the server is not a standby.

    Raise the errors of ``ReadPool.fetch``.
    """
    return await _position(standby, _REPLAYED)


async def _position(pool: ReadPool, statement: str) -> int | None:
    row = await pool.fetch_one(statement)
    return None if row is None or row["position"] is None else int(row["position"])
