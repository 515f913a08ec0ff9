"""Log entries of tasks. The caller holds the lock of the task's row, acquired by an earlier statement.

Reports may arrive in another order than they were made, since some of them wait with a hung node. Log ids are given in
the order of commit and never change, so that readers can ask for what is new. The order to read in is that of
``ORDER``: by build, and in a build by the lowest ``seq`` with which each entry was reported.

Each change of a log, of one or several of its entries, raises its *revision*, and the entries that changed carry it. A
follower asks for the entries with a greater revision than its own, and so learns of replaced entries too. Revisions
begin at the time of the first change: a follower that resumes by the name of a task which another one has by now asks
for what is after a revision of the earlier log, and that is all of the later one.

A log that has reached its limits is *full*: what comes later is left out, and counted in ``task_log_heads``. Its last
entry is a notice about that, whose id no agent can give.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final, Literal
from uuid import UUID

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from taskherd.store.statements import ColumnArrays, column_names, stored
from taskherd.store.tables import task_logs


@dataclass(frozen=True, slots=True)
class LogEntryRow:
    """A log entry as reported; ``entry_id`` is assigned by the agent, unique within its build."""

    task_id: UUID
    build_number: int
    entry_id: int
    seq: int
    type: Literal["input", "output"]
    content: str
    time: datetime
    kind: str | None = None
    title: str | None = None
    status: str | None = None
    data: str | None = None
    """Canonical JSON."""
    first_seq: int | None = None
    """The lowest ``seq`` in the batch with which the entry was reported; None before ``append``."""


ENTRY: Final = [
    task_logs.c[name]
    for name in (
        "task_id", "build_number", "entry_id", "seq", "type", "content", "time", "kind", "title", "status", "data",
        "first_seq",
    )
]  # fmt: skip
ENTRIES: Final = ColumnArrays(ENTRY)

ORDER: Final = "entry_id < 0, build_number, first_seq NULLS FIRST, log_id"
"""The order of a task's entries for readers; the notice of a full log is last."""

NOTICE_ENTRY_ID: Final = -1
"""The entry id of the notice in a full log; agents give ids from 0."""


@dataclass(frozen=True, slots=True)
class LogLimits:
    """The maximum number of entries of one task, and of bytes of their contents and data."""

    max_entries: int
    max_bytes: int


@dataclass(frozen=True, slots=True)
class FullLog:
    """A full log from which entries were left out, and how many in all; ``is_new``: none had been before."""

    task_id: UUID
    notice_log_id: int
    is_new: bool = field(kw_only=True)
    omitted_entries: int
    omitted_bytes: int
    omitted_since: datetime


@dataclass(frozen=True, slots=True)
class AppendResult:
    """The number of new entries, and the logs from which some were left out."""

    added: int
    full: Sequence[FullLog]


def _bytes(alias: str) -> str:
    return f"octet_length({alias}.content) + COALESCE(octet_length(CAST({alias}.data AS text)), 0)"


# In milliseconds: no log has a thousand changes a second, and JSON parsers keep such numbers exact.
_BEFORE_THE_FIRST: Final = "CAST(extract(epoch FROM CAST(:logged_at AS timestamptz)) * 1000 AS bigint)"

