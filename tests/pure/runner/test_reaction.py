"""Whether an agent has reacted to an interrupt, from what it writes and which of its processes have ended."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from taskherd.domain.reports import InterruptOutcome
from taskherd.runner import process_table
from taskherd.runner.activity import ProcessTable
from taskherd.runner.agents import interrupting, reaction
from taskherd.runner.agents.acp import cancelling
from taskherd.runner.agents.context import NotInterrupted
from taskherd.runner.agents.reaction import InterruptReaction
from tests.pure.runner.acp_life import SESSION, AcpLife
from tests.pure.runner.contexts import make_context

SHIM, AGENT, CHILD = 5_000_001, 5_000_002, 5_000_003
"""Processes that do not exist: there are fewer pids."""
LONG = 30.0


class Scans:
    """Scans of /proc: each look at the agent sees the next of these sets of its processes, in the end the last."""

    def __init__(self, *looks: set[int], busy: int = 0) -> None:
        self.looks = looks
        self.busy = busy
        self.calls = 0

    @property
    def seen(self) -> int:
        """Number of looks."""
        return self.calls // 2

    async def table(self) -> ProcessTable:
        """Return the next table; a look takes two. The agent uses CPU between as many looks as are busy."""
        look = self.calls // 2
        self.calls += 1
        children = self.looks[min(look, len(self.looks) - 1)]
        parents = {SHIM: 1, AGENT: SHIM, **dict.fromkeys(children, AGENT)}
        return ProcessTable(100.0 + look, parents, {AGENT: 1000 * min(look, self.busy)})


class Interrupted:
    """An agent that is sent SIGINT."""

    def __init__(self, folder: Path, scans: Scans) -> None:
        given: Any = scans
        self.context = replace(make_context(folder), processes=given)
        self.context.folder.output.mkdir()
        self.context.folder.started.write_text(json.dumps({"pid": SHIM, "agent": AGENT}))
        self.scans = scans
        self.print("before")
        self.reaction = InterruptReaction(self.context)
        self._waiting: asyncio.Task[bool] | None = None

    def print(self, text: str) -> None:
        """Write to the output."""
        with (self.context.folder.output / f"{0:020d}").open("a") as file:
            file.write(text)

    def wait(self, quiet: float = 0.0, seconds: float = LONG) -> asyncio.Task[bool]:
        """Wait for the reaction."""
        self._waiting = asyncio.create_task(self.reaction.wait(quiet, seconds))
        return self._waiting

    async def until_seen(self, looks: int) -> None:
        """Wait for so many further looks, or until the wait for the reaction ends."""
        assert self._waiting is not None
        before = self.scans.seen
        while self.scans.seen < before + looks and not self._waiting.done():  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at once again."""
    monkeypatch.setattr(reaction, "LOOK_INTERVAL", 0.0)
    monkeypatch.setattr(reaction, "_POLL_INTERVAL", 0.0)
    monkeypatch.setattr(cancelling, "_POLL_INTERVAL", 0.0)
    monkeypatch.setattr(interrupting, "_POLL_INTERVAL", 0.0)


@pytest.mark.parametrize("looks", [[set()], [{CHILD}], [set(), {CHILD}]])
async def test_an_agent_that_only_stays_quiet_has_not_reacted(tmp_path: Path, looks: list[set[int]]) -> None:
    """Nor has one that starts a process."""
    agent = Interrupted(tmp_path, Scans(*looks))
    waiting = agent.wait()
    await agent.until_seen(4)
    assert not waiting.done()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_an_agent_that_writes_has_reacted(tmp_path: Path) -> None:
    """When it is quiet then; what it wrote before the signal, does not count."""
    agent = Interrupted(tmp_path, Scans(set()))
    waiting = agent.wait()
    await agent.until_seen(3)
    assert not waiting.done()
    agent.print("interrupted")
    assert await asyncio.wait_for(waiting, LONG) is True


async def test_what_was_written_before_the_wait_counts(tmp_path: Path) -> None:
    """The signal was sent in between."""
    agent = Interrupted(tmp_path, Scans(set()))
    agent.print("interrupted")
    assert await agent.wait() is True


async def test_an_agent_that_ends_a_process_has_reacted(tmp_path: Path) -> None:
    """One that it had started, however late."""
    agent = Interrupted(tmp_path, Scans({CHILD}, {CHILD}, {CHILD}, set()))
    assert await agent.wait() is True
    assert agent.scans.seen >= 4


async def test_an_agent_that_works_has_not_ended_its_turn(tmp_path: Path) -> None:
    """Whatever it writes; it has when it uses no CPU any more."""
    agent = Interrupted(tmp_path, Scans(set(), busy=5))
    agent.print("wait a moment")
    assert await agent.wait() is True
    assert agent.scans.seen >= 7


