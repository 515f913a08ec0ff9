"""Queries for tasks on behalf of a caller, one statement each; its WHERE clause checks the caller's access.

``can_see`` is the only rule of access to tasks: active members of a task's organization see it if they own it or are
admins of the organization. A caller who may see a task may also change it; who leaves an organization loses the tasks
in it. The statements are for ``ReadPool``; ``$1`` is always the caller. Prompts and names are joined by LATERAL …
LIMIT 1, which is an index lookup per row whatever the planner assumes about a LIMIT that is a parameter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

from taskherd.store.logs import ORDER as LOG_ORDER
from taskherd.store.pages import MAX_PAGE_BYTES, bytes_before
from taskherd.store.read_pool import Reader, Row
from taskherd.store.task_index import backlog
from taskherd.store.task_lists import Between, IndexedList, Listed, Statement, time_conditions
from taskherd.store.task_state_codec import STATE_SINCE


def can_see(user: str) -> str:
    """Return the condition that a user, given as SQL, may see the task ``t``, deleted or not.

    As a scalar subquery it leaves the planner a single plan: a lookup by primary key for each task that is tested.
    """
    return f"""COALESCE((
    SELECT a.role = 'admin' OR a.user_id = t.owner_id
    FROM memberships AS a WHERE a.user_id = {user} AND a.organization_id = t.organization_id AND a.active), false)"""


CAN_SEE: Final = can_see("$1")
"""The caller may see the task ``t``."""

# Users whose names a caller may know; admins also know former members, whose tasks they still see.
KNOWN_USER: Final = """(w.id = $1 OR EXISTS (
    SELECT 1 FROM memberships AS b JOIN memberships AS a ON a.organization_id = b.organization_id
    WHERE b.user_id = w.id AND a.user_id = $1 AND a.active AND (b.active OR a.role = 'admin')))"""

DOCUMENT: Final = """t.id, t.version, d.revision, t.created_at, t.updated_at, CAST(t.document AS text) AS core_document,
       p.prompt, o.username, o.avatar_url, t.organization_id, t.template_id, m.name, m.display_name, m.icon"""

WITH_STATE_SINCE: Final = f"{DOCUMENT}, {STATE_SINCE} AS state_since"
"""As ``DOCUMENT``, with the time since which the task is in its state."""

JOINED: Final = """
CROSS JOIN directory_revision AS d
CROSS JOIN LATERAL (
    SELECT prompt FROM task_prompts WHERE task_id = t.id AND version = t.prompt_version LIMIT 1) AS p
