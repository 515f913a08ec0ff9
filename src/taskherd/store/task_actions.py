"""Task actions: jobs that do one thing to many tasks, which API processes execute step by step.

A step is claimed by moving ``next_at`` into the future, so that it is both the lease of the process that executes the
step and the time of the next one. Steps of all actions are due in the order of ``next_at``; those of one user are
executed one action after the other. After the last step, ``next_at`` is when the user's next action is due.

Before a step sends commands, it stores the id of each in the row of its task and counts an attempt there. So whoever
ends an action knows what was sent, and steps begin with the tasks that had the fewest attempts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import Enum, auto
from typing import Final, NamedTuple
from uuid import UUID, uuid4, uuid5

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from taskherd.store.read_pool import ReadPool, Row
from taskherd.store.task_queries import CAN_SEE, can_see
from taskherd.store.tokens import IS_VALID

LOCK_CLASS: Final = 7_745_503
"""First key of the advisory locks of users; any number that no other application in the database uses."""

UNCONFIRMED: Final = 503
"""Status of a task whose command was sent, without an answer before its action ended."""

COLUMNS: Final = """a.id, a.action, a.query, a.total, a.succeeded, a.refused, a.unconfirmed, a.created_at, a.started_at,
       a.canceled_at, a.finished_at, a.failure"""

# For ``ReadPool``; the caller is $1.

FIND: Final = f"SELECT {COLUMNS}, a.digest FROM task_actions AS a WHERE a.user_id = $1 AND a.id = $2"

LIST: Final = f"""
SELECT {COLUMNS} FROM task_actions AS a
WHERE a.user_id = $1 AND (a.created_at, a.id) < ($2, $3)
ORDER BY a.created_at DESC, a.id DESC LIMIT $4
"""

# The names only of tasks that the caller may see now.
RESULTS: Final = f"""
SELECT r.ordinal, r.task_id, r.status, r.message, r.detail, r.decided_at, t.name, t.username
FROM task_action_tasks AS r LEFT JOIN LATERAL (
    SELECT t.name, o.username FROM tasks AS t JOIN users AS o ON o.id = t.owner_id
    WHERE t.id = r.task_id AND t.deleted_at IS NULL AND {CAN_SEE}) AS t ON true
WHERE r.action_id = $2 AND r.ordinal > $3 AND (NOT $4 OR r.status >= 300)
ORDER BY r.ordinal LIMIT $5
"""

VISIBLE: Final = f"""
SELECT t.id FROM tasks AS t WHERE t.id = ANY($2) AND t.deleted_at IS NULL AND {CAN_SEE}
"""

PREVIEW: Final = f"""
SELECT t.id, t.name, o.username, t.status
FROM unnest($2::uuid[]) WITH ORDINALITY AS r(id, position)
JOIN tasks AS t ON t.id = r.id JOIN users AS o ON o.id = t.owner_id
WHERE t.deleted_at IS NULL AND {CAN_SEE}
ORDER BY r.position
"""

IS_DUE: Final = "SELECT EXISTS (SELECT FROM task_actions WHERE finished_at IS NULL AND next_at <= now()) AS due"

LOCK_USER: Final = text(f"SELECT pg_try_advisory_xact_lock({LOCK_CLASS}, hashtext(CAST(:user_id AS text)))")

# An action whose tasks were pruned has only its row. Whether it has tasks is a scalar subquery: a lookup in any plan.
STORED: Final = text("""
SELECT count(*) FILTER (WHERE a.finished_at IS NULL), count(*),
       COALESCE(sum(a.total) FILTER (
           WHERE (SELECT true FROM task_action_tasks AS r WHERE r.action_id = a.id LIMIT 1)), 0)
