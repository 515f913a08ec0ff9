"""In which steps a runner drains, and how a further signal shortens them; without agents and broker."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from taskherd.errors import Unavailable
from taskherd.runner import drain
from taskherd.runner.drain import Drain


class Runner:
    """The dispatcher, consumer and sender of a runner with one agent, which ends when a test says so."""

    def __init__(self) -> None:
        self.deeds: list[str] = []
        self.agents = 1
        self.working = 0
        self.drained = True
        self.are_sent = True
        self.ends_when_killed = True
        self.failure: Exception | None = None
        self.waits: list[float] = []

    def hold_starts(self) -> None:
        """Note it."""
        self.deeds.append("hold starts")

    def resubscribe(self) -> None:
        """Note it."""
        self.deeds.append("resubscribe")

    def drain(self, *, idle_only: bool = False) -> None:
        """Note it; the agent is idle after the third look."""
        self.deeds.append("drain idle" if idle_only else "drain")
        if idle_only and self.deeds.count("drain idle") == 3:
            self.working = 0

    def kill_agents(self) -> None:
        """Note it; the agent ends at the second time."""
        self.deeds.append("kill")
        if self.ends_when_killed and self.deeds.count("kill") == 2:
            self.drained = True

    async def wait_drained(self) -> None:
        """Wait for the agent."""
        self.deeds.append("wait drained")
        while not self.drained:  # noqa: ASYNC110 - a test changes it
            await asyncio.sleep(0)

    async def wait_sent(self) -> None:
        """Wait for the reports."""
        self.deeds.append("wait sent")
        if self.failure is not None:
            raise self.failure
        while not self.are_sent:  # noqa: ASYNC110 - a test changes it
            await asyncio.sleep(0)

    async def close(self) -> None:
        """Take long to close the consumer."""
        self.deeds.append("close")
        try:
            await asyncio.Event().wait()
        finally:
            self.deeds.append("closed")

    def make(self, wait: float = 0, grace: float = 600) -> Drain:
        """Return a drain of it."""
        me: Any = self
        return Drain(me, me, me, wait=wait, grace=grace)


@pytest.fixture
def runner() -> Runner:
    """Return a runner whose agent ends at once."""
    return Runner()


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at once again."""
    monkeypatch.setattr(drain, "_POLL_INTERVAL", 0)


async def drained(process: Drain) -> list[str]:
    """Run a drain to its end, and return what is logged."""
    with capture_logs() as logged:
        await asyncio.wait_for(process.run(), 60)
    return [entry["event"] for entry in logged]


async def test_agents_are_paused_and_their_reports_delivered(runner: Runner) -> None:
    """The consumer is closed meanwhile, as far as it can be."""
    assert await drained(runner.make()) == ["pausing agents", "agents paused"]
    assert [deed for deed in runner.deeds if "close" not in deed] == ["drain", "wait drained", "wait sent"]
    assert [deed for deed in runner.deeds if "close" in deed] == ["close", "closed"]


async def test_agents_at_work_may_end_first(runner: Runner) -> None:
    """Those that wait are paused at once, and starts are left to the next runner."""
    runner.working = 1
    assert (await drained(runner.make(wait=600)))[0] == "waiting for agents that work"
    waited = ["hold starts", "resubscribe", *["drain idle"] * 3]
    assert runner.deeds[: len(waited) + 1] == [*waited, "drain"]


@pytest.mark.parametrize("wait", [0.01, 600])
async def test_the_wait_for_work_ends(runner: Runner, wait: float) -> None:
    """In its time, or with a further signal, which does not shorten what comes then."""
    runner.working = 1
    process = runner.make(wait=wait)
    running = asyncio.create_task(drained(process))
    if wait == 600:
        while "drain idle" not in runner.deeds:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0)
        runner.deeds += ["drain idle"] * 3  # it never becomes idle
        process.hurry()
    else:
        runner.deeds += ["drain idle"] * 3
    assert await running == ["waiting for agents that work", "pausing agents", "agents paused"]
    assert runner.working == 1


@pytest.mark.parametrize("grace", [0.2, 600])
async def test_agents_that_do_not_end_are_killed(runner: Runner, grace: float) -> None:
    """After a share of the grace time, or with a further signal."""
    runner.drained = False
    process = runner.make(grace=grace)
    running = asyncio.create_task(drained(process))
    while "wait drained" not in runner.deeds:  # noqa: ASYNC110 - it tells nobody
        await asyncio.sleep(0)
    began = asyncio.get_running_loop().time()
    if grace == 600:
        process.hurry()
    assert await running == ["pausing agents", "agents did not end in time, killing them", "agents paused"]
    assert runner.deeds.count("kill") == 2
    assert grace == 600 or asyncio.get_running_loop().time() - began >= 0.11


async def test_what_outlives_its_kill_is_left(runner: Runner) -> None:
    """The rest of the time is for the reports; those that are not delivered are sent by the next runner."""
    runner.drained = runner.ends_when_killed = runner.are_sent = False
    began = asyncio.get_running_loop().time()
    assert await drained(runner.make(grace=0.2)) == [
        "pausing agents", "agents did not end in time, killing them", "agents paused",
        "reports not delivered in time, the next runner sends them",
    ]  # fmt: skip
    assert asyncio.get_running_loop().time() - began >= 0.19
    assert runner.deeds[-2:] == ["wait sent", "closed"]


async def test_a_further_signal_ends_the_delivery_of_reports(runner: Runner) -> None:
    """So does an outage, which it does not outlast."""
    runner.are_sent = False
    process = runner.make()
    running = asyncio.create_task(drained(process))
    while "wait sent" not in runner.deeds:  # noqa: ASYNC110 - it tells nobody
        await asyncio.sleep(0)
    process.hurry()
    late = "reports not delivered in time, the next runner sends them"
    assert (await running)[-1] == late
    runner.failure = Unavailable("no broker")
    assert (await drained(process))[-1] == late
