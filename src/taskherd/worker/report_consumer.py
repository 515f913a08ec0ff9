"""Consume reports: decode deliveries in batches, reconcile them, send invalid messages to the dead letters, then ack.

A delivery is acked only when all its reports are committed or are dead letters; after a crash in between it is
delivered again. An outage is waited out with the batch in hand: handing deliveries back would only use up their limit.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING

import structlog

from taskherd.broker.dead_letters import publish_dead_letters
from taskherd.domain.outcome import ReportOutcome
from taskherd.errors import Unavailable
from taskherd.messages.decoding import InvalidMessage
from taskherd.messages.json_array import split_json_array as elements_of
from taskherd.messages.reports import decode_reports
from taskherd.observability.failpoints import Failpoint
from taskherd.observability.tracing import MAX_LINKS, extract
from taskherd.store.engine import DataError
from taskherd.worker.batch import POISON, Batch
from taskherd.worker.concurrency import BatchFootprint, BatchScheduler
from taskherd.worker.dead_letters import dead_letter_of
from taskherd.worker.probe import is_probe
from taskherd.worker.reconcile import reconcile

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from taskherd.broker.consume import Consumer
    from taskherd.broker.delivery import Delivery
    from taskherd.domain.reports import Report
    from taskherd.observability.tracing import Carrier
    from taskherd.worker.context import WorkerContext
    from taskherd.worker.probe import Probe
    from taskherd.worker.relay import Relay

log = structlog.get_logger(__name__)

TICK = timedelta(microseconds=1)
LONG_AGO = datetime.min.replace(tzinfo=UTC)

MAX_LOGGED = 5
"""How many task ids or dead letters a log line names at most."""


@dataclass(slots=True)
class DecodedBatch:
    """The reports of some deliveries, the delivery and array index that each came from, and what was not valid."""

    deliveries: Sequence[Delivery]
    reports: list[Report] = field(default_factory=list)
    origins: list[tuple[Delivery, int | None]] = field(default_factory=list)
    invalid: list[tuple[Delivery, InvalidMessage]] = field(default_factory=list)
    probes: list[Delivery] = field(default_factory=list)

    @property
    def footprint(self) -> BatchFootprint:
        """The tasks and the number of deliveries that this batch occupies."""
        tasks = frozenset([report.task_id for report in self.reports])
        return BatchFootprint(tasks, len(self.deliveries), alone=any(each.possible_poison for each in self.deliveries))

    @property
    def traces(self) -> list[Carrier]:
        """The traces of the first of these deliveries; headers without one are not decoded."""
        return [extract(each.headers) for each in self.deliveries[:MAX_LINKS] if each.traced]


class ReportConsumer:
    """Consume report deliveries until the intake ends."""

    def __init__(self, consumer: Consumer, context: WorkerContext, relay: Relay, probe: Probe) -> None:
        """Begin with nothing in hand."""
        self._intake = consumer
        self._context = context
        self._relay = relay
        self._probe = probe
        self._scheduler: BatchScheduler | None = None
        self._received_until = LONG_AGO

    @property
    def in_flight(self) -> int:
        """How many deliveries are being processed."""
        return self._scheduler.in_flight if self._scheduler else 0

    async def run(self, limit: int, wait: float) -> None:
        """Take batches of up to ``limit`` deliveries until the intake has stopped and is empty."""
        async with asyncio.TaskGroup() as group:
            self._scheduler = lanes = BatchScheduler(group)
            while deliveries := await self._intake.batch(limit, wait):
                for part in _isolate_suspects(deliveries):
                    self._context.failpoint(Failpoint.RECEIVE)
                    decoded = self._decode(part)
                    await lanes.submit(decoded.footprint, partial(self._process, decoded))
                await lanes.wait_idle(lambda: self._intake.buffered >= limit)

    async def _process(self, decoded: DecodedBatch, before: asyncio.Task[None] | None) -> None:
        """Reconcile a batch, send its dead letters, and ack it after ``before``."""
        try:
            with self._context.tracing.span("batch", links=decoded.traces, deliveries=len(decoded.deliveries)):
                outcomes = await self._reconcile(decoded.reports)
                self._context.failpoint(Failpoint.POST_COMMIT)
                await self._send_dead_letters(decoded, outcomes)
        except Unavailable as error:
            log.warning("batch given back", deliveries=len(decoded.deliveries), reason=str(error))
            return
        if before is not None:
            await asyncio.wait({before})
        acked = await self._intake.ack(decoded.deliveries)
        self._context.failpoint(Failpoint.POST_ACK)
        for delivery in decoded.probes:
            self._probe.acknowledge(delivery)
        self._count(decoded, outcomes)
        tasks = [str(report.task_id) for report in decoded.reports[:MAX_LOGGED]]
        log.debug(
            "batch", deliveries=len(decoded.deliveries), reports=len(decoded.reports), acked=acked, task_ids=tasks
        )

    def _decode(self, deliveries: Sequence[Delivery]) -> DecodedBatch:
        now = max(self._context.now(), self._received_until)
        decoded = DecodedBatch(deliveries)
        for delivery in deliveries:
            if delivery.redelivered:
                self._context.metrics.redeliveries.inc()
            if is_probe(delivery):
                decoded.probes.append(delivery)
                continue
            elements = decode_reports(delivery.body, now)
            now += len(elements) * TICK  # so that reports without a seq keep the order in which they came
            single = len(elements) == 1 and not delivery.body.lstrip().startswith(b"[")
            for index, element in enumerate(elements):
                if isinstance(element, InvalidMessage):
                    decoded.invalid.append((delivery, element))
                else:
                    decoded.reports.append(element.report)
                    decoded.origins.append((delivery, None if single else index))
                    for what, count in element.notes.items():
                        self._context.metrics.texts_cleaned.labels(what).inc(count)
        self._received_until = now
        return decoded

    async def _reconcile(self, reports: Sequence[Report]) -> list[ReportOutcome]:
        """Return the outcome of each report; one that makes its batch fail is found by bisection."""
        if not reports:
            return []
        began = perf_counter()
        try:
            result = await self._context.until_stopped(
                lambda: reconcile(self._context, Batch(reports), self._context.now()), "database"
            )
        except POISON as error:
            if len(reports) == 1:
                log.warning("report can't be taken", task_id=str(reports[0].task_id), reason=repr(error)[:200])
                return [ReportOutcome.DATA_ERROR if isinstance(error, DataError) else ReportOutcome.FAULT]
            self._context.metrics.batch_failures.labels("bisected").inc()
            half = len(reports) // 2
            return [*await self._reconcile(reports[:half]), *await self._reconcile(reports[half:])]
        self._context.metrics.batch_seconds.observe(perf_counter() - began)
        self._relay.offer(result.changes, requested=result.requested)
        return result.outcomes

    async def _send_dead_letters(self, decoded: DecodedBatch, outcomes: Sequence[ReportOutcome]) -> None:
        """Publish what was not valid and the reports that were refused, and wait until the broker confirms it."""
        letters = list(decoded.invalid)
        for (delivery, index), outcome in zip(decoded.origins, outcomes, strict=True):
            if outcome.dead_letter_reason is not None:
                body = delivery.body if index is None else (elements_of(delivery.body) or [])[index]
                letters.append((delivery, InvalidMessage(index, outcome.dead_letter_reason, outcome.detail, body)))
        if not letters:
            return
        waiting = [dead_letter_of(self._context.names, delivery, bad) for delivery, bad in letters]
        await self._context.until_stopped(partial(publish_dead_letters, self._context.publisher, waiting), "broker")
        for _, bad in letters:
            self._context.metrics.dead_lettered.labels(bad.reason.value).inc()
        first = [(bad.reason.value, bad.detail[:100]) for _, bad in letters[:MAX_LOGGED]]
        log.warning("dead letters", count=len(letters), first=first)

    def _count(self, decoded: DecodedBatch, outcomes: Sequence[ReportOutcome]) -> None:
        self._context.metrics.batch_size.observe(len(decoded.deliveries))
        labels = (outcome.metric for outcome in outcomes)
        counts = Counter(zip((report.type for report in decoded.reports), labels, strict=True))
        counts["unknown", "invalid"] += len(decoded.invalid)
        for (kind, label), count in counts.items():
            self._context.metrics.reports.labels(kind, label).inc(count)


def _isolate_suspects(deliveries: Sequence[Delivery]) -> Iterator[Sequence[Delivery]]:
    """Yield the deliveries in order, each one that may have crashed workers before by itself."""
    run: list[Delivery] = []
    for delivery in deliveries:
        if delivery.possible_poison:
            if run:
                yield run
            yield [delivery]
            run = []
        else:
            run.append(delivery)
    if run:
        yield run
