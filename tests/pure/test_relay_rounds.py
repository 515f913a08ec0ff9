"""What one round of the relay reads, publishes and removes from the outbox; without a broker and a database."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from taskherd.broker.publisher import OutgoingMessage, PublishOutcome
from taskherd.broker.topology import TopologyNames
from taskherd.domain.directory import DirectoryNames
from taskherd.errors import Unavailable
from taskherd.messages.events import EventKind
from taskherd.observability.failpoints import Failpoint
from taskherd.observability.metrics import Metrics
from taskherd.observability.tracing import Tracing
from taskherd.store import outbox
from taskherd.store.engine import LockTimeout, StatementTimeout
from taskherd.worker import locked_events, relay
from taskherd.worker.batch import CommittedChange
from taskherd.worker.locked_events import ConfirmedEvent, LockedEvents
from taskherd.worker.relay import mark_published, publish, republish_stale
from tests.harness.contexts import partial_context
from tests.harness.histories import NOON
from tests.harness.tasks import make_task
from tests.pure.test_derived_writes import STARTING, core_document

SECOND = timedelta(seconds=1)


class Outside:
    """The broker, the outbox and the directory; the broker refuses the events of some tasks."""

    def __init__(self) -> None:
        self.stale_rows: list[outbox.OutboxEvent] = []
        self.asked: list[tuple[datetime, datetime, int]] = []
        self.refused: set[UUID] = set()
        self.sent: list[OutgoingMessage] = []
        self.marked: list[tuple[UUID, int]] = []
        self.waiting: set[tuple[UUID, int]] = set()
        """The events that an earlier one keeps in the outbox."""
        self.looked: list[tuple[UUID, int]] = []
        self.locks = LockedEvents()
        self.locked: set[UUID] = set()
        """The tasks of which somebody keeps rows of the outbox locked."""
        self.timeouts: list[Exception] = []
        """How the next waits for these rows end; by default, for the lock."""
        self.left_out: list[tuple[UUID, int]] = []
        self.woken = 0
        self.failpoints: list[Failpoint] = []
        self.metrics = Metrics()
        self.context = partial_context(
            engine="engine", metrics=self.metrics, tracing=Tracing(), now=lambda: NOON,
            failpoint=self.failpoints.append, names=TopologyNames("test"), publisher=self, wakeups=self,
            directory_cache=self,
        )  # fmt: skip

    async def look_up(self, pairs: Any) -> dict[Any, DirectoryNames]:
        """Return names of owners and templates."""
        return {
            pair: DirectoryNames(f"user {pair[0].int}", "", UUID(int=2), UUID(int=3), f"template {pair[1].int}", "", "")
            for pair in pairs
        }

    async def stale(
        self, _: object, before: datetime, after: datetime, limit: int, left_out: Sequence[tuple[UUID, int]]
    ) -> list[outbox.OutboxEvent]:
        """Return what was not published in time."""
        self.asked.append((before, after, limit))
        self.left_out = list(left_out)
        return self.stale_rows

    async def publish_many(self, messages: Sequence[OutgoingMessage]) -> list[PublishOutcome | Unavailable]:
        """Publish events."""
        self.sent += messages
        return [
            Unavailable("the queue is full") if self._is_refused(each) else PublishOutcome.CONFIRMED
            for each in messages
        ]

    def _is_refused(self, message: OutgoingMessage) -> bool:
        subjects = {UUID(each["subject"]) for each in json.loads(message.body)}
        return bool(subjects & self.refused)

    async def mark_published(self, _: object, keys: Sequence[tuple[UUID, int]]) -> int:
        """Remove events from the outbox."""
        if self.timeouts:
            raise self.timeouts.pop(0)
        if self.locked.intersection(task_id for task_id, _ in keys):
            raise LockTimeout("a lock")
        self.marked += keys
        return len(set(keys) - self.waiting)

    async def unpublished(self, _: object, keys: Sequence[tuple[UUID, int]]) -> set[tuple[UUID, int]]:
        """Return which events are in the outbox."""
        self.looked += keys
        return self.waiting.intersection(keys)

    async def find_locked(self, _: object, last: Mapping[UUID, int]) -> frozenset[UUID]:
        """Return the tasks of which rows are locked."""
        return frozenset(self.locked.intersection(last))

    def notify(self) -> None:
        """Wake the readers of the feed."""
        self.woken += 1

    def value(self, name: str) -> float:
        """Return the value of a metric."""
        return self.metrics.registry.get_sample_value(f"taskherd_{name}") or 0


@asynccontextmanager
async def _no_transaction(engine: object) -> AsyncIterator[None]:
    assert engine == "engine"
    yield


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> Outside:
    """Return what is around a relay."""
    outside = Outside()
    monkeypatch.setattr(outbox, "stale", outside.stale)
    monkeypatch.setattr(outbox, "mark_published", outside.mark_published)
    monkeypatch.setattr(outbox, "unpublished", outside.unpublished)
    monkeypatch.setattr(outbox, "find_locked", outside.find_locked)
    monkeypatch.setattr(relay, "transaction", _no_transaction)
    monkeypatch.setattr(locked_events, "transaction", _no_transaction)
    return outside


def stale_event(number: int, age: timedelta = 4 * SECOND) -> outbox.OutboxEvent:
    """Return the event of the task with this number, of a change so long ago."""
    fields: dict[str, Any] = {"owner_id": UUID(int=number + 10), "version": number, "prompt": f"P {number}"}
    task = make_task(UUID(int=number), state=STARTING, updated_at=NOON - age, **fields)
    change = CommittedChange(task, EventKind.UPDATED, core_document(task), ("status",), '{"kind":"sweep"}')
    return relay._outbox_event(change)


async def test_what_was_not_published_in_time_is_published_from_the_outbox(outside: Outside) -> None:
    """After three seconds, complete, to the topic of its task, and leaves the outbox once the broker has it."""
    outside.stale_rows = [stale_event(1), stale_event(2, 6 * SECOND)]
    assert await republish_stale(outside.context, 77, outside.locks)
    assert outside.asked == [(NOON - 3 * SECOND, NOON + 30 * SECOND, 77)]
    assert outside.marked == [(UUID(int=1), 1), (UUID(int=2), 2)]
    assert {message.exchange for message in outside.sent} == {"test.events"}
    events = [event for message in outside.sent for event in json.loads(message.body)]
    for number, event in enumerate(events, start=1):
        data = event["data"]
        assert (event["subject"], data["version"], data["changes"]) == (str(UUID(int=number)), number, ["status"])
        assert data["cause"] == {"kind": "sweep"}
        task = data["task"]
        assert (task["initial_prompt"], task["owner_name"]) == (f"P {number}", f"user {number + 10}")
        assert (task["template_name"], task["updated_at"][:19]) == ("template 4", f"2026-03-01T11:59:{58 - 2 * number}")
    assert len(events) == 2
    assert (outside.woken, outside.value("events_published_total")) == (1, 2)
    assert (outside.value("publish_lag_seconds_count"), outside.value("publish_lag_seconds_sum")) == (2, 10)
    assert outside.failpoints == [
        Failpoint.RELAY_SELECT, Failpoint.RELAY_PUBLISH, Failpoint.RELAY_CONFIRM, Failpoint.RELAY_MARK
    ]  # fmt: skip


async def test_without_stale_events_nothing_is_published(outside: Outside) -> None:
    """Nor does a round go on of which no event could leave the outbox."""
    assert not await republish_stale(outside.context, 77, outside.locks)
    assert (outside.sent, outside.woken) == ([], 0)
    outside.stale_rows, outside.waiting = [stale_event(1)], {(UUID(int=1), 1)}
    assert not await republish_stale(outside.context, 77, outside.locks)
    outside.stale_rows.append(stale_event(2))
    assert await republish_stale(outside.context, 77, outside.locks)


async def test_what_the_broker_does_not_confirm_stays_in_the_outbox(outside: Outside) -> None:
    """The rest leaves it, then the failure is told."""
    outside.stale_rows = [stale_event(number) for number in (1, 2, 3)]
    outside.refused = {UUID(int=2)}
    confirmed, error = await publish(outside.context, await relay._render(outside.context, outside.stale_rows))
    assert str(error) == "the queue is full"
    assert UUID(int=2) not in {event.task_id for event in confirmed}
    outside.sent.clear()
    with pytest.raises(Unavailable, match="full"):
        await republish_stale(outside.context, 77, outside.locks)
    assert (UUID(int=2), 2) not in outside.marked
    assert len(outside.marked) == len(confirmed)


async def test_events_are_published_in_the_trace_of_their_cause(outside: Outside) -> None:
    """And without headers if there is none."""
    events = await relay._render(outside.context, [stale_event(1)])
    trace = {"traceparent": f"00-{1:032x}-{1:016x}-01"}
    for traces, headers in (((trace,), trace), ((), None)):
        outside.sent.clear()
        confirmed, error = await publish(outside.context, events, traces)
        assert (confirmed, error) == (events, None)
        assert [message.headers for message in outside.sent] == [headers]


async def test_the_events_that_stay_in_the_outbox_are_returned(outside: Outside) -> None:
    """Nothing is asked about that while all leave it."""
    confirmed = [
        relay._identity(each) for each in await relay._render(outside.context, [stale_event(1), stale_event(2)])
    ]
    assert await mark_published(outside.context, confirmed, outside.locks) == []
    assert outside.looked == []
    outside.waiting = {(UUID(int=2), 2)}
    assert await mark_published(outside.context, confirmed, outside.locks) == [
        ConfirmedEvent(UUID(int=2), 2, NOON - 4 * SECOND)
    ]
    assert outside.looked == [(UUID(int=1), 1), (UUID(int=2), 2)]


def confirmed_event(number: int, version: int = 1) -> ConfirmedEvent:
    """Return an event of the task with this number."""
    return ConfirmedEvent(UUID(int=number), version, NOON)


@pytest.mark.parametrize("instead", [None, StatementTimeout("too many waits")])
async def test_events_of_locked_tasks_wait_and_those_of_others_leave_the_outbox(
    outside: Outside, instead: Exception | None
) -> None:
    """At once, also later ones; when the lock is gone they leave it in the order of their versions."""
    outside.locked = {UUID(int=1)}
    outside.timeouts = [] if instead is None else [instead]
    confirmed = [confirmed_event(1, 2), confirmed_event(2), confirmed_event(1)]
    assert await mark_published(outside.context, confirmed, outside.locks) == []
    outside.timeouts = []
    assert await mark_published(outside.context, [confirmed_event(1, 3)], outside.locks) == []
    assert outside.marked == [(UUID(int=2), 1)]
    assert outside.woken == 1
    assert await outside.locks.release(outside.context) == []
    outside.locked.clear()
    released = await outside.locks.release(outside.context)
    assert released == [confirmed_event(1, version) for version in (1, 2, 3)]
    assert await mark_published(outside.context, released, outside.locks) == []
    assert outside.marked[1:] == [(UUID(int=1), version) for version in (1, 2, 3)]


async def test_a_wait_for_no_row_of_the_outbox_is_a_conflict(outside: Outside) -> None:
    """As that for the lock of the feed: all is tried again."""
    for error in (LockTimeout("the feed"), StatementTimeout("slow")):
        outside.timeouts = [error]
        with pytest.raises(type(error)):
            await mark_published(outside.context, [confirmed_event(1)], outside.locks)
        assert outside.locks.is_empty


async def test_stale_events_of_locked_tasks_are_published_once(outside: Outside) -> None:
    """More may be there after those; they are stale again a second after the lock is gone, if they are still there."""
    outside.locked = {UUID(int=1)}
    outside.stale_rows = [stale_event(1)]
    assert await republish_stale(outside.context, 77, outside.locks)
    outside.stale_rows = []
    for locked in (True, False):
        assert not await republish_stale(outside.context, 77, outside.locks)
        assert outside.left_out == [(UUID(int=1), 1)]
        assert not outside.locks.is_empty
        outside.locked = {UUID(int=1)} if locked else set()
        await outside.locks.release(outside.context)
    outside.locked = set()
    await outside.locks.release(outside.context)
    assert outside.locks.is_empty
    assert not await republish_stale(outside.context, 77, outside.locks)
    assert outside.left_out == []


async def test_how_many_events_wait_for_locks(outside: Outside, monkeypatch: pytest.MonkeyPatch) -> None:
    """20,000, of as many tasks; without room they are left to the outbox, and a round of such events is the last."""
    assert locked_events.MAX_HELD == 20_000
    monkeypatch.setattr(locked_events, "MAX_HELD", 2)
    outside.locked = {UUID(int=number) for number in (1, 2, 3)}
    confirmed = [confirmed_event(1, version) for version in (1, 2, 3)]
    assert await mark_published(outside.context, confirmed, outside.locks) == [confirmed_event(1, 3)]
    assert await mark_published(outside.context, confirmed, outside.locks) == [confirmed_event(1, 3)]
    outside.stale_rows = [stale_event(1)._replace(version=4)]
    assert not await republish_stale(outside.context, 77, outside.locks)
    with pytest.raises(LockTimeout):
        await mark_published(outside.context, [confirmed_event(2), confirmed_event(3)], outside.locks)
    assert outside.marked == []


def test_the_size_of_a_change_is_that_of_its_texts() -> None:
    """Its document and its prompt."""
    task = make_task(UUID(int=1), prompt="x" * 10)
    assert relay._size(CommittedChange(task, EventKind.UPDATED, "y" * 5, (), "{}")) == 15
