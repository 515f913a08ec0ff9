"""One agent that runs: followed until it ends, and then its end is told."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from taskherd import retry
from taskherd.runner.agents.context import NotDelivered

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from taskherd.runner.agents.context import Follower
    from taskherd.runner.reporter import Reporter
    from taskherd.runner.workspaces.processes import AgentExit, ShimHandle

log = structlog.get_logger(__name__)


class AgentSession:
    """From the start or the adoption of an agent to its end."""

    def __init__(
        self,
        shim: ShimHandle,
        make_follower: Callable[[], Follower],
        reporter: Reporter,
        on_end: Callable[[AgentExit], Awaitable[None]],
    ) -> None:
        """Begin to follow."""
        self.reporter = reporter
        self.follower = make_follower()
        self._shim = shim
        self._make_follower = make_follower
        self._on_end = on_end
        self._over = asyncio.Event()
        self._life = asyncio.create_task(self._live(), name="session")

    async def stop(self) -> AgentExit:
        """End the agent with all that it started: SIGTERM, grace, SIGKILL. How it ended."""
        self._shim.stop()
        return await asyncio.shield(self._life)

    async def detach(self) -> None:
        """Follow no more; the agent goes on."""
        self._life.cancel()
        await asyncio.gather(self._life, return_exceptions=True)
        self._shim.close()

    async def run_while_alive(self, work: Coroutine[None, None, None]) -> None:
        """Do this unless the agent ends first; raises what it raises, or `NotDelivered`."""
        doing = asyncio.create_task(work)
        over = asyncio.create_task(self._over.wait())
        try:
            await asyncio.wait({doing, over}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            over.cancel()
            doing.cancel()
        await asyncio.wait({doing})
        if doing.cancelled():
            raise NotDelivered("The agent ended before it took the input.")
        doing.result()

    async def _live(self) -> AgentExit:
        following = asyncio.create_task(self._follow(), name="follower")
        try:
            exit_ = await self._shim.ended()
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
        self._over.set()
        self.follower.conclude(exit_)
        await self._on_end(exit_)
        self._shim.close()
        return exit_

    async def _follow(self) -> None:
        """Follow, and begin anew from what was noted last if something unforeseen goes wrong."""
        failures = 0
        while True:
            try:
                await self.follower.follow()
            except Exception:
                log.exception("following an agent failed")
            failures += 1
            await asyncio.sleep(retry.delay(failures))
            self.follower = self._make_follower()
