"""Calls that are repeated over another connection: few at the same time, but each in its turn."""

from __future__ import annotations

import asyncio
import gc
from typing import Any, cast

import pytest

from taskherd.broker import repeating_client
from taskherd.broker.command_client import CommandClient, Reply, StartedCall
from taskherd.broker.connection import SupervisedConnection
from taskherd.broker.repeating_client import MAX_REPEATING, RepeatingClient
from taskherd.errors import Unavailable

WITHIN = 60.0
"""Seconds in which a test ends, also on a busy machine."""


class Connection:
    """A connection whose peer answers."""

    def __init__(self, name: str) -> None:
        self.name = name

        self.checks = 0
        self.answers = asyncio.Event()
        self.answers.set()

    async def drop_if_hung(self) -> None:
        """Find that it answers, once it does."""
        self.checks += 1
        await self.answers.wait()


class Path:
    """A way to the consumer, on which no call is answered before it is open; it starts calls if ``at_once``."""

    def __init__(self) -> None:
        self.at_once = False
        self.started: list[StartedCall] = []
        self.open = asyncio.Event()
        self.seen: set[bytes] = set()
        self.waiting: list[bytes] = []
        self.most_waiting = 0

    async def start(self, _: str, __: bytes, ___: float) -> StartedCall | None:
        """Start a call that is not answered while it is waited for."""
        if not self.at_once:
            return None
        self.started.append(StartedCall("", asyncio.get_running_loop().create_future()))
        return self.started[-1]

    def end(self, call: StartedCall) -> None:
        """Forget a call."""
        self.started.remove(call)

    async def call(
        self, _: str, body: bytes, *, deadline: float, started: StartedCall | None = None, **__: Any
    ) -> Reply:
        """Return the body once the path is open."""
        assert started is None or self.at_once
        self.seen.add(body)
        self.waiting.append(body)
        self.most_waiting = max(self.most_waiting, len(set(self.waiting)))
        try:
            async with asyncio.timeout_at(deadline):
                await self.open.wait()
        except TimeoutError:
            raise Unavailable("no reply") from None
        finally:
            self.waiting.remove(body)
        return Reply(body, {})

    async def until_seen(self, count: int) -> None:
        """Wait until so many calls have come this way."""
        async with asyncio.timeout(WITHIN):
            while len(self.seen) < count:  # noqa: ASYNC110 - nobody notifies
                await asyncio.sleep(0.001)


class Calls:
    """Calls over two paths, the first of which is used for first attempts."""

    def __init__(self) -> None:
        self.first, self.second = Path(), Path()
        self.connections = [Connection("first"), Connection("second")]
        self.counts: list[int] = []
        clients = [*zip(self.connections, (self.first, self.second), strict=True)]
        self.client = RepeatingClient(
            cast("list[tuple[SupervisedConnection, CommandClient]]", clients),
            timeout=2 * WITHIN,
            on_waiting=self.counts.append,
        )

    def start(self, count: int, prefix: str = "") -> list[asyncio.Task[Reply]]:
        """Start so many calls, each with a body of its own."""
        bodies = [f"{prefix}{number}".encode() for number in range(count)]
        return [asyncio.create_task(self.client.call("type", body), name=body.decode()) for body in bodies]


