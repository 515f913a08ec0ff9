"""Reconcile the timer checks of many tasks together; one that fails keeps no other from being checked."""

from __future__ import annotations

from datetime import timedelta
from time import monotonic
from typing import TYPE_CHECKING

import structlog

from taskherd.store import tasks
from taskherd.store.engine import PromptSizeError, StatementTimeout, transaction
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

MAX_FAILED = 10_000
"""Maximum number of such tasks that are remembered; further ones may be checked earlier."""


class TimerChecks:
    """Reconciles timer checks, and remembers the tasks whose check failed."""

    def __init__(self, context: WorkerContext, relay: Relay) -> None:
        """Create the object. ``relay`` publishes the changes."""
        self._context = context
        self._relay = relay
        self._failed: dict[UUID, float] = {}
        """The tasks whose check failed, the earliest first, each with the monotonic time of its next check."""
        self._timed_out: UUID | None = None
        """The task whose check alone took too long the last time that one did."""

    async def run(self, checks: Mapping[UUID, TimerCheck]) -> int:
        """Check tasks, but for those whose check failed a moment ago, and return the number that succeeded."""
        now = monotonic()
        return await self._run(
            {task_id: each for task_id, each in checks.items() if not self._has_failed(task_id, now)}
        )

    async def _run(self, checks: Mapping[UUID, TimerCheck]) -> int:
        """Reconcile checks. A batch that fails, or takes too long, is halved until the tasks that fail are found.

        Raise ``StatementTimeout`` if the check of one task takes too long, perhaps because the database is slow. The
        second time in a row it is due to the task, which is then postponed.
        """
        if not checks:
            return 0
        try:
            await self._reconcile(checks)
        except (*MESSAGE_ERRORS, PromptSizeError, StatementTimeout) as error:
            if len(checks) == 1:
                task_id = next(iter(checks))
                if isinstance(error, StatementTimeout) and task_id != self._timed_out:
                    self._timed_out = task_id
                    raise
                await self._postpone(task_id, error)
                return 0
            self._context.metrics.batch_failures.labels("bisected").inc()
            each, half = list(checks.items()), len(checks) // 2
            return await self._run(dict(each[:half])) + await self._run(dict(each[half:]))
        if self._timed_out in checks:
            self._timed_out = None
        return len(checks)

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
        self._failed.pop(task_id, None)
        if len(self._failed) >= MAX_FAILED:
            del self._failed[next(iter(self._failed))]
        self._failed[task_id] = monotonic() + RETRY_AFTER.total_seconds()
        async with transaction(self._context.engine) as connection:
            await tasks.postpone(connection, task_id, self._context.now() + RETRY_AFTER)

    def _has_failed(self, task_id: UUID, now: float) -> bool:
        retry_at = self._failed.get(task_id)
        return retry_at is not None and now < retry_at
