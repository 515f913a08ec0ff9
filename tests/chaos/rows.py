"""The rows of all tasks, read with plain SQL in one snapshot."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

from taskherd.domain.lease import Lease, merge_lease
from taskherd.domain.task import TaskState
from taskherd.store import task_state_codec


@dataclass(frozen=True, slots=True)
class TaskRow:
    """A stored task; its state includes the heartbeats in its lease."""

    id: UUID
    name: str
    display_name: str
    owner_id: UUID
    organization_id: UUID
    template_id: UUID
    template_version_id: UUID
    created_at: datetime
    version: int
    deleted_at: datetime | None
    document: dict[str, Any]
    state: TaskState


@dataclass(frozen=True, slots=True)
class EventRow:
    """One version in the history."""

    kind: str
    document: dict[str, Any]


@dataclass(frozen=True, slots=True)
class LogRow:
    """One entry of a task's log."""

    log_id: int
    build_number: int
    entry_id: int
    seq: int
    content: str


@dataclass(frozen=True, slots=True)
class Rows:
    """All rows. ``duplicated``: versions that are in the history twice; ``feed``: versions by position."""

    tasks: dict[UUID, TaskRow]
    events: dict[tuple[UUID, int], EventRow]
    duplicated: list[tuple[UUID, int]]
    feed: list[tuple[UUID, int]]
    logs: dict[UUID, list[LogRow]]
    parked: list[str]
    outbox: int


TASKS = """
SELECT id, name, display_name, owner_id, organization_id, template_id, template_version_id, created_at, version,
       deleted_at, document::text, state::text
FROM tasks
"""
LEASES = "SELECT task_id, build_number, agent_id, seq, observed_at, last_heartbeat_at FROM leases"
EVENTS = "SELECT task_id, version, kind, document::text FROM task_events"
LOGS = "SELECT task_id, log_id, build_number, entry_id, seq, content FROM task_logs"


async def read(connection: asyncpg.Connection) -> Rows:
    """Read all rows in one snapshot."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        leases = {row["task_id"]: Lease(*row) for row in await connection.fetch(LEASES)}
        tasks = [_task(row, leases.get(row["id"])) for row in await connection.fetch(TASKS)]
        events = await connection.fetch(EVENTS)
        logs = defaultdict(list)
        for row in await connection.fetch(LOGS):
            logs[row["task_id"]].append(LogRow(*row[1:]))
        feed = await connection.fetch("SELECT task_id, version FROM task_feed ORDER BY position")
        parked = await connection.fetch("SELECT report::text FROM parked")
        outbox = await connection.fetchval("SELECT count(*) FROM outbox")
    keys = [(row["task_id"], row["version"]) for row in events]
    return Rows(
        tasks={task.id: task for task in tasks},
        events={key: EventRow(row["kind"], json.loads(row["document"])) for key, row in zip(keys, events, strict=True)},
        duplicated=sorted({key for key in keys if keys.count(key) > 1}) if len(set(keys)) < len(keys) else [],
        feed=[(row["task_id"], row["version"]) for row in feed],
        logs=dict(logs),
        parked=[row["report"] for row in parked],
        outbox=outbox,
    )


def _task(row: asyncpg.Record, lease: Lease | None) -> TaskRow:
    columns = dict(row)
    state = task_state_codec.loads(row["id"], columns.pop("state"))
    document = json.loads(columns.pop("document"))
    return TaskRow(**columns, document=document, state=merge_lease(state, lease) if lease else state)
