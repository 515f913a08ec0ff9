"""How reports are taken, decoded, reconciled and acknowledged; without a broker and a database."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, cast
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from taskherd.broker.publisher import OutgoingMessage, PublishOutcome
from taskherd.broker.topology import TopologyNames
from taskherd.domain.outcome import ReportOutcome
from taskherd.domain.reports import AppStatus, Report
from taskherd.errors import Unavailable
from taskherd.observability.metrics import Metrics
from taskherd.observability.tracing import Tracing
from taskherd.store.engine import DataError
from taskherd.worker import report_consumer
from taskherd.worker.batch import Batch, BatchResult
from taskherd.worker.context import WorkerContext
from taskherd.worker.probe import BODY, Probe
from taskherd.worker.rates import Rates
from taskherd.worker.relay import Relay
from taskherd.worker.report_consumer import DecodedBatch, ReportConsumer
from taskherd.worker.sender_pools import Pools, SenderPools
from tests.harness.buffers import Buffer, Message, until
from tests.harness.contexts import partial_context
from tests.harness.histories import NOON

APPLIED = ReportOutcome.APPLIED


def status(number: int, **fields: Any) -> dict[str, Any]:
    """Return a report about the task with this number."""
    return {"type": "app.status", "task_id": str(UUID(int=number)), "state": "working", **fields}


def delivery(tag: int, body: Any, *, redelivered: bool = False, **properties: Any) -> Message:
    """Return a delivery of this JSON."""
    message = Message(json.dumps(body).encode(), tag, **properties)
    message.redelivered = redelivered
    return message


class Outside:
    """The broker and the database around a consumer of reports."""

    def __init__(self) -> None:
        self.buffer, self.metrics, self.stopping = Buffer(), Metrics(), asyncio.Event()
        self.now = NOON
        self.pools: dict[str, Pools] = {}
        self.batches: list[tuple[list[int], list[Pools]]] = []
        self.seqs: dict[int, list[int]] = {}
        self.failing: dict[int, Exception] = {}
        self.outcomes: dict[int, ReportOutcome] = {}
        self.letters: list[OutgoingMessage] = []
        self.probed: list[tuple[int, list[int]]] = []
        self.offered: list[tuple[Sequence[Any], bool]] = []
        context = partial_context(
            metrics=self.metrics, tracing=Tracing(), stopping=self.stopping, now=lambda: self.now, rates=Rates(),
            names=TopologyNames("test"), failpoint=lambda _: None, dead_publisher=self, on_error=lambda _: None,
            on_unconfirmed=lambda _: None, senders=SenderPools(self.pools),
        )  # fmt: skip
        self.consumer = ReportConsumer(self.buffer, context, cast("Relay", self), cast("Probe", self))

    async def reconcile(self, _: WorkerContext, batch: Batch, now: datetime) -> BatchResult:
        """Reconcile reports."""
        assert now == self.now
        numbers = [each.task_id.int for each in batch.reports]
        self.batches.append((numbers, list(batch.report_pools)))
        for number in numbers:
            if number in self.failing:
                raise self.failing[number]
        for each in batch.reports:
            self.seqs.setdefault(each.task_id.int, []).append(self._seq(each))
        outcomes = [self.outcomes.get(number, APPLIED) for number in numbers]
        return BatchResult(now, outcomes, changes=["a change"], has_due_requests=True)  # type: ignore[list-item]

    def _seq(self, report: Report) -> int:
        assert isinstance(report, AppStatus)
        return report.seq

    def offer(self, changes: Sequence[Any], *, has_due_requests: bool) -> None:
        """Publish changes."""
        self.offered.append((changes, has_due_requests))

    def reply(self, probe: Message) -> None:
        """Reply to a probe, and note what is acknowledged by then."""
        self.probed.append((probe.delivery_tag, list(self.buffer.acked)))

    async def publish_many(self, messages: Sequence[OutgoingMessage]) -> list[PublishOutcome]:
        """Publish dead letters."""
        self.letters += messages
        return [PublishOutcome.CONFIRMED] * len(messages)

    async def handle(self, *deliveries: Message, limit: int = 100, wait: float = 1) -> None:
        """Consume these messages until all are handled."""
        self.buffer.put(*deliveries)
        running = asyncio.create_task(self.consumer.run(limit, wait))
        await until(lambda: not self.buffer.deliveries)
        self.buffer.stopped = True
        self.buffer.changed.set()
        await asyncio.wait_for(running, 20)
        self.buffer.stopped = False

    def count(self, name: str, **labels: str) -> float:
        """Return the value of a metric."""
        return self.metrics.registry.get_sample_value(f"taskherd_{name}", labels) or 0

    def rejected(self) -> list[tuple[bytes, str, Any]]:
        """Return the body, the reason and the index of each dead letter."""
        letters = ((letter.body, letter.headers or {}) for letter in self.letters)
        return [(body, str(headers["x-taskherd-reason"]), headers.get("x-taskherd-index")) for body, headers in letters]


@pytest.fixture
async def outside(monkeypatch: pytest.MonkeyPatch) -> Outside:
    """Return what is around a consumer of reports of any sender."""
    outside = Outside()
    monkeypatch.setattr(report_consumer, "reconcile", outside.reconcile)
    return outside


async def test_reports_are_reconciled_together(outside: Outside) -> None:
    """Those of all deliveries, in their order; the changes are published and the deliveries acknowledged."""
    await outside.handle(delivery(1, status(1)), delivery(2, [status(2), status(3)]), delivery(3, []))
    assert outside.batches == [([1, 2, 3], [])]
    assert (outside.buffer.acked, outside.offered) == ([1, 2, 3], [(["a change"], True)])
    assert outside.count("reports_total", type="app.status", outcome="applied") == 3
    assert outside.count("batch_size_sum") == 3
    assert outside.count("batch_seconds_count") == 1
    assert 0 <= outside.count("batch_seconds_sum") < 20
    assert outside.count("redeliveries_total") == 0
    assert outside.consumer.in_flight == 0
    assert set(outside.buffer.asked) == {(100, 1)}


async def test_without_a_wait_batches_wait_as_the_rate_says(outside: Outside) -> None:
    """At first not at all."""
    assert outside.consumer.in_flight == 0
    await outside.handle(delivery(1, status(1)), limit=7, wait=0)
    assert set(outside.buffer.asked) == {(7, 0)}
    await outside.handle(*(delivery(tag, []) for tag in range(1_000)), limit=2_000, wait=0)
    assert outside.buffer.asked[-1][1] > 0.1


async def test_reports_without_a_seq_keep_the_order_received(outside: Outside) -> None:
    """Across deliveries and batches, also while the clock stands still or is set back, a microsecond apart."""
    first = [delivery(1, status(1)), delivery(2, [status(1), status(1)]), delivery(3, status(1))]
    await outside.handle(*first)
    outside.now -= timedelta(hours=1)
    await outside.handle(delivery(4, status(1)))
    began = round(NOON.timestamp() * 1_000_000)
    assert outside.seqs == {1: [began, began + 1, began + 2, began + 3, began + 4]}
    outside.now += timedelta(hours=2)
    await outside.handle(delivery(5, status(2)))
    assert outside.seqs[2] == [round(outside.now.timestamp() * 1_000_000)]


async def test_what_is_invalid_is_a_dead_letter_by_itself(outside: Outside) -> None:
    """With its place in the array; its delivery is acknowledged after it."""
    bad = {"type": "task.explode"}
    await outside.handle(
        delivery(1, [status(1), bad]),
        Message(b"nonsense", 2),
        delivery(3, [bad]),
        delivery(4, bad),
        delivery(5, status(5)),
    )
    raw = json.dumps(bad).encode()
    assert outside.rejected() == [
        (raw, "unknown_type", 1), (b"nonsense", "not_json", None), (raw, "unknown_type", 0), (raw, "unknown_type", None)
    ]  # fmt: skip
    assert outside.buffer.acked == [5, 1, 2, 3, 4]
    assert outside.count("reports_total", type="unknown", outcome="invalid") == 4
    assert outside.count("reports_total", type="app.status", outcome="applied") == 2


async def test_what_is_rejected_is_a_dead_letter_by_itself(outside: Outside) -> None:
    """By the fold, by the database, or by a bug."""
    outside.outcomes = {2: ReportOutcome.UNKNOWN_INPUT, 5: ReportOutcome.STALE}
    outside.failing = {3: DataError("no value"), 4: ValueError("a bug")}
    array = [status(1, message="é"), status(2), status(3)]
    await outside.handle(delivery(1, array), delivery(2, status(4)), delivery(3, status(5)), delivery(4, [status(2)]))
    dumped = [json.dumps(each).encode() for each in (*array, status(4))]
    assert sorted(outside.rejected(), key=str) == sorted(
        [
            (dumped[1], "unknown_input", 1), (dumped[2], "data_error", 2), (dumped[3], "fault", None),
            (dumped[1], "unknown_input", 0),
        ],
        key=str,
    )  # fmt: skip
    assert sorted(outside.buffer.acked) == [1, 2, 3, 4]
    assert outside.buffer.acked[0] == 3
    assert outside.count("reports_total", type="app.status", outcome="stale") == 1
    assert outside.count("reports_total", type="app.status", outcome="invalid") == 4


async def test_a_probe_is_replied_to_after_what_came_before_it(outside: Outside) -> None:
    """When that is acknowledged; it is no report."""
    await outside.handle(delivery(1, status(1)), Message(BODY, 2), Message(BODY, 3, reply_to=""))
    assert outside.probed == [(2, [1, 2])]
    assert outside.batches == [([1], [])]
    assert [reason for _, reason, _ in outside.rejected()] == ["unknown_type"]


async def test_senders_report_on_their_own_pools(outside: Outside) -> None:
    """The reports of a stranger are dead letters, those of others are reconciled with their pools."""
    outside.pools.update({"of-gpu": frozenset({"gpu"}), "any": None})
    stranger = delivery(3, [status(3)], sender="nobody")
    await outside.handle(
        delivery(1, [status(1), status(2)], sender="of-gpu"), stranger, delivery(4, status(4), sender="any"),
        delivery(5, status(5)),
    )  # fmt: skip
    gpu = frozenset({"gpu"})
    assert outside.batches == [([1, 2, 4], [gpu, gpu, None])]
    assert {reason for _, reason, _ in outside.rejected()} == {"untrusted_sender"}
    details = [str((letter.headers or {})["x-taskherd-detail"]) for letter in outside.letters]
    assert ["'nobody'" in detail for detail in details] == [True, False]
    assert all("TASKHERD_REPORT_SENDERS" in detail for detail in details)


async def test_what_was_delivered_before_and_what_was_cleaned_is_counted(outside: Outside) -> None:
    """Deliveries by their number, texts by what was changed in them."""
    dirty = status(2, message="one\x07two")
    await outside.handle(delivery(1, status(1), redelivered=True), delivery(2, [dirty, dirty], redelivered=True))
    assert outside.count("redeliveries_total") == 2
    assert outside.count("texts_cleaned_total", what="control") == 2


async def test_what_a_worker_that_stops_cannot_save_is_left(outside: Outside) -> None:
    """It is not acknowledged, so the broker delivers it to another worker, and probes are not replied to."""
    outside.failing = {1: Unavailable("no database")}
    outside.stopping.set()
    await outside.handle(delivery(1, status(1)), Message(BODY, 2))
    assert (outside.buffer.acked, outside.probed, outside.letters) == ([], [], [])


async def test_a_probe_after_what_a_worker_that_stops_cannot_save_is_left(outside: Outside) -> None:
    """Its reply would say that what came before it is saved. What is saved is acknowledged."""
    await sizes(outside, *(about(tag, *range(10 * tag, 10 * tag + 10)) for tag in range(3)))
    outside.buffer.acked.clear()
    outside.failing = {1: Unavailable("no database")}
    outside.stopping.set()
    await outside.handle(about(1, *range(20)), about(2, *range(20, 40)), Message(BODY, 3), limit=20)
    assert (outside.buffer.acked, outside.probed) == ([2], [])
    await outside.handle(delivery(4, status(2)), Message(BODY, 5))
    assert (outside.buffer.acked, outside.probed) == ([2, 4], [])


async def test_a_batch_is_acknowledged_after_the_one_before(outside: Outside, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if it was saved sooner, so that a probe in it says that all before it is saved."""
    saved = asyncio.Event()
    reconcile = outside.reconcile

    async def slow(context: WorkerContext, batch: Batch, now: datetime) -> BatchResult:
        result = await reconcile(context, batch, now)
        if batch.reports[0].task_id.int == 1:
            await saved.wait()
        return result

    monkeypatch.setattr(report_consumer, "reconcile", slow)
    running = asyncio.create_task(outside.consumer.run(1, 1))
    outside.buffer.put(delivery(1, status(1)), delivery(2, status(2)))
    await until(lambda: len(outside.batches) == 2)
    assert (outside.buffer.acked, outside.consumer.in_flight) == ([], 2)
    saved.set()
    await until(lambda: outside.buffer.acked == [1, 2])
    outside.buffer.stopped = True
    outside.buffer.changed.set()
    await asyncio.wait_for(running, 20)


