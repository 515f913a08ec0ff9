"""When changes are published from memory, and when they leave the outbox; without a broker and a database."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from taskherd import retry
from taskherd.broker.publisher import Unconfirmed
from taskherd.domain.value import replace
from taskherd.errors import Retry, Unavailable
from taskherd.messages.events import ChangeEvent, EventKind
from taskherd.observability.metrics import Metrics
from taskherd.observability.tracing import Tracing
from taskherd.store.outbox import OutboxEvent
from taskherd.worker import relay, work_requests
from taskherd.worker.batch import CommittedChange
from taskherd.worker.context import WorkerContext
from taskherd.worker.locked_events import ConfirmedEvent, LockedEvents
from taskherd.worker.relay import Relay
from tests.harness.contexts import Waits, partial_context
from tests.harness.histories import NOON
from tests.harness.tasks import make_task

MAX_EVENTS_PER_ROUND, MAX_PUBLISHING = 1_000, 4
MOMENT = 60.0


def changes(first: int, last: int) -> list[CommittedChange]:
    """Return a change of each task with one of these numbers as id."""
    return [
        CommittedChange(make_task(UUID(int=number)), EventKind.UPDATED, "{}", (), "{}") for number in range(first, last)
    ]


def numbers(events: Sequence[ChangeEvent] | Sequence[ConfirmedEvent]) -> list[int]:
    """Return the numbers of the tasks of events."""
    return [event.task_id.int for event in events]


OUTBOX_EVENT = relay._outbox_event(changes(0, 1)[0])
CONFIRMED = ConfirmedEvent(OUTBOX_EVENT.task_id, OUTBOX_EVENT.version, NOON)


class Outside:
    """The directory, broker and database around a relay: each fails with its errors first.

    What is published waits for ``confirm``.
    """

    def __init__(self) -> None:
        self.unreadable: list[Exception] = []
        self.unconfirmed: list[Unavailable] = []
        self.unmarked: list[Exception] = []
        self.waiting: set[int] = set()
        """The tasks of which another worker has not removed an earlier event from the outbox."""
        self.now = NOON
        self.stale: list[bool | Exception] = []
        self.published: list[list[int]] = []
        self.marked: list[list[int]] = []
        self.confirm = asyncio.Event()
        self.confirm.set()
        self.told: list[str] = []
        self.told_unconfirmed: list[str] = []
        self.waits = Waits()
        context = partial_context(
            metrics=Metrics(), tracing=Tracing(), stopping=asyncio.Event(), now=lambda: self.now,
            on_error=self.told.append, on_unconfirmed=self.told_unconfirmed.append,
        )  # fmt: skip
        self.relay = Relay(context, every=600)

    async def render(self, _: WorkerContext, rows: Sequence[OutboxEvent]) -> list[ChangeEvent]:
        """Read the names of the directory."""
        if self.unreadable:
            raise self.unreadable.pop(0)
        return [
            ChangeEvent(
                task_id=row.task_id,
                version=row.version,
                kind=EventKind.UPDATED,
                occurred_at=row.occurred_at,
                task=b"{}",
                changes=(),
                cause="{}",
            )
            for row in rows
        ]

    async def publish(
        self, _: WorkerContext, events: Sequence[ChangeEvent], __: object
    ) -> tuple[list[ChangeEvent], Unavailable | None]:
        """Confirm all events, or all but the last one."""
        self.published.append(numbers(events))
        await self.confirm.wait()
        error = self.unconfirmed.pop(0) if self.unconfirmed else None
        return list(events if error is None else events[:-1]), error

    async def mark_published(
        self, _: WorkerContext, events: Sequence[ConfirmedEvent], __: LockedEvents
    ) -> list[ConfirmedEvent]:
        """Remove events from the outbox, but for those that wait for others."""
        if self.unmarked:
            raise self.unmarked.pop(0)
        self.marked.append(numbers(events))
        return [event for event in events if event.task_id.int in self.waiting]

    async def republish_stale(self, _: WorkerContext, limit: int, __: LockedEvents) -> bool:
        """Publish what is in the outbox."""
        assert limit == MAX_EVENTS_PER_ROUND
        result = self.stale.pop(0)
        if isinstance(result, Exception):
            raise result
        return result


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> Outside:
    """Return what is around a relay that waits for nothing else."""
    outside = Outside()
    monkeypatch.setattr(relay, "_render", outside.render)
    for name in ("publish", "mark_published", "republish_stale"):
        monkeypatch.setattr(relay, name, getattr(outside, name))
    monkeypatch.setattr(relay, "MARK_AFTER", 0)
    monkeypatch.setattr(retry, "delay", outside.waits.delay)
    return outside


async def until(condition: Callable[[], Any]) -> None:
    """Let the relay run until the condition is true."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - it sends no event
            await asyncio.sleep(0)