FROM task_actions AS a WHERE a.user_id = :user_id AND a.id <> :id
""")

ADD: Final = text("""
INSERT INTO task_actions (id, user_id, token_id, action, input, query, digest, total, refused, created_at, next_at)
VALUES (:id, :user_id, :token_id, :action, :input, :query, :digest, :total, :refused, now(), now())
ON CONFLICT (id) DO NOTHING
""")

ADD_TASKS: Final = text("""
INSERT INTO task_action_tasks (action_id, ordinal, task_id, status, message, decided_at)
SELECT :id, r.position - 1, r.task_id, CASE WHEN r.missing THEN 404 END, CASE WHEN r.missing THEN :message END,
       CASE WHEN r.missing THEN now() END
FROM unnest(CAST(:task_ids AS uuid[]), CAST(:missing AS boolean[]))
    WITH ORDINALITY AS r(task_id, missing, position)
""")

CANCEL: Final = text("""
UPDATE task_actions SET canceled_at = COALESCE(canceled_at, now())
WHERE id = :id AND user_id = :user_id AND finished_at IS NULL
""")

# The step that has been due for longest. Actions of one user are executed in order, with a pause after each step, but a
# canceled one ends at once.
CLAIM: Final = text(f"""
UPDATE task_actions AS c
SET next_at = now() + CAST(:lease AS interval), lease_id = :lease_id, started_at = COALESCE(c.started_at, now())
FROM users AS u
WHERE u.id = c.user_id AND c.id = (
    SELECT a.id FROM task_actions AS a
    WHERE a.finished_at IS NULL AND a.next_at <= now() AND (a.canceled_at IS NOT NULL OR NOT EXISTS (
        SELECT FROM task_actions AS b
        WHERE b.user_id = a.user_id AND b.finished_at IS NULL AND (b.created_at, b.id) < (a.created_at, a.id))
      AND a.user_id NOT IN (SELECT user_id FROM task_actions WHERE finished_at IS NOT NULL AND next_at > now()))
    ORDER BY a.next_at, a.id LIMIT 1
    FOR UPDATE SKIP LOCKED)
RETURNING c.id, c.user_id, c.action, c.input, c.failures, c.canceled_at IS NOT NULL AS canceled,
          EXISTS (SELECT FROM api_tokens AS k WHERE k.id = c.token_id AND {IS_VALID}) AS signed_in,
          now() - c.created_at AS age, c.lease_id
""")

LOCK: Final = text("""
SELECT lease_id = :lease_id AND finished_at IS NULL AS is_claimed FROM task_actions WHERE id = :id FOR UPDATE
""")

# Deleted tasks count as visible: the action itself may have deleted them, before a crash.
PENDING: Final = text(f"""
SELECT r.ordinal, r.task_id, r.command_id,
       COALESCE((SELECT {can_see("CAST(:user_id AS uuid)")} FROM tasks AS t WHERE t.id = r.task_id), false) AS visible
