"""The inboxes: inputs to agents. For all writes the caller holds the lock of the task's row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, TypeAlias
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from taskherd.domain.inbox import QueuedInput
from taskherd.store.statements import ColumnArrays, column_names
from taskherd.store.tables import inputs

InputState: TypeAlias = Literal["queued", "sent", "delivered", "failed"]


@dataclass(frozen=True, slots=True)
class NewInput:
    """An input to append to its task's inbox."""

    input_id: UUID
    task_id: UUID
    content: str
    created_at: datetime
    actor_id: UUID | None
    steers: bool = False


@dataclass(frozen=True, slots=True)
class InputRow:
    """An input with its state; ordinals count from 0 per task."""

    input_id: UUID
    task_id: UUID
    ordinal: int
    content: str
    state: InputState
    created_at: datetime
    sent_at: datetime | None
    decided_at: datetime | None
    detail: str | None
    actor_id: UUID | None
    steers: bool = False


@dataclass(frozen=True, slots=True)
class InputOutcomeRow:
    """The outcome of an input of a task."""

    input_id: UUID
    task_id: UUID
    state: Literal["delivered", "failed"]
    decided_at: datetime
    detail: str | None


NEW: Final = [inputs.c[name] for name in ("input_id", "task_id", "content", "created_at", "actor_id", "steers")]
NEW_ROWS: Final = ColumnArrays(NEW)
OUTCOMES: Final = ColumnArrays([inputs.c[name] for name in ("input_id", "task_id", "state", "decided_at", "detail")])

APPEND: Final = text(f"""
INSERT INTO inputs ({column_names(NEW)}, state, ordinal)
SELECT {column_names(NEW, "n")}, 'queued',
       COALESCE((SELECT max(i.ordinal) + 1 FROM inputs AS i WHERE i.task_id = n.task_id), 0)
           + row_number() OVER (PARTITION BY n.task_id ORDER BY n.position) - 1
FROM {NEW_ROWS.unnest("n", ordinality="position")}
""")

LOAD: Final = text(f"""
SELECT {column_names(inputs.c)} FROM inputs WHERE input_id = ANY(CAST(:ids AS uuid[]))
""")

FIRST_QUEUED: Final = text("""
SELECT inboxes.task_id, queued.input_id, queued.steers
FROM unnest(CAST(:task_id AS uuid[]), CAST(:max_inputs AS integer[])) AS inboxes(task_id, max_inputs)
CROSS JOIN LATERAL (
    SELECT i.input_id, i.ordinal, i.steers FROM inputs AS i
    WHERE i.task_id = inboxes.task_id AND i.decided_at IS NULL AND i.state = 'queued'
    ORDER BY i.steers DESC, i.ordinal
    LIMIT inboxes.max_inputs
) AS queued
ORDER BY inboxes.task_id, queued.steers DESC, queued.ordinal
""")

MARK_SENT: Final = text("""
UPDATE inputs SET state = 'sent', sent_at = :at WHERE input_id = ANY(CAST(:ids AS uuid[])) AND state = 'queued'
""")

REQUEUE: Final = text("""
UPDATE inputs SET state = 'queued', sent_at = NULL WHERE input_id = ANY(CAST(:ids AS uuid[])) AND state = 'sent'
""")

RECORD_OUTCOMES: Final = text(f"""
UPDATE inputs AS i SET state = o.state, decided_at = o.decided_at, detail = o.detail
FROM {OUTCOMES.unnest("o")}
WHERE i.input_id = o.input_id AND i.task_id = o.task_id AND i.decided_at IS NULL
RETURNING i.input_id
""")

FAIL_ALL: Final = text("""
UPDATE inputs SET state = 'failed', decided_at = :at, detail = :detail
WHERE task_id = ANY(CAST(:ids AS uuid[])) AND decided_at IS NULL
RETURNING input_id
""")


async def append(connection: AsyncConnection, new: Sequence[NewInput]) -> None:
    """Append inputs to their inboxes, in the given order."""
    await connection.execute(APPEND, NEW_ROWS.parameters(new))


async def load(connection: AsyncConnection, ids: Sequence[UUID]) -> list[InputRow]:
    """Return the inputs that exist among ``ids``, in any order."""
    return [InputRow(*row) for row in await connection.execute(LOAD, {"ids": ids})]


async def first_queued(connection: AsyncConnection, limit: Mapping[UUID, int]) -> dict[UUID, list[QueuedInput]]:
    """Return, by task id, the first queued inputs in order, up to ``limit[task_id]`` for each task: steers first."""
    queues: dict[UUID, list[QueuedInput]] = {}
    values = {"task_id": list(limit), "max_inputs": list(limit.values())}
    for task_id, input_id, steers in await connection.execute(FIRST_QUEUED, values):
        queues.setdefault(task_id, []).append(QueuedInput(input_id, steers))
    return queues


async def mark_sent(connection: AsyncConnection, ids: Sequence[UUID], at: datetime) -> None:
    """Mark queued inputs as sent."""
    await connection.execute(MARK_SENT, {"ids": ids, "at": at})


async def requeue(connection: AsyncConnection, ids: Sequence[UUID]) -> None:
    """Mark inputs as queued again that were sent, and that their agents did not get."""
    await connection.execute(REQUEUE, {"ids": ids})


async def record_outcomes(connection: AsyncConnection, outcomes: Sequence[InputOutcomeRow]) -> set[UUID]:
    """Record outcomes, at most one per input, and return the ids of the inputs that had none yet: the first one wins.

    An outcome with another task than the input's own has no effect.
    """
    return {input_id for (input_id,) in await connection.execute(RECORD_OUTCOMES, OUTCOMES.parameters(outcomes))}


async def fail_all(connection: AsyncConnection, task_ids: Sequence[UUID], at: datetime, detail: str) -> set[UUID]:
    """Mark every open input of these tasks as failed and return their ids."""
    rows = await connection.execute(FAIL_ALL, {"ids": task_ids, "at": at, "detail": detail})
    return {input_id for (input_id,) in rows}
