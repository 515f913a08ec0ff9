"""Which commands are executed together, and what becomes of them; without a broker and a database."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, cast
from uuid import UUID

import pytest

from taskherd.broker.delivery import Delivery
from taskherd.broker.publisher import OutgoingMessage, PublishOutcome
from taskherd.broker.topology import TopologyNames
from taskherd.domain.command_results import CommandRefused
from taskherd.errors import Unavailable
from taskherd.messages.events import EventKind
from taskherd.observability.failpoints import Failpoint
from taskherd.observability.metrics import Metrics
from taskherd.observability.tracing import Tracing
from taskherd.store.engine import DataError
from taskherd.worker import command_consumer
from taskherd.worker.batch import Batch, BatchResult, CommandReply, CommittedChange
from taskherd.worker.command_consumer import CommandConsumer
from taskherd.worker.command_order import MAX_OF_ACTOR
from taskherd.worker.context import WorkerContext
from taskherd.worker.rates import Rates
from taskherd.worker.relay import Relay
from tests.harness.buffers import REPLY_TO, Buffer, Message, until
from tests.harness.contexts import partial_context
from tests.harness.histories import NOON
from tests.harness.tasks import make_task

ALICE, BOB = UUID(int=1), UUID(int=2)


def pause(number: int, actor: UUID = ALICE, **properties: Any) -> Message:
    """Return a delivery of a pause with this number as command and task id."""
    return command(number, "task.pause", actor, **properties)


def command(
    number: int, kind: str, actor: UUID = ALICE, fields: Mapping[str, str] | None = None, **properties: Any
) -> Message:
    """Return a delivery of a command with this number as command and task id."""
    body = {"type": kind, "command_id": str(UUID(int=number)), "task_id": str(UUID(int=number)), **(fields or {})}
    return Message(json.dumps({**body, "actor_id": str(actor)}).encode(), number, **properties)


class Outside:
    """The broker and the database around a consumer of commands; what is executed waits for ``commit``."""

    def __init__(self, *, trusted: Sequence[str] = ()) -> None:
        self.buffer, self.metrics = Buffer(), Metrics()
        self.commit = asyncio.Event()
        self.commit.set()
        self.batches: list[list[int]] = []
        self.refused: set[int] = set()
        self.failing: dict[int, Exception] = {}
        self.changes: list[CommittedChange] = []
        self.started: list[Any] = []
        self.replies: dict[str | None, dict[str, Any]] = {}
        self.letters: list[OutgoingMessage] = []
        self.failpoints: list[Failpoint] = []
        self.sent: list[Sequence[Any]] = []
        self.offered: list[tuple[list[CommittedChange], bool, str | None]] = []
        self.done_before: list[int] = []
        context = partial_context(
            metrics=self.metrics, tracing=Tracing(), stopping=asyncio.Event(), now=lambda: NOON, replies=self,
            names=TopologyNames("test"), command_senders=frozenset(trusted), failpoint=self.failpoints.append,
            dead_publisher=self, rates=Rates(), on_error=lambda _: None, on_unconfirmed=lambda _: None,
        )  # fmt: skip
        self.context = context
        self.consumer = CommandConsumer(self.buffer, context, cast("Relay", _Relay(self)))

    async def reconcile(self, context: WorkerContext, batch: Batch, now: datetime) -> BatchResult:
        """Execute commands."""
        assert (context, now) == (self.context, NOON)
        numbers = [each.task_id.int for each in batch.commands]
        self.batches.append(numbers)
        await self.commit.wait()
        for number in numbers:
            if number in self.failing:
                raise self.failing[number]
        result = BatchResult(NOON, [], changes=self.changes, has_due_requests=True, started_requests=self.started)
        for number in numbers:
            refusal = CommandRefused(409, "It is too late.") if number in self.refused else None
            result.replies.append(CommandReply(json.dumps({"number": number}).encode(), refusal))
        return result

    def offer(self, message: OutgoingMessage) -> None:
        """Send a reply."""
        assert (message.exchange, message.routing_key) == ("", REPLY_TO)
        self.replies[message.correlation_id] = json.loads(message.body)

    async def publish_many(self, messages: Sequence[OutgoingMessage]) -> list[PublishOutcome]:
        """Publish dead letters."""
        self.letters += messages
        return [PublishOutcome.CONFIRMED] * len(messages)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Consume during the block and until everything is executed."""
        running = asyncio.create_task(self.consumer.run())
        try:
            yield
        finally:
            self.commit.set()
            self.buffer.stopped = True
            self.buffer.changed.set()
            await asyncio.wait_for(running, 20)

    async def execute(self, *deliveries: Delivery) -> None:
        """Consume these messages."""
        self.buffer.put(*deliveries)
        async with self.running():
            await until(lambda: not self.buffer.deliveries)

    def count(self, kind: str, outcome: str) -> float:
        """Return the number of commands of a type with this outcome."""
        labels = {"type": kind, "outcome": outcome}
        return self.metrics.registry.get_sample_value("taskherd_commands_total", labels) or 0


