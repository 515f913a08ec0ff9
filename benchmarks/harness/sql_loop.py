"""The worker's calls to the store at full speed, without broker and messages."""

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
    """A loop of updates of all tasks in turn, a batch at a time, in an order that is random to the database."""

    def __init__(self, engine: AsyncEngine, tasks_: int) -> None:
        self._engine = engine
        self._steps = count(1)
        self._indexes = _endless(tasks_)
        self.spent = {"lock": 0.0, "save": 0.0, "mark": 0.0, "renew_leases": 0.0}
        self.done = 0

    def _batch(self) -> list[int]:
        return [next(self._indexes) for _ in range(BATCH)]

    async def save(self) -> None:
        """Lock a batch, save it with history and outbox, commit, and mark it as published, as for status reports."""
        ids = sorted(task_id(index) for index in self._batch())
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

    async def renew_leases(self) -> None:
        """Renew the leases of a batch, as for heartbeats."""
        seq = next(self._steps) + 10_000_000
        now = datetime.now(UTC)
        agents = sorted((task_id(index), agent_id(index)) for index in self._batch())
        heartbeats = [HeartbeatSummary(task, 1, agent, seq, now - timedelta(seconds=1), now) for task, agent in agents]
        async with transaction(self._engine) as connection:
            began = time.perf_counter()
            await leases.renew(connection, heartbeats)
            self.spent["renew_leases"] += time.perf_counter() - began
        self.done += len(heartbeats)


def _endless(count_: int) -> Iterator[int]:
    while True:
        yield from range(count_)


def saved_task(row: StoredTask, step: str, now: datetime) -> StoredTask:
    """Return the task after an app.status report with the message ``step``."""
    current = row.task.state.app_status
    assert current is not None
    status = replace(current, report=replace(current.report, message=step))
    state = replace(row.task.state, app_status=status)
    task = replace(row.task, version=row.task.version + 1, updated_at=now, state=state)
    return row._replace(task=task, document=_MESSAGE.sub(step, row.document), due_changed=False)


def event(saved: StoredTask) -> tasks.TaskEventRow:
    """Return the event about that change."""
    return tasks.TaskEventRow(saved.task, "updated", saved.document, ("current_state", "updated_at"), CAUSE)
