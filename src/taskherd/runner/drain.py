"""Drain a runner that is told to stop: pause its agents, so that the next runner starts them again.

The worker requests the next start of a workspace that its runner stopped with ``restart: true``. Each further signal to
stop shortens the step in progress: waiting for agents that work, their grace time, and the delivery of the reports.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

import structlog

from taskherd.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from taskherd.broker.consumer import Consumer
    from taskherd.runner.dispatcher import Dispatcher
    from taskherd.runner.report_sender import ReportSender

log = structlog.get_logger(__name__)

REASON = "The runner was told to stop. The task is started again as soon as a runner takes it."
"""The reason in the report of a drained workspace."""
NOTICE = "the runner was told to stop, so the agent is stopped, and started again by the next runner."
"""The notice in the task's log."""
PAUSE_SHARE = 0.6
"""Share of the grace time after which agents that have not ended are killed."""
KILL_SHARE = 0.8
"""Share of the grace time that remains for the reports alone."""
_POLL_INTERVAL = 0.1
"""Seconds between two looks at the agents."""


class Drain:
    """One drain of a runner; ``grace`` seconds bound it, after a wait of at most ``wait`` seconds."""

    def __init__(
        self, dispatcher: Dispatcher, consumer: Consumer, sender: ReportSender, *, wait: float, grace: float
    ) -> None:
        self._dispatcher = dispatcher
        self._consumer = consumer
        self._sender = sender
        self._wait = wait
        self._grace = grace
        self._hurry = asyncio.Event()

    def hurry(self) -> None:
        """End the step in progress, as on a second SIGTERM."""
        self._hurry.set()

    async def run(self) -> None:
        """Pause all agents and deliver the reports, as far as time allows. The journals keep what is left undone."""
        if self._wait:
            await self._wait_for_work()
        agents = self._dispatcher.agents
        log.info("pausing agents", agents=agents)
        deadline = asyncio.get_running_loop().time() + self._grace
        closing = asyncio.create_task(self._consumer.close(), name="closing the consumer")
        self._dispatcher.drain()
        if not await self._step(self._dispatcher.wait_drained(), self._grace * PAUSE_SHARE):
            log.warning("agents did not end in time, killing them", agents=self._dispatcher.agents)
            await self._step(self._kill_agents(), self._grace * (KILL_SHARE - PAUSE_SHARE))
        log.info("agents paused", agents=agents, left=self._dispatcher.agents)
        if not await self._step(self._sender.wait_sent(), deadline - asyncio.get_running_loop().time()):
            log.warning("reports not delivered in time, the next runner sends them")
        closing.cancel()
        await asyncio.wait({closing})

    async def _wait_for_work(self) -> None:
        """Wait until no agent works; pause each as soon as it waits for an input."""
        log.info("waiting for agents that work", agents=self._dispatcher.working, seconds=self._wait)
        self._dispatcher.hold_starts()
        self._consumer.resubscribe()
        await self._step(self._pause_idle_agents(), self._wait)

    async def _kill_agents(self) -> None:
        while not self._dispatcher.drained:
            self._dispatcher.kill_agents()
            await asyncio.sleep(_POLL_INTERVAL)

    async def _pause_idle_agents(self) -> None:
        while self._dispatcher.working:
            self._dispatcher.drain(idle_only=True)
            await asyncio.sleep(_POLL_INTERVAL)

    async def _step(self, work: Coroutine[None, None, None], seconds: float) -> bool:
        """Await ``work``, for a time and until ``hurry`` is called. Return whether it was done."""
        work_task = asyncio.create_task(work)
        hurry = asyncio.create_task(self._hurry.wait())
        try:
            await asyncio.wait({work_task, hurry}, timeout=max(0.0, seconds), return_when=asyncio.FIRST_COMPLETED)
        finally:
            work_task.cancel()
            hurry.cancel()
            with suppress(asyncio.CancelledError, Unavailable):
                await work_task
        self._hurry.clear()
        return not work_task.cancelled() and work_task.exception() is None
