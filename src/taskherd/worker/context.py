"""What every loop of the worker stands on: connections, clock and rules, put together by the composition root."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from taskherd.domain.liveness import Patience
from taskherd.retry import until_stopped

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Container
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy.ext.asyncio import AsyncEngine

    from taskherd.backoff import Backoff
    from taskherd.broker.publish import Publisher
    from taskherd.broker.topology import Names
    from taskherd.observability.failpoints import Failpoint
    from taskherd.observability.metrics import Metrics
    from taskherd.observability.tracing import Tracing
    from taskherd.settings import Settings
    from taskherd.worker.directory_cache import NameBook


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Schedule:
    """When work requests are repeated, and when they are over. ``token``: an agent's token for a task and build."""

    first: timedelta
    most: timedelta
    ttl: timedelta
    runner_answer: timedelta
    token: Callable[[UUID, int], str]


@dataclass(frozen=True, slots=True)
class Terms:
    """How long things are kept, and how many reports are parked for one task."""

    parked_ttl: timedelta
    parked_most: int
    command_memory: timedelta
    history_retention: timedelta
    log_retention: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """The worker's surroundings: ``now`` is its clock, ``hit`` its failpoints, ``trouble`` hears what it waits for."""

    engine: AsyncEngine
    publisher: Publisher
    names: Names
    book: NameBook
    metrics: Metrics
    now: Callable[[], datetime]
    hit: Callable[[Failpoint], None]
    trouble: Callable[[str], None]
    stopping: asyncio.Event
    patience: Patience
    delete_backoff: Backoff
    schedule: Schedule
    terms: Terms
    draw: Callable[[str, Container[str]], str]
    strict_send: bool
    tracing: Tracing

    async def persist(self, work: Callable[[], Awaitable[T]], away: str) -> T:
        """The result of ``work``, outages of what may be ``away`` (database, broker) counted and waited out."""

        def trouble(reason: str) -> None:
            self.metrics.batch_failures.labels(away).inc()
            self.trouble(reason)

        return await until_stopped(work, self.stopping, trouble)


def patience_of(settings: Settings) -> Patience:
    """How long silence is borne, as it was set."""
    return Patience(
        agent_lost_after=timedelta(seconds=settings.agent_lost_after),
        agent_connect_timeout=timedelta(seconds=settings.agent_connect_timeout),
        build_timeout=timedelta(seconds=settings.build_timeout),
        request_ttl=timedelta(seconds=settings.request_ttl),
        mass_silence_hold=timedelta(seconds=settings.mass_silence_hold),
    )
