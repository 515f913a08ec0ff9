"""The reports' door: deliveries in batches through the corridor, what is bad to the dead letters, then the ack.

A delivery is acked when all that it said is committed or buried, and not before; so whatever dies in between, it comes
again. An outage is waited out with the batch in hand: handing deliveries back would only wear them out.
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

from taskherd.broker import dead
from taskherd.core.turn import Fate
from taskherd.errors import Unavailable
from taskherd.flow.aside import REFUSED
from taskherd.flow.batch import POISON, Batch
from taskherd.flow.corridor import reconcile
from taskherd.flow.lanes import Lanes, Load
from taskherd.flow.probe import is_probe
from taskherd.observe.failpoints import Failpoint
from taskherd.observe.tracing import LINKS_MOST, carried
from taskherd.store.engine import DataError
from taskherd.wire.codec import Bad, decode_reports
from taskherd.wire.dead import Reason
from taskherd.wire.split import elements as elements_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from taskherd.broker.consume import Intake
    from taskherd.broker.delivery import Delivery
    from taskherd.core.reports import Report
    from taskherd.flow.ground import Ground
    from taskherd.flow.probe import Probe
    from taskherd.flow.relay import Relay
    from taskherd.observe.tracing import Carrier

log = structlog.get_logger(__name__)

TICK = timedelta(microseconds=1)
LONG_AGO = datetime.min.replace(tzinfo=UTC)

IDS_TOLD = 5
"""Task ids that a log line names at most."""


@dataclass(slots=True)
class Judged:
    """The reports of some deliveries, where each came from, and what can't be taken."""

    deliveries: Sequence[Delivery]
    reports: list[Report] = field(default_factory=list)
    origins: list[tuple[Delivery, int | None]] = field(default_factory=list)
    bad: list[tuple[Delivery, Bad]] = field(default_factory=list)
    probes: list[Delivery] = field(default_factory=list)

    @property
    def load(self) -> Load:
        """What these deliveries occupy a lane with."""
        tasks = frozenset([report.task_id for report in self.reports])
        return Load(tasks, len(self.deliveries), alone=any(each.suspect for each in self.deliveries))

    @property
    def traces(self) -> list[Carrier]:
        """The traces that the first of these deliveries belong to; headers without one are not decoded."""
        return [carried(each.headers) for each in self.deliveries[:LINKS_MOST] if each.traced]


