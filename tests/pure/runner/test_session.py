"""An agent from its start to its exit, with a shim and a follower that do what a test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from taskherd import retry
from taskherd.domain.reports import InterruptOutcome
from taskherd.runner.agents import conclusion, session
from taskherd.runner.agents.conclusion import conclude
from taskherd.runner.agents.context import DeliveryUnknown, NotDelivered, RecordAttempt
from taskherd.runner.agents.session import AgentSession
from taskherd.runner.workspaces.processes import ExitRecord
from tests.harness.runner import eventually
from tests.pure.runner.contexts import make_context, reports_of

DONE = ExitRecord("exited", code=0)


class Shim:
    """A shim whose agent runs until a test says so."""

    def __init__(self) -> None:
        self.deeds: list[str] = []
        self.has_exited = False
        self.failures: list[Exception] = []
        self.exits = asyncio.Event()

    def stop(self) -> None:
        """Note it."""
        self.deeds.append("stop")

    def interrupt(self) -> None:
        """Note it."""
        self.deeds.append("interrupt")

    def close(self) -> None:
        """Note it."""
        self.deeds.append("close")

    async def wait(self) -> ExitRecord:
        """Wait for the exit."""
        if self.failures:
            raise self.failures.pop(0)
        await self.exits.wait()
        return DONE


class Follower:
    """A follower, which notes what it is asked."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.start_outcome: str | None = ""
        self.is_following = False
        self.may_deliver = asyncio.Event()
        self.may_fail = asyncio.Event()

    async def follow(self) -> None:
        """Follow until cancelled, or fail."""
        if self._run.failures:
            raise self._run.failures.pop(0)
        self.is_following = True
        try:
            await self.may_fail.wait()
            raise RuntimeError("it fails")
        finally:
            self.is_following = False

    async def deliver(self, text: str, record_attempt: RecordAttempt) -> None:
        """Deliver an input once a test says so."""
        self._run.deeds.append(f"waits: {text}")
        await self.may_deliver.wait()
        await record_attempt()
        self._run.deeds.append(f"given: {text}")
        await self._run.may_end.wait()

    async def interrupt(self) -> InterruptOutcome:
        """End the turn when a test says so."""
        self._run.deeds.append("interrupt")
        await self._run.may_end.wait()
        return InterruptOutcome.ENDED

    async def conclude(self, agent_exit: ExitRecord) -> None:
        """Note the exit."""
        assert not self.is_following
        self._run.deeds.append(agent_exit.reason)


class Run:
    """A session, and what was done for it."""

    def __init__(self, folder: Path, *failures: Exception) -> None:
        self.shim = Shim()
        self.failures = [*failures]
        self.deeds: list[str] = []
        self.may_end = asyncio.Event()
        self.recorded: Exception | None = None
        self.followers: list[Follower] = []
        shim: Any = self.shim
        self.session = AgentSession(shim, self._make, make_context(folder), self._record)

    def _make(self) -> Any:
        self.followers.append(Follower(self))
        return self.followers[-1]

    async def _record(self, agent_exit: ExitRecord) -> None:
        self.deeds.append(f"recorded {agent_exit.reason}")
        if self.recorded is not None:
            raise self.recorded

    def exit(self) -> None:
        """Let the agent exit."""
        self.shim.has_exited = True
        self.shim.exits.set()

    async def end(self) -> ExitRecord:
        """Let the agent exit, and wait until the session has ended."""
        self.exit()
        async with asyncio.timeout(30):
            return await self.session._loop


@pytest.fixture
async def run(tmp_path: Path) -> AsyncIterator[Run]:
    """Yield a session that has begun to follow its agent."""
    started = Run(tmp_path)
    await steps()
    yield started
    started.session._loop.cancel()


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Wait for nothing, and return after how many failures that was."""
    waited: list[int] = []

    def delay(failures: int) -> float:
        waited.append(failures)
        return 0

    monkeypatch.setattr(retry, "delay", delay)
    monkeypatch.setattr(session, "_START_POLL_INTERVAL", 0)
    monkeypatch.setattr(session, "SETTLE_TIMEOUT", 0.01)
    return waited


async def steps() -> None:
    """Let other tasks do what they can do now."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_an_agent_is_followed_until_it_exits(run: Run) -> None:
    """Then its exit is reported, and recorded after that."""
    assert run.followers[0].is_following
    assert not run.session.has_exited()
    assert await run.end() == DONE
    assert run.deeds == ["exited", "recorded exited"]
    assert run.shim.deeds == ["close"]
    run.shim.has_exited = False
    assert run.session.has_exited()


