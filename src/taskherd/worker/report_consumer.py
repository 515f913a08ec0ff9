"""Consume reports: decode deliveries in batches, reconcile them, then ack; the invalid ones become dead letters first.

A delivery is acked only after all its reports are committed or dead-lettered; after a crash before the ack it is
delivered again. During an outage of the database the batch is kept and retried: requeueing would use up the delivery
limit of its messages. Dead letters are published at the same time as later batches.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from time import monotonic, perf_counter
from typing import TYPE_CHECKING
from uuid import UUID

import structlog

from taskherd.domain.outcome import ReportOutcome
from taskherd.errors import Unavailable
from taskherd.messages.decoding import InvalidMessage
from taskherd.messages.json_array import split_json_array
from taskherd.messages.reports import decode_reports
from taskherd.observability.failpoints import Failpoint
from taskherd.observability.tracing import MAX_LINKS, extract
from taskherd.store.engine import DataError
from taskherd.worker import pacing
from taskherd.worker.batch import Batch
from taskherd.worker.bisection import Bisection
from taskherd.worker.concurrency import BatchFootprint, BatchScheduler, isolate_possible_poison
from taskherd.worker.dead_letter_sender import DeadLetterSender
from taskherd.worker.dead_letters import untrusted_sender
from taskherd.worker.probe import is_probe
from taskherd.worker.reconcile import reconcile
from taskherd.worker.sender_pools import NO_POOL
from taskherd.worker.task_limit import TaskLimit

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from taskherd.broker.consumer import Consumer
    from taskherd.broker.delivery import Delivery
    from taskherd.domain.reports import Report
    from taskherd.observability.tracing import Carrier
    from taskherd.worker.batch import BatchResult
    from taskherd.worker.context import WorkerContext
    from taskherd.worker.dead_letter_sender import Rejected
    from taskherd.worker.probe import Probe
    from taskherd.worker.relay import Relay
    from taskherd.worker.sender_pools import Pools

log = structlog.get_logger(__name__)

SEQ_STEP = timedelta(microseconds=1)
"""One seq unit: derived seqs count microseconds."""

MIN_TIME = datetime.min.replace(tzinfo=UTC)
"""Earlier than the receipt of any report."""

MAX_LOGGED = 5
"""Maximum number of task ids in a log line."""


@dataclass(slots=True)
class DecodedBatch:
    """The reports in some deliveries, each with its delivery and array index; the invalid elements; the probes.

    ``pools`` has the pools of each report's sender; it is empty if senders are not checked. ``mentions`` is the sum of
    the numbers of different tasks in each delivery.
    """

    deliveries: list[Delivery] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)
    origins: list[tuple[Delivery, int | None]] = field(default_factory=list)
    pools: list[Pools] = field(default_factory=list)
    invalid: list[tuple[Delivery, InvalidMessage]] = field(default_factory=list)
    probes: list[Delivery] = field(default_factory=list)
    tasks: set[UUID] = field(default_factory=set)
    mentions: int = 0

    @property
    def footprint(self) -> BatchFootprint:
        """The tasks and the number of deliveries of this batch; one with possible poison runs alone."""
        alone = any(each.possible_poison for each in self.deliveries)
        return BatchFootprint(frozenset(self.tasks), len(self.deliveries), alone=alone)

    @property
    def traces(self) -> list[Carrier]:
        """The traces of the first deliveries. Headers without a trace are not decoded."""
        return [extract(each.headers) for each in self.deliveries[:MAX_LINKS] if each.may_have_trace]


class ReportConsumer:
    """Consumes report deliveries until ``consumer`` is stopped."""

    def __init__(self, consumer: Consumer, context: WorkerContext, relay: Relay, probe: Probe) -> None:
        """Create the consumer; ``run`` starts it."""
        self._consumer = consumer
        self._context = context
        self._relay = relay
        self._probe = probe
        self._scheduler: BatchScheduler | None = None
        self._taken = 0
        self._has_abandoned = False
        self._received_until = MIN_TIME
        self._task_limit = TaskLimit()
        self._pace = pacing.Pace(monotonic)
        self._bisection = Bisection(context)
        self._dead_letters = DeadLetterSender(consumer, context)

    @property
    def in_flight(self) -> int:
        """Number of deliveries that were taken and are not processed yet."""
        return self._taken + (self._scheduler.in_flight if self._scheduler else 0)

    async def run(self, limit: int, wait: float) -> None:
        """Process batches of up to ``limit`` deliveries until consuming has stopped and the buffer is empty.

        While reports are about different tasks, a batch also ends with the delivery that brings it to ``limit`` tasks.
        ``wait`` is the time in seconds that a batch may take to fill; 0: as ``pacing`` says.
        """
        async with self._dead_letters.sending(), asyncio.TaskGroup() as group:
            self._scheduler = scheduler = BatchScheduler(group)
            while await self._consume_once(scheduler, limit, wait):
                await scheduler.wait_idle(lambda: self._consumer.has_batch(limit))

    async def _consume_once(self, scheduler: BatchScheduler, limit: int, wait: float) -> int:
        """Start to process the next batch and return its number of deliveries; 0 after the last one."""
        if wait:
            deliveries = await self._consumer.next_batch(limit, wait)
        else:
            deliveries = await self._consumer.next_batch(limit, self._pace.wait(self._consumer.buffered), pacing.ENOUGH)
        self._pace.note(len(deliveries))
        self._taken = len(deliveries)
        mentions, tasks = 0, set[UUID]()
        for part in isolate_possible_poison(deliveries):
            self._context.failpoint(Failpoint.RECEIVE)
            for decoded in self._decode(part, self._task_limit.limit(limit)):
                mentions += decoded.mentions
                tasks |= decoded.tasks
                await scheduler.submit(decoded.footprint, partial(self._process, decoded))
                self._taken -= len(decoded.deliveries)
        self._task_limit.note(mentions, len(tasks), limit)
        return len(deliveries)

    async def _process(self, decoded: DecodedBatch, previous: asyncio.Task[None] | None) -> None:
        """Reconcile a batch, ack it after the ``previous`` batch has ended, and have its dead letters published."""
        try:
            with self._context.tracing.span("batch", links=decoded.traces, deliveries=len(decoded.deliveries)):
                outcomes = await self._reconcile(decoded.reports, decoded.pools)
                self._context.failpoint(Failpoint.POST_COMMIT)
        except Unavailable as error:
            reason = str(error)
            log.warning("batch abandoned, the broker redelivers it", deliveries=len(decoded.deliveries), reason=reason)
            self._has_abandoned = True
            return
        if previous is not None and not previous.done():
            await asyncio.wait({previous})
        rejected = _rejected(decoded, outcomes)
        waiting = {id(delivery) for delivery, _ in rejected}
        if self._has_abandoned:  # a reply would say that what was abandoned is saved
            waiting.update(map(id, decoded.probes))
            decoded.probes.clear()
        acked = await self._consumer.ack([each for each in decoded.deliveries if id(each) not in waiting])
        self._context.failpoint(Failpoint.POST_ACK)
        for delivery in decoded.probes:
            self._probe.reply(delivery)
        self._count(decoded, outcomes)
        log.debug(
            "batch processed",
            deliveries=len(decoded.deliveries),
            reports=len(decoded.reports),
            acked=acked,
            task_ids=[str(report.task_id) for report in decoded.reports[:MAX_LOGGED]],
        )
        await self._dead_letters.add(rejected)

    def _decode(self, deliveries: Sequence[Delivery], max_tasks: int | None) -> Iterator[DecodedBatch]:
        """Yield the deliveries as batches; each but the last ends with the delivery that brings it to ``max_tasks``."""
        decoded = self._begin_batch()
        for delivery in deliveries:
            if max_tasks is not None and len(decoded.tasks) >= max_tasks:
                yield decoded
                decoded = self._begin_batch()
            self._decode_delivery(delivery, decoded)
        yield decoded

    def _begin_batch(self) -> DecodedBatch:
        self._received_until = max(self._context.now(), self._received_until)
        return DecodedBatch()

    def _decode_delivery(self, delivery: Delivery, decoded: DecodedBatch) -> None:
        """Add a delivery and what it contains to ``decoded``."""
        decoded.deliveries.append(delivery)
        if delivery.redelivered:
            self._context.metrics.redeliveries.inc()
        if is_probe(delivery):
            decoded.probes.append(delivery)
            return
        senders = self._context.senders
        pools = senders.pools_of(delivery)
        if pools == NO_POOL:
            decoded.invalid.append((delivery, untrusted_sender(delivery, "TASKHERD_REPORT_SENDERS")))
            return
        elements = decode_reports(delivery.body, self._received_until, delivery.original_length)
        self._received_until += len(elements) * SEQ_STEP  # so that reports without a seq keep the order received
        single = not delivery.body.lstrip().startswith(b"[")
        tasks = []
        for index, element in enumerate(elements):
            if isinstance(element, InvalidMessage):
                decoded.invalid.append((delivery, element))
                continue
            tasks.append(element.report.task_id)
            decoded.reports.append(element.report)
            decoded.origins.append((delivery, None if single else index))
            if senders.restricted:
                decoded.pools.append(pools)
            for change, count in element.sanitize_counts.items():
                self._context.metrics.texts_cleaned.labels(change).inc(count)
        different: Collection[UUID] = tasks if single else set(tasks)
        decoded.tasks.update(different)
        decoded.mentions += len(different)

    async def _reconcile(self, reports: Sequence[Report], pools: Sequence[Pools]) -> list[ReportOutcome]:
        """Reconcile reports and return their outcomes."""

        async def attempt(part: Sequence[int]) -> BatchResult:
            batch = Batch([reports[i] for i in part], report_pools=[pools[i] for i in part] if pools else ())
            started_at = perf_counter()
            result = await reconcile(self._context, batch, self._context.now())
            self._context.metrics.batch_seconds.observe(perf_counter() - started_at)
            return result

        async def accept(_: Sequence[int], result: BatchResult) -> list[ReportOutcome]:
            self._relay.offer(result.changes, has_due_requests=result.has_due_requests)
            return result.outcomes

        async def reject(index: int, error: Exception) -> ReportOutcome:
            log.warning("report rejected", task_id=str(reports[index].task_id), reason=repr(error)[:200])
            return ReportOutcome.DATA_ERROR if isinstance(error, DataError) else ReportOutcome.FAULT

        tasks = [report.task_id for report in reports]
        return await self._bisection.run(tasks, attempt, accept, reject) if reports else []

    def _count(self, decoded: DecodedBatch, outcomes: Sequence[ReportOutcome]) -> None:
        self._context.metrics.batch_size.observe(len(decoded.deliveries))
        labels = (outcome.metric for outcome in outcomes)
        counts = Counter(zip((report.type for report in decoded.reports), labels, strict=True))
        counts["unknown", "invalid"] += len(decoded.invalid)
        for (kind, label), count in counts.items():
            self._context.metrics.reports.labels(kind, label).inc(count)


def _rejected(decoded: DecodedBatch, outcomes: Sequence[ReportOutcome]) -> list[Rejected]:
    """Return the invalid elements and the rejected reports."""
    rejected = list(decoded.invalid)
    for (delivery, index), outcome in zip(decoded.origins, outcomes, strict=True):
        if outcome.dead_letter_reason is not None:
            body = delivery.body if index is None else _element(delivery.body, index)
            rejected.append((delivery, InvalidMessage(index, outcome.dead_letter_reason, outcome.detail, body)))
    return rejected


def _element(body: bytes, index: int) -> bytes:
    elements = split_json_array(body)
    assert elements is not None
    return elements[index]
