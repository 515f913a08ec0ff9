"""The reports' door: deliveries in batches through the corridor, what is bad to the dead letters, then the ack.

A delivery is acked when all that it said is committed or buried, and not before; so whatever dies in between, it comes
again. An outage is waited out with the batch in hand: handing deliveries back would only wear them out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING

import structlog

from taskherd.broker import dead
from taskherd.core.reports import canonical
from taskherd.core.turn import Fate
from taskherd.errors import Unavailable
from taskherd.flow.corridor import Batch, reconcile
from taskherd.flow.probe import is_probe
from taskherd.flow.saving import REFUSED
from taskherd.observe.failpoints import Failpoint
from taskherd.store.engine import DataError
from taskherd.wire.codec import Bad, decode_reports
from taskherd.wire.dead import Reason

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from taskherd.broker.consume import Delivery, Intake
    from taskherd.core.reports import Report
    from taskherd.flow.ground import Ground
    from taskherd.flow.probe import Probe
    from taskherd.flow.relay import Relay

log = structlog.get_logger(__name__)

POISON = (DataError, ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)
"""What one report can do to a whole batch: a value that PostgreSQL refuses, or a mistake of ours that it lays bare."""

IDS_TOLD = 5
"""Task ids that a log line names at most."""


@dataclass(slots=True)
class Judged:
    """The reports of some deliveries, where each came from, and what can't be taken."""

    reports: list[Report] = field(default_factory=list)
    origins: list[tuple[Delivery, int | None]] = field(default_factory=list)
    bad: list[tuple[Delivery, Bad]] = field(default_factory=list)
    probes: list[Delivery] = field(default_factory=list)


class Ingest:
    """Takes report deliveries until its intake ends."""

    def __init__(self, intake: Intake, ground: Ground, relay: Relay, probe: Probe) -> None:
        """Wire the door to what stands behind it."""
        self._intake = intake
        self._ground = ground
        self._relay = relay
        self._probe = probe

    async def run(self, most: int, wait: float) -> None:
        """Take batches of up to ``most`` deliveries until the intake has stopped and is empty."""
        while deliveries := await self._intake.batch(most, wait):
            for part in _apart(deliveries):
                try:
                    await self.take(part)
                except Unavailable as error:
                    log.warning("batch given back", deliveries=len(part), reason=str(error))

    async def take(self, deliveries: Sequence[Delivery]) -> None:
        """Bring some deliveries through: decode, fold, commit, bury what is bad, ack; the relay tells the rest."""
        began = perf_counter()
        self._ground.hit(Failpoint.RECEIVE)
        judged = self._judge(deliveries)
        fates = await self._fold(judged.reports)
        self._ground.hit(Failpoint.POST_COMMIT)
        self._ground.metrics.batch_size.observe(len(deliveries))
        self._ground.metrics.batch_seconds.observe(perf_counter() - began)
        await self._bury(judged, fates)
        acked = await self._intake.ack(deliveries)
        self._ground.hit(Failpoint.POST_ACK)
        for delivery in judged.probes:
            self._probe.back(delivery)
        self._count(judged, fates)
        tasks = list(dict.fromkeys(str(report.task_id) for report in judged.reports))[:IDS_TOLD]
        log.debug("batch", deliveries=len(deliveries), reports=len(judged.reports), acked=acked, task_ids=tasks)

    def _judge(self, deliveries: Sequence[Delivery]) -> Judged:
        now = self._ground.now()
        judged = Judged()
        for delivery in deliveries:
            if delivery.redelivered:
                self._ground.metrics.redeliveries.inc()
            if is_probe(delivery):
                judged.probes.append(delivery)
                continue
            elements = decode_reports(delivery.body, now)
            single = len(elements) == 1
            for index, element in enumerate(elements):
                if isinstance(element, Bad):
                    judged.bad.append((delivery, element))
                else:
                    judged.reports.append(element.report)
                    judged.origins.append((delivery, None if single else index))
                    for what, count in element.notes.items():
                        self._ground.metrics.texts_cleaned.labels(what).inc(count)
        return judged

    async def _fold(self, reports: Sequence[Report]) -> list[Fate | None]:
        """The fates of the reports; None for one whose values the database can't take, found by halving."""
        if not reports:
            return []
        try:
            outcome = await self._ground.persist(lambda: reconcile(self._ground, Batch(reports), self._ground.now()))
        except POISON as error:
            if len(reports) == 1:
                log.warning("report can't be taken", task_id=str(reports[0].task_id), reason=repr(error)[:200])
                return [None]
            self._ground.metrics.batch_failures.labels("bisected").inc()
            half = len(reports) // 2
            return [*await self._fold(reports[:half]), *await self._fold(reports[half:])]
        self._relay.offer(outcome.changes, requested=bool(outcome.requested))
        return list(outcome.fates)

    async def _bury(self, judged: Judged, fates: Sequence[Fate | None]) -> None:
        letters = list(judged.bad)
        for report, (delivery, index), fate in zip(judged.reports, judged.origins, fates, strict=True):
            if fate is None or fate in REFUSED:
                reason = Reason.DATA_ERROR if fate is None else Reason(fate.value)
                body = delivery.body if index is None else canonical(report).encode()
                letters.append((delivery, Bad(index, reason, DETAILS[reason], body)))
        for delivery, bad in letters:
            await self._ground.persist(partial(self._letter, delivery, bad))
            self._ground.metrics.dead_lettered.labels(bad.reason.value).inc()
        if letters:
            told = [(bad.reason.value, bad.detail[:100]) for _, bad in letters[:IDS_TOLD]]
            log.warning("dead letters", count=len(letters), first=told)

    async def _letter(self, delivery: Delivery, bad: Bad) -> None:
        origin = dead.origin_of(delivery)
        await dead.bury(
            self._ground.publisher,
            self._ground.names,
            bad.body,
            bad.reason.value,
            bad.detail,
            origin,
            index=bad.index,
            length=bad.length,
        )

    def _count(self, judged: Judged, fates: Sequence[Fate | None]) -> None:
        for report, fate in zip(judged.reports, fates, strict=True):
            self._ground.metrics.reports.labels(report.type, OUTCOMES.get(fate, "invalid") if fate else "invalid").inc()
        for _ in judged.bad:
            self._ground.metrics.reports.labels("unknown", "invalid").inc()


OUTCOMES = {
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
