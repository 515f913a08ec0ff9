"""Tasks as a caller may see them, read in one statement each: who may see what is part of its WHERE.

Members see their own tasks, admins of an organization all of its tasks; whoever sees a task may also change it. The
statements are for `Reader`; `$1` is always the caller. Prompts and names are joined by LATERAL … LIMIT 1, which is an
index look-up for each row whatever the planner believes about a LIMIT that it doesn't know.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from taskherd.store.reader import Reader, Row

CAN_SEE: Final = """(t.owner_id = $1 OR EXISTS (
    SELECT 1 FROM memberships AS a
    WHERE a.user_id = $1 AND a.organization_id = t.organization_id AND a.role = 'admin' AND a.active))"""

DOCUMENT: Final = """t.id, t.version, d.revision, t.created_at, t.updated_at, CAST(t.document AS text) AS own,
       p.prompt, o.username, o.avatar_url, t.organization_id, t.template_id, m.name, m.display_name, m.icon"""

JOINED: Final = """
CROSS JOIN directory_revision AS d
CROSS JOIN LATERAL (
    SELECT prompt FROM task_prompts WHERE task_id = t.id AND version = t.prompt_version LIMIT 1) AS p
CROSS JOIN LATERAL (SELECT username, avatar_url FROM users WHERE id = t.owner_id LIMIT 1) AS o
CROSS JOIN LATERAL (SELECT name, display_name, icon FROM templates WHERE id = t.template_id LIMIT 1) AS m
"""


@dataclass(frozen=True, slots=True)
class TaskRef:
    """The task that a path names: `user` is an id or a username, `task` an id or a name; `caller` asks."""

    caller: UUID
    user: UUID | str
    task: UUID | str


@dataclass(frozen=True, slots=True)
class TaskFilter:
    """Which tasks a list is to hold: at most `limit`, those after the task `after`, newest first."""

    caller: UUID
    limit: int
    owner: UUID | None = None
    organization: UUID | None = None
    status: str | None = None
    after: tuple[datetime, UUID] | None = None


@dataclass(slots=True)
class _Statement:
    """A statement's values as they are bound."""

    values: list[Any]

    def bind(self, value: Any) -> str:
        """Return the placeholder of one more value."""
        self.values.append(value)
        return f"${len(self.values)}"


async def task(reader: Reader, whose: TaskRef) -> Row | None:
    """Return a task with all that its document needs (`DOCUMENT`), None where there is none for the caller."""
    return await _found(reader, f"SELECT {DOCUMENT} FROM tasks AS t {JOINED}", whose)


async def find_id(reader: Reader, whose: TaskRef) -> UUID | None:
    """Return the id of the task that the caller wants to change, None where there is none for the caller."""
    row = await _found(reader, "SELECT t.id FROM tasks AS t", whose)
    return None if row is None else row["id"]


async def _found(reader: Reader, select: str, whose: TaskRef) -> Row | None:
    """An id is looked up among all tasks first, the user only has to exist; then as the name of a task of the user."""
    row = None
    if isinstance(whose.task, UUID):
        statement = _Statement([whose.caller, whose.task])
        exists = (
            "" if whose.user == whose.caller else f"AND EXISTS (SELECT 1 FROM users AS w WHERE {_is(whose, statement)})"
        )
        text = f"{select} WHERE t.id = $2 AND t.deleted_at IS NULL AND {CAN_SEE} {exists}"
        row = await reader.fetch_one(text, *statement.values)
    name = named(whose.task)
    if row is None and name:
        statement = _Statement([whose.caller, name])
        owner = f"(SELECT w.id FROM users AS w WHERE {_is(whose, statement)})"
        text = (
            f"{select} WHERE t.owner_id = {owner} AND lower(t.name) = lower($2) AND t.deleted_at IS NULL AND {CAN_SEE}"
        )
        row = await reader.fetch_one(text, *statement.values)
    return row


def named(task: UUID | str) -> str:
    """Return what is also a name: 32 hex digits are an id and a name, with hyphens an id is too long for one."""
    return task.hex if isinstance(task, UUID) else task


def _is(whose: TaskRef, statement: _Statement) -> str:
    place = statement.bind(whose.user)
    return f"w.id = {place}" if isinstance(whose.user, UUID) else f"lower(w.username) = lower({place})"


async def tasks(reader: Reader, wanted: TaskFilter) -> Sequence[Row]:
    """Return tasks with all that their documents need (`DOCUMENT`), newest first, one more than `limit` if there is."""
    statement = _Statement([wanted.caller])
    narrow = ""
    if wanted.organization is not None:
        narrow += f" AND t.organization_id = {statement.bind(wanted.organization)}"
    if wanted.status is not None:
        narrow += f" AND t.status = {statement.bind(wanted.status)}"
    if wanted.after is not None:
        created_at, task_id = wanted.after
        narrow += f" AND (t.created_at, t.id) < ({statement.bind(created_at)}, {statement.bind(task_id)})"
    limit = statement.bind(wanted.limit + 1)
    ordered = f"ORDER BY t.created_at DESC, t.id DESC LIMIT {limit}"
    own = f"SELECT t.* FROM tasks AS t WHERE t.owner_id = $1 AND t.deleted_at IS NULL {narrow} {ordered}"
    if wanted.owner == wanted.caller:
        picked = own
    elif wanted.owner is not None:
        owner = statement.bind(wanted.owner)
        picked = f"""
        SELECT t.* FROM tasks AS t
        WHERE t.owner_id = {owner} AND t.deleted_at IS NULL AND {CAN_SEE} {narrow} {ordered}"""
    else:
        picked = f"""
        SELECT t.* FROM (
            ({own}) UNION ALL
            SELECT t.* FROM memberships AS a CROSS JOIN LATERAL (
                SELECT t.* FROM tasks AS t
                WHERE t.organization_id = a.organization_id AND t.deleted_at IS NULL AND t.owner_id <> $1 {narrow}
                {ordered}) AS t
            WHERE a.user_id = $1 AND a.role = 'admin' AND a.active
        ) AS t {ordered}"""
    text = f"SELECT {DOCUMENT} FROM ({picked}) AS t {JOINED} ORDER BY t.created_at DESC, t.id DESC"
    return await reader.fetch(text, *statement.values)