class _Relay:
    def __init__(self, outside: Outside) -> None:
        self._outside = outside

    def send(self, requests: Sequence[Any]) -> None:
        self._outside.sent.append(requests)
        self._outside.done_before.append(len(self._outside.replies))

    def offer(self, changes: Sequence[CommittedChange], *, has_due_requests: bool) -> None:
        trace = self._outside.context.tracing.current().get("traceparent")
        self._outside.offered.append((list(changes), has_due_requests, trace))


class Clock:
    """The time of the event loop, which stands still."""

    def __init__(self) -> None:
        self.time = float(int(asyncio.get_running_loop().time()))

    def __call__(self) -> float:
        """Return the time."""
        return self.time


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Return the clock of the event loop, which stands still from now on."""
    clock = Clock()
    monkeypatch.setattr(asyncio.get_running_loop(), "time", clock)
    return clock


@pytest.fixture
async def outside(monkeypatch: pytest.MonkeyPatch) -> Outside:
    """Return what is around a consumer of commands of any sender."""
    return _installed(Outside(), monkeypatch)


@pytest.fixture
async def trusting(monkeypatch: pytest.MonkeyPatch) -> Outside:
    """Return what is around a consumer of commands that only ``api`` may send."""
    return _installed(Outside(trusted=["api"]), monkeypatch)


def _installed(outside: Outside, monkeypatch: pytest.MonkeyPatch) -> Outside:
    monkeypatch.setattr(command_consumer, "reconcile", outside.reconcile)
    return outside


async def test_up_to_200_commands_of_an_actor_are_executed_together(outside: Outside) -> None:
    """Two batches at a time; each command is answered and acknowledged once."""
    outside.commit.clear()
    outside.buffer.put(*map(pause, range(450)))
    async with outside.running():
        await until(lambda: len(outside.batches) == 2)
        assert [len(batch) for batch in outside.batches] == [200, 200]
        outside.commit.set()
        await until(lambda: len(outside.batches) == 3)
    assert [number for batch in outside.batches for number in batch] == list(range(450))
    assert sorted(outside.buffer.acked) == list(range(450))
    assert outside.replies == {str(number): {"number": number} for number in range(450)}
    assert outside.count("task.pause", "accepted") == 450
    assert set(outside.buffer.asked) == {(2_000, 0)}


async def test_what_comes_while_others_wait_takes_its_turn(outside: Outside) -> None:
    """Bob's command is in the next batch, although hundreds of Alice's came before."""
    outside.commit.clear()
    outside.buffer.put(*map(pause, range(700)))
    async with outside.running():
        await until(lambda: len(outside.batches) == 2)
        outside.buffer.put(pause(1_000, BOB))
        await until(lambda: True)
        outside.commit.set()
        await until(lambda: len(outside.batches) > 2)
        assert 1_000 in outside.batches[2]


@pytest.mark.parametrize(("passed", "size"), [(0.0, MAX_OF_ACTOR), (0.49, MAX_OF_ACTOR), (0.5, 100)])
async def test_batches_are_small_for_a_while_after_a_command_of_another(
    outside: Outside, clock: Clock, passed: float, size: int
) -> None:
    """Those of an actor who has many have a few of them for half a second, and then as many as come."""
    async with outside.running():
        outside.buffer.put(pause(0, ALICE))
        await until(lambda: len(outside.replies) == 1)
        outside.buffer.put(pause(1, BOB))
        await until(lambda: len(outside.replies) == 2)
        clock.time += 0.5
        outside.buffer.put(pause(2, ALICE))
        await until(lambda: len(outside.replies) == 3)
        clock.time += passed
        before = len(outside.batches)
        outside.buffer.put(*map(pause, range(100, 200)))
        await until(lambda: len(outside.replies) == 103)
        assert len(outside.batches[before]) == size


async def test_callers_who_have_their_replies_are_waited_for(outside: Outside, clock: Clock) -> None:
    """As many as were executed together, for as long as they need to send their next commands."""
    began = clock.time
    async with outside.running():
        outside.buffer.put(*map(pause, range(3)))
        await until(lambda: len(outside.replies) == 3)
        outside.buffer.put(pause(3))
        await until(lambda: len(outside.replies) == 4)
    count, seconds = outside.buffer.waits[1]
    assert (count, clock.time) == (2, began)
    assert seconds == pytest.approx(0.02)


async def test_a_small_batch_waits_a_moment_to_grow(outside: Outside, clock: Clock) -> None:
    """Beside a larger one, for a fiftieth of a second."""
    outside.commit.clear()
    outside.buffer.put(*map(pause, range(20)))
    async with outside.running():
        await until(lambda: outside.batches)
        for number, passed in ((20, 0.0), (21, 0.019)):
            clock.time += passed
            outside.buffer.put(pause(number))
            await until(lambda: True)
            assert len(outside.batches) == 1
        clock.time += 0.001
        await until(lambda: len(outside.batches) == 2)
        assert outside.batches[1] == [20, 21]


async def test_a_small_batch_waits_for_nothing_if_several_actors_send_commands(outside: Outside, clock: Clock) -> None:
    """Each of them would wait for the others."""
    began = clock.time
    outside.commit.clear()
    outside.buffer.put(pause(1, BOB), *map(pause, range(2, 18)))
    async with outside.running():
        await until(lambda: outside.batches)
        outside.buffer.put(pause(20, BOB))
        await until(lambda: len(outside.batches) == 2)
    assert clock.time == began


async def test_a_message_that_is_invalid_ends_nothing(outside: Outside) -> None:
    """It is answered, counted and dead-lettered, and what follows is executed."""
    async with outside.running():
        outside.buffer.put(Message(b"nonsense", 7))
        await until(lambda: outside.letters)
        outside.buffer.put(pause(8))
        await until(lambda: len(outside.replies) == 2)
    assert outside.replies["7"]["error"]["detail"].startswith("not_json: ")
    assert outside.replies["8"] == {"number": 8}
    assert (outside.count("unknown", "invalid"), sorted(outside.buffer.acked)) == (1, [7, 8])
    assert [letter.body for letter in outside.letters] == [b"nonsense"]
    assert outside.batches == [[8]]


async def test_only_commands_of_trusted_senders_are_executed(trusting: Outside) -> None:
    """Of one without a sender and one of another sender neither is, and each is counted once."""
    await trusting.execute(pause(1), pause(2, sender="runner"), pause(3, sender="api"))
    assert (trusting.batches, trusting.replies["3"]) == ([[3]], {"number": 3})
    assert trusting.count("unknown", "invalid") == 2
    details = [str((letter.headers or {})["x-taskherd-detail"]) for letter in trusting.letters]
    assert ["'runner'" in detail for detail in details] == [False, True]
    assert all("TASKHERD_COMMAND_SENDERS" in detail for detail in details)
    assert sorted(trusting.buffer.acked) == [1, 2, 3]


async def test_a_command_that_fails_is_rejected_alone(outside: Outside) -> None:
    """As a value that the database rejects, or as a fault; its dead letter has its body."""
    outside.failing = {2: DataError("no value"), 4: ValueError("a bug")}
    await outside.execute(*map(pause, range(1, 6)))
    reasons = {letter.body: (letter.headers or {})["x-taskherd-reason"] for letter in outside.letters}
    assert reasons == {pause(2).body: "data_error", pause(4).body: "fault"}
    assert {(letter.headers or {})["x-taskherd-detail"] for letter in outside.letters} == {
        "The command could not be processed."
    }
    assert [outside.replies[str(number)].get("number") for number in range(1, 6)] == [1, None, 3, None, 5]
    assert {outside.replies[number]["error"]["status"] for number in "24"} == {400}
    assert sorted(outside.buffer.acked) == [1, 2, 3, 4, 5]


async def test_what_is_refused_is_a_dead_letter_if_nobody_is_told(outside: Outside) -> None:
    """One with a reply is none."""
    outside.refused = {1, 2}
    await outside.execute(pause(1), pause(2, reply_to=""), pause(3, reply_to=""))
    assert set(outside.replies) == {"1"}
    (letter,) = outside.letters
    headers = letter.headers or {}
    assert (letter.body, headers["x-taskherd-reason"]) == (pause(2).body, "command_refused")
    assert headers["x-taskherd-detail"] == "409 It is too late."
    assert "x-taskherd-index" not in headers
    assert (outside.count("task.pause", "refused"), outside.count("task.pause", "accepted")) == (2, 1)
    assert sorted(outside.buffer.acked) == [1, 2, 3]


async def test_commands_that_a_worker_which_stops_cannot_execute_are_left(outside: Outside) -> None:
    """They are neither answered nor acknowledged, so the broker delivers them to another worker."""
    outside.failing = {2: Unavailable("no database")}
    outside.context.stopping.set()
    await outside.execute(pause(2))
    assert (outside.replies, outside.buffer.acked, outside.letters) == ({}, [], [])


async def test_each_change_is_published_in_the_trace_of_its_command(outside: Outside) -> None:
    """Executed alone or with others; due work requests are looked for once, new ones sent from memory."""
    traces = [f"00-{number:032x}-{number:016x}-01" for number in (1, 2)]
    changes = [CommittedChange(make_task(UUID(int=number)), EventKind.UPDATED, "{}", (), "{}") for number in (1, 2)]
    commands = [pause(number, trace=trace) for number, trace in enumerate(traces, start=1)]
    outside.started, outside.changes = ["a new request"], changes[:1]
    await outside.execute(commands[0])
    assert (outside.offered, outside.sent) == ([(changes[:1], True, traces[0])], [["a new request"]])
    outside.offered.clear()
    outside.changes, outside.buffer.stopped = changes, False
    await outside.execute(*commands)
    assert outside.offered == [([changes[0]], False, traces[0]), ([changes[1]], False, traces[1]), ([], True, None)]
    assert outside.sent == [["a new request"]] * 2


async def test_replies_come_before_what_is_to_be_published(outside: Outside) -> None:
    """Somebody waits for those. The changes and the work requests of a batch wait for no ack and no dead letter."""
    outside.refused = {3}
    outside.buffer.acks_allowed.clear()
    outside.buffer.put(pause(0), pause(1), pause(2), pause(3, reply_to=""))
    async with outside.running():
        await until(lambda: len(outside.offered) > 0)
        assert (outside.done_before, outside.buffer.acked) == ([3], [])
        outside.buffer.acks_allowed.set()


async def test_the_failpoints_of_a_kind_are_reached_by_a_batch_with_one(outside: Outside) -> None:
    """Those of answers and interrupts also if other commands are executed with them, and by no other batch."""
    answer = command(1, "task.answer", fields={"request_id": str(UUID(int=5)), "text": "core"})
    await outside.execute(pause(2))
    assert outside.failpoints == [Failpoint.COMMAND_COMMITTED]
    outside.failpoints.clear()
    outside.buffer.stopped = False
    await outside.execute(pause(3), answer, command(4, "task.interrupt"), pause(6))
    assert outside.failpoints == [
        Failpoint.COMMAND_COMMITTED, Failpoint.ANSWER_COMMITTED, Failpoint.INTERRUPT_COMMITTED
    ]  # fmt: skip
