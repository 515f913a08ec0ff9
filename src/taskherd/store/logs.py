"""The conversations. The caller holds the lock of the task's row, taken by an earlier statement."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One entry as reported; `entry_id` is the agent's own id, unique within its build."""

    task_id: UUID
    build_number: int
    entry_id: int
    seq: int
    type: Literal["input", "output"]
    content: str
    time: datetime


# No unique index can span partitions, hence the lookup; the head outlives entries whose partition was dropped.
APPEND: Final = text("""
WITH incoming AS (
    SELECT * FROM unnest(
        CAST(:task_id AS uuid[]), CAST(:build_number AS integer[]), CAST(:entry_id AS bigint[]), CAST(:seq AS bigint[]),
        CAST(:type AS text[]), CAST(:content AS text[]), CAST(:time AS timestamptz[])
    ) WITH ORDINALITY AS i(task_id, build_number, entry_id, seq, type, content, time, place)
), replaced AS (
    UPDATE task_logs AS l SET seq = i.seq, type = i.type, content = i.content, time = i.time
    FROM incoming AS i
    WHERE l.task_id = i.task_id AND l.build_number = i.build_number AND l.entry_id = i.entry_id AND l.seq < i.seq
), fresh AS (
    SELECT i.*,
           row_number() OVER (PARTITION BY i.task_id ORDER BY i.place) AS rank,
           count(*) OVER (PARTITION BY i.task_id) AS many
    FROM incoming AS i
    WHERE NOT EXISTS (
        SELECT 1 FROM task_logs AS l
        WHERE l.task_id = i.task_id AND l.build_number = i.build_number AND l.entry_id = i.entry_id)
), heads AS (
    INSERT INTO task_log_heads AS h (task_id, next_log_id)
    SELECT task_id, count(*) FROM fresh GROUP BY task_id ORDER BY task_id
    ON CONFLICT (task_id) DO UPDATE SET next_log_id = h.next_log_id + excluded.next_log_id
    RETURNING task_id, next_log_id
), added AS (
    INSERT INTO task_logs (task_id, log_id, build_number, entry_id, seq, type, content, time, logged_at)
    SELECT f.task_id, h.next_log_id - f.many + f.rank - 1, f.build_number, f.entry_id, f.seq, f.type, f.content, f.time,
           :logged_at
    FROM fresh AS f JOIN heads AS h USING (task_id)
)
SELECT count(*) FROM fresh
""")


async def append(conn: AsyncConnection, entries: Sequence[LogEntry], logged_at: datetime) -> int:
    """Add entries in the order given and return how many are new.

    One with the build number and id of an earlier entry replaces its text if its `seq` is greater; the log id, given
    when an entry is first committed, stays.
    """
    newest = list(_newest(entries))
    values = {
        "task_id": [entry.task_id for entry in newest],
        "build_number": [entry.build_number for entry in newest],
        "entry_id": [entry.entry_id for entry in newest],
        "seq": [entry.seq for entry in newest],
        "type": [entry.type for entry in newest],
        "content": [entry.content for entry in newest],
        "time": [entry.time for entry in newest],
        "logged_at": logged_at,
    }
    return int((await conn.execute(APPEND, values)).scalar_one())


def _newest(entries: Sequence[LogEntry]) -> Iterable[LogEntry]:
    """One entry for each id, of the greatest `seq`, at the place where the id first appeared."""
    found: dict[tuple[UUID, int, int], LogEntry] = {}
    for entry in entries:
        key = (entry.task_id, entry.build_number, entry.entry_id)
        held = found.get(key)
        if held is None or entry.seq > held.seq:
            found[key] = entry
    return found.values()