# No unique index can span partitions, so existing entries are looked up. The next log id has a table of its own because
# partitions are dropped. Its row and the entries are stable within this statement, because the task is locked.
APPEND: Final = text(f"""
WITH incoming AS (
    SELECT * FROM {ENTRIES.unnest("i", ordinality="position")}
), existing AS (
    SELECT i.*, l.seq < i.seq AS is_newer, {_bytes("i")} - ({_bytes("l")}) AS growth
    FROM incoming AS i JOIN task_logs AS l
        ON l.task_id = i.task_id AND l.build_number = i.build_number AND l.entry_id = i.entry_id
), before AS (
    SELECT t.task_id, COALESCE(h.revision, {_BEFORE_THE_FIRST}) + 1 AS revision,
           COALESCE(h.next_log_id, 0) AS next_log_id, COALESCE(h.content_bytes, 0) AS content_bytes,
           COALESCE(h.omitted_entries, 0) AS omitted_entries, COALESCE(h.omitted_bytes, 0) AS omitted_bytes,
           h.omitted_since, h.notice_log_id, t.growth,
           t.growth <= 0 OR COALESCE(h.content_bytes, 0) + t.growth <= :max_bytes AS may_grow
    FROM (
        SELECT i.task_id, COALESCE(sum(e.growth) FILTER (WHERE e.is_newer), 0) AS growth
        FROM incoming AS i LEFT JOIN existing AS e USING (task_id, build_number, entry_id)
        GROUP BY i.task_id
    ) AS t LEFT JOIN task_log_heads AS h USING (task_id)
), replaced AS (
    UPDATE task_logs AS l SET
        seq = CASE WHEN i.replaces THEN i.seq ELSE l.seq END,
        type = CASE WHEN i.replaces THEN i.type ELSE l.type END,
        content = CASE WHEN i.replaces THEN i.content ELSE l.content END,
        time = CASE WHEN i.replaces THEN i.time ELSE l.time END,
        kind = CASE WHEN i.replaces THEN i.kind ELSE l.kind END,
        title = CASE WHEN i.replaces THEN i.title ELSE l.title END,
        status = CASE WHEN i.replaces THEN i.status ELSE l.status END,
        data = CASE WHEN i.replaces THEN CAST(i.data AS json) ELSE l.data END,
        first_seq = CASE WHEN i.first_seq < l.first_seq THEN i.first_seq ELSE l.first_seq END,
        revision = i.revision
    FROM (
        SELECT e.*, b.revision, e.is_newer AND (b.may_grow OR e.growth <= 0) AS replaces
        FROM existing AS e JOIN before AS b USING (task_id)
    ) AS i
    WHERE l.task_id = i.task_id AND l.build_number = i.build_number AND l.entry_id = i.entry_id
      AND (i.replaces OR i.first_seq < l.first_seq)
    RETURNING l.task_id
), new_entries AS (
    SELECT i.*,
           row_number() OVER (PARTITION BY i.task_id ORDER BY i.position) AS rank,
           sum({_bytes("i")}) OVER (PARTITION BY i.task_id ORDER BY i.position) AS running_bytes
    FROM incoming AS i
    WHERE NOT EXISTS (
        SELECT 1 FROM existing AS e
        WHERE e.task_id = i.task_id AND e.build_number = i.build_number AND e.entry_id = i.entry_id)
), judged AS (
    SELECT n.*, b.omitted_entries = 0 AND b.next_log_id + n.rank <= :max_entries
           AND b.content_bytes + (CASE WHEN b.may_grow THEN b.growth ELSE 0 END) + n.running_bytes <= :max_bytes AS fits
    FROM new_entries AS n JOIN before AS b USING (task_id)
), added AS (
    INSERT INTO task_logs ({column_names(ENTRY)}, log_id, logged_at, revision)
    SELECT {stored(ENTRY, "n")}, b.next_log_id + n.rank - 1, :logged_at, b.revision
    FROM judged AS n JOIN before AS b USING (task_id) WHERE n.fits
), counted AS (
    SELECT task_id, count(*) FILTER (WHERE fits) AS entries,
           COALESCE(sum(bytes) FILTER (WHERE fits), 0) AS bytes,
           count(*) FILTER (WHERE NOT fits) AS omitted,
           COALESCE(sum(bytes) FILTER (WHERE NOT fits), 0) AS omitted_bytes
    FROM (
        SELECT task_id, {_bytes("judged")} AS bytes, fits FROM judged
        UNION ALL
        SELECT task_id, {_bytes("existing")}, false FROM existing JOIN before USING (task_id)
        WHERE is_newer AND existing.growth > 0 AND NOT may_grow
    ) AS each GROUP BY task_id
), heads AS (
    INSERT INTO task_log_heads AS h
        (task_id, revision, next_log_id, content_bytes, omitted_entries, omitted_bytes, omitted_since, notice_log_id)
    SELECT b.task_id, b.revision,
           b.next_log_id + COALESCE(c.entries, 0)
               + CASE WHEN b.notice_log_id IS NULL AND c.omitted > 0 THEN 1 ELSE 0 END,
           b.content_bytes + (CASE WHEN b.may_grow THEN b.growth ELSE 0 END) + COALESCE(c.bytes, 0),
           b.omitted_entries + COALESCE(c.omitted, 0),
           b.omitted_bytes + COALESCE(c.omitted_bytes, 0),
           COALESCE(b.omitted_since, CASE WHEN c.omitted > 0 THEN CAST(:logged_at AS timestamptz) END),
           COALESCE(b.notice_log_id, CASE WHEN c.omitted > 0 THEN b.next_log_id + c.entries END)
    FROM before AS b LEFT JOIN counted AS c USING (task_id)
    WHERE c.entries > 0 OR c.omitted > 0 OR b.task_id IN (SELECT task_id FROM replaced)
    ORDER BY b.task_id
    ON CONFLICT (task_id) DO UPDATE SET
        revision = excluded.revision, next_log_id = excluded.next_log_id, content_bytes = excluded.content_bytes,
        omitted_entries = excluded.omitted_entries, omitted_bytes = excluded.omitted_bytes,
        omitted_since = excluded.omitted_since, notice_log_id = excluded.notice_log_id
    RETURNING h.task_id, h.notice_log_id, h.omitted_entries, h.omitted_bytes, h.omitted_since
)
SELECT c.entries, c.omitted, h.task_id, h.notice_log_id, c.omitted = h.omitted_entries AS is_new,
       h.omitted_entries, h.omitted_bytes, h.omitted_since
FROM counted AS c JOIN heads AS h USING (task_id)
ORDER BY h.task_id
""")

