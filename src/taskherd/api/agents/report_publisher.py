"""Publish reports on behalf of agents; the response is sent after the broker's confirm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final
from uuid import UUID

from taskherd.broker.publisher import PublishOutcome
from taskherd.errors import Unavailable
from taskherd.messages.reports import encode_report, join_reports

if TYPE_CHECKING:
    from taskherd.broker.publisher import Publisher
    from taskherd.broker.topology import TopologyNames
    from taskherd.domain.reports import Report
    from taskherd.observability.tracing import Tracing

MAX_UNCONFIRMED: Final = 1_000
"""Maximum number of messages that wait for the broker's confirm."""
MAX_UNCONFIRMED_BYTES: Final = 32 * 1024 * 1024
"""Maximum total size of their bodies, each of which may have a megabyte."""


class ReportPublisher:
    """A publisher of reports to the worker's queue."""

    def __init__(self, publisher: Publisher, names: TopologyNames, tracing: Tracing) -> None:
        self._tracing = tracing
        self._publisher = publisher
        self._names = names
        self._unconfirmed = 0
        self._bytes = 0

    async def publish(self, task_id: UUID, reports: Sequence[Report]) -> None:
        """Publish reports of one task as one message; the worker assigns each its ``seq``.

        Raise ``Unavailable`` if the broker does not confirm; the reports may still arrive.
        """
        body = join_reports(encode_report(report, with_seq=False) for report in reports)
        if self._unconfirmed >= MAX_UNCONFIRMED or self._bytes + len(body) > MAX_UNCONFIRMED_BYTES:
            raise Unavailable("too many reports are waiting for the broker's confirm")
        self._unconfirmed += 1
        self._bytes += len(body)
        try:
            outcome = await self._publisher.publish(
                self._names.reports,
                str(task_id),
                body,
                headers={**self._tracing.current()} or None,
                mandatory=True,
            )
        finally:
            self._unconfirmed -= 1
            self._bytes -= len(body)
        if outcome is PublishOutcome.UNROUTED:
            raise Unavailable(f"no queue is bound to exchange {self._names.reports}; run `taskherd topology apply`")