def about(tag: int, *numbers: int) -> Message:
    """Return a delivery of an array of reports about the tasks with these numbers."""
    return delivery(tag, [status(number) for number in numbers])


async def sizes(outside: Outside, *deliveries: Message) -> list[int]:
    """Return the numbers of reports in the batches of some deliveries that are taken at once, up to 20 at a time."""
    outside.batches.clear()
    await outside.handle(*deliveries, limit=20)
    return [len(numbers) for numbers, _ in outside.batches]


async def test_a_batch_ends_with_the_delivery_that_fills_it_with_tasks(outside: Outside) -> None:
    """While deliveries are about different tasks, as those that were taken before; at first that is not known."""
    different = [about(tag, *range(10 * tag, 10 * tag + 9)) for tag in range(7)]
    assert await sizes(outside, *different) == [63]
    assert await sizes(outside, *different) == [27, 27, 9]
    assert outside.buffer.acked == [*range(7)] * 2
    assert await sizes(outside, about(1, *range(20)), about(2, 1)) == [20, 1]
    assert await sizes(outside, about(1, *range(19)), about(2, *range(5))) == [24]
    assert await sizes(outside, about(1, *range(50)), about(2, 1)) == [50, 1]


async def test_a_batch_of_deliveries_that_repeat_their_tasks_has_any_number(outside: Outside) -> None:
    """The further reports of a task cost little. Takes of few tasks say nothing of the others."""
    different = [about(tag, *range(10 * tag, 10 * tag + 10)) for tag in range(3)]
    repeated = [about(tag, *range(15 * (tag % 2), 15 * (tag % 2) + 15)) for tag in range(4)]
    assert await sizes(outside, *different) == [30]
    assert await sizes(outside, *repeated) == [30, 30]
    assert await sizes(outside, *repeated) == [60]
    assert await sizes(outside, about(1, 1), about(2, 2)) == [2]
    assert await sizes(outside, *repeated) == [60]
    assert await sizes(outside, *different) == [30]
    assert await sizes(outside, *different) == [20, 10]


