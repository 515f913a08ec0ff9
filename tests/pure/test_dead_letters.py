"""Dead letters without a broker: what cannot be sent again, what is not confirmed, and their order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from functools import partial
from typing import Any

import pytest
from aiormq.abc import DeliveredMessage
from aiormq.exceptions import ChannelAccessRefused, ChannelNotFoundEntity
from pamqp.commands import Basic
from pamqp.encode import field_table
from pamqp.header import ContentHeader

from taskherd.broker import dead_letters
from taskherd.broker.dead_letters import MayNotRead, QueuedMessage, ReplayTarget, build_dead_letter
from taskherd.broker.publisher import OutgoingMessage, PublishOutcome
from taskherd.broker.reply_queues import DIRECT
from taskherd.broker.topology import TopologyNames
from taskherd.errors import Unavailable

NAMES = TopologyNames("p")
CONFIRMED, UNROUTED = PublishOutcome.CONFIRMED, PublishOutcome.UNROUTED


def test_a_dead_letter_has_what_the_message_had() -> None:
    """Its own headers are preferred to those of the producer; without a queue it comes back."""
    message = build_dead_letter(
        NAMES, "key", b"body", {"reason": "invalid"}, producer_headers={"reason": "none", "mine": 1},
        content_type="text/plain", reply_to="replies", correlation_id="7",
    )  # fmt: skip
    assert message == OutgoingMessage(
        "p.dead", "key", b"body", "text/plain", {"reason": "invalid", "mine": 1}, mandatory=True,
        reply_to="replies", correlation_id="7",
    )  # fmt: skip
    plain = build_dead_letter(NAMES, "key", b"body", {})
    assert plain == OutgoingMessage("p.dead", "key", b"body", "application/json", {}, mandatory=True)


@pytest.mark.parametrize(
    ("routing_key", "kept"),
    [("k" * 255, True), ("k" * 256, False), ("ä" * 127, True), ("ä" * 128, False), ("\ud800" * 255, True)],
)
def test_a_routing_key_that_cannot_be_sent_is_left_out(routing_key: str, *, kept: bool) -> None:
    """It may have 255 bytes."""
    assert build_dead_letter(NAMES, routing_key, b"", {}).routing_key == (routing_key if kept else "")


def nested(levels: int) -> object:
    """Return lists and tables of so many levels."""
    value: object = "x"
    for level in range(levels):
        value = [1, value] if level % 2 else {"a": value, "b": None}
    return value


def test_headers_that_cannot_be_sent_are_left_out() -> None:
    """They may have 32 KiB and 16 levels of lists and tables, and nothing that AMQP does not know."""
    rest = len(field_table({"h": ""}))
    for headers, kept in (
        ({"h": "x" * (32 * 1024 - rest)}, True),
        ({"h": "x" * (32 * 1024 - rest + 1)}, False),
        ({"h": object()}, False),
        ({"h": 2**64}, False),
        ({"h": "\ud800"}, False),
        ({"h": Decimal("1E-9999999")}, False),
        ({"flat": 1, "deep": nested(16)}, True),
        ({"flat": 1, "deep": nested(17)}, False),
        ({"flat": 1, "deep": nested(100_000)}, False),
    ):
        message = build_dead_letter(NAMES, "key", b"", {"own": 1}, producer_headers=headers)
        assert message.headers == ({**headers, "own": 1} if kept else {"own": 1})


def test_a_dead_letter_has_nothing_that_the_broker_refuses() -> None:
    """An AMQP 1.0 client may send what closes our channel: direct replies, and a ``CC`` that is no list."""
    for refused in ("text", 1, None, {"a": "b"}):
        headers = {"CC": refused, "BCC": refused, "mine": 1}
        letter = build_dead_letter(NAMES, "k", b"x", {}, producer_headers=headers, reply_to=DIRECT)
        assert (letter.reply_to, letter.headers) == (None, {"mine": 1})
    kept = {"CC": ["a", 1], "BCC": [], "cc": "text"}
    for queue in ("replies", f"{DIRECT}.pid.key"):
        letter = build_dead_letter(NAMES, "k", b"x", {}, producer_headers=kept, reply_to=queue)
        assert (letter.reply_to, letter.headers) == (queue, kept)


class Broker:
    """A queue of dead letters, and a publisher whose messages become what a test says."""

    def __init__(self, *bodies: bytes, redelivered: bool = False) -> None:
        self.queue = list(bodies)
        self.gets = 0
        self.redelivered = redelivered
        self.failure: Exception | None = None
        self.reply_to: str | None = None
        self.acked: list[int] = []
        self.taken: list[bytes] = []
        self.published: list[dict[str, Any]] = []
        self.outcomes: list[Any] = []

    @asynccontextmanager
    async def temporary_channel(self) -> AsyncIterator[Broker]:
        """Return itself."""
        yield self

    async def basic_get(self, queue: str, *, timeout: float) -> DeliveredMessage:  # noqa: ASYNC109 - as aiormq has it
        """Take a message."""
        assert (queue, timeout) == ("p.dead", 5)
        self.gets += 1
        if self.failure is not None:
            raise self.failure
        delivery: Any = Basic.GetEmpty()
        body = b""
        if self.queue:
            body = self.queue.pop(0)
            self.taken.append(body)
            delivery = Basic.GetOk(len(self.taken), self.redelivered, "e", "k", len(self.queue))
        header = ContentHeader(properties=Basic.Properties("text/plain", reply_to=self.reply_to, correlation_id="7"))
        return DeliveredMessage(delivery, header, body, self)  # type: ignore[arg-type]

    async def basic_ack(self, tag: int) -> None:
        """Note it."""
        self.acked.append(tag)

    async def publish(self, exchange: str, routing_key: str, body: bytes, **options: Any) -> PublishOutcome:
        """Note a message, and return or raise what becomes of it."""
        self.published.append({"exchange": exchange, "routing_key": routing_key, "body": body, **options})
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, BaseException):
            raise outcome
        assert isinstance(outcome, PublishOutcome)
        return outcome

    async def publish_many(self, messages: list[OutgoingMessage]) -> list[Any]:
        """Return what becomes of messages."""
        return self.outcomes[: len(messages)]


async def test_why_a_dead_letter_is_not_in_its_queue() -> None:
    """It says what to do, or at least something."""
    broker: Any = Broker()
    broker.outcomes = [CONFIRMED, UNROUTED, Unavailable("no answer"), Unavailable("")]
    reasons = await dead_letters.publish_dead_letters(broker, [build_dead_letter(NAMES, "k", b"", {})] * 4)
    advice = "no queue is bound for dead letters; `taskherd topology apply` declares p.dead"
    assert reasons == [None, advice, "no answer", "not confirmed"]


async def test_no_more_are_visited_than_there_were() -> None:
    """Nor more than wanted, which may end it sooner; how many were left is known."""
    seen: list[bytes] = []

    def visit(message: QueuedMessage) -> None:
        seen.append(message.body)
        broker.queue.append(b"again")

    broker: Any = Broker(b"1", b"2", b"3")
    assert await dead_letters.browse(broker, NAMES, visit, limit=9) == 2
    assert seen == [b"1", b"2", b"3"]
    for limit, most, count, left in ((2, 9, 2, 1), (3, 9, 3, 0), (9, 9, 3, 0), (9, 1, 1, 2), (0, 9, 0, 0)):
        some: Any = Broker(b"1", b"2", b"3")
        visited: list[QueuedMessage] = []
        may_go_on = partial(next, iter([True] * most + [False]))
        not_visited = await dead_letters.browse(some, NAMES, visited.append, limit=limit, more=may_go_on)
        assert repr(not_visited) == repr(left), "it is shown as a number"
        assert len(visited) == count
    empty: Any = Broker()
    assert await dead_letters.browse(empty, NAMES, lambda _: None, limit=9) == 0
    assert empty.gets == 1, "there is nothing to return"


async def test_what_was_returned_before_is_taken_before_the_rest_is_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or what was not wanted would come after it; that ends in time."""
    for limit, redelivered, taken in ((1, True, 3), (1, False, 1), (0, True, 0)):
        broker: Any = Broker(b"1", b"2", b"3", redelivered=redelivered)
        await dead_letters.read(broker, NAMES, limit)
        assert len(broker.taken) == taken
    monkeypatch.setattr(dead_letters, "_ORDER_TIMEOUT", 0)
    broker = Broker(b"1", b"2", b"3", redelivered=True)
    await dead_letters.read(broker, NAMES, 1)
    assert len(broker.taken) == 1


