"""Sends what the tasks' outboxes hold, in order and in batches, and goes on until the broker has confirmed it."""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from typing import TYPE_CHECKING

from taskherd import retry
from taskherd.broker.publish import PublishOutcome
from taskherd.errors import Unavailable
from taskherd.messages.limits import MESSAGE_BYTES
from taskherd.messages.reports import join

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from taskherd.broker.publish import Publisher
    from taskherd.broker.topology import TopologyNames
    from taskherd.observability.metrics import Metrics
    from taskherd.runner.outbox import Outbox

REPORTS = 100
"""Reports in one message."""
OF_ONE = 20
"""Of these from one task, so that a talkative one does not keep the others waiting."""
ROUTING_KEY = "runner"


class ReportSender:
    """The way of all reports of this runner."""

    def __init__(
        self, publisher: Publisher, names: TopologyNames, metrics: Metrics, trouble: Callable[[str], None]
    ) -> None:
        self._publisher = publisher
        self._exchange = names.reports
        self._metrics = metrics
        self._on_error = trouble
        self._due: OrderedDict[int, Outbox] = OrderedDict()
        self._more = asyncio.Event()

    def due(self, outbox: Outbox) -> None:
        """There is something to send in this outbox."""
        self._due[id(outbox)] = outbox
        self._more.set()

    def forget(self, outbox: Outbox) -> None:
        """This outbox is not to be sent from any more."""
        self._due.pop(id(outbox), None)

    async def run(self) -> None:
        """Send until cancelled."""
        failures = 0
        while True:
            await self._more.wait()
            try:
                await self.send_once()
                failures = 0
            except Unavailable as error:
                failures += 1
                self._on_error(str(error))
                await asyncio.sleep(retry.delay(failures))

    async def flush(self) -> None:
        """Send until nothing is left; raises Unavailable."""
        while self._due:
            await self.send_once()

    async def send_once(self) -> int:
        """Send one message of what is due; how many reports that were. Raises Unavailable, and then nothing is lost."""
        chosen = self._choose()
        reports = [report for _, own in chosen for report in own]
        if reports:
            await self._publish(reports)
        for outbox, own in chosen:
            outbox.confirm(len(own))
            if len(outbox):
                self._due.move_to_end(id(outbox)) if id(outbox) in self._due else None
            else:
                self._due.pop(id(outbox), None)
        if not self._due:
            self._more.clear()
        return len(reports)

    async def send_heartbeats(self, every: float, beats: Callable[[], Iterable[bytes]]) -> None:
        """Send the heartbeats of all that live now, about every so many seconds; one that can't be sent is dropped."""
        while True:
            await asyncio.sleep(every * random.uniform(0.9, 1.1))  # noqa: S311 - no secret
            alive = list(beats())
            try:
                for start in range(0, len(alive), REPORTS):
                    await self._publish(alive[start : start + REPORTS])
            except Unavailable as error:
                self._on_error(str(error))

    def _choose(self) -> list[tuple[Outbox, list[bytes]]]:
        chosen: list[tuple[Outbox, list[bytes]]] = []
        limit, size = REPORTS, MESSAGE_BYTES
        for outbox in list(self._due.values()):
            own = outbox.peek(min(limit, OF_ONE), size)
            needed = sum(map(len, own)) + len(own)
            if chosen and needed > size:
                break
            chosen.append((outbox, own))
            limit -= len(own)
            size -= needed
            if limit <= 0 or size <= 0:
                break
        return chosen

    async def _publish(self, reports: list[bytes]) -> None:
        body = join(reports) if len(reports) > 1 else reports[0]
        published = await self._publisher.publish(self._exchange, ROUTING_KEY, body, mandatory=True)
        if published is PublishOutcome.UNROUTED:
            raise Unavailable(f"no queue takes what is published to {self._exchange}")
        self._metrics.runner_reports.inc(len(reports))
