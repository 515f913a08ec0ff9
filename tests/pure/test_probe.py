"""Since when the report queues are drained, by the probes that come back; without a broker."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, cast

import pytest

from taskherd.broker.delivery import Delivery
from taskherd.broker.publisher import OutgoingMessage, PublishOutcome
from taskherd.broker.reply_queues import DIRECT, is_direct
from taskherd.errors import Unavailable
from taskherd.observability.metrics import Metrics
from taskherd.worker import probe as probe_module
from taskherd.worker.probe import BODY, Probe
from tests.harness.buffers import Message, until
from tests.harness.histories import NOON

QUEUES = ["one", "two"]
PROCESS = b"\x83Xw\x07reply@1" + bytes(12)
ELSEWHERE = f"{DIRECT}.{b64encode(PROCESS).decode()}.{b64encode(bytes(16)).decode()}"
"""The queue for replies of another worker."""


class Broker:
    """A broker that takes the probes that ``refused`` does not name, and a worker that consumes some of them."""

    def __init__(self) -> None:
        self.refused: set[str] = set()
        self.hangs = False
        self.sent: list[OutgoingMessage] = []
        self.replies: list[OutgoingMessage] = []
        self.missing = 0
        self.now = NOON
        self.metrics = Metrics()
        self.receive: Callable[[Delivery], None]
        self.probe: Probe

    async def publish_many(self, messages: Sequence[OutgoingMessage]) -> list[PublishOutcome | Unavailable]:
        """Take probes."""
        self.sent += messages
        if self.hangs:
            await asyncio.sleep(3_600)
        return [
            Unavailable("no broker") if message.routing_key in self.refused else PublishOutcome.CONFIRMED
            for message in messages
        ]

    def offer(self, message: OutgoingMessage) -> None:
        """Send the reply to a probe."""
        self.replies.append(message)

    async def on_missing(self) -> None:
        """Note that a probe is missing."""
        self.missing += 1

    def consume(self, *queues: str) -> None:
        """Let this worker receive the latest probes of these queues."""
        for message in self.sent[-2:]:
            if message.routing_key in queues:
                self.probe.reply(probe_of(message.correlation_id))

    def value(self, name: str) -> float | None:
        """Return the value of a metric."""
        return self.metrics.registry.get_sample_value(f"taskherd_{name}")


class ProbeMessage(Message):
    """A delivery of a probe."""

    def __init__(self, correlation_id: str | None, reply_to: str) -> None:
        super().__init__(BODY, 1, reply_to=reply_to)
        self._properties.correlation_id = correlation_id


def probe_of(correlation_id: str | None, reply_to: str = ELSEWHERE) -> Delivery:
    """Return a delivery of a probe with this id."""
    return ProbeMessage(correlation_id, reply_to)


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Broker:
    """Return a broker and the probe of a worker."""
    broker = Broker()

    def publisher_with_replies(publisher: Any, receive: Callable[[Delivery], None]) -> Any:
        broker.receive = receive
        return publisher

    monkeypatch.setattr(probe_module, "publisher_with_replies", publisher_with_replies)
    fake = cast("Any", broker)
    broker.probe = Probe(fake, fake, broker.metrics, lambda: broker.now, broker.on_missing)
    return broker


async def probe_once(broker: Broker, *consumed: str, timeout: float = 20) -> bool:  # noqa: ASYNC109 - that of a probe
    """Send a probe through each queue, consume those of some, and return whether all came back."""
    probing = asyncio.create_task(broker.probe.probe_once(QUEUES, timeout))
    before = len(broker.sent)
    await until(lambda: len(broker.sent) == before + 2)
    broker.consume(*consumed)
    return await probing


async def test_probes_go_through_every_queue(broker: Broker) -> None:
    """With a reply queue of their own, and no time after which they would become dead letters."""
    assert await probe_once(broker, *QUEUES)
    assert [(message.exchange, message.routing_key, message.body) for message in broker.sent] == [
        ("", "one", BODY), ("", "two", BODY)
    ]  # fmt: skip
    assert {message.reply_to for message in broker.sent} == {DIRECT}
    assert len({message.correlation_id for message in broker.sent}) == 2
    assert broker.replies == []


async def test_all_probes_must_come_back_in_time(broker: Broker) -> None:
    """One that does not, or that the broker did not take, says that a queue may not be drained."""
    assert not await probe_once(broker, "one", timeout=0.05)
    assert not await probe_once(broker, timeout=0.05)
    broker.refused = {"two"}
    assert not await probe_once(broker, *QUEUES)
    broker.refused, broker.hangs = set(), True
    assert not await probe_once(broker, timeout=0.05)


async def test_another_worker_may_receive_a_probe(broker: Broker) -> None:
    """It replies to the sender; replies to earlier probes and those that come twice change nothing."""
    probing = asyncio.create_task(broker.probe.probe_once(QUEUES, 20))
    await until(lambda: len(broker.sent) == 2)
    first, second = (message.correlation_id for message in broker.sent)
    for correlation_id in (first, first, None, "of an earlier probe", second):
        assert not probing.done()
        broker.receive(probe_of(correlation_id))
    assert await probing


async def test_the_probe_of_another_worker_is_replied_to(broker: Broker) -> None:
    """Only to a queue for replies that RabbitMQ gave."""
    assert is_direct(ELSEWHERE)
    broker.probe.reply(probe_of("of another"))
    assert broker.replies == [OutgoingMessage("", ELSEWHERE, BODY, correlation_id="of another")]
    for refused in ("", "test.work.r1", f"{DIRECT}.nonsense"):
        broker.probe.reply(probe_of("of another", refused))
    assert len(broker.replies) == 1


async def test_queues_are_drained_since_the_first_probe_that_came_back(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until one does not; then it is found out why, and the time begins anew."""
    outcomes = [False, True, True, False, True, True]
    shown: list[tuple[Any, float | None, int]] = []
    waits: list[float] = []
    seconds = 1000.0

    async def once(queues: Sequence[str], timeout: float) -> bool:  # noqa: ASYNC109 - that of a probe
        nonlocal seconds
        assert (queues, timeout) == (QUEUES, 3)
        shown.append((broker.probe.drained_since, broker.value("drained"), broker.missing))
        broker.now += timedelta(seconds=1)
        seconds += 0.25
        if not outcomes:
            raise RuntimeError("the end")
        return outcomes.pop(0)

    async def sleep(wait: float) -> None:
        waits.append(wait)

    monkeypatch.setattr(broker.probe, "probe_once", once)
    monkeypatch.setattr(probe_module, "monotonic", lambda: seconds)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    with pytest.raises(RuntimeError, match="the end"):
        await broker.probe.send_probes(2, 3, QUEUES)
    two, five = NOON + timedelta(seconds=2), NOON + timedelta(seconds=5)
    assert shown == [(None, 0, 0), (None, 0, 1), (two, 1, 1), (two, 1, 1), (None, 0, 2), (five, 1, 2), (five, 1, 2)]
    assert waits == [1.75] * 6
    assert broker.value("probe_seconds_count") == 4
    assert broker.value("probe_seconds_sum") == 1


async def test_a_pause_of_the_worker_itself_is_an_interruption(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the next probes come back: heartbeats may wait where the worker has not read them yet."""
    seconds = 1000.0
    gaps = [2.0, 4.75, 5.25, 1.0]
    shown: list[tuple[datetime | None, datetime | None]] = []

    async def once(_queues: Sequence[str], timeout: float) -> bool:  # noqa: ASYNC109 - that of a probe
        return timeout == 3

    async def sleep(_wait: float) -> None:
        nonlocal seconds
        if not gaps:
            raise RuntimeError("the end")
        back, gap = broker.probe.drained_since, gaps.pop(0)
        broker.now += timedelta(seconds=gap)
        seconds += gap
        shown.append((back, broker.probe.drained_since))

    monkeypatch.setattr(broker.probe, "probe_once", once)
    monkeypatch.setattr(probe_module, "monotonic", lambda: seconds)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    with pytest.raises(RuntimeError, match="the end"):
        await broker.probe.send_probes(2, 3, QUEUES)
    again = NOON + timedelta(seconds=12)
    assert shown == [(NOON, NOON), (NOON, NOON), (NOON, None), (again, again)]
