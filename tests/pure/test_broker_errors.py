"""Which errors of the client library mean that the broker is unreachable."""

from __future__ import annotations

import asyncio
import errno
import gc
from collections.abc import Iterator
from typing import Any

import pytest
from aiormq.exceptions import AMQPConnectionError, ChannelInvalidStateError, ConnectionClosed

from taskherd.broker import requests
from taskherd.broker.requests import (
    close_channel,
    close_channels,
    close_opened,
    in_background,
    map_errors,
    share_out,
)
from taskherd.errors import Misconfigured, Unavailable


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (AMQPConnectionError("reset by peer"), "asking: "),
        (ChannelInvalidStateError("closed"), "asking: closed"),
        (ConnectionResetError("reset"), "asking: reset"),
        (TimeoutError(), "asking: no answer in time"),
        (RuntimeError("writer is closed"), "asking: writer is closed"),
        (Exception(), "asking: Exception"),
        (AMQPConnectionError(errno.ECONNREFUSED, "Connect call failed ('::1', 9)"), "asking: Connection refused"),
        (AMQPConnectionError(1, "[SSL: CERTIFICATE_VERIFY_FAILED]"), "asking: [SSL: CERTIFICATE_VERIFY_FAILED]"),
        (ConnectionResetError(errno.ECONNRESET, "reset by peer"), "asking: reset by peer"),
        (ConnectionResetError(errno.ECONNRESET, ""), "asking: [Errno 104] "),
        (OSError(errno.EMFILE, "no file left"), "asking: [Errno 24] no file left"),
        (ConnectionClosed(320, "CONNECTION_FORCED - shutdown"), "asking: CONNECTION_FORCED - shutdown"),
        (asyncio.CancelledError(), "asking: the connection was lost"),
    ],
)
async def test_an_unreachable_broker_is_unavailable(error: BaseException, message: str) -> None:
    """Whatever the library raises for a lost connection says what was tried, and may be tried again."""
    with pytest.raises(Unavailable) as raised, map_errors("asking"):
        raise error
    assert str(raised.value).startswith(message)
    assert raised.value.__cause__ is error
    with pytest.raises(Unavailable) as unnamed, map_errors():
        raise error
    assert f"asking: {unnamed.value}" == str(raised.value)


async def test_a_missing_answer_may_be_an_error_of_its_own() -> None:
    """No other error is one."""

    class NoAnswer(Unavailable):
        """No answer came."""

    for error, raises in ((TimeoutError(), NoAnswer), (ConnectionResetError("reset"), Unavailable)):
        with pytest.raises(Unavailable) as raised, map_errors("asking", NoAnswer):
            raise error
        assert type(raised.value) is raises


@pytest.mark.parametrize("bug", [ValueError("bug"), KeyError("bug"), NotImplementedError("bug"), AssertionError("bug")])
async def test_bugs_surface(bug: Exception) -> None:
    """An error that no lost connection causes is raised as it is; nothing waits for the end of an outage."""
    with pytest.raises(type(bug)) as raised, map_errors("asking"):
        raise bug
    assert raised.value is bug


async def test_a_cancellation_stays_one() -> None:
    """A task that is cancelled while it waits for the broker ends as cancelled."""
    waiting = asyncio.Event()

    async def ask() -> None:
        with map_errors("asking"):
            waiting.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(ask())
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("error", [None, ConnectionResetError("reset"), TimeoutError(), asyncio.CancelledError()])
async def test_a_task_that_was_cancelled_ends_whatever_the_library_does(error: BaseException | None) -> None:
    """It may raise another error, or none; nothing after it is done."""
    done: list[str] = []

    async def ask() -> None:
        task = asyncio.current_task()
        assert task is not None
        with map_errors("asking"):
            task.cancel()
            if error is not None:
                raise error
        done.append("what comes next")

    task = asyncio.create_task(ask())
    await asyncio.wait({task}, timeout=30)
    assert (task.cancelled(), done) == (True, [])


async def test_a_bug_of_a_task_that_was_cancelled_surfaces() -> None:
    """It is no error of the connection."""

    async def ask() -> None:
        task = asyncio.current_task()
        assert task is not None
        with map_errors("asking"):
            task.cancel()
            raise ValueError("bug")

    with pytest.raises(ValueError, match="bug"):
        await asyncio.create_task(ask())


