"""The follower of an agent's output, without an agent: what lines, silence and the end of the output lead to."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import pytest

from taskherd.domain.reports import AgentState, Health, InterruptOutcome
from taskherd.messages.limits import MAX_CONTENT_BYTES
from taskherd.runner.activity import LOOK_INTERVAL
from taskherd.runner.agents import stdin, stdio
from taskherd.runner.agents.context import AgentContext
from taskherd.runner.agents.log_budget import READ_COST, LogBudget, LogRates
from taskherd.runner.agents.output import MAX_LINE
from taskherd.runner.agents.status_pace import STATUS_EVERY
from taskherd.runner.agents.stdio import StatusLine, StdioFollower
from taskherd.runner.outbox import Budget, Outbox
from taskherd.runner.segments import SegmentWriter
from taskherd.runner.workspaces.processes import ExitRecord
from tests.harness.runner import eventually
from tests.pure.runner.contexts import Spending, make_context, reports_of
from tests.pure.runner.test_context import given_start

MIB = 1024 * 1024


class Looks:
    """Looks at the processes of a silent agent, with these results."""

    def __init__(self, results: list[bool | None]) -> None:
        self.results = results
        self.resets = 0

    async def is_working(self) -> bool | None:
        """Return the next result."""
        return self.results.pop(0)

    def reset(self) -> None:
        """Note it."""
        self.resets += 1


class Printing:
    """An agent's output, and what is reported of it."""

    def __init__(self, folder: Path, **run: Any) -> None:
        self.context = make_context(folder, **{"idle_after": 10, **run})
        self.context.folder.output.mkdir()
        self.output = SegmentWriter(str(self.context.folder.output), 4 * MIB, 2)
        self.follower = StdioFollower(self.context)

    def print(self, text: str | bytes, now: float = 100.0) -> int:
        """Let the agent print, have a chunk of that read at this time, and return how many bytes it was."""
        self.output.write(text if isinstance(text, bytes) else text.encode())
        return self.follower._read_chunk(now)

    def looks(self, results: list[bool | None]) -> Looks:
        """Let the next looks at the agent's processes have these results."""
        looks = Looks(results)
        self.follower._activity = looks  # type: ignore[assignment]
        self.follower._look_at = 0.0
        return looks

    @property
    def states(self) -> list[tuple[str, str]]:
        """The reported states and their messages."""
        found = reports_of(self.context.outbox, "app.status")
        return [(report["state"], report.get("message", "")) for report in found]

    @property
    def entries(self) -> list[tuple[int, str, str]]:
        """Id, type and content of the log's entries."""
        logs = reports_of(self.context.outbox, "task.log")
        return [(entry["id"], entry["type"], entry["content"]) for report in logs for entry in report["entries"]]

    @property
    def contents(self) -> list[str]:
        """The contents of the entries."""
        return [content for _, _, content in self.entries]

    @property
    def lost(self) -> float:
        """Number of bytes that were counted as lost."""
        return float(self.context.metrics.runner_output_lost._value.get())


@pytest.fixture
def agent(tmp_path: Path) -> Printing:
    """Return an agent that has printed nothing."""
    return Printing(tmp_path)


async def test_an_agent_is_ready_at_once(tmp_path: Path) -> None:
    """It has its prompt, and works; the next runner tells neither again."""
    agent = Printing(tmp_path)
    saved: list[bool] = []

    async def save() -> None:
        saved.append(agent.context.journal.ready_reported)

    given_start(agent.context)
    agent.context = replace(agent.context, save=save)
    for _ in range(2):
        agent.follower = StdioFollower(agent.context)
        following = asyncio.create_task(agent.follower.follow())
        await eventually(lambda: saved, 30)
        for _ in range(10):
            await asyncio.sleep(0)
        following.cancel()
        await asyncio.wait({following})
    assert agent.entries == [(0, "input", "Do it")]
    assert agent.states == [("working", "The agent has started.")]
    assert [report["lifecycle"] for report in reports_of(agent.context.outbox, "agent.lifecycle")] == ["ready"]
    assert saved == [True]
    assert (StdioFollower.needs_port, StdioFollower.initial_health) == (False, Health.HEALTHY)