@pytest.mark.parametrize("is_there", [True, False])
async def test_a_dead_letter_is_read_as_it_was_published(*, is_there: bool) -> None:
    """What its publisher left out is None, but for the headers, the exchange and the routing key."""
    texts = ("text/plain", "m", "replies", "7", "alice", "events", "key")
    content_type, message_id, reply_to, correlation_id, sender, exchange, routing_key = (
        each if is_there else None for each in texts
    )
    properties = Basic.Properties(
        content_type, headers={"h": 1} if is_there else None, correlation_id=correlation_id, reply_to=reply_to,
        message_id=message_id, user_id=sender,
    )  # fmt: skip
    channel: Any = object()
    delivery: Any = Basic.GetOk(7, False, exchange or "", routing_key or "", 0)  # noqa: FBT003 - as pamqp has it
    message = DeliveredMessage(delivery, ContentHeader(properties=properties), b"body", channel)
    assert dead_letters._queued(message) == QueuedMessage(
        b"body", {"h": 1} if is_there else {}, exchange or "", routing_key or "", content_type, message_id, reply_to,
        correlation_id, sender,
    )  # fmt: skip


async def test_who_may_not_read_dead_letters_is_told_so() -> None:
    """Anything else is an outage."""
    for failure, kind in ((ChannelAccessRefused("refused"), MayNotRead), (ConnectionResetError("reset"), Unavailable)):
        broker: Any = Broker(b"1")
        broker.failure = failure
        with pytest.raises(Unavailable, match=r"reading p\.dead") as raised:
            await dead_letters.read(broker, NAMES, 1)
        assert type(raised.value) is kind