FROM task_action_tasks AS r
WHERE r.action_id = :id AND r.status IS NULL
ORDER BY r.attempts, r.ordinal LIMIT :limit
FOR UPDATE OF r
""")

# Which of these ids are those of commands that were executed before the action was made, of an earlier one that had the
# same id; a send is also known by its input. No clock differs by a minute, and an earlier action is forgotten later.
USED: Final = text("""
SELECT e.id
FROM (
    SELECT command_id AS id, created_at FROM command_log WHERE command_id = ANY(CAST(:ids AS uuid[]))
    UNION ALL
    SELECT input_id, created_at FROM inputs WHERE input_id = ANY(CAST(:ids AS uuid[]))
) AS e
WHERE e.created_at < (SELECT created_at FROM task_actions WHERE id = :id) - interval '1 minute'
""")

RECORD_ATTEMPTS: Final = text("""
UPDATE task_action_tasks AS r SET command_id = v.command_id, attempts = r.attempts + 1
FROM unnest(CAST(:ordinals AS int[]), CAST(:command_ids AS uuid[])) AS v(ordinal, command_id)
WHERE r.action_id = :id AND r.ordinal = v.ordinal
""")

SENT: Final = text("""
SELECT r.command_id, r.ordinal FROM task_action_tasks AS r
WHERE r.action_id = :id AND r.status IS NULL AND r.attempts > 0
""")

SAVE: Final = text(f"""
WITH decided AS (
    UPDATE task_action_tasks AS r
    SET status = v.status, message = v.message, detail = v.detail, decided_at = now()
    FROM unnest(CAST(:ordinals AS int[]), CAST(:statuses AS int[]), CAST(:messages AS text[]),
                CAST(:details AS text[])) AS v(ordinal, status, message, detail)
    WHERE r.action_id = :id AND r.ordinal = v.ordinal AND r.status IS NULL
    RETURNING r.status
)
UPDATE task_actions AS a
SET succeeded = a.succeeded + (SELECT count(*) FROM decided WHERE status < 300),
    refused = a.refused + (SELECT count(*) FROM decided WHERE status >= 300 AND status <> {UNCONFIRMED}),
    unconfirmed = a.unconfirmed + (SELECT count(*) FROM decided WHERE status = {UNCONFIRMED}),
    failures = CASE WHEN :failed THEN a.failures + 1 ELSE 0 END,
    next_at = CASE WHEN a.lease_id <> :lease_id THEN a.next_at
                   WHEN a.canceled_at IS NULL THEN now() + CAST(:delay AS interval) ELSE now() END
WHERE a.id = :id
""")

# A step does not finish an action that was canceled meanwhile: what it has sent may be unconfirmed, see ``executor``.
# The input is no longer needed, and would outlive the tasks that it was sent to.
FINISH: Final = text("""
UPDATE task_actions
SET finished_at = now(), input = NULL, failure = CAST(:failure AS text),
    next_at = CASE WHEN :after_step THEN next_at ELSE now() END
WHERE id = :id AND finished_at IS NULL
  AND (CAST(:failure AS text) IS NOT NULL OR (canceled_at IS NOT NULL AND NOT :after_step)
       OR succeeded + refused = total)
""")

_PRUNED: Final = """
SELECT id FROM (
    SELECT id, created_at, finished_at,
           row_number() OVER (PARTITION BY user_id ORDER BY created_at DESC, id DESC) AS age
    FROM task_actions WHERE finished_at IS NOT NULL) AS finished
WHERE (finished_at < :before OR age > :kept)"""

_HAS_TASKS: Final = "EXISTS (SELECT FROM task_action_tasks AS r WHERE r.action_id = finished.id)"

PRUNE_TASKS: Final = text(f"""
DELETE FROM task_action_tasks WHERE (action_id, ordinal) IN (
    SELECT r.action_id, r.ordinal FROM ({_PRUNED} AND {_HAS_TASKS} ORDER BY id LIMIT 100) AS p
    CROSS JOIN LATERAL (SELECT action_id, ordinal FROM task_action_tasks WHERE action_id = p.id LIMIT :limit) AS r
    LIMIT :limit)
""")

MAX_KEYS: Final = 1_000
"""Maximum number of finished actions of a user whose keys are remembered."""

# An action's row is also the memory of its Idempotency-Key: without it a repeated request acts on other tasks.
PRUNE: Final = text(f"""
DELETE FROM task_actions WHERE id IN (
    {_PRUNED} AND NOT {_HAS_TASKS} AND (created_at < now() - interval '1 day' OR age > {MAX_KEYS})
    ORDER BY id LIMIT 100)