# The newest entries that fit, told oldest first. A task without any gives one row that has only the status.
LOGS: Final = f"""
WITH seen AS (SELECT t.id, t.status FROM tasks AS t WHERE t.id = $2 AND t.deleted_at IS NULL AND {CAN_SEE}), newest AS (
    SELECT log_id, type, content, time, logged_at,
           sum(octet_length(content)) OVER (ORDER BY log_id DESC ROWS UNBOUNDED PRECEDING) AS bytes
    FROM (SELECT * FROM task_logs WHERE task_id = $2 ORDER BY log_id DESC LIMIT $3) AS few
)
SELECT s.status, l.log_id, l.type, l.content, l.time, l.logged_at
FROM seen AS s LEFT JOIN newest AS l ON l.bytes <= $4
ORDER BY l.log_id
"""


async def logs(reader: Reader, caller: UUID, task_id: UUID, *, entries: int, content_bytes: int) -> Sequence[Row]:
    """Return the newest log entries of a task, oldest first, with its status; no row where there is no such task."""
    return await reader.fetch(LOGS, caller, task_id, entries, content_bytes)


# Decided inputs are the timeline's; what is open is what explains.
EXPLAIN_INPUTS: Final = """
SELECT t.id, t.version, CAST(t.state AS text) AS state,
       (SELECT json_agg(i) FROM (
           SELECT input_id, state, left(content, 2000) AS input, created_at, sent_at FROM inputs
           WHERE task_id = t.id AND decided_at IS NULL ORDER BY ordinal LIMIT 100) AS i)::text AS inbox,
       (SELECT json_agg(r) FROM (
           SELECT request_id, type, build_number, input_id, target_runner, attempt, created_at, first_sent_at, next_at
           FROM work_requests WHERE task_id = t.id ORDER BY created_at, request_id LIMIT 100) AS r)::text AS requests
FROM tasks AS t
"""


async def explain_inputs(reader: Reader, whose: TaskRef) -> Row | None:
    """Return what a task's answers to "why" are made of: its memory, and what is open of its inbox and requests."""
    return await _found(reader, EXPLAIN_INPUTS, whose)


PERSON: Final = "SELECT id FROM users WHERE lower(username) = lower($1)"
ORGANIZATION: Final = "SELECT id FROM organizations WHERE lower(name) = lower($1)"

# The caller's own: what `default` stands for, since the directory marks none.
DEFAULT_ORGANIZATION: Final = """
SELECT o.id FROM memberships AS m JOIN organizations AS o ON o.id = m.organization_id
WHERE m.user_id = $1 AND m.active AND o.active
ORDER BY lower(o.name) <> 'default', lower(o.name) LIMIT 1
"""

# Whom the caller may create tasks for, and whether from this template version: an admin for the organization's members.
OWNER: Final = """
SELECT w.id, NOT EXISTS (
    SELECT 1 FROM template_versions AS v JOIN templates AS t ON t.id = v.template_id
    WHERE v.id = $2 AND t.organization_id NOT IN (
        SELECT a.organization_id FROM memberships AS a WHERE a.user_id = $1 AND a.role = 'admin' AND a.active)
) AS may
FROM users AS w
WHERE {person} AND w.active AND EXISTS (
    SELECT 1 FROM memberships AS a JOIN memberships AS b ON b.organization_id = a.organization_id
    WHERE a.user_id = $1 AND a.role = 'admin' AND a.active AND b.user_id = w.id AND b.active)
"""


async def person(reader: Reader, username: str) -> UUID | None:
    """Return the user of this name, active or not."""
    return await _id(reader, PERSON, username)


async def organization(reader: Reader, name: str) -> UUID | None:
    """Return the organization of this name, active or not."""
    return await _id(reader, ORGANIZATION, name)


async def default_organization(reader: Reader, caller: UUID) -> UUID | None:
    """Return the organization that `default` means for the caller: the one of that name, else the first of theirs."""
    return await _id(reader, DEFAULT_ORGANIZATION, caller)


async def owner(reader: Reader, caller: UUID, user: UUID | str, version: UUID) -> tuple[UUID, bool] | None:
    """Return the user whom the caller may create tasks for, and whether from this template version (or an unknown one).

    None where there is no such user, or none that the caller has a say over.
    """
    is_it = "w.id = $3" if isinstance(user, UUID) else "lower(w.username) = lower($3)"
    row = await reader.fetch_one(OWNER.format(person=is_it), caller, version, user)
    return None if row is None else (row["id"], bool(row["may"]))


async def _id(reader: Reader, statement: str, value: Any) -> UUID | None:
    row = await reader.fetch_one(statement, value)
    return None if row is None else row["id"]