async def test_an_agent_is_stopped_and_killed_by_its_shim(run: Run) -> None:
    """To stop waits for the exit, which a caller that gives up does not change; to end does not."""
    run.session.interrupt()
    run.session.end()
    assert run.shim.deeds == ["interrupt", "stop"]
    stopping = asyncio.create_task(run.session.stop())
    await steps()
    stopping.cancel()
    await asyncio.wait({stopping})
    assert not run.session._loop.done()
    stopping = asyncio.create_task(run.session.stop())
    await steps()
    run.session.kill()
    run.exit()
    assert await stopping == DONE
    assert run.shim.deeds == ["interrupt", "stop", "stop", "stop", "stop", "close"]


async def test_a_follower_that_fails_is_replaced(tmp_path: Path, waits: list[int]) -> None:
    """It goes on from the last checkpoint; the error is logged."""
    with capture_logs() as logged:
        run = Run(tmp_path, RuntimeError("one"), RuntimeError("two"))
        await steps()
    assert [entry["event"] for entry in logged] == ["follower failed, restarting it"] * 2
    assert waits == [1, 2]
    assert [each.is_following for each in run.followers] == [False, False, True]
    latest: Any = run.session.follower
    assert latest is run.followers[-1]
    await run.end()


async def test_an_exit_that_cannot_be_found_out_is_looked_for_again(tmp_path: Path, waits: list[int]) -> None:
    """That is logged once; an error of who records it is logged, too."""
    run = Run(tmp_path)
    run.shim.failures = [RuntimeError("no thread")] * 3
    run.recorded = RuntimeError("no disk")
    with capture_logs() as logged:
        assert await run.end() == DONE
    assert waits == [1, 2, 3]
    assert [entry["event"] for entry in logged] == [
        "waiting for the exit of an agent failed, trying again", "recording the exit of an agent failed"
    ]  # fmt: skip
    assert run.shim.deeds == ["close"]


async def test_a_detached_agent_keeps_running(run: Run) -> None:
    """Nothing is reported; its shim is left."""
    await run.session.detach()
    assert (run.deeds, run.shim.deeds) == ([], ["close"])
    assert not run.followers[0].is_following


@pytest.mark.parametrize("outcome", ["", "no key"])
async def test_the_start_of_an_agent_may_take_time(run: Run, outcome: str) -> None:
    """Its follower knows how it ends, or the next one."""
    run.followers[0].start_outcome = None
    waiting = asyncio.create_task(run.session.wait_started())
    await steps()
    assert not waiting.done()
    run.followers[0].start_outcome = outcome
    assert await waiting == outcome


async def test_a_start_of_which_nobody_knows_ended_with_the_agent(run: Run) -> None:
    """Its exit says how."""
    run.followers[0].start_outcome = None
    await run.end()
    run.session.follower.start_outcome = None  # type: ignore[misc]
    assert await run.session.wait_started() == "The agent ended with exit status 0."


async def test_a_delivery_ends_with_the_agent(run: Run) -> None:
    """After a moment to find out what became of it; its own outcome counts."""

    async def deliver(fails: bool = False) -> None:  # noqa: FBT001, FBT002 - a short name for it
        await run.may_end.wait()
        if fails:
            raise NotDelivered("busy")

    for fails in (False, True):
        run.may_end.clear()
        delivering = asyncio.create_task(run.session.run_while_alive(deliver(fails)))
        await asyncio.sleep(0.05)
        assert not delivering.done()
        run.may_end.set()
        if fails:
            with pytest.raises(NotDelivered, match="busy"):
                await delivering
        else:
            await delivering
    run.may_end.clear()
    delivering = asyncio.create_task(run.session.run_while_alive(deliver()))
    await steps()
    await run.end()
    with pytest.raises(NotDelivered, match="The agent exited before it received the input"):
        await delivering


