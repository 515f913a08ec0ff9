"""Reconcile the timer checks of many tasks together; one that fails, or waits for a lock, delays others by seconds."""

from __future__ import annotations

from datetime import timedelta
from time import monotonic
from typing import TYPE_CHECKING

import structlog

from taskherd.errors import Retry
from taskherd.store import tasks
from taskherd.store.engine import LockTimeout, PromptSizeError, StatementTimeout, transaction
from taskherd.worker.batch import MESSAGE_ERRORS, Batch
from taskherd.worker.reconcile import reconcile

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    from taskherd.domain.updates import TimerCheck
    from taskherd.worker.context import WorkerContext
    from taskherd.worker.relay import Relay

log = structlog.get_logger(__name__)

RETRY_AFTER = timedelta(minutes=5)
"""Time until a task whose check failed is checked again."""

LOCKED_RETRY_AFTER = timedelta(seconds=5)
"""Time until a task is checked again that another transaction kept locked, or that waited for another lock."""

MAX_FAILED = 10_000
"""Maximum number of such tasks that are remembered; further ones may be checked earlier."""

MAX_PART = 1_000
"""Maximum number of tasks that are checked together."""

GROW_AFTER = 60.0
"""Seconds after which more tasks are checked together again, because a run that fails delays what the sweeper finds."""

MAX_TIMEOUTS = 3
"""Number of times in a row that the check of one task alone takes too long until it counts as failed."""

MAX_CONFLICTS = 10
"""Number of conflicts in a run after which the next one ends it: each may have waited 3 s for a lock.

One task that waits for a lock is found among a hundred with eight of them.
"""


