"""Which errors of the client library mean that the broker is unreachable."""

from __future__ import annotations

import asyncio
import errno

import pytest
from aiormq.exceptions import AMQPConnectionError, ChannelInvalidStateError, ConnectionClosed

from taskherd.broker import requests
from taskherd.broker.requests import close_channels, map_errors
from taskherd.errors import Unavailable


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
    """It may raise another error, or none."""

    async def ask() -> None:
        task = asyncio.current_task()
        assert task is not None
        with map_errors("asking"):
            task.cancel()
            if error is not None:
                raise error

    task = asyncio.create_task(ask())
    await asyncio.wait({task}, timeout=30)
    assert task.cancelled()


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
