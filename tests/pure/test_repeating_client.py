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

    async def drop_if_hung(self) -> None:
        """Find that it answers."""


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
        clients = [(Connection("first"), self.first), (Connection("second"), self.second)]
        self.client = RepeatingClient(
            cast("list[tuple[SupervisedConnection, CommandClient]]", clients), timeout=2 * WITHIN
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