async def test_outside_of_a_task_nothing_was_cancelled() -> None:
    """An error means the same there; a cancellation is passed on."""
    raised: asyncio.Queue[BaseException | None] = asyncio.Queue()

    def call(error: BaseException | None) -> None:
        try:
            with map_errors("asking"):
                if error is not None:
                    raise error
        except (Unavailable, asyncio.CancelledError) as problem:
            raised.put_nowait(problem)
        else:
            raised.put_nowait(None)

    for error, expected in (
        (None, type(None)),
        (ConnectionResetError("reset"), Unavailable),
        (asyncio.CancelledError(), asyncio.CancelledError),
    ):
        asyncio.get_running_loop().call_soon(call, error)
        assert type(await raised.get()) is expected


async def test_channels_are_closed_although_the_caller_is_cancelled_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the closing has not begun: a channel that stays open would keep its deliveries."""
    closed: list[object] = []
    ended = asyncio.Event()

    async def close(channel: object) -> None:
        await asyncio.sleep(0)
        closed.append(channel)
        if len(closed) == 2:
            ended.set()

    monkeypatch.setattr(requests, "_close", close)
    closing = asyncio.create_task(close_channels(["one", "two"]))  # type: ignore[list-item]
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait({closing})
    await asyncio.wait_for(ended.wait(), 30)
    assert (closing.cancelled(), closed) == (True, ["one", "two"])


class Closing:
    """A channel that closes, fails or hangs."""

    def __init__(self, failure: Exception | None = None, *, hangs: bool = False) -> None:
        self.failure = failure
        self.hangs = hangs
        self.is_closed = False

    async def close(self) -> None:
        """Close it."""
        await asyncio.sleep(0)
        if self.hangs:
            await asyncio.Event().wait()
        if self.failure is not None:
            raise self.failure
        self.is_closed = True


async def test_channels_are_closed_at_the_same_time_and_waited_for(
    monkeypatch: pytest.MonkeyPatch, loop_errors: list[str]
) -> None:
    """As long as a request may take: one that fails or hangs is lost with its connection, and nothing is logged."""
    monkeypatch.setattr(requests, "REQUEST_TIMEOUT", 0.05)
    before = requests._background.copy()
    channels = [Closing(), Closing(ConnectionResetError("reset")), Closing(hangs=True), Closing()]
    async with asyncio.timeout(30):
        await close_channels([*channels])  # type: ignore[list-item]
    assert [channel.is_closed for channel in channels] == [True, False, False, True]
    alone = Closing()
    await close_channel(alone)  # type: ignore[arg-type]
    assert alone.is_closed
    await close_channels([])
    assert requests._background <= before
    gc.collect()
    assert loop_errors == []


@pytest.mark.parametrize("failure", [None, Unavailable("no broker")])
async def test_a_channel_that_nobody_waits_for_is_closed_once_it_is_open(failure: Exception | None) -> None:
    """If it is not opened at all there is nothing to do."""
    channel = Closing()

    async def open_channel() -> Any:
        await asyncio.sleep(0)
        if failure is not None:
            raise failure
        return channel

    before = requests._background.copy()
    opening = in_background(open_channel())
    assert requests._background - before == {opening}
    await close_opened(opening)
    assert channel.is_closed is (failure is None)


async def test_work_is_shared_out() -> None:
    """Each item is taken once, by whoever is free."""
    taken: list[tuple[str, int]] = []
    may_go_on = asyncio.Event()

    async def slow(remaining: Iterator[int]) -> None:
        for item in remaining:
            await may_go_on.wait()
            taken.append(("slow", item))

    async def fast(remaining: Iterator[int]) -> None:
        for item in remaining:
            taken.append(("fast", item))
            await asyncio.sleep(0)
        may_go_on.set()

    await share_out(range(1, 5), [slow, fast])
    assert taken == [("fast", 2), ("fast", 3), ("fast", 4), ("slow", 1)]


async def test_the_first_error_of_a_share_ends_the_others() -> None:
    """It is raised as it was; one that nobody expects is not hidden."""
    ended: list[str] = []

    async def wait(_: Iterator[int]) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")

    async def fail(remaining: Iterator[int]) -> None:
        await asyncio.sleep(0)
        raise Misconfigured("setting", f"expected another than {next(remaining)}")

    async def fail_as_group(_: Iterator[int]) -> None:
        raise ExceptionGroup("several", [ExceptionGroup("more", [Unavailable("a"), Unavailable("b")])])

    async def break_down(_: Iterator[int]) -> None:
        raise ValueError("a bug")

    with pytest.raises(Misconfigured, match="expected another than 7"):
        await asyncio.wait_for(share_out([7, 8], [wait, fail, wait]), 30)
    assert ended == ["cancelled"] * 2
    with pytest.raises(Unavailable, match=r"^a$"):
        await share_out([7], [fail_as_group])
    with pytest.raises(ExceptionGroup) as raised:
        await share_out([7], [break_down])
    assert [str(each) for each in raised.value.exceptions] == ["a bug"]
