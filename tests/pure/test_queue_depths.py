"""How many channels the depths of queues are read on, without a broker."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from aiormq.exceptions import ChannelNotFoundEntity

from taskherd.broker import queue_depths
from taskherd.broker.diagnostics import QueueInfo
from taskherd.errors import Unavailable


class Channel:
    """A channel, which the broker closes if a queue does not exist."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.is_closed = False

    async def queue_declare(self, name: str, *, passive: bool, timeout: float) -> Any:  # noqa: ASYNC109 - as aiormq has it
        """Return what the queue contains."""
        assert passive
        assert timeout == 5
        await asyncio.sleep(0)
        if self._connection.failure is not None:
            raise self._connection.failure
        if name.startswith("no "):
            self.is_closed = True
            raise ChannelNotFoundEntity(name)
        number = None if name == "empty" else int(name)
        return SimpleNamespace(message_count=number, consumer_count=number)

    async def close(self) -> None:
        """Close it."""
        assert not self.is_closed
        self.is_closed = True


class Connection:
    """A connection that counts its channels."""

    def __init__(self) -> None:
        self.channels: list[Channel] = []
        self.failure: Exception | None = None

    async def channel(self) -> Channel:
        """Open a channel."""
        self.channels.append(Channel(self))
        return self.channels[-1]


@pytest.mark.parametrize(("queues", "channels"), [(0, 0), (1, 1), (8, 1), (9, 2), (16, 2), (128, 16), (400, 16)])
async def test_more_channels_are_used_for_more_queues(queues: int, channels: int) -> None:
    """One for 8 queues, up to 16; all are closed afterwards. A queue that is named twice is read once."""
    connection = Connection()
    names = [str(number) for number in range(queues)]
    found = await queue_depths.read(connection, [*names, *names])  # type: ignore[arg-type]
    assert found == {name: QueueInfo(name, int(name), int(name)) for name in names}
    assert len(connection.channels) == channels
    assert all(channel.is_closed for channel in connection.channels)


async def test_a_queue_that_does_not_exist_costs_a_channel() -> None:
    """No other is lost with it, and none is opened in vain."""
    connection = Connection()
    found = await queue_depths.read(connection, ["1", "no queue", "empty", "no other"])  # type: ignore[arg-type]
    expected = {"1": QueueInfo("1", 1, 1), "empty": QueueInfo("empty", 0, 0)}
    assert repr(found) == repr(expected), "unknown is 0, which is shown as a number"
    assert len(connection.channels) == 2


async def test_an_outage_is_one_error() -> None:
    """However many queues are asked about."""
    connection = Connection()
    connection.failure = ConnectionResetError("reset")
    with pytest.raises(Unavailable, match=r"^looking at \d+: reset$"):
        await queue_depths.read(connection, [str(number) for number in range(20)])  # type: ignore[arg-type]
    assert all(channel.is_closed for channel in connection.channels)
    assert len(connection.channels) == 3
