"""The session of a running agent: follow it until it exits, then report the exit."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import structlog

from taskherd import retry
from taskherd.domain.reports import InterruptOutcome
from taskherd.runner.agents.conclusion import conclude
from taskherd.runner.agents.context import NOT_FOLLOWED, DeliveryUnknown, NotDelivered

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from taskherd.runner.agents.context import AgentContext, Follower, RecordAttempt
    from taskherd.runner.workspaces.processes import ExitRecord, ShimHandle

log = structlog.get_logger(__name__)

_START_POLL_INTERVAL = 0.05
SETTLE_TIMEOUT = 2.0
"""Seconds that the delivery of an input, and an interrupt, may go on after the agent has exited."""
EXIT_TIMEOUT = 10.0
"""Seconds for which the outcome of an interrupt waits until the agent's exit was reported."""
FOLLOWER_TIMEOUT = 60.0
"""Seconds for which an input waits for a new follower after one has failed."""
MAX_FOLLOWERS = 3
"""Maximum number of followers to which an input is handed, each after the one before has failed without trying it."""
HANDOVER_TIMEOUT = 200.0
"""Seconds after which an input is not handed to another follower. A follower may wait 300 s for a turn to end, and the
worker gives the input up after ``TASKHERD_REQUEST_TTL``."""