async def test_an_agent_has_to_be_quiet_for_a_while(tmp_path: Path) -> None:
    """However long it was quiet before it wrote something."""
    agent = Interrupted(tmp_path, Scans(set()))
    waiting = agent.wait(quiet=0.3)
    loop = asyncio.get_running_loop()
    begun = loop.time()
    while loop.time() < begun + 0.3:
        await agent.until_seen(1)
    agent.print("still here")
    printed = loop.time()
    assert await asyncio.wait_for(waiting, LONG) is True
    assert loop.time() - printed >= 0.29


async def test_an_agent_that_has_exited_has_reacted(tmp_path: Path) -> None:
    """Also at the very end, or before."""
    agent = Interrupted(tmp_path, Scans(set()))
    assert await agent.wait(seconds=0.0) is False
    waiting = agent.wait(quiet=LONG)
    await agent.until_seen(2)
    agent.context.folder.exit.write_text("{}")
    assert await asyncio.wait_for(waiting, LONG) is True
    assert await agent.wait(seconds=0.0) is True


@pytest.mark.parametrize("record", ["", "{}", '{"agent"', "[]"])
async def test_without_a_record_of_its_processes_only_the_end_counts(tmp_path: Path, record: str) -> None:
    """It is not known then whether the agent works."""
    agent = Interrupted(tmp_path, Scans({CHILD}, set()))
    agent.context.folder.started.write_text(record)
    agent.print("interrupted")
    assert await agent.wait(seconds=0.1) is False


async def test_processes_that_are_not_known_have_not_ended(tmp_path: Path) -> None:
    """They may be known later, and still be there."""
    agent = Interrupted(tmp_path, Scans({CHILD}))
    record = agent.context.folder.started.read_text()
    agent.context.folder.started.unlink()
    waiting = agent.wait(seconds=1.0)
    await agent.until_seen(2)
    agent.context.folder.started.write_text(record)
    assert await waiting is False


class Cancelled(AcpLife):
    """An agent in a turn that is cancelled, and what it is sent."""

    def __init__(self, folder: Path) -> None:
        self.signals: list[bool | None] = []
        self.dies_of = 0
        super().__init__(folder, grace=0.05)
        self.change(interrupt_agent=self._interrupt, stop_agent=self._end)

    def _interrupt(self) -> None:
        self.signals.append(self.context.journal.interrupted)

    def _end(self) -> None:
        self.stops += 1
        if self.stops == self.dies_of:
            self.exit()

    def exit(self) -> None:
        """Exit."""
        self.folder.exit.write_text("{}")

    async def in_turn(self) -> int:
        """Begin a turn, and return the id of its prompt."""
        await self.open()
        return await self.begin()

    def end_turn(self) -> None:
        """End the turn without a word."""
        self.follower._turn.end()


@pytest.fixture
def life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cancelled:
    """Return an agent that has little time to end its turn."""
    monkeypatch.setattr(cancelling, "CANCEL_TIMEOUT", 0.1)
    monkeypatch.setattr(cancelling, "INTERRUPT_TIMEOUT", 0.1)
    monkeypatch.setattr(interrupting, "KILL_TIMEOUT", 0.1)
    monkeypatch.setattr(interrupting, "LINGER_TIMEOUT", 0.1)
    return Cancelled(tmp_path)


CANCEL = {"method": "session/cancel", "params": {"sessionId": SESSION}}


async def test_an_agent_without_a_turn_has_nothing_to_end(life: Cancelled) -> None:
    """What it asks is answered as cancelled, and people see that."""
    await life.open()
    life.ask(1, "Run it")
    await life.step()
    assert await life.follower._cancellation.interrupt() is InterruptOutcome.ENDED
    assert life.take() == [{"id": 1, "result": {"outcome": {"outcome": "cancelled"}}}]
    await life.step()
    assert life.became() == [("Run it", "open"), ("Run it", "withdrawn")]
    assert (life.signals, life.stops, life.states[-1][0]) == ([], 0, "idle")