async def nothing() -> None:
    """Record nothing."""


async def test_an_input_waits_in_the_current_follower(run: Run) -> None:
    """One that fails before it gives it to the agent is replaced; one that has tried says itself what became of it."""
    delivering = asyncio.create_task(run.session.deliver("one", nothing))
    await steps()
    run.followers[0].may_fail.set()
    await eventually(lambda: run.deeds == ["waits: one"] * 2)
    run.followers[0].may_deliver.set()
    run.followers[1].may_deliver.set()
    await eventually(lambda: run.deeds[2:] == ["given: one"])
    run.followers[1].may_fail.set()
    await eventually(lambda: len(run.followers) == 3)
    assert not delivering.done()
    run.may_end.set()
    await asyncio.wait_for(delivering, 30)
    assert run.deeds[3:] == []
    await run.end()


async def test_an_input_is_not_given_by_a_follower_that_failed_while_the_attempt_was_recorded(run: Run) -> None:
    """It is given by the next one, for which it is recorded again."""
    records: list[bool] = []

    async def record() -> None:
        records.append(True)
        if len(records) == 1:
            run.followers[0].may_fail.set()
            await eventually(lambda: len(run.followers) == 2)
            run.followers[1].may_deliver.set()

    run.followers[0].may_deliver.set()
    run.may_end.set()
    await asyncio.wait_for(run.session.deliver("one", record), 30)
    assert (len(records), run.deeds) == (2, ["waits: one", "waits: one", "given: one"])
    await run.end()