CROSS JOIN LATERAL (SELECT username, avatar_url FROM users WHERE id = t.owner_id LIMIT 1) AS o
CROSS JOIN LATERAL (SELECT name, display_name, icon FROM templates WHERE id = t.template_id LIMIT 1) AS m
"""

MAX_SEARCHED: Final = 50_000
"""Number of tasks of an owner, or of an organization, among which what no index has is looked for: the newest."""

_SIZE: Final = "octet_length(p.prompt) + octet_length(CAST(t.document AS text))"

# Only of tasks that the caller may see: a runner of another organization may report the same workspace.
_TASK_OF_WORKSPACE: Final = f"""
SELECT b.task_id FROM task_builds AS b
CROSS JOIN LATERAL (SELECT owner_id, organization_id, deleted_at FROM tasks WHERE id = b.task_id LIMIT 1) AS t
WHERE b.workspace_id = $2 AND t.deleted_at IS NULL AND {CAN_SEE} ORDER BY b.number DESC LIMIT 1"""


@dataclass(frozen=True, slots=True)
class TaskRef:
    """The task that a request path names: ``user`` is an id or a username, ``task`` an id or a name."""

    caller: UUID
    user: UUID | str
    task: UUID | str


@dataclass(frozen=True, slots=True)
class TaskFilter:
    """The tasks to list, newest first: up to ``limit``, starting after the (time, id) ``after``.

    They are sorted by their creation, or by their last change if ``by_change``: the oldest first if ``oldest_first``,
    which is only for lists that ``task_index`` serves.
    """

    caller: UUID
    limit: int
    owner: UUID | None = None
    organization: UUID | None = None
    listed: Listed = field(default_factory=Listed)
    created: Between = field(default_factory=Between)
    changed: Between = field(default_factory=Between)
    by_change: bool = False
    oldest_first: bool = False
    ids: Sequence[UUID] | None = None
    """Only those of these tasks that the caller may see: who found them earlier may have lost access since."""
    further_ids: Sequence[UUID] = ()
    """Ids that follow ``ids``, looked up only if some of those are not found; ``ids`` are more than ``limit`` then."""
    after: tuple[datetime, UUID] | None = None
    name: str | None = None
    """A lowercase part of the name."""
    workspace_status: str | None = None
    with_state_since: bool = False
    """Whether to return since when each is in its state, too."""
    max_bytes: int = MAX_PAGE_BYTES
    """Size of the documents of a page at which it has no further task."""

    @property
    def indexed(self) -> IndexedList | None:
        """The list that ``task_index`` serves, or None for one that the indexes of ``tasks`` serve.

        A part of a name, or the status of a workspace, is in no index.
        """
        searched = self.name is not None or self.workspace_status is not None
        if searched or (self.listed == Listed() and not self.by_change and self.ids is None):
            return None
        return IndexedList(
            self.caller,
            self.limit + 1,
            "changed_at" if self.by_change else "created_at",
            self.owner,
            self.organization,
            self.listed,
            self.changed if self.by_change else self.created,
            self.after,
            None if self.ids is None else list(self.ids),
            self.oldest_first,
        )


async def task(pool: Reader, ref: TaskRef, *, with_state_since: bool = False) -> Row | None:
    """Return a task with the columns of its document (``DOCUMENT``), or None if the caller may not see such a task."""
    columns = WITH_STATE_SINCE if with_state_since else DOCUMENT
    return await _find(pool, f"SELECT {columns} FROM tasks AS t {JOINED}", ref)


async def find_id(pool: Reader, ref: TaskRef) -> UUID | None:
    """Return the id of a task, or None if the caller may not see such a task."""
    row = await _find(pool, "SELECT t.id FROM tasks AS t", ref)
    return None if row is None else row["id"]


async def find_deleted(pool: Reader, ref: TaskRef, command_id: UUID) -> Row | None:
    """Return ``id`` of the deleted task that a path names, and ``digest`` of its command with this id.

    Return None if there is none, or the caller may not see the task. Several deleted tasks may have had this name; the
    command says which one is meant.
    """
    statement = Statement(ref.caller, command_id)
    conditions = [
        f"""(lower(t.name) = lower({statement.bind(_possible_name(ref.task))})
        AND t.owner_id = (SELECT w.id FROM users AS w WHERE {_is_user(ref, statement)}))"""
    ]
    if isinstance(ref.task, UUID):
        named = statement.bind(ref.task)
        conditions.append(f"""t.id = {named} OR EXISTS (
        SELECT 1 FROM task_builds AS b WHERE b.task_id = t.id AND b.workspace_id = {named})""")
    text = f"""
    SELECT t.id, c.digest FROM command_log AS c JOIN tasks AS t ON t.id = c.task_id
    WHERE c.command_id = $2 AND c.reply IS NOT NULL AND t.deleted_at IS NOT NULL AND {CAN_SEE}
      AND ({" OR ".join(conditions)})"""
    return await pool.fetch_one(text, *statement.values)


async def _find(pool: Reader, select: str, ref: TaskRef) -> Row | None:
    """Look the task up by id, where the user in the path only has to be known, then by name among the user's tasks."""
    row = None
    if isinstance(ref.task, UUID):
        statement = Statement(ref.caller, ref.task)
        exists = (
            ""
            if ref.user == ref.caller
            else f"AND EXISTS (SELECT 1 FROM users AS w WHERE {_is_user(ref, statement)} AND {KNOWN_USER})"
        )
        text = f"{select} WHERE t.id = $2 AND t.deleted_at IS NULL AND {CAN_SEE} {exists}"
        row = await pool.fetch_one(text, *statement.values)
        if row is None:  # early clients of the Tasks API name a task by the id of its workspace
            text = f"{select} WHERE t.id = ({_TASK_OF_WORKSPACE}) {exists}"
            row = await pool.fetch_one(text, *statement.values)
    name = _possible_name(ref.task)
    if row is None and name:
        statement = Statement(ref.caller, name)
        owner = f"(SELECT w.id FROM users AS w WHERE {_is_user(ref, statement)})"
        text = (
            f"{select} WHERE t.owner_id = {owner} AND lower(t.name) = lower($2) AND t.deleted_at IS NULL AND {CAN_SEE}"
        )
        row = await pool.fetch_one(text, *statement.values)
    return row