async def finish(outside: Outside, running: asyncio.Task[None] | None = None) -> None:
    """Stop the relay, or run one that is stopped, and wait for its end."""
    outside.stale.append(False)  # the last look at the outbox
    running = running or asyncio.create_task(outside.relay.run())
    outside.relay.stop()
    await asyncio.wait_for(running, 20)


async def test_what_is_in_memory_is_published_and_marked_before_the_end(outside: Outside) -> None:
    """In order, as many at a time as a round may have."""
    outside.relay.offer(changes(0, MAX_EVENTS_PER_ROUND + 1), has_due_requests=False)
    await finish(outside)
    assert outside.published == [list(range(MAX_EVENTS_PER_ROUND)), [MAX_EVENTS_PER_ROUND]]
    assert sorted(number for batch in outside.marked for number in batch) == list(range(MAX_EVENTS_PER_ROUND + 1))


async def test_changes_are_published_at_once_while_it_runs(outside: Outside) -> None:
    """And leave the outbox soon, although nothing stops."""
    running = asyncio.create_task(outside.relay.run())
    for number in range(2):
        outside.relay.offer(changes(number, number + 1), has_due_requests=False)
        await until(partial(outside.marked.__contains__, [number]))
    await finish(outside, running)
    assert outside.published == [[0], [1]]


async def test_a_few_publishes_wait_for_their_confirms_at_the_same_time(outside: Outside) -> None:
    """Further changes wait in memory, so that a broker that confirms late bounds what it is sent."""
    outside.confirm.clear()
    running = asyncio.create_task(outside.relay.run())
    for number in range(MAX_PUBLISHING + 2):
        outside.relay.offer(changes(number, number + 1), has_due_requests=False)
        for _ in range(5):
            await asyncio.sleep(0)
    assert outside.published == [[number] for number in range(MAX_PUBLISHING)]
    outside.confirm.set()
    await finish(outside, running)
    assert sorted(number for batch in outside.marked for number in batch) == list(range(MAX_PUBLISHING + 2))


