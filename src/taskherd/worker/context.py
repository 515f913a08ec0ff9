"""What every loop of the worker stands on: connections, clock and rules, put together by the composition root."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from taskherd.domain.liveness import Timeouts
from taskherd.retry import until_stopped

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Container
    from datetime import datetime
    from uuid import UUID

    from taskherd.backoff import Backoff
    from taskherd.broker.publish import Publisher
    from taskherd.broker.topology import TopologyNames
    from taskherd.observability.failpoints import Failpoint
    from taskherd.observability.metrics import Metrics
    from taskherd.observability.tracing import Tracing
    from taskherd.store import AsyncEngine
    from taskherd.worker.directory_cache import DirectoryCache


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RequestRetryPolicy:
    """When work requests are repeated, and when they are over. ``token``: an agent's token for a task and build."""

    first_delay: timedelta
    max_delay: timedelta
    ttl: timedelta
    runner_answer: timedelta
    token: Callable[[UUID, int], str]


@dataclass(frozen=True, slots=True)
class Retention:
    """How long things are kept, and how many reports are parked for one task."""

    parked_ttl: timedelta
    max_parked: int
    command_memory: timedelta
    history_retention: timedelta
    log_retention: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerContext:
    """The worker's surroundings.

    ``now`` is its clock, ``failpoint`` its failpoints, ``on_error`` hears what it waits for.
    """

    engine: AsyncEngine
    publisher: Publisher
    names: TopologyNames
    directory_cache: DirectoryCache
    metrics: Metrics
    now: Callable[[], datetime]
    failpoint: Callable[[Failpoint], None]
    on_error: Callable[[str], None]
    stopping: asyncio.Event
    timeouts: Timeouts
    delete_backoff: Backoff
    request_retry: RequestRetryPolicy
    retention: Retention
    generate_name: Callable[[str, Container[str]], str]
    strict_send: bool
    tracing: Tracing

    async def until_stopped(self, work: Callable[[], Awaitable[T]], away: str) -> T:
        """The result of ``work``, outages of what may be ``away`` (database, broker) counted and waited out."""

        def trouble(reason: str) -> None:
            self.metrics.batch_failures.labels(away).inc()
            self.on_error(reason)

        return await until_stopped(work, self.stopping, trouble)