def _possible_name(task: UUID | str) -> str:
    """Return ``task`` as a name: an id of 32 hex digits is also a valid name, one with hyphens is too long."""
    return task.hex if isinstance(task, UUID) else task


def _is_user(ref: TaskRef, statement: Statement) -> str:
    placeholder = statement.bind(ref.user)
    return f"w.id = {placeholder}" if isinstance(ref.user, UUID) else f"lower(w.username) = lower({placeholder})"


class TaskPage(NamedTuple):
    """Tasks with the columns of their documents (``DOCUMENT``) and ``sorted_at``, in the order of their filter."""

    rows: Sequence[Row]
    more: bool
    """Whether more tasks match after the last of these."""


async def tasks(pool: Reader, criteria: TaskFilter) -> TaskPage:
    """Return up to ``limit`` tasks; fewer, at least one, if their documents reach ``max_bytes``."""
    page = await _page(pool, criteria)
    if page.more or not criteria.further_ids:
        return page
    return await _page(pool, replace(criteria, ids=[*(criteria.ids or ()), *criteria.further_ids], further_ids=()))


async def _page(pool: Reader, criteria: TaskFilter) -> TaskPage:
    statement = Statement(criteria.caller)
    indexed = criteria.indexed
    if indexed is None:
        selection = f"SELECT s.*, s.created_at AS sorted_at FROM ({_selection(criteria, statement, 't.*')}) AS s"
    else:
        selection = f"""
        SELECT s.*, page.sorted_at FROM ({indexed.select(statement)}) AS page
        CROSS JOIN LATERAL (SELECT * FROM tasks WHERE id = page.task_id LIMIT 1) AS s"""
    direction = "ASC" if criteria.oldest_first else "DESC"
    columns = WITH_STATE_SINCE if criteria.with_state_since else DOCUMENT
    order = f"ORDER BY t.sorted_at {direction}, t.id {direction}"
    text = f"""
    SELECT * FROM (
        SELECT {columns}, t.sorted_at, count(*) OVER () AS found, {bytes_before(_SIZE, order)} AS bytes_before
        FROM ({selection}) AS t {JOINED}) AS t
    WHERE bytes_before < {statement.bind(criteria.max_bytes)} {order}"""
    rows = await pool.fetch(text, *statement.values)
    page = rows[: criteria.limit]
    return TaskPage(page, bool(rows) and rows[0]["found"] > len(page))


async def task_ids(pool: Reader, criteria: TaskFilter) -> Sequence[UUID]:
    """Return the ids of tasks, newest first; one more than ``limit`` if there are more."""
    statement = Statement(criteria.caller)
    indexed = criteria.indexed
    if indexed is not None:
        rows = await pool.fetch(indexed.select(statement), *statement.values)
        return [row["task_id"] for row in rows]
    rows = await pool.fetch(_selection(criteria, statement, "t.id, t.created_at"), *statement.values)
    return [row["id"] for row in rows]


async def current_task_ids(pool: Reader, criteria: TaskFilter) -> Sequence[UUID] | None:
    """Return the ids of tasks as ``task_ids`` does, or None if they come from an index that is behind the tasks."""
    indexed = criteria.indexed
    if indexed is None:
        return await task_ids(pool, criteria)
    statement = Statement(criteria.caller)
    direction = "ASC" if criteria.oldest_first else "DESC"
    text = f"""
    WITH {backlog()}
    SELECT page.task_id, backlog.is_small
    FROM backlog LEFT JOIN ({indexed.select(statement)}) AS page ON true
    ORDER BY page.sorted_at {direction}, page.task_id {direction}"""
    rows = await pool.fetch(text, *statement.values)
    if not all(row["is_small"] for row in rows):
        return None
    return [row["task_id"] for row in rows if row["task_id"] is not None]