def unavailable(cause: Exception) -> Unavailable:
    """Return the error of a message that could not be published for this reason."""
    error = Unavailable("publishing")
    error.__cause__ = cause
    return error


async def test_only_what_was_confirmed_is_removed() -> None:
    """The others are kept, with a reason; one without a target is not tried."""
    broker: Any = Broker(b"1", b"2", b"no target", b"4", b"5", b"6")
    forbidden, gone = unavailable(ChannelAccessRefused("no")), unavailable(ChannelNotFoundEntity("no"))
    broker.outcomes = [CONFIRMED, UNROUTED, forbidden, gone, CONFIRMED]
    told: list[tuple[bytes, str | None]] = []

    def target_of(message: QueuedMessage) -> ReplayTarget | None:
        return None if message.body == b"no target" else ReplayTarget("events", "key", {"h": 1} if told else {})

    await dead_letters.replay(
        broker, broker, NAMES, target_of, lambda message, why: told.append((message.body, why)), limit=9
    )
    assert told == [
        (b"1", None),
        (b"2", "no queue is bound to its original exchange with its routing key"),
        (b"4", "the RabbitMQ user may not publish to its original exchange"),
        (b"5", "its original exchange no longer exists"),
        (b"6", None),
    ]
    assert broker.acked == [1, 6]
    common = {"exchange": "events", "routing_key": "key", "content_type": "text/plain", "mandatory": True}
    assert broker.published[0] == {
        **common, "body": b"1", "headers": None, "reply_to": None, "correlation_id": "7"
    }  # fmt: skip
    assert broker.published[1]["headers"] == {"h": 1}
    broker = Broker(b"1", b"2")
    broker.outcomes = [unavailable(ConnectionResetError("reset"))]
    with pytest.raises(Unavailable, match="publishing"):
        await dead_letters.replay(broker, broker, NAMES, target_of, lambda *_: None, limit=9)
    assert broker.acked == []


async def test_a_replayed_message_has_nothing_that_the_broker_refuses() -> None:
    """RabbitMQ itself may have dead-lettered what an AMQP 1.0 client sent; all else is kept."""
    broker: Any = Broker(b"1")
    broker.outcomes, broker.reply_to = [CONFIRMED], DIRECT
    target = ReplayTarget("events", "key", {"CC": "text", "BCC": ["a"], "mine": 1})
    await dead_letters.replay(broker, broker, NAMES, lambda _: target, lambda *_: None, limit=9)
    [published] = broker.published
    assert (published["reply_to"], published["headers"]) == (None, {"BCC": ["a"], "mine": 1})
    assert (published["correlation_id"], broker.acked) == ("7", [1])


async def test_how_many_were_beyond_the_limit_is_known() -> None:
    """What is dead-lettered again as soon as it is replayed does not count."""
    broker: Any = Broker()
    target = ReplayTarget("events", "key", {})

    def bury_again(message: QueuedMessage, _why: str | None) -> None:
        broker.queue.append(message.body)

    for limit, beyond in ((2, 1), (9, 0)):
        broker.outcomes, broker.queue = [CONFIRMED] * 3, [b"1", b"2", b"3"]
        left = await dead_letters.replay(broker, broker, NAMES, lambda _: target, bury_again, limit=limit)
        assert left == beyond


async def test_the_selected_ones_are_removed() -> None:
    """Of the first ones alone; how many are beyond those is known."""
    broker: Any = Broker(b"1", b"2", b"1", b"1")
    assert await dead_letters.purge(broker, NAMES, lambda message: message.body == b"1", limit=3) == (2, 1)
    assert broker.acked == [1, 3]


async def test_purging_all_counts_them() -> None:
    """Without reading any."""
    purged: list[str] = []

    class Purged(Broker):
        """A broker that removes messages itself."""

        async def queue_purge(self, queue: str) -> Basic.Get:
            """Return how many there were."""
            purged.append(queue)
            answer: Any = asyncio.Event()
            answer.message_count = len(self.queue) or None
            return answer  # type: ignore[no-any-return]

    for bodies, number in (((b"1", b"2"), 2), ((), 0)):
        broker: Any = Purged(*bodies)
        result = await dead_letters.purge(broker, NAMES, limit=1)
        assert repr(result) == f"Purged(removed={number}, beyond=0)", "unknown is 0, which is shown as a number"
    assert purged == ["p.dead"] * 2