WRITE_NOTICE: Final = text("""
WITH head AS (
    SELECT max(revision) AS revision FROM task_log_heads WHERE task_id = :task_id
), replaced AS (
    UPDATE task_logs SET content = :content, revision = (SELECT revision FROM head)
    WHERE task_id = :task_id AND log_id = :log_id
)
INSERT INTO task_logs (task_id, log_id, build_number, entry_id, seq, type, content, time, logged_at, revision)
SELECT :task_id, :log_id, :build_number, :entry_id, 0, 'output', :content, :now, :now, revision FROM head
WHERE :is_new
""")


async def append(
    connection: AsyncConnection, entries: Sequence[LogEntryRow], logged_at: datetime, limits: LogLimits
) -> AppendResult:
    """Append entries in the order of builds and ``seq``, those of one report as given, as far as the limits allow.

    An entry with the build number and id of an existing one replaces its content if its ``seq`` is greater, and keeps
    the log id that was assigned when the entry was first committed. The first entry that does not fit fills the log.
    """
    newest = list(_newest(entries))
    values = {
        **ENTRIES.parameters(newest),
        "logged_at": logged_at,
        "max_entries": limits.max_entries,
        "max_bytes": limits.max_bytes,
    }
    rows = (await connection.execute(APPEND, values)).all()
    return AppendResult(sum(row.entries for row in rows), [_full_log(row) for row in rows if row.omitted])


def _full_log(row: Row[Any]) -> FullLog:
    counts = (row.omitted_entries, row.omitted_bytes, row.omitted_since)
    return FullLog(row.task_id, row.notice_log_id, *counts, is_new=row.is_new)


async def write_notice(
    connection: AsyncConnection, log: FullLog, build_number: int, content: str, now: datetime
) -> None:
    """Write the last entry of a full log, or replace its content; once it was pruned, it does not come back."""
    values = {
        "task_id": log.task_id,
        "log_id": log.notice_log_id,
        "build_number": build_number,
        "entry_id": NOTICE_ENTRY_ID,
        "content": content,
        "now": now,
        "is_new": log.is_new,
    }
    await connection.execute(WRITE_NOTICE, values)


def _newest(entries: Sequence[LogEntryRow]) -> Iterable[LogEntryRow]:
    """Return the entries in order, for each id that with the greatest ``seq``, at the place of that with the lowest."""
    newest: dict[tuple[UUID, int, int], LogEntryRow] = {}
    for entry in sorted(entries, key=lambda each: (each.build_number, each.seq)):
        key = (entry.task_id, entry.build_number, entry.entry_id)
        current = newest.get(key)
        if current is None:
            newest[key] = replace(entry, first_seq=entry.seq)
        elif entry.seq > current.seq:
            newest[key] = replace(entry, first_seq=current.first_seq)
    return newest.values()
