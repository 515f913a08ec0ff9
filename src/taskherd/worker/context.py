"""What the worker's loops share: connections, clock, metrics and settings. ``app`` creates it."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from taskherd.domain.liveness import Timeouts
from taskherd.errors import Retry, Unavailable
from taskherd.retry import until_stopped

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Sequence
    from datetime import datetime
    from uuid import UUID

    from taskherd.backoff import Backoff
    from taskherd.broker.publisher import Publisher
    from taskherd.broker.topology import TopologyNames
    from taskherd.broker.unconfirmed import UnconfirmedPublisher
    from taskherd.observability.failpoints import Failpoint
    from taskherd.observability.metrics import Metrics
    from taskherd.observability.tracing import Tracing
    from taskherd.store import AsyncEngine
    from taskherd.store.logs import LogLimits
    from taskherd.store.work_requests import WorkRequestRow
    from taskherd.worker.directory_cache import DirectoryCache
    from taskherd.worker.known_runners import KnownRunners
    from taskherd.worker.rates import Rates
    from taskherd.worker.sender_pools import SenderPools
    from taskherd.worker.wakeups import Wakeups


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RequestRetryPolicy:
    """When work requests are sent again, and when they expire.

    Requests have the same exponential backoff as ``taskherd.backoff.Backoff``: ``first_delay`` after the first attempt,
    doubled after each further one up to ``max_delay``. ``store.work_requests.pick_due`` computes it in SQL, with up to
    10 % jitter in both directions, because it sets the next times of all due requests in one statement.

    Attributes:
        ttl: age at which a request that no runner answered times out.
        runner_answer_timeout: time after which a request that the task's runner did not answer also goes to its pool.
    """

    first_delay: timedelta
    max_delay: timedelta
    ttl: timedelta
    runner_answer_timeout: timedelta

    def first_attempt(self, row: WorkRequestRow, now: datetime) -> WorkRequestRow:
        """Return a new request as ``pick_due`` would: its first attempt is counted, its next one is due later."""
        wait = min(self.first_delay, self.max_delay) * random.uniform(0.9, 1.1)  # noqa: S311 - not a secret
        return replace(row, attempt=1, first_sent_at=now, next_at=now + wait)


@dataclass(frozen=True, slots=True)
class Retention:
    """How long rows are kept, and the maximum number of reports parked for one task."""

    parked_ttl: timedelta
    max_parked: int
    command_retention: timedelta
    history_retention: timedelta
    log_retention: timedelta
    deleted_retention: timedelta
    action_retention: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerContext:
    """The dependencies that the worker's loops share.

    Attributes:
        publisher: publishes events.
        work_publisher: publishes work requests.
        dead_publisher: publishes dead letters.
        replies: sends replies, without confirms.
        wakeups: tell APIs to read the feed.
        now: returns the time of the database's clock.
        failpoint: kills or freezes the process if this failpoint is armed.
        on_error: called with the reason of every failure that is retried, and that may delay reports.
        on_unconfirmed: called with the reason if the broker did not confirm an event, work request or dead letter.
        make_agent_token: creates the agent token for a task and build number.
        max_running: maximum number of running tasks of one owner, 0 for no maximum.
        command_senders: the RabbitMQ users whose commands count; empty: any.
        rates: count what becomes of tasks, by hour.
        known_runners: the runners that work requests may go to.
        senders: the RabbitMQ users whose reports and claims count, and about which tasks.
        draw_names: returns names for a task with a prompt, of which the first that is not in use is taken.
    """

    engine: AsyncEngine
    publisher: Publisher
    work_publisher: Publisher
    dead_publisher: Publisher
    replies: UnconfirmedPublisher
    wakeups: Wakeups
    names: TopologyNames
    directory_cache: DirectoryCache
    metrics: Metrics
    now: Callable[[], datetime]
    failpoint: Callable[[Failpoint], None]
    on_error: Callable[[str], None]
    on_unconfirmed: Callable[[str], None]
    stopping: asyncio.Event
    timeouts: Timeouts
    delete_backoff: Backoff
    request_retry: RequestRetryPolicy
    retention: Retention
    make_agent_token: Callable[[UUID, int], str]
    draw_names: Callable[[str], Sequence[str]]
    strict_send: bool
    max_running: int
    log_limits: LogLimits
    command_senders: frozenset[str]
    known_runners: KnownRunners
    senders: SenderPools
    rates: Rates
    tracing: Tracing

    async def until_stopped(self, work: Callable[[], Awaitable[T]], dependency: str) -> T:
        """Retry ``work`` until it succeeds and return its result; count failures by ``dependency`` (database, broker).

        Conflicts that do not end count as a failure.

        Raises:
            Unavailable: ``work`` failed while the worker was stopping.
        """

        def on_error(reason: str) -> None:
            self.metrics.batch_failures.labels(dependency).inc()
            self.on_error(reason)

        while True:
            try:
                return await until_stopped(work, self.stopping, on_error)
            except Retry as error:
                on_error(str(error))
                if self.stopping.is_set():
                    raise Unavailable(str(error)) from error
