"""A channel of a real broker which notes what is asked of it, and has some requests fail as a test says."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, cast

from aiormq.abc import AbstractChannel, AbstractConnection

from taskherd.broker.requests import REQUEST_TIMEOUT


class Request(NamedTuple):
    """What is asked of a channel: the name of the method, and what it is given but for the time limit."""

    name: str
    arguments: tuple[Any, ...]
    options: dict[str, Any]


def request(name: str, *arguments: Any, **options: Any) -> Request:
    """Return a request."""
    return Request(name, arguments, options)


Failing = list[tuple[Request, Exception]]
"""Requests that fail the next time, and with what; each is taken out then."""


class NotedChannel:
    """A channel that adds its requests to ``requests``, and fails at those of ``failing``."""

    def __init__(self, channel: AbstractChannel, requests: list[Request], failing: Failing) -> None:
        self._channel = channel
        self._requests = requests
        self._failing = failing

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._channel, name)
        return attribute if name in {"close", "is_closed"} else self._noting(name, attribute)

    def _noting(self, name: str, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def ask(*arguments: Any, timeout: float, **options: Any) -> Any:  # noqa: ASYNC109 - as aiormq has it
            assert timeout == REQUEST_TIMEOUT
            asked = Request(name, arguments, options)
            self._requests.append(asked)
            for each in self._failing:
                if each[0] == asked:
                    self._failing.remove(each)
                    raise each[1]
            return await method(*arguments, timeout=timeout, **options)

        return ask


def noted(channel: AbstractChannel, failing: Failing | None = None) -> tuple[AbstractChannel, list[Request]]:
    """Return the channel so that it notes its requests, and these."""
    requests: list[Request] = []
    return cast("AbstractChannel", NotedChannel(channel, requests, [] if failing is None else failing)), requests


class NotedConnection:
    """A connection whose channels are noted; a channel is opened only when those before are closed."""

    def __init__(self, connection: AbstractConnection) -> None:
        self._connection = connection
        self.requests: list[Request] = []
        self.failing: Failing = []
        self.channels: list[NotedChannel] = []

    async def channel(self) -> NotedChannel:
        """Open a channel."""
        assert all(channel.is_closed for channel in self.channels)
        self.channels.append(NotedChannel(await self._connection.channel(), self.requests, self.failing))
        return self.channels[-1]

    def take(self) -> list[Request]:
        """Return what was asked since the last call; all channels are closed and no request is left to fail."""
        assert not self.failing
        assert all(channel.is_closed for channel in self.channels)
        requests = [*self.requests]
        self.requests.clear()
        return requests
