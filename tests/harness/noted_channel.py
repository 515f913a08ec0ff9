"""A channel without a broker, which notes what is asked of it as text and answers as a test says."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

from aiormq.exceptions import ChannelClosed

TIMEOUT = 5.0
"""Seconds within which each request must be answered."""


class NotedChannel:
    """A channel that adds its requests to ``requests``; the broker closes it when it refuses one.

    ``answers`` has what becomes of some of them: an error, or the fields of the reply.
    """

    def __init__(self, requests: list[str], answers: dict[str, Exception | dict[str, Any]]) -> None:
        self.requests = requests
        self.answers = answers
        self.is_closed = False

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        async def request(*arguments: Any, timeout: float, **options: Any) -> Any:  # noqa: ASYNC109 - as aiormq has it
            assert timeout == TIMEOUT
            given = [repr(each) for each in arguments] + [f"{key}={value!r}" for key, value in options.items()]
            text = f"{name}({', '.join(given)})"
            self.requests.append(text)
            answer = self.answers.get(text, {})
            if isinstance(answer, Exception):
                self.is_closed = isinstance(answer, ChannelClosed)
                raise answer
            return SimpleNamespace(**{"message_count": 0, "consumer_count": 0, **answer})

        return request

    async def close(self) -> None:
        """Close it."""
        assert not self.is_closed
        self.is_closed = True