async def test_the_memory_for_changes_is_bounded(outside: Outside, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has no place is published from the outbox."""
    monkeypatch.setattr(relay, "MAX_BUFFER", 5)
    for first, last in ((0, 4), (4, 7), (7, 9)):
        outside.relay.offer(changes(first, last), has_due_requests=False)
    await finish(outside)
    assert outside.published == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize("outage", ["", "directory", "broker"])
async def test_the_size_of_changes_is_bounded(outside: Outside, monkeypatch: pytest.MonkeyPatch, outage: str) -> None:
    """Their prompts may be large; there is room again when changes are published, or failed to be."""
    monkeypatch.setattr(relay, "MAX_BUFFER_BYTES", 2 * relay._size(changes(0, 1)[0]))
    outside.unreadable = [Unavailable("no database")] if outage == "directory" else []
    outside.unconfirmed = [Unavailable("no broker")] if outage == "broker" else []
    running = asyncio.create_task(outside.relay.run())
    outside.relay.offer(changes(0, 4), has_due_requests=False)
    await until(lambda: not vars(outside.relay)["_bytes"])
    outside.relay.offer(changes(4, 5), has_due_requests=False)
    outside.relay.offer(changes(5, 8), has_due_requests=False)
    await finish(outside, running)
    assert sorted(number for batch in outside.published for number in batch) == [
        *([] if outage == "directory" else [0, 1]), 4, 5
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("error", "told", "told_unconfirmed"),
    [(Unconfirmed("a queue is full"), [], ["a queue is full"]), (Unavailable("no broker"), ["no broker"], [])],
)
async def test_what_is_not_confirmed_stays_in_the_outbox(
    outside: Outside, error: Unavailable, told: list[str], told_unconfirmed: list[str]
) -> None:
    """The failure is told, as one that may delay reports or as one that does not; the next changes are published."""
    outside.unconfirmed = [error]
    running = asyncio.create_task(outside.relay.run())
    outside.relay.offer(changes(0, 3), has_due_requests=False)
    await until(lambda: outside.marked)
    outside.relay.offer(changes(3, 4), has_due_requests=False)
    await finish(outside, running)
    assert (outside.published, outside.marked) == ([[0, 1, 2], [3]], [[0, 1], [3]])
    assert (outside.told, outside.told_unconfirmed, outside.waits.after) == (told, told_unconfirmed, [1])


async def test_an_outage_of_the_broker_slows_down_publishing(outside: Outside) -> None:
    """The waits grow with each publish in a row that fails, and are short again after one that does not."""
    running = asyncio.create_task(outside.relay.run())
    for number, fails in enumerate((True, True, False, True)):
        outside.unconfirmed = [Unavailable("no broker")] if fails else []
        outside.relay.offer(changes(2 * number, 2 * number + 2), has_due_requests=False)
        await until(partial(outside.marked.__contains__, [2 * number] if fails else [2 * number, 2 * number + 1]))
    await finish(outside, running)
    assert outside.waits.after == [1, 2, 1]


@pytest.mark.parametrize("error", [Unavailable("no database"), Retry("too many conflicts")])
async def test_changes_whose_names_cannot_be_read_stay_in_the_outbox(outside: Outside, error: Exception) -> None:
    """The failure is told, and the next changes are published."""
    outside.unreadable = [error]
    running = asyncio.create_task(outside.relay.run())
    outside.relay.offer(changes(0, 1), has_due_requests=False)
    await until(lambda: outside.told)
    outside.relay.offer(changes(1, 2), has_due_requests=False)
    await finish(outside, running)
    assert (outside.published, outside.marked, outside.told) == ([[1]], [[1]], [str(error)])


async def test_marking_is_repeated_during_an_outage(outside: Outside) -> None:
    """Until the database is back; when the worker stops meanwhile, the events stay in the outbox."""
    outside.unmarked = [Unavailable("no database"), Retry("a conflict")]
    running = asyncio.create_task(outside.relay.run())
    outside.relay.offer(changes(0, 1), has_due_requests=False)
    await until(lambda: outside.marked)
    outside.unmarked = [Unavailable("no database")]
    outside.relay._context.stopping.set()
    outside.relay.offer(changes(1, 2), has_due_requests=False)
    await finish(outside, running)
    assert (outside.published, outside.marked) == ([[0], [1]], [[0]])


async def test_what_was_confirmed_leaves_the_outbox_in_parts(outside: Outside, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much that is after a slow stretch, a statement has no more than can be repeated within its time."""
    monkeypatch.setattr(relay, "MAX_MARKED", 1_500)
    outside.confirm.clear()
    outside.unmarked = [Unavailable("it took too long")]
    count = MAX_PUBLISHING * MAX_EVENTS_PER_ROUND
    outside.relay.offer(changes(0, count), has_due_requests=False)
    running = asyncio.create_task(outside.relay.run())
    await until(lambda: len(outside.published) == MAX_PUBLISHING)
    outside.confirm.set()
    await finish(outside, running)
    assert [len(part) for part in outside.marked] == [1_500, 1_500, count - 2 * 1_500]


async def test_the_outbox_is_read_until_nothing_more_can_leave_it(
    outside: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each interval; a failure is told, and the outbox read again soon."""
    monkeypatch.setattr(outside.relay, "_every", 0)
    outside.stale = [
        True, True, False, Unconfirmed("full"), Unavailable("no broker"), Retry("a conflict"), True, *[False] * 100
    ]  # fmt: skip
    running = asyncio.create_task(outside.relay.run())
    await until(lambda: len(outside.stale) < 100)
    await finish(outside, running)
    assert (outside.told_unconfirmed, outside.told) == (["full"], ["no broker", "a conflict"])
    assert outside.waits.after == [1, 2, 3]
    assert outside.stale


async def test_work_requests_are_sent_beside_the_changes(outside: Outside, monkeypatch: pytest.MonkeyPatch) -> None:
    """New ones from memory, and due ones from the database as soon as a change has brought some."""
    sent: list[Any] = []
    looked = asyncio.Event()

    async def send(_: WorkerContext, requests: Sequence[Any], __: datetime) -> None:
        sent.extend(requests)

    async def send_due(_: WorkerContext, __: datetime, ___: int) -> int:
        looked.set()
        return 0

    monkeypatch.setattr(work_requests, "send", send)
    monkeypatch.setattr(work_requests, "send_due", send_due)
    running = asyncio.create_task(outside.relay.run())
    request: Any = (object(), SimpleNamespace(prompt="Look into it"))
    outside.relay.send([request])
    await until(lambda: sent)
    outside.relay.offer(changes(0, 1), has_due_requests=False)
    await until(lambda: outside.marked)
    assert not looked.is_set()
    outside.relay.offer([], has_due_requests=True)
    await asyncio.wait_for(looked.wait(), 20)
    await finish(outside, running)
    assert (sent, outside.published) == ([request], [[0]])


async def test_how_much_waits_in_memory(outside: Outside) -> None:
    """20,000 changes, or 32 MiB of them, and one more if they are a byte less."""
    [change] = changes(0, 1)
    outside.relay.offer([change] * 20_001, has_due_requests=False)
    await finish(outside)
    assert sum(map(len, outside.published)) == 20_000


@pytest.mark.parametrize(("size", "kept"), [(1024 * 1024, 32), (1024 * 1024 - 1, 33)])
async def test_how_many_bytes_wait_in_memory(outside: Outside, size: int, kept: int) -> None:
    """Of documents and prompts."""
    [change] = changes(0, 1)
    document = "x" * (size - len(change.task.prompt))
    outside.relay.offer([replace(change, core_document=document)] * 40, has_due_requests=False)
    await finish(outside)
    assert sum(map(len, outside.published)) == kept


async def test_how_much_one_statement_removes_from_the_outbox(outside: Outside) -> None:
    """More might take longer than a statement may."""
    outside.relay._confirmed = [CONFIRMED] * 4_001
    await outside.relay._mark_once()
    assert [len(part) for part in outside.marked] == [4_000, 1]


async def test_an_event_that_waits_for_an_earlier_one_of_its_task_is_tried_again(outside: Outside) -> None:
    """With the next events, until the other worker has removed that one."""
    outside.waiting = {1}
    running = asyncio.create_task(outside.relay.run())
    outside.relay.offer(changes(0, 3), has_due_requests=False)
    await until(lambda: len(outside.marked) == 3)
    outside.relay.offer(changes(3, 4), has_due_requests=False)
    await until(lambda: outside.marked[-1] != [1])
    outside.waiting.clear()
    await until(lambda: not outside.relay._confirmed)
    await finish(outside, running)
    assert outside.marked[:3] == [[0, 1, 2], [1], [1]]
    assert (sorted(outside.marked[-1]), outside.published) in [([1], [[0, 1, 2], [3]]), ([1, 3], [[0, 1, 2], [3]])]
    assert sum(3 in each for each in outside.marked) == 1


async def test_what_waits_for_longer_than_three_seconds_is_left_to_the_outbox(outside: Outside) -> None:
    """It is published from there after the event that it waits for; so is what waits when the worker stops."""
    outside.waiting = {1}
    outside.now = NOON + relay.STALE_AFTER
    running = asyncio.create_task(outside.relay.run())
    outside.relay.offer(changes(1, 2), has_due_requests=False)
    await until(lambda: outside.marked)
    outside.now = NOON
    outside.relay.offer(changes(2, 3), has_due_requests=False)
    await until(lambda: len(outside.marked) == 2)
    outside.relay.offer(changes(1, 2), has_due_requests=False)
    await until(lambda: len(outside.marked) == 4)
    await finish(outside, running)
    assert outside.marked[:4] == [[1], [2], [1], [1]]
    assert outside.waiting == {1}


async def test_how_many_events_wait_for_earlier_ones(outside: Outside) -> None:
    """At most 20,000 are remembered."""
    outside.waiting = {0}
    outside.relay._confirmed = [CONFIRMED] * 20_001
    await outside.relay._mark_once()
    assert len(outside.relay._confirmed) == 20_000


def hold_removals(outside: Outside, monkeypatch: pytest.MonkeyPatch) -> tuple[asyncio.Event, asyncio.Event]:
    """Have removals from the outbox wait; return the event of the first one, and the one that lets them go on."""
    removing, removed = asyncio.Event(), asyncio.Event()

    async def mark_published(
        context: WorkerContext, events: Sequence[ConfirmedEvent], locked: LockedEvents
    ) -> list[ConfirmedEvent]:
        removing.set()
        await removed.wait()
        return await outside.mark_published(context, events, locked)

    monkeypatch.setattr(relay, "mark_published", mark_published)
    return removing, removed


async def test_how_many_confirmed_events_are_to_leave_the_outbox(
    outside: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most 100,000, while a statement waits: the oldest are published again from there."""
    assert relay.MAX_CONFIRMED == 100_000
    monkeypatch.setattr(relay, "MAX_CONFIRMED", 3)
    removing, removed = hold_removals(outside, monkeypatch)
    running = asyncio.create_task(outside.relay.run())
    outside.relay.offer(changes(0, 1), has_due_requests=False)
    await asyncio.wait_for(removing.wait(), 20)
    for number in range(1, 6):
        outside.relay.offer(changes(number, number + 1), has_due_requests=False)
        await until(lambda: len(outside.published) == number + 1)  # noqa: B023 - waits for this one
    with capture_logs() as logs:
        outside.relay.offer(changes(6, 7), has_due_requests=False)
        await until(lambda: logs)
    removed.set()
    await finish(outside, running)
    assert outside.marked == [[0], [4, 5, 6]]
    assert [(line["log_level"], line["dropped"]) for line in logs] == [("warning", 1)]


class Locks:
    """``LockedEvents``, as the release loop uses it: each look releases the next of these events, or fails."""

    def __init__(self, *looks: list[ConfirmedEvent] | Exception) -> None:
        self.looks = list(looks)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to look at."""
        return not self.looks

    async def release(self, _: WorkerContext) -> list[ConfirmedEvent]:
        """Return the events of tasks that are free again."""
        result = self.looks.pop(0)
        if isinstance(result, Exception):
            raise result
        return result


async def test_events_leave_the_outbox_when_their_locks_are_gone(
    outside: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looks that fail are told, and repeated."""
    monkeypatch.setattr(relay, "RECHECK_EVERY", 0)
    locks = Locks([], Unavailable("no database"), Retry("a conflict"), [CONFIRMED])
    monkeypatch.setattr(outside.relay, "_locked", locks)
    running = asyncio.create_task(outside.relay.run())
    await until(lambda: outside.marked)
    await finish(outside, running)
    assert outside.marked == [[0]]
    assert outside.told == ["no database", "a conflict"]


async def test_what_is_confirmed_while_the_last_events_are_removed_is_removed_too(
    outside: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The relay does not end before that, although nothing is left to publish."""
    removing, removed = hold_removals(outside, monkeypatch)
    running = asyncio.create_task(outside.relay.run())
    outside.relay.offer(changes(0, 1), has_due_requests=False)
    await asyncio.wait_for(removing.wait(), 20)
    outside.relay.offer(changes(1, 2), has_due_requests=False)
    await until(lambda: len(outside.published) == 2)
    asyncio.get_running_loop().call_later(0.05, removed.set)
    await finish(outside, running)
    assert outside.marked == [[0], [1]]


async def test_what_is_confirmed_in_a_moment_leaves_the_outbox_together(
    outside: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which saves commits."""
    passed, sleep = asyncio.Event(), asyncio.sleep

    async def sleep_for(seconds: float) -> None:
        await (passed.wait() if seconds == MOMENT else sleep(seconds))

    monkeypatch.setattr(relay, "MARK_AFTER", MOMENT)
    monkeypatch.setattr(asyncio, "sleep", sleep_for)
    running = asyncio.create_task(outside.relay.run())
    for number in range(2):
        outside.relay.offer(changes(number, number + 1), has_due_requests=False)
        await until(lambda: len(outside.published) > number)  # noqa: B023 - waits for this one
    assert outside.marked == []
    passed.set()
    await until(lambda: outside.marked)
    await finish(outside, running)
    assert outside.marked == [[0, 1]]


async def test_a_worker_that_stops_does_not_wait_for_more_confirms(
    outside: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is confirmed leaves the outbox at once."""
    monkeypatch.setattr(relay, "MARK_AFTER", 3_600)
    outside.relay.offer(changes(0, 1), has_due_requests=False)
    await finish(outside)
    assert outside.marked == [[0]]
