"""Which errors of the client library mean that the broker is unreachable."""

from __future__ import annotations

import asyncio
import errno

import pytest
from aiormq.exceptions import AMQPConnectionError, ChannelInvalidStateError, ConnectionClosed

from taskherd.broker.connection import map_errors
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
