"""Agents that do nothing but tell their state in their output: few reports of it, and the latest is among them."""

from __future__ import annotations

import asyncio
import math
import sys
from pathlib import Path

import pytest

from taskherd.runner.agents import stdio
from taskherd.runner.agents.log_budget import LogBudget
from tests.harness.runner import eventually
from tests.runner.acp import AcpRun, acp_run
from tests.runner.test_claude_stream import STREAM

pytestmark = pytest.mark.timeout(120)

MOST_PER_SECOND = 10
"""What an agent may report over HTTP (TASKHERD_API_AGENT_RATE)."""
TELL = """
i=0; while [ $i -lt {count} ]; do {line}; i=$((i+1)); done
echo '::taskherd state={last} message="the last" uri=https://example.com/9'
exec sleep 1000
"""
ALTERNATE = "[ $((i%2)) = 0 ] && s=idle || s=working; echo ::taskherd state=$s message=$i"


async def tell(run: AcpRun, line: str, *, count: int = 250_000, last: str = "working") -> None:
    """Start an agent that executes a line of shell so often, without a pause, and then tells its last state."""
    run.argv = ["/bin/sh", "-c", TELL.format(line=line, count=count, last=last)]
    await run.start("Do it")


async def test_messages_of_the_same_state_are_reported_at_intervals(tmp_path: Path) -> None:
    """A message a microsecond or so becomes a few reports; the latest is reported, with its URI."""
    loop = asyncio.get_running_loop()
    async with acp_run(tmp_path, agent="stdio") as run:
        began = loop.time()
        await tell(run, "echo ::taskherd state=working message=$i")
        await run.until_state("working", "the last")
        assert run.reports("app.status")[-1]["uri"] == "https://example.com/9"
        assert len(run.states()) <= 4 + (loop.time() - began) / 2


async def test_a_message_that_waits_is_reported_by_the_next_runner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read, but not reported yet, is not lost with its runner."""
    script = "echo ::taskherd state=working message=first; until [ -e go ]; do sleep 0.01; done; "
    script += "echo ::taskherd state=working message=second; touch told; exec sleep 1000"
    async with acp_run(tmp_path, agent="stdio") as run:
        run.argv = ["/bin/sh", "-c", script]
        await run.start("Do it")
        await run.until_state("working", "first")
        offset = run.outbox.checkpoint["offset"]
        with monkeypatch.context() as patched:
            patched.setattr(stdio, "STATUS_EVERY", math.inf)
            run.touch("go")
            await eventually(lambda: run.outbox.checkpoint["offset"] > offset)
            assert run.state == ("working", "first")
        await run.take_over()
        await run.until_state("working", "second")


async def test_changes_of_state_are_reported_no_faster_than_over_http(tmp_path: Path) -> None:
    """An agent that changes its state all the time has few changes reported; the latest state is."""
    loop = asyncio.get_running_loop()
    async with acp_run(tmp_path, agent="stdio") as run:
        began = loop.time()
        await tell(run, ALTERNATE, last="complete")
        await run.until_state("complete", "the last")
        assert len(run.states()) <= 4 + MOST_PER_SECOND * (loop.time() - began)


async def test_a_state_before_the_exit_is_reported(tmp_path: Path) -> None:
    """Also if another one was reported just before it."""
    async with acp_run(tmp_path, agent="stdio") as run:
        run.argv = ["/bin/sh", "-c", f"for i in 1 2 3 4; do {ALTERNATE}; done; echo ::taskherd state=failed message=no"]
        await run.start("Do it")
        await run.until_ended()
        assert run.state == ("failed", "no")


async def test_reports_count_against_the_logs_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports without any entry of the log use it up, and the follower reads no more until there is some again."""
    spent = count_spent(monkeypatch)
    async with acp_run(tmp_path, agent="stdio") as run:
        await tell(run, ALTERNATE, last="complete")
        await run.until_state("complete", "the last")
        assert sum(spent) >= len(run.states()) - 1  # the runner's own, of the start


async def test_status_lines_count_with_their_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are not reported, too: the runner must read them."""
    sizes = count_spent(monkeypatch, 1)
    async with acp_run(tmp_path, agent="stdio") as run:
        await tell(run, "echo ::taskherd state=working message=012345678901234567890", count=20)
        await run.until_state("working", "the last")
        assert sum(sizes) > 20 * 50


def count_spent(monkeypatch: pytest.MonkeyPatch, argument: int = 0) -> list[int]:
    """Return the list of what is counted against the budgets from now on: entries (0) or bytes (1)."""
    spend, spent = LogBudget.spend, list[int]()

    def count(budget: LogBudget, *arguments: int) -> None:
        spent.append(arguments[argument])
        spend(budget, *arguments)

    monkeypatch.setattr(LogBudget, "spend", count)
    return spent


async def test_turns_of_a_stream_of_events_are_reported_no_faster_than_over_http(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent that begins and ends turns without end has few of them reported, and they count against the budget."""
    loop = asyncio.get_running_loop()
    spent = count_spent(monkeypatch)
    async with acp_run(tmp_path, **STREAM) as run:
        run.argv = [sys.executable, "-c", TURNS]
        began = loop.time()
        await run.start("Do it")
        await run.until_state("failed", "the last")
        assert len(run.states()) <= 4 + MOST_PER_SECOND * (loop.time() - began)
        assert sum(spent) >= len(run.states()) + len(run.reports("agent.usage"))


async def test_a_failed_turn_just_before_the_exit_is_reported(tmp_path: Path) -> None:
    """Also if the turn before it had just ended."""
    async with acp_run(tmp_path, **STREAM, on_exit="idle") as run:
        run.argv = [sys.executable, "-c", TURNS.replace("60_000", "20").replace("sys.stdin.read()", "")]
        await run.start("Do it")
        await run.until_ended()
        assert ("failed", "The agent could not carry out its turn: the last") in run.states()


TURNS = """
import json, sys
sys.stdin.readline()
words = json.dumps({"type": "assistant", "message": {"content": []}})
result = {"type": "result", "subtype": "success", "result": "Hm.", "modelUsage": {"m": {"inputTokens": 1}}}
for _ in range(60_000):
    print(words, json.dumps(result), sep="\\n")
print(json.dumps({**result, "subtype": "error", "result": "the last"}), flush=True)
sys.stdin.read()
"""
"""An agent that begins and ends turns, without a pause, and then fails."""
