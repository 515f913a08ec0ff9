"""The change feed: published changes by position, in pages, for one caller or with the users who may see each.

The feed is pruned from its oldest end, so a reader can resume at a position as long as its row exists. All statements
are for ``ReadPool``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple
from uuid import UUID

from taskherd.store.pages import MAX_PAGE_BYTES, bytes_before
from taskherd.store.read_pool import Reader, Row
from taskherd.store.task_queries import CAN_SEE, can_see
from taskherd.store.task_state_codec import STATE_SINCE
from taskherd.store.version_search import version_search

LATEST: Final = "SELECT COALESCE(max(position), 0) AS position FROM task_feed"

POSITION_EXISTS: Final = """
SELECT EXISTS (SELECT 1 FROM task_feed WHERE position = $1)
    OR ($1 = 0 AND COALESCE((SELECT min(position) FROM task_feed), 1) = 1) AS resumable
"""

# ``kind`` is null if the event was pruned before its position, or ``erased`` with its task. ``previous_status``: set if
# the change altered it. ``state_since``: null if the task has come into another state after the change.
_CHANGE: Final = f"""
SELECT f.position, f.task_id, f.version, f.occurred_at, t.erased_at IS NOT NULL AS erased, e.kind,
       CAST(e.document AS text) AS core_document, e.changes, CAST(e.cause AS text) AS cause, p.prompt,
       t.owner_id, t.organization_id, t.template_id, d.revision,
       o.username, o.avatar_url, m.name, m.display_name, m.icon,
       CASE WHEN 'status' = ANY(e.changes) THEN (
           SELECT document ->> 'status' FROM task_events WHERE task_id = f.task_id AND version = f.version - 1 LIMIT 1
       ) END AS previous_status,
       CASE WHEN 'current_state' = ANY(e.changes) THEN (
           SELECT COALESCE(document #>> '{{current_state,state}}', '') FROM task_events
           WHERE task_id = f.task_id AND version = f.version - 1 LIMIT 1
       ) END AS previous_state,
       CASE WHEN CAST({STATE_SINCE} AS timestamptz) <= f.occurred_at THEN {STATE_SINCE} END AS state_since
"""

_CHANGE_JOINS: Final = """
CROSS JOIN directory_revision AS d
LEFT JOIN LATERAL (
    SELECT * FROM task_events WHERE task_id = f.task_id AND version = f.version AND occurred_at = f.occurred_at LIMIT 1
) AS e ON true
LEFT JOIN LATERAL (
    SELECT prompt FROM task_prompts WHERE task_id = f.task_id AND version = e.prompt_version LIMIT 1) AS p ON true
CROSS JOIN LATERAL (SELECT * FROM tasks WHERE id = f.task_id LIMIT 1) AS t
CROSS JOIN LATERAL (SELECT username, avatar_url FROM users WHERE id = t.owner_id LIMIT 1) AS o
CROSS JOIN LATERAL (SELECT name, display_name, icon FROM templates WHERE id = t.template_id LIMIT 1) AS m
"""

# The size is null of an event that was pruned, and counts nothing then.
_SIZE: Final = "octet_length(p.prompt) + octet_length(CAST(e.document AS text))"
_BYTES_BEFORE: Final = f"{bytes_before(_SIZE, 'ORDER BY f.position')} AS bytes_before"

# For all subscribers of an API process: each change with the users who may see it, by the rule ``can_see``. These are
# the admins of the task's organization, and the owner while a member of it. ``found``: how many there are without the
# limit in bytes.
CHANGES_AFTER: Final = f"""
WITH page AS MATERIALIZED (
    SELECT f.*, t.organization_id
    FROM (SELECT * FROM task_feed WHERE position > $1 ORDER BY position LIMIT $2) AS f
    JOIN tasks AS t ON t.id = f.task_id
), admins AS MATERIALIZED (
    SELECT organization_id, array_agg(user_id) AS ids FROM memberships
    WHERE role = 'admin' AND active AND organization_id IN (SELECT organization_id FROM page) GROUP BY organization_id
)
SELECT * FROM (
    {_CHANGE}, a.ids AS admins, {can_see("t.owner_id")} AS owner_can_see, count(*) OVER () AS found, {_BYTES_BEFORE}
    FROM page AS f {_CHANGE_JOINS} LEFT JOIN admins AS a ON a.organization_id = f.organization_id
) AS c
WHERE bytes_before < $3
ORDER BY position
"""

# For one caller. ``until``: the last position of the page, even if the caller may see none of its changes; of a page
# that ends at its limit in bytes, that of its last change. ``more``: the feed may go on after it.
_CATCH_UP: Final = """
, visible AS (
    {change}, {bytes_before} FROM page AS f {joins}
    WHERE {condition}
), kept AS (SELECT * FROM visible WHERE bytes_before < $4)
SELECT CASE WHEN u.cut THEN u.last_kept ELSE u.last END AS until, u.cut OR u.count = $3 AS more, kept.*
FROM (
    SELECT max(position) AS last, count(*) AS count, (SELECT max(position) FROM kept) AS last_kept,
           (SELECT count(*) FROM kept) < (SELECT count(*) FROM visible) AS cut
    FROM page
) AS u LEFT JOIN kept ON true
ORDER BY kept.position
"""
CATCH_UP: Final = """
WITH page AS MATERIALIZED (SELECT * FROM task_feed WHERE position > $2 ORDER BY position LIMIT $3)
""" + _CATCH_UP.format(
    change=_CHANGE,
    bytes_before=_BYTES_BEFORE,
    joins=_CHANGE_JOINS,
    condition=f"""{CAN_SEE}
      AND ($5::uuid IS NULL OR t.owner_id = $5) AND ($6::uuid IS NULL OR t.organization_id = $6)""",
)


def _first_after(task_id: str, position: str) -> str:
    """Return the expression ``first``: a task's first version after a position; both rise together."""
    return version_search("first", "task_feed", task_id=task_id, start="0", is_before=f"e.position <= {position}")


CATCH_UP_ONE: Final = f"""
WITH RECURSIVE {_first_after("$5", "$2")},
page AS MATERIALIZED (
    SELECT * FROM task_feed WHERE task_id = $5 AND version >= (SELECT max(low) FROM first) ORDER BY version LIMIT $3)
""" + _CATCH_UP.format(change=_CHANGE, bytes_before=_BYTES_BEFORE, joins=_CHANGE_JOINS, condition=CAN_SEE)

# Deleted tasks too, so that subscribers of a task receive its deletion.
VISIBLE_EVEN_DELETED: Final = f"SELECT t.id FROM tasks AS t WHERE t.id = $2 AND {CAN_SEE}"

# Those of the given versions that the feed delivers after position ``$1``: they or earlier ones are unpublished, or
# their position is greater.
WILL_REPLAY: Final = """
SELECT k.task_id, k.version FROM unnest($2::uuid[], $3::bigint[]) AS k(task_id, version)
WHERE EXISTS (SELECT 1 FROM outbox AS b WHERE b.task_id = k.task_id AND b.version <= k.version)
   OR EXISTS (
       SELECT 1 FROM task_feed AS f WHERE f.task_id = k.task_id AND f.version = k.version AND f.position > $1)
"""

_TIMELINE_SIZE: Final = """octet_length(CAST(e.document AS text)) + COALESCE(octet_length(p.prompt), 0)
    + COALESCE(octet_length(CAST(b.document AS text)), 0) + COALESCE(octet_length(q.prompt), 0)"""


def _timeline(order: str) -> str:
    """Return the statement of a timeline.

    ``$3`` is the position to continue after. Without a change there is one row with only the id of the task.
    """
    return f"""
WITH RECURSIVE {_first_after("$2", "$3")}
SELECT * FROM (
    SELECT s.id, f.position, f.version, f.occurred_at, e.changes, CAST(e.cause AS text) AS cause,
           CAST(e.document AS text) AS core_document, p.prompt, CAST(b.document AS text) AS core_document_before,
           q.prompt AS prompt_before, w.username AS actor_name,
           count(*) OVER () AS found, {bytes_before(_TIMELINE_SIZE, f"ORDER BY f.version {order}")} AS bytes_before
    FROM (SELECT t.id FROM tasks AS t WHERE t.id = $2 AND t.deleted_at IS NULL AND {CAN_SEE}) AS s
    LEFT JOIN LATERAL (
        SELECT * FROM task_feed WHERE task_id = s.id AND version >= (SELECT max(low) FROM first)
        ORDER BY version {order} LIMIT $4) AS f ON true
    LEFT JOIN LATERAL (
        SELECT * FROM task_events WHERE task_id = f.task_id AND version = f.version AND occurred_at = f.occurred_at
        LIMIT 1) AS e ON true
    LEFT JOIN LATERAL (
        SELECT * FROM task_events WHERE task_id = f.task_id AND version = f.version - 1 LIMIT 1) AS b ON true
    LEFT JOIN LATERAL (
        SELECT prompt FROM task_prompts WHERE task_id = s.id AND version = e.prompt_version
          AND 'initial_prompt' = ANY(e.changes)) AS p ON true
    LEFT JOIN LATERAL (
        SELECT prompt FROM task_prompts WHERE task_id = s.id AND version = b.prompt_version
          AND 'initial_prompt' = ANY(e.changes)) AS q ON true
    LEFT JOIN LATERAL (
        SELECT username FROM users WHERE id = CAST(e.cause ->> 'actor_id' AS uuid) LIMIT 1) AS w ON true
) AS c
WHERE bytes_before < $5
ORDER BY position
"""


TIMELINE: Final = _timeline("ASC")
TIMELINE_NEWEST: Final = _timeline("DESC")

# What people did with a task that changes nothing in its document and so has no version; the newest, oldest first.
ACTIONS: Final = f"""
SELECT i.input_id, left(i.content, 2000) AS input, i.state, i.created_at, i.sent_at, i.decided_at, i.detail,
       i.steers, i.actor_id, COALESCE(w.username, CAST(i.actor_id AS text)) AS actor_name
FROM (
    SELECT * FROM inputs
    WHERE task_id = $2 AND EXISTS (SELECT 1 FROM tasks AS t WHERE t.id = $2 AND t.deleted_at IS NULL AND {CAN_SEE})
    ORDER BY ordinal DESC LIMIT $3) AS i
LEFT JOIN LATERAL (SELECT username FROM users WHERE id = i.actor_id LIMIT 1) AS w ON true
ORDER BY i.ordinal
"""


# The newest changes of a task, oldest first, with only what tells its state.
STATES: Final = f"""
SELECT e.occurred_at, e.document ->> 'status' AS status, e.document #>> '{{current_state,state}}' AS state,
       e.document #>> '{{workspace_agent_health,reason}}' AS health, e.document #>> '{{agent_exit,why}}' AS exit,
       COALESCE(CAST(e.document ->> 'requests_open' AS integer), 0) AS requests_open
FROM (
    SELECT version, occurred_at, document FROM task_events
    WHERE task_id = $2 AND EXISTS (SELECT 1 FROM tasks AS t WHERE t.id = $2 AND t.deleted_at IS NULL AND {CAN_SEE})
    ORDER BY version DESC LIMIT $3) AS e
ORDER BY e.version
"""


async def latest(pool: Reader) -> int:
    """Return the greatest position, or 0 if the feed is empty."""
    row = await pool.fetch_one(LATEST)
    return 0 if row is None else int(row["position"])


async def position_exists(pool: Reader, position: int) -> bool:
    """Return whether a reader can resume at ``position``: it was assigned and is not pruned."""
    row = await pool.fetch_one(POSITION_EXISTS, position)
    return row is not None and bool(row["resumable"])


class FeedPage(NamedTuple):
    """The next changes of the feed, in order, up to a number and a size (``MAX_PAGE_BYTES``)."""

    until: int
    """The last position of the page, also if the caller may see none of its changes."""
    rows: Sequence[Row]
    more: bool
    """Whether the feed may go on after the page; without, it had no further position."""


async def changes_after(pool: Reader, after: int, limit: int) -> FeedPage:
    """Return up to ``limit`` changes of all tasks after position ``after``."""
    rows = await pool.fetch(CHANGES_AFTER, after, limit, MAX_PAGE_BYTES)
    if not rows:
        return FeedPage(after, rows, more=False)
    found = rows[0]["found"]
    return FeedPage(rows[-1]["position"], rows, more=found > len(rows) or found == limit)


async def catch_up(
    pool: Reader, caller: UUID, after: int, limit: int, *, owner: UUID | None, organization: UUID | None
) -> FeedPage:
    """Read the next ``limit`` positions; return the changes that the caller may see, and the last position."""
    return _page(await pool.fetch(CATCH_UP, caller, after, limit, MAX_PAGE_BYTES, owner, organization), after)


async def catch_up_task(pool: Reader, caller: UUID, after: int, limit: int, task_id: UUID) -> FeedPage:
    """Read the next ``limit`` positions of one task, as ``catch_up`` does for all tasks."""
    return _page(await pool.fetch(CATCH_UP_ONE, caller, after, limit, MAX_PAGE_BYTES, task_id), after)


def _page(rows: Sequence[Row], after: int) -> FeedPage:
    until, changes = rows[0]["until"], [row for row in rows if row["position"] is not None]
    return FeedPage(after if until is None else int(until), changes, more=rows[0]["more"])


async def visible_even_deleted(pool: Reader, caller: UUID, task_id: UUID) -> bool:
    """Return whether the caller may see this task, even if it is deleted."""
    return await pool.fetch_one(VISIBLE_EVEN_DELETED, caller, task_id) is not None


async def will_replay(pool: Reader, after: int, versions: Sequence[tuple[UUID, int]]) -> dict[UUID, int]:
    """Return the tasks, with their given version, whose change the feed will deliver after position ``after``."""
    ids, numbers = [task_id for task_id, _ in versions], [version for _, version in versions]
    return {row["task_id"]: row["version"] for row in await pool.fetch(WILL_REPLAY, after, ids, numbers)}


async def timeline(
    pool: Reader, caller: UUID, task_id: UUID, after: int, limit: int, *, newest: bool = False
) -> Sequence[Row]:
    """Return changes of a task, each with the document before it; one row without a position if there are none.

    They are in order: the first ``limit`` after the position ``after``, or with ``newest`` the last ones. There are
    fewer, at least one, if their documents and prompts reach ``MAX_PAGE_BYTES``: ``found`` is their number without
    that limit.
    """
    values: tuple[Any, ...] = (caller, task_id, after, limit, MAX_PAGE_BYTES)
    return await pool.fetch(TIMELINE_NEWEST if newest else TIMELINE, *values)


async def states(pool: Reader, caller: UUID, task_id: UUID, limit: int) -> Sequence[Row]:
    """Return the newest changes of a task, oldest first, with what tells its state; none if the caller may not see."""
    return await pool.fetch(STATES, caller, task_id, limit)


async def actions(pool: Reader, caller: UUID, task_id: UUID, limit: int) -> Sequence[Row]:
    """Return the newest inputs of a task, oldest first, with who sent them; none if the caller may not see the task."""
    return await pool.fetch(ACTIONS, caller, task_id, limit)
