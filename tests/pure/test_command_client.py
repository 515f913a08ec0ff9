"""Calls and their replies without a broker: when the record is looked for, and what is forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from taskherd import retry
from taskherd.broker import command_client
from taskherd.broker.command_client import CommandClient, NotPublished, Reply
from taskherd.broker.publisher import OutgoingMessage, PublishOutcome
from taskherd.errors import Unavailable
from tests.harness.buffers import until


class Broker:
    """A publisher that notes messages; the test answers them."""

    def __init__(self) -> None:
        self.sent: list[OutgoingMessage] = []
        self.outcomes: list[PublishOutcome | Exception] = []
        self.further: PublishOutcome | Exception = PublishOutcome.CONFIRMED
        """What becomes of messages after these."""
        self.on_failed: list[Callable[[], None]] = []
        self.starts: bool | Exception = True

    def on_own_channel(self, _: object) -> Broker:
        """Return itself."""
        return self

    async def send(self, message: OutgoingMessage) -> PublishOutcome:
        """Note a message, which is confirmed unless a test says otherwise."""
        self.sent.append(message)
        outcome = self.outcomes.pop(0) if self.outcomes else self.further
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def start(self, message: OutgoingMessage, on_failed: Callable[[], None]) -> bool:
        """Note a message if one can be started."""
        if isinstance(self.starts, Exception):
            raise self.starts
        self.sent.append(message)
        self.on_failed.append(on_failed)
        return self.starts


class Calls:
    """A client, and the broker that it uses."""

    def __init__(self, timeout: float = 60) -> None:
        self.broker = Broker()
        self.client = CommandClient(self.broker, "commands", timeout=timeout)  # type: ignore[arg-type]

    def call(self, **options: Any) -> asyncio.Task[Reply]:
        """Make a call."""
        return asyncio.create_task(self.client.call("type", b"?", **options))

    def answer(self, message: OutgoingMessage, body: bytes = b"!") -> None:
        """Reply to a message."""
        reply: Any = SimpleNamespace(correlation_id=message.correlation_id, body=body, headers={"h": 1})
        self.client._resolve(reply)

    async def until_sent(self, number: int) -> OutgoingMessage:
        """Wait until so many messages are sent, and return the last one."""
        async with asyncio.timeout(20):
            while len(self.broker.sent) < number:  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0)
        return self.broker.sent[-1]


@pytest.fixture
def calls() -> Calls:
    """Return a client that has made no calls."""
    return Calls()


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Repeat at once what has failed, and return after how many failures that was."""
    failures: list[int] = []

    def delay(number: int) -> float:
        failures.append(number)
        return 0

    monkeypatch.setattr(retry, "delay", delay)
    return failures


async def test_a_call_is_answered_once(calls: Calls) -> None:
    """Other replies are to nobody; then it is forgotten."""
    calling = calls.call()
    message = await calls.until_sent(1)
    assert message.expiration is not None
    assert 50 < message.expiration <= 60
    assert message == OutgoingMessage(
        "commands", "type", b"?", mandatory=True, expiration=message.expiration, reply_to="amq.rabbitmq.reply-to",
        correlation_id=message.correlation_id,
    )  # fmt: skip
    stranger: Any = SimpleNamespace(correlation_id=None, body=b"", headers={})
    calls.client._resolve(stranger)
    calls.answer(message)
    calls.answer(message, b"again")
    assert await calling == Reply(b"!", {"h": 1}, sent_again=False)
    assert calls.client._waiting == {}
    calls.answer(message, b"late")


