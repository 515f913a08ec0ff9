"""Reports on behalf of agents: published with a confirm, so that an agent that got its answer was heard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final
from uuid import UUID

from taskherd.broker.publish import PublishOutcome
from taskherd.errors import Unavailable
from taskherd.messages.reports import encode, join

if TYPE_CHECKING:
    from taskherd.broker.publish import Publisher
    from taskherd.broker.topology import TopologyNames
    from taskherd.domain.reports import Report
    from taskherd.observability.tracing import Tracing

MAX_WAITING: Final = 1_000
"""Messages that may wait for the broker's confirm at once."""


class ReportPublisher:
    """Passes reports on to the worker's queue."""

    def __init__(self, publisher: Publisher, names: TopologyNames, tracing: Tracing) -> None:
        self._tracing = tracing
        self._publisher = publisher
        self._names = names
        self._waiting = 0

    async def publish(self, task_id: UUID, reports: Sequence[Report]) -> None:
        """Publish reports of one task as one message; the worker gives each its seq.

        Raises Unavailable: they may have arrived then, or not.
        """
        if self._waiting >= MAX_WAITING:
            raise Unavailable("too many reports wait for the broker")
        self._waiting += 1
        try:
            published = await self._publisher.publish(
                self._names.reports,
                str(task_id),
                join(encode(report, with_seq=False) for report in reports),
                headers={**self._tracing.current()} or None,
                mandatory=True,
            )
        finally:
            self._waiting -= 1
        if published is PublishOutcome.UNROUTED:
            raise Unavailable(f"no queue takes {self._names.reports}")