@pytest.fixture(params=["at once", "after waiting"])
def calls(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Calls:
    """Return calls that are repeated soon; the first message of each is published at once, or not."""
    monkeypatch.setattr(repeating_client, "RECORDED_AFTER", 0.01)
    monkeypatch.setattr(repeating_client, "REPEAT_AFTER", 0.02)
    calls = Calls()
    calls.first.at_once = request.param == "at once"
    return calls


async def answered(tasks: list[asyncio.Task[Reply]]) -> None:
    """Wait until each of these calls has its own reply."""
    async with asyncio.timeout(WITHIN):
        replies = await asyncio.gather(*tasks)
    assert [reply.body.decode() for reply in replies] == [task.get_name() for task in tasks]


async def test_each_call_is_repeated_when_others_are_answered(calls: Calls) -> None:
    """Of many calls without a reply few are repeated at the same time; when one is answered, the next is repeated."""
    tasks = calls.start(3 * MAX_REPEATING + 1)
    await calls.second.until_seen(MAX_REPEATING)
    calls.second.open.set()
    await answered(tasks)
    assert len(calls.second.seen) == len(tasks)
    assert calls.second.most_waiting == MAX_REPEATING
    await calls.client.close()


async def test_a_reply_ends_the_wait_for_a_turn(calls: Calls) -> None:
    """A call that waits for its turn takes the reply to its first attempt, and leaves its turn to others."""
    tasks = calls.start(2 * MAX_REPEATING)
    await calls.second.until_seen(MAX_REPEATING)
    calls.first.open.set()
    await answered(tasks)
    assert len(calls.second.seen) == MAX_REPEATING
    calls.first.open.clear()
    tasks = calls.start(MAX_REPEATING, "again ")
    await calls.second.until_seen(2 * MAX_REPEATING)
    calls.first.open.set()
    await answered(tasks)
    await calls.client.close()


async def test_a_call_waits_for_its_turn_until_its_deadline(calls: Calls) -> None:
    """It waits no longer for its turn than for its reply, and then takes no turn from others."""
    tasks = calls.start(MAX_REPEATING)
    await calls.second.until_seen(MAX_REPEATING)
    with pytest.raises(Unavailable):
        await calls.client.call("type", b"late", deadline=asyncio.get_running_loop().time() + 0.1)
    assert b"late" not in calls.second.seen
    calls.second.open.set()
    await answered([*tasks, *calls.start(MAX_REPEATING, "again ")])
    await calls.client.close()


async def test_the_calls_that_wait_are_counted(calls: Calls) -> None:
    """Also one that fails."""
    calls.first.open.set()
    await answered(calls.start(2))
    assert calls.counts == [1, 2, 1, 0]
    calls.first.open.clear()
    calls.counts.clear()
    with pytest.raises(Unavailable):
        await calls.client.call("type", b"late", deadline=asyncio.get_running_loop().time() + 0.01)
    assert calls.counts == [1, 0]
    await calls.client.close()


async def test_a_connection_is_checked_once_while_no_reply_comes(calls: Calls) -> None:
    """By one call at a time; the reply to a message that was sent again says so, and the connections take turns."""
    for connection in calls.connections:
        connection.answers.clear()
    tasks = calls.start(2)
    await calls.second.until_seen(2)
    async with asyncio.timeout(WITHIN):
        while [connection.checks for connection in calls.connections] != [1, 1]:  # noqa: ASYNC110 - nobody notifies
            await asyncio.sleep(0.001)
        while calls.first.waiting.count(b"0") < 2:  # noqa: ASYNC110 - nobody notifies
            await asyncio.sleep(0.001)
    calls.second.open.set()
    assert [reply.sent_again for reply in await asyncio.gather(*tasks)] == [True, True]
    assert [connection.checks for connection in calls.connections] == [1, 1]
    for connection in calls.connections:
        connection.answers.set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    calls.second.open.clear()
    tasks = calls.start(1, "later ")
    await calls.second.until_seen(3)
    assert calls.connections[0].checks == 2
    calls.first.open.set()
    await answered(tasks)
    await calls.client.close()


async def test_an_unanswered_check_ends_with_the_client(calls: Calls) -> None:
    """Nobody else would end it."""
    calls.connections[0].answers.clear()
    tasks = calls.start(1)
    await calls.second.until_seen(1)
    calls.second.open.set()
    await answered(tasks)
    (check,) = calls.client._checks.values()
    await calls.client.close()
    assert check.cancelled()
    assert calls.client._checks == {}


async def test_no_attempt_is_made_shortly_before_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its reply would come too late."""
    monkeypatch.setattr(repeating_client, "REPEAT_AFTER", 0.2)
    for left, attempts in ((0.29, 1), (600, 2)):
        calls = Calls()
        calling = asyncio.create_task(
            calls.client.call("type", b"?", deadline=asyncio.get_running_loop().time() + left)
        )
        if attempts == 1:
            with pytest.raises(Unavailable):
                await calling
        else:
            await calls.second.until_seen(1)
            calls.first.open.set()
            await calling
        assert len(calls.first.seen) + len(calls.second.seen) == attempts
        await calls.client.close()


async def test_an_error_of_an_attempt_ends_the_call_if_it_is_a_bug(calls: Calls) -> None:
    """An outage does not; when all attempts have failed, the call has."""
    for error, kind in ((ValueError("bug"), ValueError), (Unavailable("reset"), Unavailable)):

        async def fail(*_: Any, error: Exception = error, **__: Any) -> Reply:
            raise error

        calls.first.call = fail  # type: ignore[method-assign]
        with pytest.raises(kind, match=str(error)):
            await calls.client.call("type", b"?")
    await calls.client.close()


async def test_a_started_call_that_is_answered_is_made_once(calls: Calls) -> None:
    """Its reply is returned as it is, and the call is forgotten."""
    calls.first.at_once = True
    (task,) = calls.start(1)
    async with asyncio.timeout(WITHIN):
        while not calls.first.started:  # noqa: ASYNC110 - nobody notifies
            await asyncio.sleep(0)
    calls.first.started[0].reply.set_result(Reply(b"0", {}))
    assert await task == Reply(b"0", {}, sent_again=False)
    assert (calls.first.started, calls.first.seen, calls.second.seen) == ([], set(), set())
    await calls.client.close()


async def test_a_call_that_fails_after_its_answer_came_from_elsewhere_logs_nothing() -> None:
    """Its connection may be dropped just when a record of the reply was found, and nobody waits for it any more."""
    logged: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: logged.append(context))
    try:
        call = StartedCall("", loop.create_future())
        call.fail()
        del call
        gc.collect()
    finally:
        loop.set_exception_handler(None)
    assert logged == []