async def test_a_call_may_have_a_trace_and_no_expiry() -> None:
    """A message that does not expire is answered whenever its consumer comes; a started one always expires."""
    broker = Broker()
    client = CommandClient(broker, "claims", timeout=60, trace=lambda: {"traceparent": "00"})  # type: ignore[arg-type]
    calling = asyncio.create_task(client.call("type", b"?", no_expiry=True))
    await until(lambda: broker.sent)
    started = await client.start("other", b"!", asyncio.get_running_loop().time() + 60)
    assert started is not None
    first, second = broker.sent
    assert (first.exchange, first.routing_key, first.body) == ("claims", "type", b"?")
    assert (second.exchange, second.routing_key, second.body) == ("claims", "other", b"!")
    assert [each.headers for each in broker.sent] == [{"traceparent": "00"}] * 2
    assert (first.expiration, second.expiration is None) == (None, False)
    assert {*client._waiting} == {first.correlation_id, second.correlation_id}
    assert started.correlation_id == second.correlation_id
    calling.cancel()
    await asyncio.wait({calling})
    assert client._waiting == {started.correlation_id: started}, "nothing waits for the other one any more"


async def test_a_reply_ends_the_search_for_its_record(calls: Calls) -> None:
    """Whoever searches is stopped, and its end is waited for; the reply is what counts."""
    searching, ended = asyncio.Event(), asyncio.Event()

    async def recorded() -> Reply | None:
        searching.set()
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(20):  # it gives a connection back
                await asyncio.sleep(0)
            ended.set()
        return None

    started = await calls.client.start("type", b"?", asyncio.get_running_loop().time() + 60)
    assert started is not None
    calling = calls.call(started=started, recorded=recorded)
    await asyncio.wait_for(searching.wait(), 30)
    calls.answer(calls.broker.sent[0])
    assert await asyncio.wait_for(calling, 30) == Reply(b"!", {"h": 1}, sent_again=False)
    assert ended.is_set()
    calls.client.end(started)


async def test_a_call_is_sent_again_until_it_is_answered(calls: Calls, at_once: list[int]) -> None:
    """When it could not be published, or its channel was lost; the reply may be that to a repeated message then."""
    calls.broker.outcomes = [Unavailable("reset"), PublishOutcome.UNROUTED]
    calling = calls.call()
    message = await calls.until_sent(3)
    calls.client._on_lost()
    message = await calls.until_sent(4)
    assert len({each.correlation_id for each in calls.broker.sent}) == 4
    assert [*calls.client._waiting] == [message.correlation_id]
    calls.answer(message)
    assert await calling == Reply(b"!", {"h": 1}, sent_again=True)
    assert at_once == [1, 2]


async def test_a_message_expires_no_sooner_than_the_broker_can_hold_it(calls: Calls) -> None:
    """Also one that is sent at its deadline."""
    calling = calls.call(deadline=asyncio.get_running_loop().time() + 0.05)
    assert (await calls.until_sent(1)).expiration == 0.1
    with pytest.raises(Unavailable, match="no reply to type within 60 s: it was published"):
        await calling
    assert calls.client._waiting == {}


async def test_the_latest_failure_is_the_reason(calls: Calls) -> None:
    """When the time is over."""
    calls.broker.outcomes = [Unavailable(f"reset {number}") for number in range(3)]
    calling = calls.call(deadline=asyncio.get_running_loop().time() + 0.05)
    with pytest.raises(Unavailable, match="reset 2"):
        await calling


async def test_calls_that_wait_are_1000_at_most(calls: Calls) -> None:
    """Neither can one more be started; one that is not started or fails is forgotten."""
    loop = asyncio.get_running_loop()
    calls.broker.starts = False
    assert await calls.client.start("type", b"?", loop.time() + 60) is None
    calls.broker.starts = Unavailable("reset")
    with pytest.raises(Unavailable, match="reset"):
        await calls.client.start("type", b"?", loop.time() + 60)
    assert calls.client._waiting == {}
    calls.broker.starts = True
    for _ in range(999):
        assert await calls.client.start("type", b"?", loop.time() + 60) is not None
    last = await calls.client.start("type", b"?", loop.time() + 60)
    assert last is not None
    assert await calls.client.start("type", b"?", loop.time() + 60) is None
    with pytest.raises(Unavailable, match="1000 calls are waiting for a reply already"):
        await calls.client.call("type", b"?")
    calls.client.end(last)
    calls.client.end(last)
    assert await calls.client.start("type", b"?", loop.time() + 60) is not None