async def test_output_waits_while_nothing_may_be_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither room in the outbox nor a budget for the log: it is read when there is both."""
    monkeypatch.setattr(stdio, "_POLL_INTERVAL", 0.001)
    outbox, time = Outbox(tmp_path / "small.jsonl", Budget(1), lambda _: None), [0.0]
    agent = Printing(tmp_path, outbox=outbox)
    agent.context.journal.ready_reported = True
    agent.context = replace(agent.context, log_budget=LogBudget(LogRates(1_000, 1), lambda: time[0]))
    agent.follower = StdioFollower(agent.context)
    agent.follower._is_new = False
    looks = agent.looks([])
    agent.output.write(b"hello\n")
    outbox.append(["{}"])
    agent.context.log_budget.spend(4, 0)
    following = asyncio.create_task(agent.follower.follow())
    for confirmed in (0, 1):
        outbox.confirm(confirmed)
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert (len(outbox), looks.resets) == (1 - confirmed, 0)
    time[0] += 1
    await eventually(lambda: agent.contents == ["hello"], 30)
    assert looks.resets == 1
    following.cancel()
    await asyncio.wait({following})


async def test_silence_is_looked_at_in_time(agent: Printing) -> None:
    """From a look before the time is over; idle is what neither writes nor runs, and then looks are rarer."""
    agent.print("What shall I do?\n")
    looks = agent.looks([None, False, None, False, True, True])
    for silence, left, looked_again_in in (
        (10 - LOOK_INTERVAL - 0.01, 6, 0.0),
        (10 - LOOK_INTERVAL, 5, LOOK_INTERVAL / 2),
        (9.99, 4, LOOK_INTERVAL / 2),
        (10.0, 3, LOOK_INTERVAL / 2),
        (10.0, 2, LOOK_INTERVAL / 2),
        (30.0, 1, stdio.IDLE_LOOK_INTERVAL),
        (30.0, 0, LOOK_INTERVAL / 2),
    ):
        agent.follower._look_at = 0.0
        await agent.follower._handle_silence(silence)
        now = asyncio.get_running_loop().time()
        assert len(looks.results) == left
        assert now - 10 < agent.follower._look_at - looked_again_in <= now or not looked_again_in
    await agent.follower._handle_silence(30.0)  # another look comes too soon
    question = "What shall I do?"
    assert agent.states == [("working", question), ("idle", question), ("working", question)]
    sources = [report["guessed_from"] for report in reports_of(agent.context.outbox, "app.status")]
    assert sources == [
        "its output",
        "10 s without output, while no process of it ran or used CPU",
        "a process that runs or uses CPU",
    ]


@pytest.mark.parametrize(("run", "says"), [({"stdin": "none"}, ""), ({}, "::taskherd state=idle\n")])
async def test_silence_means_nothing(tmp_path: Path, run: dict[str, Any], says: str) -> None:
    """Of an agent that takes no inputs, or that says itself what it does."""
    agent = Printing(tmp_path, **run)
    agent.print(f"Hm\n{says}")
    looks = agent.looks([False])
    told = agent.states
    await agent.follower._handle_silence(30.0)
    assert (agent.states, len(looks.results)) == (told, 1)


async def test_a_question_without_an_end_of_line_is_told(agent: Printing) -> None:
    """When it is followed by silence; it is the message then, too."""
    agent.print("one\nAnd now? ")
    agent.looks([False])
    await agent.follower._handle_silence(9.99)
    assert agent.contents == ["one"]
    agent.looks([False])
    await agent.follower._handle_silence(10.0)
    assert agent.contents == ["one", "And now? "]
    assert agent.states[-1] == ("idle", "And now?")
    agent.looks([False])
    await agent.follower._handle_silence(11.0)
    assert len(agent.entries) == 2


def test_output_is_activity(agent: Printing) -> None:
    """At once if the agent did not count as working, else at intervals; the latest line comes in the end."""
    steps = [
        (100.0, "one\n", 1),
        (100.0 + STATUS_EVERY - 0.01, "two\n", 1),
        (100.0 + STATUS_EVERY, "three\n", 2),
        (100.0 + STATUS_EVERY + 0.01, "four\n", 2),
    ]
    for now, text, count in steps:
        agent.print(text, now)
        assert len(agent.states) == count
    again = 100.0 + 2 * STATUS_EVERY
    for now, count in ((again - 0.01, 2), (again, 3), (again + 60, 3)):
        agent.follower._report_latest_line(now)
        assert len(agent.states) == count
    assert [message for _, message in agent.states] == ["one", "three", "four"]
    agent.print("--\n", again + 0.01)
    agent.print("five\n", again + 0.02)
    agent.follower._state = "idle"
    agent.follower._report_latest_line(again + 60)
    assert len(agent.states) == 3
    agent.print("six\n", again + 0.03)
    assert agent.states[3:] == [("working", "six")]


async def test_an_agent_that_was_just_given_an_input_is_at_work(agent: Printing) -> None:
    """As long as its silence would not mean that it waits; one that counts as working is in any case."""
    now = asyncio.get_running_loop().time()
    for state, input_at, works in (
        ("idle", -inf, False),
        ("idle", now - 5, True),
        ("idle", now - 10.01, False),
        ("working", -inf, True),
    ):
        agent.follower._state, agent.follower._input_at = state, input_at
        assert agent.follower.is_at_work is works


def test_lines_that_came_together_are_one_entry(agent: Printing) -> None:
    """Up to its size; of many entries four are in one report, and the last report has the checkpoint."""
    half = "x" * (MAX_CONTENT_BYTES // 2 - 1)
    agent.follower._report_lines([half, half, "y", "é" * 10, ""], [])
    assert agent.contents == [f"{half}\n{half}", "y\n" + "é" * 10 + "\n"]
    agent.follower._report_lines(["", ""], [])
    assert len(agent.entries) == 2
    agent.follower._report_lines([half + "x", half], [])
    assert [len(content) for content in agent.contents[2:]] == [len(half) + 1, len(half)]
    before = agent.context.outbox.checkpoint
    full = "z" * (MAX_CONTENT_BYTES - 1)
    agent.follower._report_lines([full] * 4, [])
    sizes = [len(report["entries"]) for report in reports_of(agent.context.outbox, "task.log")]
    assert sizes[-1] == 4
    agent.follower._report_lines([full] * 9, [])
    sizes = [len(report["entries"]) for report in reports_of(agent.context.outbox, "task.log")]
    assert sizes[-3:] == [4, 4, 1]
    assert agent.context.outbox.checkpoint["entries"] == before["entries"] + 13
    records = (agent.context.folder.path / "outbox.jsonl").read_text().splitlines()
    assert [record.startswith("[null") for record in records[-3:]] == [True, True, False]
    assert [number for number, _, _ in agent.entries] == list(range(17))


def test_what_is_reported_counts_for_the_budget(tmp_path: Path) -> None:
    """Entries and states by one each, and by its bytes what was read, shown or not; each read by a minimum."""
    agent, budget = Printing(tmp_path), Spending()
    agent.context = replace(agent.context, log_budget=budget)
    agent.follower = StdioFollower(agent.context)
    agent.print("é\n")
    assert budget.spent == [(2, 2), (0, READ_COST - 2)]
    for text, spent in (
        ("\n" * 999, (1, 999)),
        ("\n" * 99, (0, READ_COST)),
        ("0 %\r50 %\r99 %\r", (0, READ_COST)),
        ("100 %\n", (1, READ_COST)),
        (f"::taskherd state=idle message={'é' * 500}\n", (0, 1_031)),
        ("x" * (MAX_LINE + 10), (1, MAX_LINE + 10)),
        ("x" * 10 + "\n", (1, READ_COST)),
    ):
        budget.spent.clear()
        agent.print(text, 200.0)
        assert tuple(map(sum, zip(*budget.spent, strict=True))) == spent


def test_output_that_is_missing_is_told(agent: Printing) -> None:
    """The line before it ends there; what comes after it is read from its place on."""
    folder = agent.context.folder.output
    (folder / f"{0:020d}").write_bytes(b"one\ntw")
    (folder / f"{20:020d}").write_bytes(b"three\n")
    assert [agent.follower._read_chunk(100.0) for _ in range(4)] == [6, 14, 6, 0]
    gap = "… (14 bytes of output were dropped since 2026-03-01T12:00:00Z)"
    assert agent.contents == ["one", "tw", gap, "three"]
    assert (agent.lost, agent.context.outbox.checkpoint["offset"]) == (14, 26)
    agent.follower = StdioFollower(agent.context)
    assert agent.follower._read_chunk(100.0) == 0


def test_the_next_runner_reads_a_line_that_was_not_whole_again(agent: Printing) -> None:
    """But not one of which a part was dropped; it knows the state and what is said of that."""
    agent.print("one\ntwo and")
    agent.follower = StdioFollower(agent.context)
    agent.print(" three\n")
    assert agent.contents == ["one", "two and three"]
    agent.print("x" * (MAX_LINE + 5))
    agent.follower = StdioFollower(agent.context)
    agent.print("xx\nlast\n")
    assert agent.contents[2] == "x" * MAX_LINE + "…"
    assert agent.contents[3] == "… (7 more bytes of this line were dropped)\nlast"
    agent.follower = StdioFollower(agent.context)
    agent.follower._report_latest_line(STATUS_EVERY)
    assert agent.states[-1] == ("working", "last")
    told = len(agent.states)
    agent.follower._report_latest_line(9 * STATUS_EVERY)
    assert len(agent.states) == told
    assert [number for number, _, _ in agent.entries] == list(range(len(agent.entries)))


@pytest.mark.parametrize(("extra", "gap"), [(0, []), (10, [10])])
async def test_of_much_output_after_the_end_the_last_is_read(agent: Printing, extra: int, gap: list[int]) -> None:
    """What is skipped is told; so is a line without an end, and what could not be written is counted."""
    agent.print("first\n")
    end = b"y" * (MIB - 9) + b"\nthe last"
    agent.output.write(b"x" * extra + end)
    await agent.follower.conclude(ExitRecord("exited", code=3, dropped=5))
    expected = [f"… ({count} bytes of output were dropped since 2026-03-01T12:00:00Z)" for count in gap]
    assert agent.contents[: 1 + len(gap)] == ["first", *expected]
    assert agent.contents[-1] == "the last"
    assert agent.lost == 5 + extra
    assert agent.context.outbox.checkpoint["offset"] == 6 + extra + MIB
    assert agent.states[-1] == ("failed", "The agent ended with exit status 3. Last output: the last")


async def test_other_tasks_run_while_the_last_output_is_read(agent: Printing) -> None:
    """Between two chunks."""
    agent.output.write(b"a\n" * (3 * stdio.READ_BYTES // 2))
    seen: list[int] = []

    async def look() -> None:
        while True:
            seen.append(agent.context.outbox.checkpoint.get("offset", 0))
            await asyncio.sleep(0)

    looking = asyncio.create_task(look())
    await agent.follower.conclude(ExitRecord("exited", code=0))
    looking.cancel()
    assert {stdio.READ_BYTES, 2 * stdio.READ_BYTES} <= {*seen}


async def test_the_last_line_may_be_too_long(agent: Printing) -> None:
    """Its beginning is told, and how much of it is not."""
    agent.output.write(b"x" * (MAX_LINE + 7))
    await agent.follower.conclude(ExitRecord("exited", code=0))
    assert agent.contents == ["x" * MAX_LINE + "…", "… (7 more bytes of this line were dropped)"]
    assert agent.lost == 0


@pytest.mark.parametrize(
    ("last", "states"), [("failed", ["working", "failed"]), ("idle", ["working", "idle", "complete"])]
)
async def test_what_the_agent_said_of_itself_last_is_told_with_its_end(
    agent: Printing, last: str, states: list[str]
) -> None:
    """However soon it came after another status; it counts unless the exit says more."""
    agent.follower._is_new = False  # its start was reported
    agent.print("::taskherd state=working message=one\n", 100.0)
    agent.output.write(f"::taskherd state={last} message=two\n".encode())
    await agent.follower.conclude(ExitRecord("exited", code=0))
    assert [state for state, _ in agent.states] == states
    (report,) = reports_of(agent.context.outbox, "agent.exit")
    assert report["words"] == "one\ntwo"


class Interrupts:
    """An agent that is sent SIGINT, and what it does then."""

    def __init__(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, *, reacts: bool, exits: bool, idle_after: float = 2
    ) -> None:
        self.agent = Printing(folder, idle_after=idle_after, grace=0.05)
        self.deeds: list[object] = []
        self._reacts = reacts
        self._exits = exits
        context = replace(self.agent.context, interrupt_agent=self._interrupt, stop_agent=self._stop)
        self.agent.context, self.agent.follower._context = context, context
        monkeypatch.setattr(stdio, "InterruptReaction", self._reaction)

    def _reaction(self, context: AgentContext) -> Interrupts:
        assert context is self.agent.context
        self.deeds.append("look")
        return self

    async def wait(self, quiet: float, seconds: float) -> bool:
        """React or not."""
        self.deeds.append((quiet, seconds))
        if self._exits:
            self.agent.context.folder.exit.write_text("{}")
        return self._reacts

    def _interrupt(self) -> None:
        self.deeds.append(("interrupt", self.agent.context.journal.interrupted))

    def _stop(self) -> None:
        self.deeds.append("stop")
        self.agent.context.folder.exit.write_text("{}")


async def test_an_interrupted_agent_that_falls_silent_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its next end is its own; it has nothing to end any more, and what it was about to say counts no more."""
    interrupts = Interrupts(tmp_path, monkeypatch, reacts=True, exits=False)
    agent = interrupts.agent
    agent.follower._state, agent.follower._untold = "working", StatusLine(AgentState.COMPLETE, "Done", "")
    assert agent.follower.is_at_work
    assert await agent.follower.interrupt() is InterruptOutcome.STOPPED
    assert interrupts.deeds == ["look", ("interrupt", True), (2, 10.0)]
    assert not agent.context.journal.interrupted
    assert agent.states == [("idle", "The turn was interrupted.")]
    (report,) = reports_of(agent.context.outbox, "app.status")
    assert report["guessed_from"] == "its silence after an interrupt"
    assert [agent.follower.is_at_work, agent.follower._untold] == [False, None]
    assert await agent.follower.interrupt() is InterruptOutcome.ENDED
    assert len(interrupts.deeds) == 3


