"""The worker's own calls to the store, without broker and messages: as fast as database and conversions of rows are."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import TYPE_CHECKING

from benchmarks.harness.workload import MESSAGE_BYTES, agent_id, task_id
from taskherd.domain.lease import HeartbeatSummary
from taskherd.domain.value import replace
from taskherd.store import leases, outbox, tasks
from taskherd.store.engine import transaction
from taskherd.store.tasks import StoredTask

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.ext.asyncio import AsyncEngine


BATCH = 1_000
CAUSE = '{"kind":"report","type":"app.status"}'
_MESSAGE = re.compile(r"under way|step \d+\.*")


class SqlLoop:
    """Goes round all tasks, a batch at a time, in an order that is none to the database."""

    def __init__(self, engine: AsyncEngine, many: int) -> None:
        self._engine = engine
        self._steps = count(1)
        self._places = _round(many)
        self.spent = {"lock": 0.0, "save": 0.0, "mark": 0.0, "touch": 0.0}
        self.done = 0

    def _batch(self) -> list[int]:
        return [next(self._places) for _ in range(BATCH)]

    async def save(self) -> None:
        """Lock, save with history and outbox, commit, and mark as published: as a batch of app.status does."""
        ids = sorted(task_id(place) for place in self._batch())
        now, step = datetime.now(UTC), f"step {next(self._steps)}".ljust(MESSAGE_BYTES, ".")
        async with transaction(self._engine) as connection:
            began = time.perf_counter()
            rows = await tasks.lock(connection, ids)
            locked = time.perf_counter()
            saved = [saved_task(row, step, now) for row in rows]
            events = [event(row) for row in saved]
            ready = time.perf_counter()
            await tasks.save(connection, saved, events)
            self.spent["save"] += time.perf_counter() - ready
            self.spent["lock"] += locked - began
        async with transaction(self._engine) as connection:
            began = time.perf_counter()
            await outbox.mark_published(connection, [(row.task.id, row.task.version) for row in saved])
            self.spent["mark"] += time.perf_counter() - began
        self.done += len(rows)

    async def touch(self) -> None:
        """Renew leases, as a batch of heartbeats does."""
        seq = next(self._steps) + 10_000_000
        now = datetime.now(UTC)
        found = sorted((task_id(place), agent_id(place)) for place in self._batch())
        beats = [HeartbeatSummary(task, 1, agent, seq, now - timedelta(seconds=1), now) for task, agent in found]
        async with transaction(self._engine) as connection:
            began = time.perf_counter()
            await leases.touch(connection, beats)
            self.spent["touch"] += time.perf_counter() - began
        self.done += len(beats)


def _round(many: int) -> Iterator[int]:
    while True:
        yield from range(many)


def saved_task(row: StoredTask, step: str, now: datetime) -> StoredTask:
    """The task as it is after an app.status with this message."""
    held = row.task.state.app_status
    assert held is not None
    status = replace(held, report=replace(held.report, message=step))
    memory = replace(row.task.state, app_status=status)
    task = replace(row.task, version=row.task.version + 1, updated_at=now, state=memory)
    return StoredTask(task, row.status, _MESSAGE.sub(step, row.document), row.due_at, due_moved=False)


def event(saved: StoredTask) -> tasks.TaskEvent:
    """The event about that change."""
    return tasks.TaskEvent(saved.task, "updated", saved.document, ("current_state", "updated_at"), CAUSE)