async def test_a_started_call_that_fails_has_no_reply(calls: Calls) -> None:
    """It is sent again; one that has its reply keeps it."""
    failed = await calls.client.start("type", b"?", asyncio.get_running_loop().time() + 60)
    assert failed is not None
    assert await failed.reply_within(0) is None
    calls.broker.on_failed[0]()
    assert await failed.reply_within(20) is None
    calling = calls.call(started=failed)
    calls.answer(await calls.until_sent(2))
    assert await calling == Reply(b"!", {"h": 1}, sent_again=True)
    calls.client.end(failed)
    answered = await calls.client.start("type", b"?", asyncio.get_running_loop().time() + 60)
    assert answered is not None
    calls.answer(calls.broker.sent[-1])
    answered.fail()
    assert await answered.reply_within(0) == Reply(b"!", {"h": 1})
    assert await calls.call(started=answered) == Reply(b"!", {"h": 1}, sent_again=False)


async def test_a_record_is_looked_for_at_growing_intervals(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice as long each time, at once for a call that has waited, and not after a reply."""
    waits: list[float | None] = []
    wait = asyncio.wait

    async def note(tasks: Any, *, timeout: float | None = None, **options: Any) -> Any:  # noqa: ASYNC109 - asyncio's
        if options:
            return await wait(tasks, **options)
        waits.append(timeout)
        return await wait(tasks, timeout=0)

    monkeypatch.setattr(asyncio, "wait", note)
    looks: list[int] = []

    async def recorded() -> Reply | None:
        looks.append(len(waits))
        return Reply(b"recorded", {}) if len(looks) == 4 else None

    assert await calls.client.call("type", b"?", recorded=recorded) == Reply(b"recorded", {})
    assert (waits, looks) == ([1, 2, 4, 8], [1, 2, 3, 4])
    started = await calls.client.start("type", b"?", asyncio.get_running_loop().time() + 60)
    assert started is not None
    waits.clear()
    looks.clear()
    await calls.client.call("type", b"?", recorded=recorded, started=started)
    assert waits == [0, 2, 4, 8]
    waits.clear()
    looks.clear()
    started.reply.set_result(Reply(b"!", {}))
    assert await calls.client.call("type", b"?", recorded=recorded, started=started) == Reply(b"!", {})
    assert (waits, looks) == ([0], [])
    calls.client.end(started)


async def test_a_record_that_cannot_be_read_is_an_error(calls: Calls) -> None:
    """The message is sent again, and the record looked for again."""
    looks = 0

    async def recorded() -> Reply | None:
        nonlocal looks
        looks += 1
        if looks == 1:
            raise Unavailable("no database")
        return Reply(b"recorded", {})

    started = await calls.client.start("type", b"?", asyncio.get_running_loop().time() + 60)
    calling = calls.call(started=started, recorded=recorded)
    message = await calls.until_sent(2)
    calls.answer(message)
    assert (await calling).sent_again
    assert looks == 1


async def test_a_call_that_was_never_published_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    """Because too many wait, or as the broker confirms nothing; one that it has confirmed may be carried out."""
    calls = Calls(timeout=0.05)
    calls.broker.further = Unavailable("no broker")
    with pytest.raises(NotPublished, match="no broker"):
        await calls.call()
    calls.broker.further = PublishOutcome.UNROUTED
    with pytest.raises(NotPublished, match="no queue is bound"):
        await calls.call()
    confirmed = Calls(timeout=1)
    with pytest.raises(Unavailable) as raised:
        await confirmed.call()
    assert not isinstance(raised.value, NotPublished)
    monkeypatch.setattr(command_client, "MAX_WAITING", 0)
    with pytest.raises(NotPublished, match="calls are waiting"):
        await calls.call()
