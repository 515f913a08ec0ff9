"""How messages of runners are taken, decided and answered; without a broker and a database."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, cast
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from taskherd.broker.publisher import OutgoingMessage, PublishOutcome
from taskherd.broker.topology import TopologyNames
from taskherd.domain.claims import ClaimDecision, ClaimOutcome, Ownership
from taskherd.domain.outcome import DeadLetterReason
from taskherd.errors import Unavailable
from taskherd.messages.claims import OwnershipQuery, RunnerHello
from taskherd.observability.metrics import Metrics
from taskherd.observability.tracing import Tracing
from taskherd.store.engine import DataError
from taskherd.worker import claim_consumer
from taskherd.worker.batch import Batch, BatchResult
from taskherd.worker.claim_consumer import ClaimConsumer
from taskherd.worker.context import WorkerContext
from taskherd.worker.rates import Rates
from taskherd.worker.relay import Relay
from taskherd.worker.sender_pools import Pools, SenderPools
from taskherd.worker.work_queues import WorkQueues
from tests.harness.buffers import REPLY_TO, Buffer, Message, until
from tests.harness.contexts import partial_context
from tests.harness.histories import NOON

GRANTED = ClaimDecision(ClaimOutcome.GRANTED)


def message(tag: int, kind: str, **fields: Any) -> Message:
    """Return a delivery of a message of the runner r1."""
    properties = {name: fields.pop(name) for name in ("reply_to", "sender") if name in fields}
    return Message(json.dumps({"type": kind, "runner": "r1", **fields}).encode(), tag, **properties)


def claim(tag: int, **properties: Any) -> Message:
    """Return a claim of the first build of the task with this number."""
    return message(tag, "build.claim", task_id=str(UUID(int=tag)), build_number=1, **properties)


def query(tag: int, *others: int) -> Message:
    """Return a question about the task with this number, and others."""
    return message(tag, "task.owned", task_ids=[str(UUID(int=number)) for number in (tag, *others)])


def hello(tag: int, pool: str = "gpu", **properties: Any) -> Message:
    """Return the hello of a runner of its own."""
    return message(tag, "runner.hello", **{"runner": f"r{tag}", "pool": pool, **properties})


class Outside:
    """The broker and the database around a consumer of claims."""

    def __init__(self, pools: Mapping[str, Pools]) -> None:
        self.buffer, self.metrics, self.stopping = Buffer(), Metrics(), asyncio.Event()
        self.batches: list[tuple[list[int], list[Pools]]] = []
        self.questions: list[list[int]] = []
        self.hellos: list[tuple[list[str], list[Pools]]] = []
        self.refusals: dict[str, str] = {}
        self.failing: dict[int, Exception] = {}
        self.damaged: set[int] = set()
        self.decisions: dict[int, ClaimDecision | DeadLetterReason] = {}
        self.unavailable: list[Exception] = []
        self.replies: dict[str | None, dict[str, Any]] = {}
        self.letters: list[OutgoingMessage] = []
        self.offered: list[tuple[Sequence[Any], bool]] = []
        context = partial_context(
            engine="engine", metrics=self.metrics, tracing=Tracing(), stopping=self.stopping, now=lambda: NOON,
            replies=self, names=TopologyNames("test"), failpoint=lambda _: None, dead_publisher=self, rates=Rates(),
            on_error=lambda _: None, on_unconfirmed=lambda _: None, senders=SenderPools(pools),
        )  # fmt: skip
        self.consumer = ClaimConsumer(self.buffer, context, cast("Relay", _Relay(self)), cast("WorkQueues", self))

    async def reconcile(self, _: WorkerContext, batch: Batch, now: datetime) -> BatchResult:
        """Decide claims."""
        assert now == NOON
        numbers = [each.task_id.int for each in batch.claims]
        self.batches.append((numbers, list(batch.claim_pools)))
        for number in numbers:
            if number in self.failing:
                raise self.failing[number]
        decisions = [self.decisions.get(number, GRANTED) for number in numbers]
        return BatchResult(NOON, [], decisions, changes=["a change"], has_due_requests=True)  # type: ignore[list-item]

    async def load_ownership(self, _: object, queries: Sequence[OwnershipQuery]) -> list[dict[UUID, Ownership | None]]:
        """Answer questions."""
        self.questions.append([each.task_ids[0].int for each in queries])
        for number in self.questions[-1]:
            if number in self.failing:
                raise self.failing[number]
        return [
            {task_id: Ownership.OWNED for task_id in each.task_ids if task_id.int not in self.damaged}
            for each in queries
        ]

    async def register(self, hellos: Sequence[RunnerHello], now: datetime, pools: Sequence[Pools]) -> list[str | None]:
        """Register runners."""
        assert now == NOON
        if self.unavailable:
            raise self.unavailable.pop(0)
        self.hellos.append(([each.runner for each in hellos], list(pools)))
        return [self.refusals.get(each.runner) for each in hellos]

    def offer(self, message: OutgoingMessage) -> None:
        """Send a reply."""
        assert (message.exchange, message.routing_key) == ("", REPLY_TO)
        self.replies[message.correlation_id] = json.loads(message.body)

    async def publish_many(self, messages: Sequence[OutgoingMessage]) -> list[PublishOutcome]:
        """Publish dead letters."""
        self.letters += messages
        return [PublishOutcome.CONFIRMED] * len(messages)

    async def handle(self, *deliveries: Message) -> None:
        """Consume these messages until all are handled."""
        self.buffer.put(*deliveries)
        running = asyncio.create_task(self.consumer.run())
        await until(lambda: not self.buffer.deliveries)
        self.buffer.stopped = True
        self.buffer.changed.set()
        await asyncio.wait_for(running, 20)
        self.buffer.stopped = False

    def count(self, kind: str, outcome: str) -> float:
        """Return the number of messages of a type with this outcome."""
        labels = {"type": kind, "outcome": outcome}
        return self.metrics.registry.get_sample_value("taskherd_claims_total", labels) or 0

    def rejected(self) -> dict[bytes, tuple[str, str]]:
        """Return the reason and detail of each dead letter, by its body."""
        letters = ((letter.body, letter.headers or {}) for letter in self.letters)
        return {
            body: (str(headers["x-taskherd-reason"]), str(headers["x-taskherd-detail"])) for body, headers in letters
        }


class _Relay:
    def __init__(self, outside: Outside) -> None:
        self._outside = outside

    def offer(self, changes: Sequence[Any], *, has_due_requests: bool) -> None:
        self._outside.offered.append((changes, has_due_requests))


@asynccontextmanager
async def _no_transaction(engine: object) -> AsyncIterator[None]:
    assert engine == "engine"
    yield


def installed(outside: Outside, monkeypatch: pytest.MonkeyPatch) -> Outside:
    """Let consumers of claims use what is around them here."""
    monkeypatch.setattr(claim_consumer, "reconcile", outside.reconcile)
    monkeypatch.setattr(claim_consumer, "load_ownership", outside.load_ownership)
    monkeypatch.setattr(claim_consumer, "transaction", _no_transaction)
    return outside


@pytest.fixture
async def outside(monkeypatch: pytest.MonkeyPatch) -> Outside:
    """Return what is around a consumer of claims of any sender."""
    return installed(Outside({}), monkeypatch)


@pytest.fixture
async def restricted(monkeypatch: pytest.MonkeyPatch) -> Outside:
    """Return what is around a consumer of claims, of which one sender may speak of one pool, and one of all."""
    return installed(Outside({"of-gpu": frozenset({"gpu"}), "any": None}), monkeypatch)


async def test_messages_are_taken_and_decided_together(outside: Outside) -> None:
    """Up to 500 claims in a transaction, five questions, and a hundred hellos; each is answered once."""
    await outside.handle(*map(claim, range(600)))
    assert [len(numbers) for numbers, _ in outside.batches] == [500, 100]
    assert outside.offered == [(["a change"], True)] * 2
    await outside.handle(*map(query, range(600, 611)))
    assert [len(numbers) for numbers in outside.questions] == [5, 5, 1]
    await outside.handle(*map(hello, range(700, 901)))
    assert [len(runners) for runners, _ in outside.hellos] == [100, 100, 1]
    assert outside.replies["0"] == outside.replies["599"] == {"granted": True}
    assert outside.replies["610"] == {"tasks": {str(UUID(int=610)): "owned"}}
    assert outside.replies["900"] == {"ok": True}
    assert len(outside.replies) == 600 + 11 + 201
    assert sorted(outside.buffer.acked) == [*range(611), *range(700, 901)]
    assert outside.count("build.claim", "granted") == 600
    assert (outside.count("task.owned", "answered"), outside.count("runner.hello", "accepted")) == (11, 201)
    assert set(outside.buffer.asked) == {(500, 0)}
    assert outside.letters == []


async def test_claims_that_cannot_be_decided_are_dead_letters(outside: Outside) -> None:
    """One that fails is found, one may not be decided by its sender; they are answered with an error."""
    outside.failing = {2: DataError("no value"), 3: ValueError("a bug")}
    outside.decisions = {4: DeadLetterReason.UNTRUSTED_SENDER, 5: ClaimDecision(ClaimOutcome.TAKEN, "r2")}
    claims = [claim(number) for number in range(1, 6)]
    await outside.handle(*claims, Message(b"nonsense", 6))
    assert outside.replies["1"] == {"granted": True}
    assert outside.replies["5"] == {"granted": False, "by": "r2"}
    assert {outside.replies[number]["error"]["status"] for number in "236"} == {400}
    rejected = outside.rejected()
    assert set(rejected) == {*(each.body for each in claims[1:4]), b"nonsense"}
    unprocessed = "The claim could not be processed."
    assert rejected[claims[1].body] == ("data_error", unprocessed)
    assert rejected[claims[2].body] == ("fault", unprocessed)
    assert rejected[claims[3].body][0] == "untrusted_sender"
    assert rejected[claims[3].body][1] != unprocessed
    assert rejected[b"nonsense"][0] == "not_json"
    assert (outside.count("unknown", "invalid"), outside.count("build.claim", "taken")) == (4, 1)
    assert sorted(outside.buffer.acked) == list(range(1, 7))


async def test_questions_that_cannot_be_answered_are_dead_letters(outside: Outside) -> None:
    """They cost no other its answer; whoever asked learns that there is none."""
    outside.failing = {2: DataError("no value"), 4: KeyError("a bug")}
    queries = [query(number) for number in range(1, 8)]
    await outside.handle(*queries)
    assert outside.questions == [[1, 2, 3, 4, 5], [1], [2], [3], [4], [5], [6, 7]]
    assert outside.replies["1"] == {"tasks": {str(UUID(int=1)): "owned"}}
    assert {outside.replies[number]["error"]["status"] for number in "24"} == {400}
    unanswered = "The question whose tasks these are could not be answered."
    assert outside.rejected() == {
        queries[1].body: ("data_error", unanswered), queries[3].body: ("fault", unanswered)
    }  # fmt: skip
    assert (outside.count("task.owned", "answered"), outside.count("unknown", "invalid")) == (5, 2)
    assert sorted(outside.buffer.acked) == list(range(1, 8))


async def test_damaged_tasks_are_logged(outside: Outside) -> None:
    """An answer leaves them out; the first of them are named."""
    outside.damaged = set(range(2, 9))
    with capture_logs() as logged:
        await outside.handle(query(1), query(2, 1, *range(3, 9)))
    assert outside.replies == {
        "1": {"tasks": {str(UUID(int=1)): "owned"}}, "2": {"tasks": {str(UUID(int=1)): "owned"}}
    }  # fmt: skip
    [line] = logged
    assert (line["runner"], line["count"]) == ("r1", 7)
    assert line["first"] == [str(UUID(int=number)) for number in range(2, 7)]


async def test_a_refused_hello_is_answered_or_a_dead_letter(outside: Outside) -> None:
    """Whoever waits for the reply learns why; those beside it are accepted."""
    outside.refusals = {"r1": "The name is taken.", "r2": "The pool is full."}
    unanswered = hello(2, reply_to="")
    await outside.handle(hello(1), unanswered, hello(3))
    assert outside.replies == {
        "1": {"ok": False, "error": {"status": 409, "message": "The name is taken."}}, "3": {"ok": True}
    }  # fmt: skip
    assert outside.rejected() == {unanswered.body: ("command_refused", "The pool is full.")}
    assert (outside.count("runner.hello", "refused"), outside.count("runner.hello", "accepted")) == (2, 1)
    assert sorted(outside.buffer.acked) == [1, 2, 3]


async def test_senders_speak_of_their_own_pools(restricted: Outside) -> None:
    """A claim is decided with the pools of its sender, a hello of another pool refused, and so is all of a stranger."""
    foreign = hello(6, "arm", sender="of-gpu")
    strangers = [claim(7, sender="nobody"), claim(8)]
    await restricted.handle(
        claim(1, sender="of-gpu"), claim(2, sender="any"), hello(4, sender="of-gpu"), hello(5, "arm", sender="any"),
        foreign, *strangers,
    )  # fmt: skip
    assert restricted.batches == [([1, 2], [frozenset({"gpu"}), None])]
    assert restricted.hellos == [(["r4", "r5"], [frozenset({"gpu"}), None])]
    rejected = restricted.rejected()
    assert set(rejected) == {foreign.body, *(each.body for each in strangers)}
    assert {reason for reason, _ in rejected.values()} == {"untrusted_sender"}
    assert "TASKHERD_REPORT_SENDERS" in rejected[strangers[0].body][1]
    assert sorted(restricted.buffer.acked) == [1, 2, 4, 5, 6, 7, 8]


async def test_what_is_not_restricted_has_no_pools(outside: Outside) -> None:
    """Then no sender is asked for."""
    await outside.handle(claim(1), hello(2))
    assert (outside.batches, outside.hellos) == ([([1], [])], [(["r2"], [])])


async def test_what_a_worker_that_stops_cannot_answer_is_left(outside: Outside) -> None:
    """Neither claims nor hellos are acknowledged, so the broker delivers them to another worker."""
    outside.stopping.set()
    outside.failing = {1: Unavailable("no database")}
    outside.unavailable = [Unavailable("no broker")]
    await outside.handle(claim(1), hello(2))
    assert (outside.replies, outside.buffer.acked, outside.letters) == ({}, [], [])
    await outside.handle(claim(3), hello(4))
    assert sorted(outside.buffer.acked) == [3, 4]


async def test_a_hello_holds_up_no_claim(outside: Outside, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its queues may take long to declare; those that come meanwhile are registered together."""
    declared = asyncio.Event()
    register = outside.register

    async def slow(*arguments: Any) -> list[str | None]:
        await declared.wait()
        return await register(*arguments)

    monkeypatch.setattr(outside, "register", slow)
    running = asyncio.create_task(outside.consumer.run())
    for tag in range(1, 4):
        outside.buffer.put(hello(tag))
        await until(lambda: not outside.buffer.deliveries)
    outside.buffer.put(claim(9))
    await until(lambda: "9" in outside.replies)
    declared.set()
    await until(lambda: len(outside.replies) == 4)
    assert [runners for runners, _ in outside.hellos] == [["r1"], ["r2", "r3"]]
    outside.buffer.stopped = True
    outside.buffer.changed.set()
    await asyncio.wait_for(running, 20)


async def test_runners_are_registered_one_after_the_other(outside: Outside) -> None:
    """Also one that says hello when all before it were answered."""
    running = asyncio.create_task(outside.consumer.run())
    for tag in range(1, 4):
        outside.buffer.put(hello(tag))
        await until(lambda: str(tag) in outside.replies)  # noqa: B023 - waits for this one
    outside.buffer.stopped = True
    outside.buffer.changed.set()
    await asyncio.wait_for(running, 20)
    assert [runners for runners, _ in outside.hellos] == [["r1"], ["r2"], ["r3"]]
