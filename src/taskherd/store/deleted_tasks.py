"""The newest deleted tasks, with who deleted each, until they are erased."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

from taskherd.store.read_pool import Reader, Row
from taskherd.store.task_lists import Statement
from taskherd.store.task_queries import CAN_SEE

MAX_SCANNED: Final = 10_000
"""Maximum number of deleted tasks that are looked at for a page; those that the caller may not see count, too."""
_SECOND_HALF: Final = (1 << 64) - 1


class DeletedPage(NamedTuple):
    """Deleted tasks, and where the next page begins if ``MAX_SCANNED`` were looked at before there were enough.

    ``scanned_to`` is when the last one of them was deleted, and its id. If that task is not on this page, it may be
    somebody else's: then the second half of the id is replaced by the greatest value, so that no task is skipped.
    """

    rows: Sequence[Row]
    scanned_to: tuple[datetime, UUID] | None


async def deleted_tasks(
    pool: Reader,
    caller: UUID,
    limit: int,
    *,
    owner: UUID | None = None,
    prefix: str = "",
    after: tuple[datetime, UUID] | None = None,
) -> DeletedPage:
    """Return up to ``limit`` deleted tasks that the caller may see, last deleted first.

    ``deleted_by`` is null if the history of the deletion was pruned, or names a user who does not exist any more.

    Args:
        pool: where to read.
        caller: the user who asks.
        limit: maximum number of tasks.
        owner: only the tasks of this user.
        prefix: only tasks whose names begin with this lowercase text.
        after: when the last task of the page before was deleted, and its id.
    """
    text, values = select(caller, limit, owner=owner, prefix=prefix, after=after)
    rows = await pool.fetch(text, *values)
    found = [row for row in rows if row["name"] is not None]
    scanned_to = next(((row["deleted_at"], row["id"]) for row in rows if row["name"] is None), None)
    if scanned_to is not None and not (found and found[-1]["id"] == scanned_to[1]):
        scanned_to = scanned_to[0], UUID(int=scanned_to[1].int | _SECOND_HALF)
    return DeletedPage(found, scanned_to)


def select(
    caller: UUID, limit: int, *, owner: UUID | None, prefix: str, after: tuple[datetime, UUID] | None
) -> tuple[str, list[Any]]:
    """Return the statement of ``deleted_tasks`` and its parameters.

    An event is near the time of the deletion, which leaves one or two partitions of the history to look at. A row
    without a name is that of ``scanned_to``, which is looked for only if there are too few tasks for the page.
    """
    statement = Statement(caller)
    scanned, most = statement.bind(MAX_SCANNED), statement.bind(limit)
    of_owner = "" if owner is None else f"AND t.owner_id = {statement.bind(owner)}"
    named = f"AND starts_with(lower(t.name), {statement.bind(prefix)})" if prefix else ""
    earlier = f"AND (deleted_at, id) < ({statement.bind(after[0])}, {statement.bind(after[1])})" if after else ""
    scan = f"""tasks WHERE deleted_at IS NOT NULL AND erased_at IS NULL {earlier}
        ORDER BY deleted_at DESC, id DESC"""
    text = f"""
    WITH page AS (
        SELECT * FROM (
            SELECT id, name, display_name, created_at, deleted_at, owner_id, organization_id, template_id
            FROM {scan} LIMIT {scanned}) AS t
        WHERE {CAN_SEE} {of_owner} {named}
        ORDER BY deleted_at DESC, id DESC LIMIT {most})
    SELECT t.id, t.name, t.display_name, t.created_at, t.deleted_at, o.username AS owner_name,
           m.name AS template_name, m.display_name AS template_display_name, w.username AS deleted_by
    FROM page AS t
    CROSS JOIN LATERAL (SELECT username FROM users WHERE id = t.owner_id LIMIT 1) AS o
    CROSS JOIN LATERAL (SELECT name, display_name FROM templates WHERE id = t.template_id LIMIT 1) AS m
    LEFT JOIN LATERAL (
        SELECT CAST(cause ->> 'actor_id' AS uuid) AS actor_id FROM task_events
        WHERE task_id = t.id AND kind = 'deleted'
          AND occurred_at BETWEEN t.deleted_at - interval '1 hour' AND t.deleted_at + interval '1 hour'
        ORDER BY version DESC LIMIT 1) AS e ON true
    LEFT JOIN LATERAL (SELECT username FROM users WHERE id = e.actor_id LIMIT 1) AS w ON true
    UNION ALL
    SELECT id, NULL, NULL, NULL, deleted_at, NULL, NULL, NULL, NULL
    FROM (SELECT id, deleted_at FROM {scan} OFFSET {scanned} - 1 LIMIT 1) AS s
    WHERE (SELECT count(*) FROM page) < {most}
    ORDER BY deleted_at DESC, id DESC
    """
    return text, statement.values
