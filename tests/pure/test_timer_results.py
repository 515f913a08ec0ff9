"""What follows from timer checks, and how many failed ones are remembered; without a database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from taskherd.broker.publisher import OutgoingMessage
from taskherd.domain.directory import OTHER, TemplatePool
from taskherd.domain.updates import TimerCheck
from taskherd.observability.metrics import Metrics
from taskherd.store import tasks
from taskherd.worker import timer_checks as module
from taskherd.worker import wakeups as wakeups_module
from taskherd.worker.batch import Batch, BatchResult
from taskherd.worker.context import WorkerContext
from taskherd.worker.timer_checks import TimerChecks
from taskherd.worker.wakeups import Wakeups
from tests.harness.buffers import until
from tests.harness.contexts import partial_context
from tests.harness.histories import NOON

POOL = TemplatePool("claude", "gpu")
CHECK = TimerCheck(None)


class Outside:
    """The database and the relay around timer checks, which give this result or this error."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.result = BatchResult(NOON, [])
        self.error: Exception | None = None
        self.batches: list[Batch] = []
        self.postponed: list[tuple[UUID, datetime]] = []
        self.offered: list[tuple[Sequence[Any], bool]] = []
        self.metrics = Metrics()
        cache = SimpleNamespace(metric_label=lambda pair: pair if pair == POOL else OTHER)
        context = partial_context(engine="engine", metrics=self.metrics, now=lambda: NOON, directory_cache=cache)
        relay: Any = self
        self.checks = TimerChecks(context, relay)
        monkeypatch.setattr(module, "reconcile", self.reconcile)
        monkeypatch.setattr(module, "transaction", _no_transaction)
        monkeypatch.setattr(tasks, "postpone", self.postpone)

    async def reconcile(self, _: WorkerContext, batch: Batch, now: datetime) -> BatchResult:
        """Reconcile checks."""
        assert now == NOON
        self.batches.append(batch)
        if self.error is not None:
            raise self.error
        return self.result

    async def postpone(self, _: object, ids: Collection[UUID], until: datetime) -> None:
        """Note that a task is checked later."""
        self.postponed.extend((task_id, until) for task_id in ids)

    def offer(self, changes: Sequence[Any], *, has_due_requests: bool) -> None:
        """Publish changes."""
        self.offered.append((changes, has_due_requests))

    def value(self, name: str, **labels: str) -> float:
        """Return the value of a counter."""
        return self.metrics.registry.get_sample_value(f"taskherd_{name}_total", labels) or 0


@asynccontextmanager
async def _no_transaction(engine: object) -> AsyncIterator[None]:
    assert engine == "engine"
    yield


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> Outside:
    """Return what is around timer checks."""
    return Outside(monkeypatch)


async def test_what_was_given_up_is_counted_and_what_changed_is_published(outside: Outside) -> None:
    """By type, template and pool; without a task to check nothing is done."""
    assert await outside.checks.run({}) == 0
    assert outside.batches == []
    given_up = [("agent.input", POOL), ("agent.input", POOL), ("workspace.start", TemplatePool("x", "y"))]
    change: Any = "a change"
    outside.result = BatchResult(
        NOON, [], changes=[change], has_due_requests=True, given_up=given_up, deletes_retried=3
    )
    checks = {UUID(int=1): CHECK, UUID(int=2): CHECK}
    assert await outside.checks.run(checks) == 2
    assert [batch.timer_checks for batch in outside.batches] == [checks]
    assert outside.value("requests_given_up", type="agent.input", template="claude", pool="gpu") == 2
    assert outside.value("requests_given_up", type="workspace.start", template="other", pool="other") == 1
    assert outside.value("deletes_retried") == 3
    assert outside.offered == [([change], True)]


async def test_10_000_failed_checks_are_remembered(outside: Outside) -> None:
    """Then the first is forgotten; each is checked again five minutes later."""
    outside.checks._failed = {UUID(int=number): 1.0 for number in range(10, 10_009)}
    outside.error = ValueError("a bug")
    for number in (1, 2):
        assert await outside.checks.run({UUID(int=number): CHECK}) == 0
        assert len(outside.checks._failed) == 10_000
    assert UUID(int=10) not in outside.checks._failed
    assert UUID(int=11) in outside.checks._failed
    assert outside.postponed == [(UUID(int=number), NOON + timedelta(minutes=5)) for number in (1, 2)]
    assert outside.value("timer_checks_failed") == 2


async def test_a_check_that_fails_again_is_the_latest_to_have_failed(
    outside: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So others are forgotten before it."""
    seconds = 1_000.0
    monkeypatch.setattr(module, "monotonic", lambda: seconds)
    monkeypatch.setattr(module, "MAX_FAILED", 2)
    outside.error = ValueError("a bug")
    for number in (1, 2, 1, 3):
        await outside.checks.run({UUID(int=number): CHECK})
        seconds += 400
    assert [each.int for each in outside.checks._failed] == [1, 3]


async def test_wakeups_that_are_due_together_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """To all APIs; none is sent without a change."""
    monkeypatch.setattr(wakeups_module, "MIN_INTERVAL", 0)
    sent: list[OutgoingMessage] = []
    publisher: Any = SimpleNamespace(offer=sent.append)
    wakeups = Wakeups(publisher, "test.wakeups")
    running = asyncio.create_task(wakeups.run())
    await until(lambda: True)
    assert sent == []
    wakeups.notify()
    wakeups.notify()
    await until(lambda: sent)
    assert sent == [OutgoingMessage("test.wakeups", "feed", b"")]
    wakeups.notify()
    await until(lambda: len(sent) == 2)
    running.cancel()
    await asyncio.wait({running})