def _selection(criteria: TaskFilter, statement: Statement, columns: str) -> str:
    """Return a statement that selects columns of the tasks, among them id and creation time.

    What no index has is looked for among the newest ``MAX_SEARCHED`` tasks of the caller, or of each organization.
    """
    conditions = time_conditions("t.created_at", criteria.created, statement)
    if criteria.organization is not None:
        conditions += f" AND t.organization_id = {statement.bind(criteria.organization)}"
    if criteria.after is not None:
        created_at, task_id = criteria.after
        conditions += f" AND (t.created_at, t.id) < ({statement.bind(created_at)}, {statement.bind(task_id)})"
    searched = _search_conditions(criteria, statement)
    limit = statement.bind(criteria.limit + 1)
    newest = "ORDER BY t.created_at DESC, t.id DESC LIMIT"

    def select(whose: str) -> str:
        source = f"tasks AS t WHERE {whose} AND t.deleted_at IS NULL {conditions}"
        if searched:
            source = f"(SELECT t.* FROM {source} {newest} {MAX_SEARCHED}) AS t WHERE {searched}"
        return f"SELECT {columns} FROM {source} {newest} {limit}"

    own = select(f"t.owner_id = $1 AND {CAN_SEE}")
    if criteria.owner == criteria.caller:
        return own
    if criteria.owner is not None:
        return select(f"t.owner_id = {statement.bind(criteria.owner)} AND {CAN_SEE}")
    return f"""
    SELECT {columns} FROM (
        ({own}) UNION ALL
        SELECT t.* FROM memberships AS a CROSS JOIN LATERAL (
            {select("t.organization_id = a.organization_id AND t.owner_id <> $1")}) AS t
        WHERE a.user_id = $1 AND a.role = 'admin' AND a.active
    ) AS t {newest} {limit}"""


def _search_conditions(criteria: TaskFilter, statement: Statement) -> str:
    """Return the conditions that no index serves, "" if there are none."""
    conditions = []
    if criteria.name is not None:
        conditions.append(f"strpos(lower(t.name), {statement.bind(criteria.name)}) > 0")
    if criteria.listed.template is not None:
        name = statement.bind(criteria.listed.template)
        conditions.append(f"t.template_id IN (SELECT m.id FROM templates AS m WHERE lower(m.name) = {name})")
    if criteria.workspace_status is not None:
        conditions.append(f"t.document ->> 'workspace_status' = {statement.bind(criteria.workspace_status)}")
    return " AND ".join(conditions)


_LOG_COLUMNS: Final = """l.log_id, l.type, l.content, l.time, l.logged_at, l.build_number, l.entry_id, l.first_seq,
       l.kind, l.title, l.status AS entry_status, CAST(l.data AS text) AS data"""

_LOG_TASK: Final = f"""
WITH task AS (
    SELECT t.id, t.status, COALESCE((SELECT revision FROM task_log_heads WHERE task_id = t.id), 0) AS revision
    FROM tasks AS t WHERE t.id = $2 AND t.deleted_at IS NULL AND {CAN_SEE}
)"""

# The newest entries after the id $5 that fit, in the order in which they were made. A task without entries gives one
# row with only its status.
LOGS: Final = f"""
{_LOG_TASK}, newest AS (
    SELECT log_id, type, content, time, logged_at, build_number, entry_id, first_seq,
           kind, title, status, data,
           sum(octet_length(content) + COALESCE(octet_length(CAST(data AS text)), 0))
               OVER (ORDER BY log_id DESC ROWS UNBOUNDED PRECEDING) AS bytes
    FROM (SELECT * FROM task_logs WHERE task_id = $2 AND log_id > $5 AND log_id < $6
          ORDER BY log_id DESC LIMIT $3) AS limited
)
SELECT task.status, task.revision AS log_revision, {_LOG_COLUMNS}
FROM task LEFT JOIN newest AS l ON l.bytes <= $4
ORDER BY {LOG_ORDER}
"""