async def test_the_quiet_after_an_interrupt_takes_three_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most, however long an agent may be silent otherwise."""
    interrupts = Interrupts(tmp_path, monkeypatch, reacts=True, exits=True, idle_after=100)
    interrupts.agent.follower._state = "working"
    assert await interrupts.agent.follower.interrupt() is InterruptOutcome.STOPPED
    assert interrupts.deeds[-1] == (3.0, 10.0)
    assert interrupts.agent.context.journal.interrupted, "it has exited because of it"
    assert interrupts.agent.states == []


async def test_an_agent_that_does_not_react_to_an_interrupt_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its end is that of the interrupt."""
    interrupts = Interrupts(tmp_path, monkeypatch, reacts=False, exits=False)
    interrupts.agent.follower._state = "working"
    assert await interrupts.agent.follower.interrupt() is InterruptOutcome.STOPPED
    assert interrupts.deeds == ["look", ("interrupt", True), (2, 10.0), "stop"]
    assert (interrupts.agent.context.journal.interrupted, interrupts.agent.states) == (True, [])


async def test_an_input_is_part_of_the_output(agent: Printing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the agent was given it, and it is at work then."""
    given: list[object] = []

    async def deliver(*arguments: object) -> None:
        assert (agent.contents, agent.follower.is_at_work) == ([], False)
        given.append(arguments)

    async def record() -> None:
        given.append("never called")

    monkeypatch.setattr(stdin, "deliver", deliver)
    await agent.follower.deliver("Go on", record)
    assert given == [(agent.context, "Go on", record)]
    ((_, source, content),) = agent.entries
    assert (source, content) == ("input", "Go on")
    assert agent.follower.is_at_work
