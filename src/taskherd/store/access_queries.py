"""One query for all open requests of an API process: which of them have lost their access. For ``ReadPool``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple
from uuid import UUID

from taskherd.store.read_pool import ReadPool
from taskherd.store.task_queries import can_see
from taskherd.store.tokens import IS_VALID


class AccessKey(NamedTuple):
    """What an open request needs: a valid token, and a task that its user may see; None if it is about no one task."""

    token_id: str
    user_id: UUID
    task_id: UUID | None


# Lookups by primary key for each row. Deleted tasks count as visible: a stream delivers the deletion of its task.
LOST: Final = f"""
SELECT c.position, c.signed_in
FROM (
    SELECT r.position,
           EXISTS (
               SELECT 1 FROM api_tokens AS k JOIN users AS u ON u.id = k.user_id WHERE k.id = r.token_id AND {IS_VALID}
           ) AS signed_in,
           r.task_id IS NULL OR COALESCE(
               (SELECT {can_see("r.user_id")} FROM tasks AS t WHERE t.id = r.task_id), false) AS visible
    FROM unnest($1::text[], $2::uuid[], $3::uuid[]) WITH ORDINALITY AS r(token_id, user_id, task_id, position)
) AS c
WHERE NOT (c.signed_in AND c.visible)
"""


async def lost(pool: ReadPool, keys: Sequence[AccessKey]) -> dict[AccessKey, bool]:
    """Return the keys that have lost their access; False if the token is no longer valid, True if only the task is."""
    values = [[key[column] for key in keys] for column in range(len(AccessKey._fields))]
    return {keys[row["position"] - 1]: row["signed_in"] for row in await pool.fetch(LOST, *values)}