# The entries that were added or replaced after revision $5, the newest changes that fit; found: how many there are.
CHANGED_LOGS: Final = f"""
{_LOG_TASK}, changed AS (
    SELECT *, sum(octet_length(content) + COALESCE(octet_length(CAST(data AS text)), 0))
               OVER (ORDER BY revision DESC, log_id DESC ROWS UNBOUNDED PRECEDING) AS bytes,
           row_number() OVER (ORDER BY revision DESC, log_id DESC) AS rank
    FROM (SELECT * FROM task_logs WHERE task_id = $2 AND revision > $5
          ORDER BY revision DESC, log_id DESC LIMIT $3 + 1) AS limited
)
SELECT task.status, task.revision AS log_revision, (SELECT count(*) FROM changed) AS found, {_LOG_COLUMNS}
FROM task LEFT JOIN changed AS l ON l.bytes <= $4 AND l.rank <= $3
ORDER BY {LOG_ORDER}
"""

LOG_REVISIONS: Final = """
SELECT t.id, t.deleted_at IS NOT NULL AS deleted, COALESCE(h.revision, 0) AS revision,
       COALESCE(i.last, 0) AS last_input, w.waiting AS waiting_inputs
FROM unnest($1::uuid[]) AS k(id)
CROSS JOIN LATERAL (SELECT id, deleted_at FROM tasks WHERE id = k.id LIMIT 1) AS t
LEFT JOIN LATERAL (SELECT revision FROM task_log_heads WHERE task_id = k.id LIMIT 1) AS h ON true
LEFT JOIN LATERAL (SELECT ordinal AS last FROM inputs WHERE task_id = k.id ORDER BY ordinal DESC LIMIT 1) AS i ON true
CROSS JOIN LATERAL (
    SELECT count(*) AS waiting FROM (SELECT FROM inputs WHERE task_id = k.id AND decided_at IS NULL LIMIT 101) AS open
) AS w
"""


async def logs(
    pool: Reader, caller: UUID, task_id: UUID, *, after: int, before: int, entries: int, content_bytes: int
) -> Sequence[Row]:
    """Return the newest log entries of a task between two ids, in the order in which they were made, with its status.

    An entry that arrives late has a greater id than those after it, so the last entry may not have the greatest.

    No row is returned if the caller may not see the task.
    """
    return await pool.fetch(LOGS, caller, task_id, entries, content_bytes, after, before)


async def changed_logs(
    pool: Reader, caller: UUID, task_id: UUID, *, after: int, entries: int, content_bytes: int
) -> Sequence[Row]:
    """Return the log entries of a task that were added or replaced after a revision of the log, as ``logs`` does."""
    return await pool.fetch(CHANGED_LOGS, caller, task_id, entries, content_bytes, after)


async def log_revisions(pool: Reader, task_ids: Sequence[UUID]) -> Sequence[Row]:
    """Return the revisions of the logs of tasks, their last and waiting inputs, and whether the tasks were deleted."""
    return await pool.fetch(LOG_REVISIONS, task_ids)


# Only open inputs and requests; the outcomes of earlier ones are in the timeline. A send has no change of its
# own, so the last command may be among the inputs.
EXPLANATION_FACTS: Final = """
SELECT t.id, t.version, CAST(t.state AS text) AS state,
       (SELECT COALESCE(NULLIF(v.run ->> 'pool', ''), 'default') FROM template_versions AS v
        WHERE v.id = t.template_version_id) AS pool,
       (SELECT json_build_object('type', c.type, 'time', c.at, 'actor_id', c.actor_id, 'actor_name', w.username)
        FROM (
            (SELECT e.cause ->> 'type' AS type, e.occurred_at AS at, CAST(e.cause ->> 'actor_id' AS uuid) AS actor_id
             FROM (SELECT cause, occurred_at, version FROM task_events
                   WHERE task_id = t.id ORDER BY version DESC LIMIT 500) AS e
             WHERE e.cause ->> 'kind' = 'command' ORDER BY e.version DESC LIMIT 1)
            UNION ALL
            (SELECT 'task.send', created_at, actor_id FROM inputs WHERE task_id = t.id ORDER BY ordinal DESC LIMIT 1)
        ) AS c LEFT JOIN users AS w ON w.id = c.actor_id ORDER BY c.at DESC LIMIT 1)::text AS last_command,
       (SELECT json_agg(i) FROM (
           SELECT input_id, state, left(content, 2000) AS input, steers, created_at, sent_at FROM inputs
           WHERE task_id = t.id AND decided_at IS NULL
           ORDER BY state = 'queued', steers DESC, ordinal LIMIT 100) AS i)::text AS inbox,
       (SELECT json_agg(r) FROM (
           SELECT request_id, type, build_number, input_id, interrupt_id, agent_request_id, target_runner, attempt,
                  created_at, first_sent_at, next_at
           FROM work_requests WHERE task_id = t.id ORDER BY created_at, request_id LIMIT 100) AS r)::text AS requests
FROM tasks AS t
"""