class TimerChecks:
    """Reconciles timer checks, and remembers the tasks whose check failed."""

    def __init__(self, context: WorkerContext, relay: Relay) -> None:
        """Create the object. ``relay`` publishes the changes."""
        self._context = context
        self._relay = relay
        self._failed: dict[UUID, float] = {}
        """The tasks whose check failed, or that were locked, each with the monotonic time of its next check."""
        self._part = MAX_PART
        """Number of tasks that are checked together now: fewer while that takes too long."""
        self._grow_at = 0.0
        """The monotonic time from which on it may be twice as many."""
        self._timeouts: dict[UUID, int] = {}
        """How often in a row the check of each task alone took too long, or waited too long for a lock."""

    async def run(self, checks: Mapping[UUID, TimerCheck]) -> int:
        """Check tasks, but for those whose check failed a moment ago, and return the number that succeeded.

        Raise ``StatementTimeout`` the first time that something takes too long, since that may be so of all: the next
        run checks fewer tasks together, and last those whose check alone took too long. Raise ``Retry`` after a
        conflict that is over, or too many waits for locks.
        """
        now = monotonic()
        waiting = {task_id: each for task_id, each in checks.items() if not self._has_failed(task_id, now)}
        last = [{task_id: waiting.pop(task_id)} for task_id in self._timeouts if task_id in waiting]
        items, size = list(waiting.items()), self._part
        parts = [dict(items[start : start + size]) for start in range(0, len(items), size)]
        succeeded, conflicts = 0, list[Retry]()
        for part in parts + last:
            succeeded += await self._run(part, conflicts)
        if now >= self._grow_at:
            self._part, self._grow_at = min(2 * self._part, MAX_PART), now + GROW_AFTER
        return succeeded

    async def _run(self, checks: Mapping[UUID, TimerCheck], conflicts: list[Retry]) -> int:
        """Reconcile checks, at least one. A batch that fails is halved until the tasks that fail are found.

        ``conflicts``: those of this run; the sweep and the erasure of tasks may have one each at a time.
        """
        try:
            await self._reconcile(checks)
        except Retry as error:
            return await self._run_after_conflict(checks, error, conflicts)
        except StatementTimeout as error:
            if len(checks) > 1:
                self._part, self._grow_at = len(checks) // 2, monotonic() + GROW_AFTER
                raise
            return await self._note_timeout(next(iter(checks)), error)
        except (*MESSAGE_ERRORS, PromptSizeError) as error:
            if len(checks) == 1:
                await self._postpone(next(iter(checks)), error)
                return 0
            return await self._run_halves(checks, conflicts)
        if self._timeouts.keys().isdisjoint(checks):  # so it is not the database that is slow
            self._timeouts = dict.fromkeys(self._timeouts, MAX_TIMEOUTS - 1)
        else:
            self._timeouts = {task_id: count for task_id, count in self._timeouts.items() if task_id not in checks}
        return len(checks)

    async def _run_halves(self, checks: Mapping[UUID, TimerCheck], conflicts: list[Retry]) -> int:
        self._context.metrics.batch_failures.labels("bisected").inc()
        each, half = list(checks.items()), len(checks) // 2
        return await self._run(dict(each[:half]), conflicts) + await self._run(dict(each[half:]), conflicts)

    async def _run_after_conflict(self, checks: Mapping[UUID, TimerCheck], error: Retry, conflicts: list[Retry]) -> int:
        """Go on without the tasks that are locked. If none is, halve checks that wait for another lock, or raise."""
        conflicts.append(error)
        locked = await self._postpone_locked(checks, error)
        if len(conflicts) > MAX_CONFLICTS or not (locked or isinstance(error, LockTimeout)):
            raise error
        if locked:
            unlocked = {task_id: check for task_id, check in checks.items() if task_id not in locked}
            return await self._run(unlocked, conflicts) if unlocked else 0
        if len(checks) > 1:
            return await self._run_halves(checks, conflicts)
        return await self._note_timeout(next(iter(checks)), error)

    async def _postpone_locked(self, checks: Mapping[UUID, TimerCheck], error: Retry) -> frozenset[UUID]:
        """Return the tasks that are locked, after postponing them: they keep no others from being found due."""
        async with transaction(self._context.engine) as connection:
            locked = await tasks.find_locked(connection, checks.keys())
            if not locked:
                return locked
            await tasks.postpone(connection, locked, self._context.now() + LOCKED_RETRY_AFTER)
        log.warning(
            "tasks are locked, their timers wait", count=len(locked), task_id=str(min(locked)), reason=str(error)
        )
        for task_id in locked:
            self._check_after(task_id, LOCKED_RETRY_AFTER)
        return locked

    async def _note_timeout(self, task_id: UUID, error: StatementTimeout | Retry) -> int:
        """Postpone a task whose check takes too long once others do not, or it has too often; else raise ``error``.

        The check of one that waits for a lock of nobody known is only put off for a while, so that the others go on.
        """
        count = self._timeouts.pop(task_id, 0) + 1
        if count >= MAX_TIMEOUTS:
            await self._postpone(task_id, error)
            return 0
        if len(self._timeouts) >= MAX_FAILED:
            del self._timeouts[next(iter(self._timeouts))]
        self._timeouts[task_id] = count
        if isinstance(error, StatementTimeout):
            raise error
        log.warning("a timer check waits for a lock", task_id=str(task_id), reason=str(error))
        self._check_after(task_id, LOCKED_RETRY_AFTER)
        return 0

    async def _reconcile(self, checks: Mapping[UUID, TimerCheck]) -> None:
        result = await reconcile(self._context, Batch(timer_checks=checks), self._context.now())
        for request_type, template_pool in result.given_up:
            label = self._context.directory_cache.metric_label(template_pool)
            self._context.metrics.requests_given_up.labels(request_type, *label).inc()
        self._context.metrics.deletes_retried.inc(result.deletes_retried)
        self._relay.offer(result.changes, has_due_requests=result.has_due_requests)

    async def _postpone(self, task_id: UUID, error: Exception) -> None:
        """Have the task checked again after ``RETRY_AFTER``, so that it does not keep others from being found due."""
        log.warning("timer check failed, postponed", task_id=str(task_id), reason=repr(error)[:200])
        self._context.metrics.timer_checks_failed.inc()
        self._check_after(task_id, RETRY_AFTER)
        async with transaction(self._context.engine) as connection:
            await tasks.postpone(connection, [task_id], self._context.now() + RETRY_AFTER)

    def _check_after(self, task_id: UUID, wait: timedelta) -> None:
        self._failed.pop(task_id, None)
        if len(self._failed) >= MAX_FAILED:
            del self._failed[next(iter(self._failed))]
        self._failed[task_id] = monotonic() + wait.total_seconds()

    def _has_failed(self, task_id: UUID, now: float) -> bool:
        retry_at = self._failed.get(task_id)
        return retry_at is not None and now < retry_at
