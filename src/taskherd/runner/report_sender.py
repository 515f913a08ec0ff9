"""Send the reports of all outboxes, in order and in batches, each until the broker has confirmed it."""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from typing import TYPE_CHECKING

from taskherd import retry
from taskherd.broker.publisher import PublishOutcome
from taskherd.errors import Unavailable
from taskherd.messages.limits import MAX_MESSAGE_BYTES
from taskherd.messages.reports import join_reports

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from taskherd.broker.publisher import Publisher
    from taskherd.broker.topology import TopologyNames
    from taskherd.observability.metrics import Metrics
    from taskherd.runner.outbox import Outbox

MAX_REPORTS = 100
"""Maximum number of reports in one message."""
MAX_REPORTS_OF_TASK = 20
"""Maximum number of reports of one task in a message, so that one task does not delay the others."""


def routing_key(runner: str) -> str:
    """Return the routing key of all reports of a runner: partitions are shared among runners, and each keeps its order.

    A message has reports of many tasks, so it cannot have the key of one.
    """
    return f"runner.{runner}"


class ReportSender:
    """The sender of all reports of the runner ``runner``."""

    def __init__(
        self, publisher: Publisher, names: TopologyNames, runner: str, metrics: Metrics, on_error: Callable[[str], None]
    ) -> None:
        self._publisher = publisher
        self._exchange = names.reports
        self._routing_key = routing_key(runner)
        self._metrics = metrics
        self._on_error = on_error
        self._due: OrderedDict[int, Outbox] = OrderedDict()
        self._wakeup = asyncio.Event()
        self._sent = asyncio.Event()
        self._sent.set()

    def schedule(self, outbox: Outbox) -> None:
        """Schedule an outbox that has reports to send."""
        self._due[id(outbox)] = outbox
        self._wakeup.set()
        self._sent.clear()

    def drop(self, outbox: Outbox) -> None:
        """Send nothing more from an outbox."""
        self._due.pop(id(outbox), None)
        if not self._due:
            self._sent.set()

    async def wait_sent(self) -> None:
        """Wait until all reports are sent; ``run`` must be running."""
        await self._sent.wait()

    async def run(self) -> None:
        """Send until cancelled."""
        failures = 0
        while True:
            await self._wakeup.wait()
            try:
                await self.send_once()
                failures = 0
            except Unavailable as error:
                failures += 1
                self._on_error(str(error))
                await asyncio.sleep(retry.delay(failures))

    async def flush(self) -> None:
        """Send all reports. Raise ``Unavailable`` if the broker cannot be reached."""
        while self._due:
            await self.send_once()

    async def send_once(self) -> int:
        """Send one message and return the number of reports in it.

        Raises:
            Unavailable: the broker did not confirm it; the reports stay in their outboxes.
        """
        chosen = self._choose()
        reports = [report for _, batch in chosen for report in batch]
        if reports:
            await self._publish(reports)
        for outbox, batch in chosen:
            outbox.confirm(len(batch))
            if len(outbox):
                self._due.move_to_end(id(outbox)) if id(outbox) in self._due else None
            else:
                self._due.pop(id(outbox), None)
        if not self._due:
            self._wakeup.clear()
            self._sent.set()
        return len(reports)

    async def send_heartbeats(self, every: float, heartbeats: Callable[[], Iterable[bytes]]) -> None:
        """Send the current heartbeats about every ``every`` seconds; those that cannot be sent are dropped."""
        while True:
            await asyncio.sleep(every * random.uniform(0.9, 1.1))  # noqa: S311 - no secret
            current = list(heartbeats())
            try:
                for start in range(0, len(current), MAX_REPORTS):
                    await self._publish(current[start : start + MAX_REPORTS])
            except Unavailable as error:
                self._on_error(str(error))

    def _choose(self) -> list[tuple[Outbox, list[bytes]]]:
        """Return the outboxes that the next message is filled from, each with its reports."""
        chosen: list[tuple[Outbox, list[bytes]]] = []
        limit, size = MAX_REPORTS, MAX_MESSAGE_BYTES
        for outbox in list(self._due.values()):
            batch = outbox.peek(min(limit, MAX_REPORTS_OF_TASK), size)  # the first report in any case
            needed = sum(map(len, batch)) + len(batch)
            if chosen and needed > size:
                break
            chosen.append((outbox, batch))
            limit -= len(batch)
            size -= needed
            if limit <= 0:
                break
        return chosen

    async def _publish(self, reports: list[bytes]) -> None:
        body = join_reports(reports) if len(reports) > 1 else reports[0]
        published = await self._publisher.publish(self._exchange, self._routing_key, body, mandatory=True)
        if published is PublishOutcome.UNROUTED:
            raise Unavailable(f"no queue is bound to exchange {self._exchange}; run `taskherd topology apply`")
        self._metrics.runner_reports.inc(len(reports))