async def explanation_facts(pool: Reader, ref: TaskRef) -> Row | None:
    """Return what an explanation of a task is derived from: its state, its open inputs and its open work requests."""
    return await _find(pool, EXPLANATION_FACTS, ref)


USER_ID: Final = f"SELECT w.id FROM users AS w WHERE lower(w.username) = lower($2) AND {KNOWN_USER}"
ORGANIZATION_ID: Final = """
SELECT o.id FROM organizations AS o
WHERE lower(o.name) = lower($2) AND EXISTS (
    SELECT 1 FROM memberships AS a WHERE a.user_id = $1 AND a.organization_id = o.id AND a.active)
"""

# The organization that ``default`` stands for, because the directory marks none as the default.
DEFAULT_ORGANIZATION_ID: Final = """
SELECT o.id FROM memberships AS m JOIN organizations AS o ON o.id = m.organization_id
WHERE m.user_id = $1 AND m.active AND o.active
ORDER BY lower(o.name) <> 'default', lower(o.name) LIMIT 1
"""

# The user for whom the caller, as an admin of a shared organization, may create tasks. ``may``: also from this template
# version; false for one that does not exist, so that the answer to it is the same as for one of another organization.
OWNER: Final = """
SELECT w.id, EXISTS (
    SELECT 1 FROM template_versions AS v JOIN templates AS t ON t.id = v.template_id
    JOIN memberships AS a ON a.organization_id = t.organization_id
    WHERE v.id = $2 AND a.user_id = $1 AND a.role = 'admin' AND a.active
) AS may
FROM users AS w
WHERE {person} AND w.active AND EXISTS (
    SELECT 1 FROM memberships AS a JOIN memberships AS b ON b.organization_id = a.organization_id
    WHERE a.user_id = $1 AND a.role = 'admin' AND a.active AND b.user_id = w.id AND b.active)
"""


async def user_id(pool: Reader, caller: UUID, username: str) -> UUID | None:
    """Return the id of the user of this name, active or not, or None if the caller knows no such user."""
    return await _id(pool, USER_ID, caller, username)


async def organization_id(pool: Reader, caller: UUID, name: str) -> UUID | None:
    """Return the id of the caller's organization of this name, active or not."""
    return await _id(pool, ORGANIZATION_ID, caller, name)


async def default_organization_id(pool: Reader, caller: UUID) -> UUID | None:
    """Return the id of the caller's organization named ``default``, else of the caller's first organization by name."""
    return await _id(pool, DEFAULT_ORGANIZATION_ID, caller)


async def find_owner(pool: Reader, caller: UUID, user: UUID | str, version: UUID) -> tuple[UUID, bool] | None:
    """Return the id of a user for whom the caller may create tasks, and whether from this template version.

    Return None if there is no such user, or the caller is not an admin of an organization of the user.
    """
    is_user = "w.id = $3" if isinstance(user, UUID) else "lower(w.username) = lower($3)"
    row = await pool.fetch_one(OWNER.format(person=is_user), caller, version, user)
    return None if row is None else (row["id"], bool(row["may"]))


async def _id(pool: Reader, statement: str, *values: Any) -> UUID | None:
    row = await pool.fetch_one(statement, *values)
    return None if row is None else row["id"]
