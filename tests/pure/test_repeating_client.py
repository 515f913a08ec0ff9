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


async def test_a_call_that_fails_after_its_answer_came_from_elsewhere_logs_nothing(loop_errors: list[str]) -> None:
    """Its connection may be dropped just when a record of the reply was found, and nobody waits for it any more."""
    call = StartedCall("", asyncio.get_running_loop().create_future())
    call.fail()
    del call
    gc.collect()
    assert loop_errors == []


class Answering:
    """A way to the consumer that notes what it is asked, and answers from the given attempt on."""

    def __init__(self, answers_from: int = 1, *, starts: bool = False) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.ended: list[StartedCall] = []
        self.waiting = 0
        self._answers_from = answers_from
        self._call = StartedCall("", asyncio.get_running_loop().create_future()) if starts else None

    async def start(self, *arguments: Any) -> StartedCall | None:
        """Start a call, or not."""
        self.asked.append(("start", *arguments))
        return self._call

    def end(self, call: StartedCall) -> None:
        """Note it."""
        self.ended.append(call)

    async def call(self, *arguments: Any, **options: Any) -> Reply:
        """Answer it, or wait until that is given up."""
        self.asked.append(("call", *arguments, options))
        if len([each for each in self.asked if each[0] == "call"]) < self._answers_from:
            self.waiting += 1
            try:
                await asyncio.Event().wait()
            finally:
                self.waiting -= 1
        return Reply(b"reply", {})


def client_of(*paths: Answering, timeout: float = 600) -> RepeatingClient:
    """Return a client with these ways."""
    clients: Any = [(Connection(f"path {number}"), path) for number, path in enumerate(paths)]
    return RepeatingClient(clients, timeout=timeout)


async def nothing_recorded() -> Reply | None:
    """Return no record."""
    return None


@pytest.mark.parametrize("starts", [True, False])
async def test_an_attempt_has_all_that_the_call_has(monkeypatch: pytest.MonkeyPatch, *, starts: bool) -> None:
    """The first one goes on with the call that was started; its reply is that to a single message."""
    within: list[float] = []

    async def reply_within(_: StartedCall, seconds: float) -> Reply | None:
        within.append(seconds)
        return None

    monkeypatch.setattr(StartedCall, "reply_within", reply_within)
    monkeypatch.setattr(repeating_client, "RECORDED_AFTER", 100.0)
    path, other = Answering(starts=starts), Answering()
    client, now = client_of(path, other), asyncio.get_running_loop().time()
    reply = await client.call("type", b"body", nothing_recorded, deadline=now + 300)
    assert reply == Reply(b"reply", {}, sent_again=False)
    options = {"deadline": now + 300, "recorded": nothing_recorded, "started": path._call}
    assert path.asked == [("start", "type", b"body", now + 300), ("call", "type", b"body", options)]
    assert (path.ended, other.asked) == ([path._call] if starts else [], [])
    for left, least, most in ((300.0, 100.0, 100.0), (60.0, 30.0, 60.0), (-5.0, 0.0, 0.0)):
        within.clear()
        await client.call("type", b"body", deadline=asyncio.get_running_loop().time() + left)
        assert [least <= seconds <= most for seconds in within] == [True] * starts
    path.asked.clear()
    await client.call("type", b"body")
    assert path.asked[0][-1] == pytest.approx(asyncio.get_running_loop().time() + 600, abs=60)


async def test_the_second_attempt_is_made_over_the_next_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the call that was started; when the reply comes, no attempt goes on."""
    waits: list[float] = []
    wait = repeating_client._wait

    async def note(attempts: Any, turn: Any = None, *, within: float | None = None) -> Reply | None:
        if within is not None:
            waits.append(within)
        return await wait(attempts, turn, within=None if within is None else 0.01)

    monkeypatch.setattr(repeating_client, "_wait", note)
    monkeypatch.setattr(repeating_client, "RECORDED_AFTER", 0.5)
    for starts, first_wait in ((True, 1.5), (False, 2.0)):
        waits.clear()
        first, second = Answering(answers_from=2, starts=starts), Answering()
        reply = await client_of(first, second).call("type", b"body", nothing_recorded)
        assert reply == Reply(b"reply", {}, sent_again=True)
        assert [each[:3] for each in first.asked] == [("start", "type", b"body"), ("call", "type", b"body")]
        assert [each[:3] for each in second.asked] == [("call", "type", b"body")]
        assert (second.asked[0][3]["started"], second.asked[0][3]["recorded"]) == (None, nothing_recorded)
        assert (waits, first.waiting) == ([first_wait, 2.0], 0)
        again = Answering(answers_from=2)
        await client_of(again).call("type", b"body")
        assert [each[0] for each in again.asked] == ["start", "call", "call"], "the turns begin anew"


@pytest.mark.parametrize(("left", "repeats"), [(40, 0), (60, 1)])
async def test_half_of_the_time_of_an_attempt_must_be_left(
    monkeypatch: pytest.MonkeyPatch, left: float, repeats: int
) -> None:
    """Or it is not made; the reply to an earlier one may still come."""
    monkeypatch.setattr(repeating_client, "REPEAT_AFTER", 100)
    replying: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
    made: list[float] = []

    async def earlier() -> Reply:
        return await replying

    async def attempt(within: float) -> Reply | None:
        made.append(within)
        return Reply(b"second", {})

    attempts = {asyncio.create_task(earlier())}
    deadline = asyncio.get_running_loop().time() + left
    repeating = asyncio.create_task(client_of(Answering())._repeat(attempt, attempts, deadline))
    for _ in range(20):
        await asyncio.sleep(0)
    assert (made, repeating.done()) == ([100] * repeats, bool(repeats))
    replying.set_result(Reply(b"first", {}))
    assert (await repeating).body == (b"second" if repeats else b"first")
    await asyncio.wait(attempts)


async def test_a_wait_ends_in_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if attempts fail meanwhile; without one it lasts until a reply comes."""
    waits: list[float | None] = []
    wait = asyncio.wait

    async def note(tasks: Any, *, timeout: float | None = None, **options: Any) -> Any:  # noqa: ASYNC109 - asyncio's
        waits.append(timeout)
        return await wait(tasks, timeout=timeout, **options)

    monkeypatch.setattr(asyncio, "wait", note)

    async def fail() -> Reply:
        raise Unavailable("reset")

    async def reply() -> Reply:
        await asyncio.sleep(0)
        return Reply(b"reply", {})

    pending = asyncio.create_task(asyncio.sleep(600, Reply(b"late", {})))
    try:
        assert await repeating_client._wait({pending, asyncio.create_task(fail())}, within=0.05) is None
        first, *further = waits
        assert first is not None
        assert all(each is not None and 0 <= each <= first for each in further)
        assert first <= 0.05
        waits.clear()
        found = await repeating_client._wait({pending, asyncio.create_task(reply())})
        assert (found, waits) == (Reply(b"reply", {}), [None])
        assert await asyncio.wait_for(repeating_client._wait({pending}, within=-1), 30) is None
        assert waits[1:] == [0]
    finally:
        pending.cancel()