""")


@dataclass(frozen=True, slots=True)
class NewAction:
    """An action to store; ``task_ids`` are unique. ``missing``: those that do not exist or are not visible."""

    id: UUID
    user_id: UUID
    token_id: str
    action: str
    input: str | None
    query: str | None
    digest: bytes
    task_ids: Sequence[UUID]
    missing: frozenset[UUID]


class StoredActions(NamedTuple):
    """What is stored of one user: unfinished actions, all actions, and the tasks that they have."""

    unfinished: int
    actions: int
    tasks: int


class NotAdded(Enum):
    """Why an action was not added."""

    BUSY = auto()
    """Another transaction adds an action of the same user."""
    TOO_MANY_UNFINISHED = auto()
    TOO_MANY_STORED = auto()
    """The user has to wait until finished actions are pruned."""


@dataclass(frozen=True, slots=True)
class ClaimedStep:
    """The next step of an action; ``failures`` is the number of steps in a row that failed."""

    id: UUID
    user_id: UUID
    action: str
    input: str | None
    failures: int
    canceled: bool
    signed_in: bool
    """True if the token with which the action was requested is still valid."""
    age: timedelta
    lease_id: UUID


@dataclass(frozen=True, slots=True)
class PendingTask:
    """A task without a result; ``visible``: the user may see it now, ``sent``: a step has sent its command before."""

    ordinal: int
    task_id: UUID
    visible: bool
    command_id: UUID
    sent: bool


@dataclass(frozen=True, slots=True)
class TaskResult:
    """What became of one task: an HTTP status, and for an error its message and detail."""

    ordinal: int
    status: int
    message: str | None = None
    detail: str | None = None


async def find(pool: ReadPool, user_id: UUID, action_id: UUID) -> Row | None:
    """Return an action of a user (``COLUMNS`` and its digest), or None."""
    return await pool.fetch_one(FIND, user_id, action_id)


async def visible(pool: ReadPool, user_id: UUID, task_ids: Sequence[UUID]) -> frozenset[UUID]:
    """Return those of the tasks that are not deleted and that the user may see."""
    return frozenset(row["id"] for row in await pool.fetch(VISIBLE, user_id, task_ids))


async def is_due(pool: ReadPool) -> bool:
    """Return whether a step of any action may be due."""
    row = await pool.fetch_one(IS_DUE)
    return bool(row and row["due"])


async def add(connection: AsyncConnection, action: NewAction, message: str, most: StoredActions) -> NotAdded | None:
    """Store an action, or return why not; it waits for no other transaction of the same user.

    An action of this id is kept, and does not count for what may be stored ``most`` of its user. Tasks that are missing
    have the result 404 with this message.
    """
    if not (await connection.execute(LOCK_USER, {"user_id": str(action.user_id)})).scalar_one():
        return NotAdded.BUSY
    stored = StoredActions(*(await connection.execute(STORED, {"user_id": action.user_id, "id": action.id})).one())
    if action.task_ids and stored.unfinished >= most.unfinished:  # without tasks it is finished at once
        return NotAdded.TOO_MANY_UNFINISHED
    if stored.actions >= most.actions or stored.tasks + len(action.task_ids) > most.tasks:
        return NotAdded.TOO_MANY_STORED
    values = {
        "id": action.id,
        "user_id": action.user_id,
        "token_id": action.token_id,
        "action": action.action,
        "input": action.input,
        "query": action.query,
        "digest": action.digest,
        "total": len(action.task_ids),
        "refused": len(action.missing),
    }
    if (await connection.execute(ADD, values)).rowcount:
        missing = [task_id in action.missing for task_id in action.task_ids]
        values = {"id": action.id, "task_ids": list(action.task_ids), "missing": missing, "message": message}
        await connection.execute(ADD_TASKS, values)
        await finish(connection, action.id, None)
    return None


async def cancel(connection: AsyncConnection, user_id: UUID, action_id: UUID) -> None:
    """Request that an action of this user ends, if it is not finished."""
    await connection.execute(CANCEL, {"id": action_id, "user_id": user_id})


async def claim(connection: AsyncConnection, lease: timedelta, lease_id: UUID) -> ClaimedStep | None:
    """Claim the step that has been due for longest until it is saved, for at most ``lease``; None if none is due."""
    row = (await connection.execute(CLAIM, {"lease": lease, "lease_id": lease_id})).one_or_none()
    return None if row is None else ClaimedStep(*row)


async def lock(connection: AsyncConnection, step: ClaimedStep) -> bool:
    """Lock the action of a claimed step, before its tasks; return whether the claim still holds.

    It does not once another process has claimed the step after the lease.
    """
    return bool((await connection.execute(LOCK, {"id": step.id, "lease_id": step.lease_id})).scalar_one_or_none())


async def begin(connection: AsyncConnection, step: ClaimedStep, limit: int) -> list[PendingTask] | None:
    """Return the next tasks of an action as ``pending`` does; their commands count as sent once this is committed.

    None if another process has claimed the step, or ended the action.

    A task keeps the id of its command. The first time, that is another one than ``pending`` returns if a command of an
    earlier action has that: its Idempotency-Key was used again after the action was deleted.
    """
    if not await lock(connection, step):
        return None
    tasks = await pending(connection, step, limit)
    ids = [task.command_id for task in tasks if not task.sent]
    used = set((await connection.execute(USED, {"id": step.id, "ids": ids})).scalars())
    tasks = [replace(task, command_id=uuid4()) if task.command_id in used else task for task in tasks]
    begun = [task for task in tasks if task.visible]
    values = {
        "id": step.id,
        "ordinals": [task.ordinal for task in begun],
        "command_ids": [task.command_id for task in begun],
    }
    await connection.execute(RECORD_ATTEMPTS, values)
    return tasks


async def pending(connection: AsyncConnection, step: ClaimedStep, limit: int) -> list[PendingTask]:
    """Lock and return the next tasks of an action, up to ``limit``: those first whose command was sent least often.

    The id of a command that was not sent is derived from action and task, as by processes of the previous release.
    """
    rows = await connection.execute(PENDING, {"id": step.id, "user_id": step.user_id, "limit": limit})
    return [
        PendingTask(ordinal, task_id, visible, command_id or uuid5(step.id, str(task_id)), command_id is not None)
        for ordinal, task_id, command_id, visible in rows
    ]


async def sent(connection: AsyncConnection, step: ClaimedStep) -> dict[UUID, int]:
    """Return the ordinals of the tasks whose command was sent and that have no result, by the id of the command."""
    rows = await connection.execute(SENT, {"id": step.id})
    return {row.command_id: row.ordinal for row in rows}


async def save(
    connection: AsyncConnection, step: ClaimedStep, results: Sequence[TaskResult], *, failed: bool, delay: timedelta
) -> None:
    """Store the results of a step, and finish the action after its last one.

    The next step, also of the user's next action, is due after ``delay``; the end of a canceled action is due at once.

    A task that has a result keeps it, so saving a step twice is harmless.
    """
    values = {
        "id": step.id,
        "lease_id": step.lease_id,
        "ordinals": [result.ordinal for result in results],
        "statuses": [result.status for result in results],
        "messages": [result.message for result in results],
        "details": [result.detail for result in results],
        "failed": failed,
        "delay": delay,
    }
    await lock(connection, step)
    await connection.execute(SAVE, values)
    await connection.execute(FINISH, {"id": step.id, "failure": None, "after_step": True})


async def finish(connection: AsyncConnection, action_id: UUID, failure: str | None) -> None:
    """Finish an action that was canceled or has all its results, or, with a ``failure``, in any case.

    The next action of its user is due at once.
    """
    await connection.execute(FINISH, {"id": action_id, "failure": failure, "after_step": False})


async def prune(connection: AsyncConnection, before: datetime, kept: int, limit: int) -> int:
    """Delete finished actions: those that finished before ``before``, and of each user all but the newest ``kept``.

    Of those created within a day only the results of the tasks are deleted: their keys are remembered,
    but no more than the newest ``MAX_KEYS`` of a user.
    Return the number of deleted rows of tasks, at most ``limit``; call it until that is less.
    """
    values = {"before": before, "kept": kept}
    deleted = (await connection.execute(PRUNE_TASKS, {**values, "limit": limit})).rowcount
    await connection.execute(PRUNE, values)
    return deleted
