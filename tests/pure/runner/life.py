"""A follower of an agent without processes: it is followed for a while, and its outbox says what it has reported."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any, Generic, TypeVar

from taskherd.runner.agents.context import AgentContext, Follower
from tests.harness.runner import eventually
from tests.pure.runner.test_context import said

F = TypeVar("F", bound=Follower)


class FollowerLife(Generic[F]):
    """A follower and what it was given; ``follow_again`` makes it and those of later runners."""

    follower: F

    def __init__(self, context: AgentContext) -> None:
        self.saved: list[bool] = []
        """Whether the agent counted as ready, each time that the journal was saved."""
        self.stops = 0
        self.context = replace(context, save=self._save, stop_agent=self._stop)

    async def _save(self) -> None:
        self.saved.append(self.context.journal.ready_reported)

    def _stop(self) -> None:
        self.stops += 1

    @asynccontextmanager
    async def followed(self) -> AsyncIterator[None]:
        """Follow until the end of the block."""
        following = asyncio.create_task(self.follower.follow())
        try:
            yield
        finally:
            following.cancel()
            with suppress(asyncio.CancelledError):
                await following

    def works(self) -> bool:
        """Return whether the agent is at work."""
        return self.follower.is_at_work

    async def until(self, condition: Callable[[], Any]) -> None:
        """Wait until the condition is met."""
        await eventually(condition, 30)

    @property
    def said(self) -> list[tuple[str, ...]]:
        """What was reported about the agent, without its log."""
        return said(self.context)


async def recorded() -> None:
    """Record nothing: these tests have no journal on disk."""


async def a_few_steps() -> None:
    """Let the follower do what it can do now."""
    for _ in range(20):
        await asyncio.sleep(0.001)