class AgentSession:
    """A running agent, from its start or adoption to its exit."""

    def __init__(
        self,
        shim: ShimHandle,
        make_follower: Callable[[], Follower],
        context: AgentContext,
        on_exit: Callable[[ExitRecord], Awaitable[None]],
    ) -> None:
        """Start following the agent. ``on_exit`` is awaited after its exit was reported."""
        self.reporter = context.reporter
        self.follower = make_follower()
        self._shim = shim
        self._make_follower = make_follower
        self._context = context
        self._on_exit = on_exit
        self._exited = asyncio.Event()
        self._failed = asyncio.Event()
        """Set once the current follower has failed; each has an event of its own."""
        self._replaced = asyncio.Event()
        """Cleared from then on until there is a new one."""
        self._replaced.set()
        self._loop = asyncio.create_task(self._run(), name="session")

    async def stop(self) -> ExitRecord:
        """End the agent and its descendants (SIGTERM, grace time, SIGKILL), and return how it ended."""
        self._context.stopping.set()
        self._shim.stop()
        return await asyncio.shield(self._loop)

    def interrupt(self) -> None:
        """Send SIGINT to the agent's process group."""
        self._shim.interrupt()

    def has_exited(self) -> bool:
        """Return whether the agent has exited, reported or not."""
        return self._exited.is_set() or self._shim.has_exited

    async def interrupt_turn(self) -> InterruptOutcome:
        """End what the agent does, and return when that is done and reported. Raise ``NotInterrupted``."""
        if self.has_exited():  # by itself
            await asyncio.wait({self._loop}, timeout=EXIT_TIMEOUT)
            return InterruptOutcome.ENDED
        work = asyncio.create_task(self.follower.interrupt())
        exit_wait = asyncio.create_task(self._exited.wait())
        try:
            await asyncio.wait({work, exit_wait}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({work}, timeout=SETTLE_TIMEOUT)
        finally:
            exit_wait.cancel()
            work.cancel()
        await asyncio.wait({work})
        if self.has_exited():  # what comes after the interrupt must not be sent to it
            await asyncio.wait({self._loop}, timeout=EXIT_TIMEOUT)
        return InterruptOutcome.STOPPED if work.cancelled() else work.result()

    def end(self) -> None:
        """End the agent and its descendants as ``stop`` does, without waiting."""
        self._shim.stop()

    async def wait_started(self, has_ending: Callable[[], bool] = lambda: False) -> str | None:
        """Wait until the agent's start has succeeded or failed, or until it is to be ended.

        Return an error message, "" on success, or None once ``has_ending`` returns True before that.
        """
        while (outcome := self.follower.start_outcome) is None:  # a new follower may know it
            if self._loop.done():  # its follower could not report that
                return self._loop.result().describe()
            if has_ending():
                return None
            await asyncio.sleep(_START_POLL_INTERVAL)
        return outcome

    def kill(self) -> None:
        """Cut short the grace time after ``stop``: SIGKILL now."""
        self._shim.stop()

    async def detach(self) -> None:
        """Stop following; the agent keeps running."""
        self._loop.cancel()
        await asyncio.gather(self._loop, return_exceptions=True)
        self._shim.close()

    async def deliver(self, text: str, record_attempt: RecordAttempt) -> None:
        """Deliver an input, after awaiting ``record_attempt``. Raise ``NotDelivered`` or ``DeliveryUnknown``.

        An input that a follower has not tried to give the agent before it failed is delivered by the next one.
        """
        await self.run_while_alive(self._deliver(text, record_attempt))

    async def _deliver(self, text: str, record_attempt: RecordAttempt) -> None:
        began = time.monotonic()
        for _ in range(MAX_FOLLOWERS):
            try:
                await asyncio.wait_for(self._replaced.wait(), FOLLOWER_TIMEOUT)
            except TimeoutError:
                break
            if time.monotonic() - began > HANDOVER_TIMEOUT:
                break
            if await self._is_decided(text, record_attempt):
                return
        raise NotDelivered(NOT_FOLLOWED)

    async def _is_decided(self, text: str, record_attempt: RecordAttempt) -> bool:
        """Let the current follower deliver an input; return False if it has failed before it tried."""
        failed, is_tried = self._failed, False

        async def record() -> None:
            nonlocal is_tried
            await record_attempt()
            if failed.is_set():  # what it knows is no longer true
                raise NotDelivered(NOT_FOLLOWED)
            is_tried = True

        work = asyncio.create_task(self.follower.deliver(text, record))
        failure = asyncio.create_task(failed.wait())
        try:
            await asyncio.wait({work, failure}, return_when=asyncio.FIRST_COMPLETED)
            if is_tried:
                await asyncio.wait({work})
        finally:
            work.cancel()
            failure.cancel()
            await asyncio.gather(work, failure, return_exceptions=True)
        if failed.is_set() and not is_tried:
            return False
        if work.cancelled():  # with its follower, while the agent was given the input
            raise DeliveryUnknown(f"{NOT_FOLLOWED} It may have received the input.")
        work.result()
        return True

    async def run_while_alive(self, work: Coroutine[None, None, None]) -> None:
        """Await ``work``; raise ``NotDelivered`` if the agent exits first.

        After the exit, ``work`` has ``SETTLE_TIMEOUT`` to find out by itself what became of it.
        """
        work_task = asyncio.create_task(work)
        exit_wait = asyncio.create_task(self._exited.wait())
        try:
            await asyncio.wait({work_task, exit_wait}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({work_task}, timeout=SETTLE_TIMEOUT)
        finally:
            exit_wait.cancel()
            work_task.cancel()
        await asyncio.wait({work_task})
        if work_task.cancelled():
            raise NotDelivered("The agent exited before it received the input.")
        work_task.result()

    async def _run(self) -> ExitRecord:
        follow_task = asyncio.create_task(self._follow(), name="follower")
        try:
            agent_exit = await self._wait_exit()
        finally:
            follow_task.cancel()
            await asyncio.gather(follow_task, return_exceptions=True)
        self._exited.set()
        await conclude(self._context, agent_exit, self._renew_follower, follower=self.follower)
        try:
            await self._on_exit(agent_exit)
        except Exception:
            log.exception("recording the exit of an agent failed", task_id=str(self._context.journal.task_id))
        self._shim.close()
        return agent_exit

    async def _wait_exit(self) -> ExitRecord:
        """Wait until the agent has exited; as long as that cannot be found out, such as without a thread, try again."""
        failures = 0
        while True:
            try:
                return await self._shim.wait()
            except Exception:
                if not failures:
                    task_id = str(self._context.journal.task_id)
                    log.exception("waiting for the exit of an agent failed, trying again", task_id=task_id)
            failures += 1
            await asyncio.sleep(retry.delay(failures))

    async def _follow(self) -> None:
        """Follow the agent; after an unexpected error, continue with a new follower from the last checkpoint."""
        failures = 0
        while True:
            try:
                if failures:
                    self._renew_follower()
                    self._failed = asyncio.Event()
                    self._replaced.set()
                await self.follower.follow()
            except Exception:
                log.exception("follower failed, restarting it")
            self._failed.set()
            self._replaced.clear()
            failures += 1
            await asyncio.sleep(retry.delay(failures))

    def _renew_follower(self) -> Follower:
        """Replace the follower by one that continues from the last checkpoint, and return it."""
        self.follower = self._make_follower()
        return self.follower