@pytest.mark.parametrize("fails", ["each", "none is made"])
async def test_an_input_does_not_wait_for_a_follower_for_ever(
    run: Run, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """It was not delivered, and may be sent again."""
    if fails == "none is made":
        monkeypatch.setattr(session, "FOLLOWER_TIMEOUT", 0)
        monkeypatch.setattr(run.session, "_make_follower", lambda: 1 / 0)
        run.followers[0].may_fail.set()
        await eventually(run.session._failed.is_set)
    delivering = asyncio.create_task(run.session.deliver("one", nothing))
    for number in range(session.MAX_FOLLOWERS if fails == "each" else 0):
        await eventually(lambda at=number: len(run.deeds) == at + 1)  # type: ignore[misc]
        run.followers[number].may_fail.set()
    with pytest.raises(NotDelivered, match="The runner failed to follow the agent"):
        await asyncio.wait_for(delivering, 30)
    assert run.deeds == ["waits: one"] * (session.MAX_FOLLOWERS if fails == "each" else 0)


async def test_a_delivery_that_is_cancelled_leaves_nothing(run: Run) -> None:
    """As when the runner stops."""
    run.followers[0].may_deliver.set()
    delivering = asyncio.create_task(run.session.deliver("one", nothing))
    await eventually(lambda: run.deeds[1:])
    delivering.cancel()
    await asyncio.wait({delivering})
    await eventually(lambda: not any("deliver at " in str(task.get_coro()) for task in asyncio.all_tasks()))
    assert delivering.cancelled()
    await run.end()


async def test_a_delivery_that_ends_with_its_follower_is_in_doubt(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent was just given the input, and is not given it again."""

    async def cancelled(_: str, record_attempt: RecordAttempt) -> None:
        await record_attempt()
        raise asyncio.CancelledError

    monkeypatch.setattr(run.followers[0], "deliver", cancelled)
    with pytest.raises(DeliveryUnknown, match="It may have received the input"):
        await asyncio.wait_for(run.session.deliver("one", nothing), 30)
    await run.end()


async def test_an_input_is_handed_over_only_for_a_while(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A follower may wait for the end of a turn nearly as long as the worker waits for the input's outcome."""
    monkeypatch.setattr(session, "HANDOVER_TIMEOUT", -1)
    with pytest.raises(NotDelivered, match="The runner failed to follow the agent"):
        await asyncio.wait_for(run.session.deliver("one", nothing), 30)
    assert run.deeds == []
    await run.end()


async def test_a_turn_ends_as_its_follower_says(run: Run) -> None:
    """The agent goes on."""
    interrupting = asyncio.create_task(run.session.interrupt_turn())
    await asyncio.sleep(0.05)
    assert (run.deeds, interrupting.done()) == (["interrupt"], False)
    run.may_end.set()
    assert await interrupting is InterruptOutcome.ENDED
    assert not run.session._loop.done()


async def test_a_turn_ends_with_its_agent(run: Run) -> None:
    """At the latest when that was reported; whoever comes afterwards finds that it has ended by itself."""
    interrupting = asyncio.create_task(run.session.interrupt_turn())
    await steps()
    run.exit()
    assert await asyncio.wait_for(interrupting, 30) is InterruptOutcome.STOPPED
    assert run.session._loop.done()
    assert await run.session.interrupt_turn() is InterruptOutcome.ENDED
    assert run.deeds == ["interrupt", "exited", "recorded exited"]


async def test_an_agent_that_has_exited_is_not_interrupted(run: Run) -> None:
    """That it was reported is waited for, but not for ever."""
    run.shim.has_exited = True
    interrupting = asyncio.create_task(run.session.interrupt_turn())
    await steps()
    assert not interrupting.done()
    run.exit()
    assert await asyncio.wait_for(interrupting, 30) is InterruptOutcome.ENDED
    assert run.deeds == ["exited", "recorded exited"]


async def test_who_waits_for_the_end_of_an_agent_is_told_of_a_stop(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last output may wait for the broker, and a stop must not."""
    concluding = asyncio.Event()

    async def conclude_slowly(_: Follower, agent_exit: ExitRecord) -> None:
        concluding.set()
        await run.session._context.stopping.wait()
        run.deeds.append(agent_exit.reason)

    monkeypatch.setattr(Follower, "conclude", conclude_slowly)
    run.exit()
    await asyncio.wait_for(concluding.wait(), 30)
    await steps()
    assert run.deeds == []
    await asyncio.wait_for(run.session.stop(), 30)
    assert run.deeds == ["exited", "recorded exited"]


class Failing:
    """Followers of which the first ones cannot report the exit."""

    def __init__(self, failures: int, stop_after: int = 99) -> None:
        self.failures = failures
        self.stop_after = stop_after
        self.stopping = asyncio.Event()
        """The event of the agent's context."""
        self.attempts = 0
        self.made = 0

    def make(self) -> Any:
        """Return the next follower."""
        self.made += 1
        return self

    async def conclude(self, _: ExitRecord) -> None:
        """Report the exit, or fail."""
        self.attempts += 1
        if self.attempts == self.stop_after:
            self.stopping.set()
        if self.attempts <= self.failures:
            raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("failures", "stop_after", "attempts", "alone"),
    [(0, 99, 1, False), (1, 99, 2, False), (9, 99, 10, False), (10, 99, 10, True), (10, 3, 4, True), (3, 3, 4, False)],
)
async def test_an_exit_is_reported_in_any_case(
    tmp_path: Path, failures: int, stop_after: int, attempts: int, *, alone: bool
) -> None:
    """By several followers one after the other; in the end without the last output. To stop takes one more attempt."""
    failing = Failing(failures, stop_after)
    context = replace(make_context(tmp_path), stopping=failing.stopping)
    context.journal.ended_because = "It asked too often."
    context.journal.ready_reported = True
    first: Any = failing
    with capture_logs() as logged:
        await conclude(context, DONE, failing.make, follower=first)
    assert (failing.attempts, failing.made) == (attempts, attempts - 1)
    trying, giving_up = (
        "reporting the last output of an agent failed, trying again",
        "the last output of an agent is not reported",
    )
    assert [entry["event"] for entry in logged] == [trying] * bool(failures) + [giving_up] * alone
    reports = reports_of(context.outbox, "app.status")
    expected = [("failed", "It asked too often.")] if alone else []
    assert [(report["state"], report["message"]) for report in reports] == expected


async def test_an_exit_that_cannot_be_reported_is_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an error, since its session ends anyway; without a follower, one is made."""
    failing = Failing(10)
    monkeypatch.setattr(conclusion, "report_exit", lambda *_: 1 / 0)
    with capture_logs() as logged:
        await conclude(make_context(tmp_path), DONE, failing.make)
    assert logged[-1]["event"] == "reporting the exit of an agent failed"
    assert failing.made == 10