async def test_the_reports_of_a_task_in_one_delivery_count_once(outside: Outside) -> None:
    """They share a batch in any case."""
    numbers = [[10 * tag + number % 10 for number in range(50)] for tag in range(3)]
    deliveries = [about(tag, *tasks) for tag, tasks in enumerate(numbers)]
    assert await sizes(outside, *deliveries) == [150]
    assert await sizes(outside, *deliveries) == [100, 50]


async def test_a_batch_that_waits_to_be_decoded_counts(outside: Outside, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its deliveries are taken, so a worker that stops has to wait for them."""
    await sizes(outside, *(about(tag, *range(10 * tag, 10 * tag + 10)) for tag in range(3)))
    saving = asyncio.Event()
    reconcile = outside.reconcile

    async def slow(context: WorkerContext, batch: Batch, now: datetime) -> BatchResult:
        await saving.wait()
        return await reconcile(context, batch, now)

    monkeypatch.setattr(report_consumer, "reconcile", slow)
    running = asyncio.create_task(outside.consumer.run(20, 1))
    outside.buffer.put(*(about(tag, *range(20 * tag, 20 * tag + 20)) for tag in range(4)))
    await until(lambda: not outside.buffer.deliveries)
    assert outside.consumer.in_flight == 4
    saving.set()
    await until(lambda: outside.consumer.in_flight == 0)
    assert outside.buffer.acked[-4:] == [0, 1, 2, 3]
    outside.buffer.stopped = True
    outside.buffer.changed.set()
    await asyncio.wait_for(running, 20)


async def test_some_tasks_of_a_batch_are_logged(outside: Outside) -> None:
    """The first five."""
    with capture_logs() as logged:
        await outside.handle(delivery(1, [status(number) for number in range(1, 8)]))
    (line,) = [each for each in logged if each["event"] == "batch processed"]
    assert line["task_ids"] == [str(UUID(int=number)) for number in range(1, 6)]


def test_possible_poison_runs_alone() -> None:
    """Also beside other deliveries, of which it may be the first or not."""
    poison = delivery(2, [], redelivered=True)
    poison._properties.headers = {"x-delivery-count": 3}
    assert poison.possible_poison
    for deliveries, alone in (([delivery(1, [])], False), ([delivery(1, []), poison], True), ([poison], True)):
        footprint = DecodedBatch([*deliveries]).footprint
        assert (footprint.size, footprint.alone, footprint.tasks) == (len(deliveries), alone, frozenset())