async def test_a_turn_that_ends_when_it_is_cancelled_needs_no_signal(
    life: Cancelled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is cancelled once, and what it asked, too."""
    monkeypatch.setattr(cancelling, "CANCEL_TIMEOUT", LONG)
    await life.in_turn()
    life.ask(1, "Run it")
    await life.step()
    waiting = asyncio.create_task(life.follower._cancellation.interrupt())
    await life.until(lambda: life.follower._turn.cancelled)
    life.follower._cancellation.cancel()
    assert life.take() == [{"id": 1, "result": {"outcome": {"outcome": "cancelled"}}}, CANCEL]
    assert not waiting.done()
    life.end_turn()
    assert await asyncio.wait_for(waiting, LONG) is InterruptOutcome.STOPPED
    assert (life.signals, life.stops, life.context.journal.interrupted) == ([], 0, False)


async def test_another_turn_is_not_waited_for(life: Cancelled, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that was to be ended, has ended then."""
    monkeypatch.setattr(cancelling, "CANCEL_TIMEOUT", LONG)
    number = await life.in_turn()
    waiting = asyncio.create_task(life.follower._cancellation.interrupt())
    await life.until(lambda: life.follower._turn.cancelled)
    life.follower._turn.begin(number + 1)
    assert await asyncio.wait_for(waiting, LONG) is InterruptOutcome.STOPPED
    assert (life.signals, life.stops) == ([], 0)


async def test_a_turn_that_goes_on_is_interrupted(life: Cancelled, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent's end counts as an interrupt's only until the turn has ended."""
    monkeypatch.setattr(cancelling, "INTERRUPT_TIMEOUT", LONG)
    await life.in_turn()
    waiting = asyncio.create_task(life.follower._cancellation.interrupt())
    await life.until(lambda: life.signals)
    life.end_turn()
    assert await asyncio.wait_for(waiting, LONG) is InterruptOutcome.STOPPED
    assert (life.signals, life.stops, life.context.journal.interrupted) == ([True], 0, False)
    assert life.saved == [False, False]


async def test_an_agent_that_ends_its_turn_and_exits_was_interrupted(
    life: Cancelled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As programs do on SIGINT: it has not failed."""
    monkeypatch.setattr(cancelling, "INTERRUPT_TIMEOUT", LONG)
    monkeypatch.setattr(interrupting, "LINGER_TIMEOUT", LONG)
    await life.in_turn()
    waiting = asyncio.create_task(life.follower._cancellation.interrupt())
    await life.until(lambda: life.signals)
    life.end_turn()
    await life.step()
    assert not waiting.done()
    life.exit()
    assert await asyncio.wait_for(waiting, LONG) is InterruptOutcome.STOPPED
    assert (life.stops, life.context.journal.interrupted) == (0, True)


@pytest.mark.parametrize(("agent", "goes_on"), [("this process", True), ("gone", False), ("not known", True)])
async def test_an_agent_whose_shim_ends_what_it_has_left_has_exited(
    life: Cancelled, monkeypatch: pytest.MonkeyPatch, agent: str, *, goes_on: bool
) -> None:
    """That takes as long as the template's grace time, and what comes after the interrupt waits for it."""
    waits: list[float] = []

    async def exits(_: object, seconds: float) -> bool:
        waits.append(seconds)
        return False

    monkeypatch.setattr(interrupting, "_exits", exits)
    record = {"agent": os.getpid(), "agent_start": process_table.start_ticks(os.getpid()) + (agent == "gone")}
    life.folder.started.write_text("{" if agent == "not known" else json.dumps(record))
    life.context.journal.interrupted = True
    await interrupting.settle_interrupt(life.context)
    assert life.context.journal.interrupted is not goes_on
    assert waits == [interrupting.LINGER_TIMEOUT, *[interrupting.TERM_TIMEOUT] * (not goes_on)]


async def test_the_end_of_an_agent_that_was_interrupted_is_that_of_the_interrupt(
    life: Cancelled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its turn has ended with it."""
    monkeypatch.setattr(cancelling, "INTERRUPT_TIMEOUT", LONG)
    await life.in_turn()
    waiting = asyncio.create_task(life.follower._cancellation.interrupt())
    await life.until(lambda: life.signals)
    life.exit()
    assert await asyncio.wait_for(waiting, LONG) is InterruptOutcome.STOPPED
    assert (life.stops, life.context.journal.interrupted) == (0, True)


@pytest.mark.parametrize("dies_of", [1, 2])
async def test_an_agent_that_does_not_end_its_turn_is_ended(life: Cancelled, dies_of: int) -> None:
    """With SIGTERM, and then with SIGKILL."""
    await life.in_turn()
    life.dies_of = dies_of
    assert await life.follower._cancellation.interrupt() is InterruptOutcome.STOPPED
    assert (life.signals, life.stops, life.context.journal.interrupted) == ([True], dies_of, True)


async def test_an_agent_that_cannot_be_ended_was_not_interrupted(life: Cancelled) -> None:
    """People are told to look at the machine."""
    await life.in_turn()
    with pytest.raises(NotInterrupted, match="processes could not be ended"):
        await life.follower._cancellation.interrupt()
    assert (life.signals, life.stops) == ([True], 2)