class Ingest:
    """Takes report deliveries until its intake ends."""

    def __init__(self, intake: Intake, ground: Ground, relay: Relay, probe: Probe) -> None:
        """Wire the door to what stands behind it."""
        self._intake = intake
        self._ground = ground
        self._relay = relay
        self._probe = probe
        self._lanes: Lanes | None = None
        self._taken_until = LONG_AGO

    @property
    def in_hand(self) -> int:
        """How many deliveries are on their way."""
        return self._lanes.in_hand if self._lanes else 0

    async def run(self, most: int, wait: float) -> None:
        """Take batches of up to ``most`` deliveries until the intake has stopped and is empty."""
        async with asyncio.TaskGroup() as group:
            self._lanes = lanes = Lanes(group)
            while deliveries := await self._intake.batch(most, wait):
                for part in _apart(deliveries):
                    self._ground.hit(Failpoint.RECEIVE)
                    judged = self._judge(part)
                    await lanes.send(judged.load, partial(self._take, judged))
                await lanes.free(lambda: self._intake.buffered >= most)

    async def _take(self, judged: Judged, before: asyncio.Task[None] | None) -> None:
        """Bring a batch through: fold, commit, bury what is bad, ack after ``before``; the relay tells the rest."""
        try:
            with self._ground.tracing.span("batch", links=judged.traces, deliveries=len(judged.deliveries)):
                fates = await self._fold(judged.reports)
                self._ground.hit(Failpoint.POST_COMMIT)
                await self._bury(judged, fates)
        except Unavailable as error:
            log.warning("batch given back", deliveries=len(judged.deliveries), reason=str(error))
            return
        if before is not None:
            await asyncio.wait({before})
        acked = await self._intake.ack(judged.deliveries)
        self._ground.hit(Failpoint.POST_ACK)
        for delivery in judged.probes:
            self._probe.back(delivery)
        self._count(judged, fates)
        tasks = [str(report.task_id) for report in judged.reports[:IDS_TOLD]]
        log.debug("batch", deliveries=len(judged.deliveries), reports=len(judged.reports), acked=acked, task_ids=tasks)

    def _judge(self, deliveries: Sequence[Delivery]) -> Judged:
        now = max(self._ground.now(), self._taken_until)
        judged = Judged(deliveries)
        for delivery in deliveries:
            if delivery.redelivered:
                self._ground.metrics.redeliveries.inc()
            if is_probe(delivery):
                judged.probes.append(delivery)
                continue
            elements = decode_reports(delivery.body, now)
            now += len(elements) * TICK  # so that reports without a seq keep the order in which they came
            single = len(elements) == 1 and not delivery.body.lstrip().startswith(b"[")
            for index, element in enumerate(elements):
                if isinstance(element, Bad):
                    judged.bad.append((delivery, element))
                else:
                    judged.reports.append(element.report)
                    judged.origins.append((delivery, None if single else index))
                    for what, count in element.notes.items():
                        self._ground.metrics.texts_cleaned.labels(what).inc(count)
        self._taken_until = now
        return judged

    async def _fold(self, reports: Sequence[Report]) -> list[Fate | Reason]:
        """The fates of the reports; a reason for one that can't be taken, found by halving."""
        if not reports:
            return []
        began = perf_counter()
        try:
            outcome = await self._ground.persist(
                lambda: reconcile(self._ground, Batch(reports), self._ground.now()), "database"
            )
        except POISON as error:
            if len(reports) == 1:
                log.warning("report can't be taken", task_id=str(reports[0].task_id), reason=repr(error)[:200])
                return [Reason.DATA_ERROR if isinstance(error, DataError) else Reason.FAULT]
            self._ground.metrics.batch_failures.labels("bisected").inc()
            half = len(reports) // 2
            return [*await self._fold(reports[:half]), *await self._fold(reports[half:])]
        self._ground.metrics.batch_seconds.observe(perf_counter() - began)
        self._relay.offer(outcome.changes, requested=bool(outcome.requested))
        return list(outcome.fates)

    async def _bury(self, judged: Judged, fates: Sequence[Fate | Reason]) -> None:
        letters = list(judged.bad)
        for (delivery, index), fate in zip(judged.origins, fates, strict=True):
            if isinstance(fate, Reason) or fate in REFUSED:
                reason = Reason(fate.value)
                body = delivery.body if index is None else (elements_of(delivery.body) or [])[index]
                letters.append((delivery, Bad(index, reason, DETAILS[reason], body)))
        if not letters:
            return
        waiting = [
            dead.letter(
                self._ground.names,
                bad.body,
                bad.reason.value,
                bad.detail,
                dead.origin_of(delivery),
                index=bad.index,
                length=bad.length,
            )
            for delivery, bad in letters
        ]
        await self._ground.persist(partial(dead.bury_all, self._ground.publisher, waiting), "broker")
        for _, bad in letters:
            self._ground.metrics.dead_lettered.labels(bad.reason.value).inc()
        told = [(bad.reason.value, bad.detail[:100]) for _, bad in letters[:IDS_TOLD]]
        log.warning("dead letters", count=len(letters), first=told)

    def _count(self, judged: Judged, fates: Sequence[Fate | Reason]) -> None:
        self._ground.metrics.batch_size.observe(len(judged.deliveries))
        outcomes = (OUTCOMES.get(fate, "invalid") for fate in fates)
        counts = Counter(zip((report.type for report in judged.reports), outcomes, strict=True))
        counts["unknown", "invalid"] += len(judged.bad)
        for (kind, outcome), count in counts.items():
            self._ground.metrics.reports.labels(kind, outcome).inc(count)


OUTCOMES: dict[Fate | Reason, str] = {
    Fate.APPLIED: "applied",
    Fate.UNCHANGED: "unchanged",
    Fate.STALE: "stale",
    Fate.PARKED: "parked",
    Fate.TOMBSTONE: "tombstone",
    Fate.CONFLICT: "conflict",
}

DETAILS = {
    Reason.BUILD_CONFLICT: "The transition is not the one that was asked for under this build number.",
    Reason.UNKNOWN_INPUT: "The task never had an input of this id.",
    Reason.PARKED_OVERFLOW: "Too many reports already wait for this task's create.",
    Reason.DATA_ERROR: "The database can't take the values of this report.",
    Reason.FAULT: "taskherd failed on this report; see the worker's log of that time.",
}


def _apart(deliveries: Sequence[Delivery]) -> Iterator[Sequence[Delivery]]:
    """The deliveries in order, each that may have killed its readers before by itself."""
    run: list[Delivery] = []
    for delivery in deliveries:
        if delivery.suspect:
            if run:
                yield run
            yield [delivery]
            run = []
        else:
            run.append(delivery)
    if run:
        yield run
