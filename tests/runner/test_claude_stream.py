from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from taskherd.messages.limits import MAX_TOKENS
from taskherd.runner.agents.event_stream.claude import ClaudeStream
from taskherd.runner.journal import InputDelivery
from tests.harness.runner import eventually
from tests.runner.acp import AcpRun, acp_run, hold_prompt

AGENT = Path(__file__).parents[1] / "harness" / "claude_agent.py"
RECORDING = Path(__file__).parent / "recordings" / "claude-code-2.1.197-stdio.jsonl"
STREAM: dict[str, Any] = {"agent": "stdio", "output": "claude-stream-json"}
pytestmark = pytest.mark.timeout(120)


def steps(*each: str) -> str:
    """Return a message that the tests' agent carries out."""
    return "\n".join(each)


def drive(run: AcpRun, session: str = "s1") -> None:
    """Have the run's agent be the tests' Claude Code."""
    run.argv = [sys.executable, str(AGENT), session]


def shown(run: AcpRun) -> list[tuple[Any, Any, str]]:
    """Return kind, status and content of the entries of the log."""
    return [(each.get("kind"), each.get("status"), each["content"]) for each in run.entries()]


async def test_a_turn_is_told_as_the_events_say(tmp_path: Path) -> None:
    """A message in hand is working, its result idle; messages, thoughts and tool calls are entries of the log."""
    prompt = steps(
        "think: hm", "say: I look at it.", "tool: Bash make test", "wait: go", "done: 9 passed", "say: Fine."
    )
    async with acp_run(tmp_path, **STREAM) as run:
        drive(run)
        await run.start(prompt)
        await run.until_state("working", "Bash: make test")
        run.touch("go")
        await run.until_state("idle", "Fine.")
        assert shown(run) == [
            (None, None, prompt), ("thought", None, "hm"), ("message", None, "I look at it."),
            ("tool_call", "completed", "Bash: make test\n9 passed"), ("message", None, "Fine."),
        ]  # fmt: skip
        assert run.entries()[3]["data"] == {"kind": "execute"}
        assert run.journal.stream_session == "s1"
        assert await run.send(steps("tool: Read x", "fail: no such file", "say: Hm.")) is None
        await run.until_state("idle", "Hm.")
        assert shown(run)[-2] == ("tool_call", "failed", "Read: x (failed)\nno such file")
        tokens = {"input_tokens": 200, "output_tokens": 40, "cost": "0.002"}
        await eventually(lambda: run.usage().get((1, "claude-opus")) == tokens)
        assert run.usage()[1, ""] == {"context_used": 100, "context_size": 200_000}
        assert {report["guessed_from"] for report in run.reports("app.status")} == {"Claude Code's stream of events"}


async def test_the_next_runner_goes_on_at_a_line(tmp_path: Path) -> None:
    """A runner that is killed in the middle of a turn loses no event, and tells none twice."""
    async with acp_run(tmp_path, **STREAM) as run:
        drive(run)
        await run.start(steps("say: before", "tool: Bash make", "wait: go", "done: ok", "say: after"))
        await run.until_state("working", "Bash: make")
        await run.take_over()
        run.touch("go")
        await run.until_state("idle", "after")
        assert [text for _, _, text in shown(run)[1:]] == ["before", "Bash: make\nok", "after"]
        assert await run.send("hello") is None
        await run.until_state("idle", "You said: hello")
        await eventually(lambda: run.usage()[1, "claude-opus"]["input_tokens"] == 200)


async def test_a_turn_that_fails_says_why(tmp_path: Path) -> None:
    """A result that is an error is the state, with its words, and the agent takes further messages."""
    async with acp_run(tmp_path, **STREAM) as run:
        drive(run)
        await run.start("error: Credit balance is too low")
        await run.until_state("failed", "Credit balance is too low")
        assert run.texts("notice") == ["taskherd: The agent could not carry out its turn: Credit balance is too low"]
        assert await run.send("say: Thanks") is None
        await run.until_state("idle", "Thanks")


async def test_what_is_no_event_is_output(tmp_path: Path) -> None:
    """Words on stdout are in the log; events of another form are counted and left out."""
    broken = [
        "[]",
        '"x"',
        "{}",
        '{"type": "assistant"}',
        '{"type": "user", "message": {"content": [{"type": "tool_result"}]}}',
    ]
    async with acp_run(tmp_path, **STREAM) as run:
        drive(run)
        await run.start(steps(*(f"raw: {line}" for line in broken), "raw: Invalid API key", "say: Hm."))
        await run.until_state("idle", "Hm.")
        assert [text for _, _, text in shown(run)[1:]] == ["Invalid API key", "Hm."]


@pytest.mark.parametrize(
    ("last", "why", "state"), [("exit: 0", "middle of its turn", "failed"), ("exit: 3", "status 3", "failed")]
)
async def test_how_an_agent_ends(tmp_path: Path, last: str, why: str, state: str) -> None:
    """An agent that ends in the middle of a turn has failed; an input after that is not delivered."""
    async with acp_run(tmp_path, **STREAM) as run:
        drive(run)
        await run.start(steps("tool: Bash make", last))
        await run.until_ended()
        assert run.state[0] == state
        assert why in run.state[1]
        assert shown(run)[-1][1] is None
        assert await run.send("say: hello?")


async def test_an_interrupt_ends_it(tmp_path: Path) -> None:
    """In a turn an interrupt ends the agent, which counts as interrupted, not as failed; between turns it does not."""
    async with acp_run(tmp_path, **STREAM) as run:
        drive(run)
        await run.start("say: Hm.")
        await run.until_state("idle", "Hm.")
        assert run.session is not None
        assert await run.session.follower.interrupt() == "ended"
        assert await run.send(steps("tool: Bash make", "wait: never")) is None
        await run.until_state("working", "Bash: make")
        assert await run.session.follower.interrupt() == "stopped"
        await run.until_ended()
        assert run.state[0] == "idle"
        assert [report["why"] for report in run.reports("agent.exit")] == ["interrupted"]


async def test_an_agent_is_ready_when_it_shows_what_it_is_about_to_do(tmp_path: Path) -> None:
    """It works before its task is active: an input would be sent in that moment, and could go before the prompt."""
    async with acp_run(tmp_path, **STREAM) as run:
        drive(run)
        await run.start("say: Fine.")
        await run.until_state("idle", "Fine.")
        (ready,) = [report for report in run.reports("agent.lifecycle") if report["lifecycle"] == "ready"]
        first, *_ = run.reports("app.status")
        assert first["state"] == "working"
        assert first["seq"] < ready["seq"]


async def test_an_interrupt_ends_a_prompt_that_is_just_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits until that turn is in flight: otherwise the turn would begin after the interrupt, and go on."""
    is_recorded = hold_prompt(monkeypatch)
    async with acp_run(tmp_path, **STREAM) as run:
        drive(run)
        await run.start(steps("tool: Bash make", "wait: never"))
        await eventually(lambda: InputDelivery.DELIVERING in run.journal.inputs.values())
        assert run.session is not None
        assert run.session.follower.is_at_work
        follower: Any = run.session.follower
        interrupt = asyncio.create_task(follower.interrupt())
        await eventually(lambda: interrupt.done() or follower._has_begun._waiters)
        assert not interrupt.done()
        is_recorded.set()
        assert await interrupt == "stopped"
        await run.until_ended()
        assert [report["why"] for report in run.reports("agent.exit")] == ["interrupted"]


async def test_claude_that_runs_once_is_complete(tmp_path: Path) -> None:
    """What Claude Code 2.1.197 wrote, as recorded, is a log, a usage and a session; it works until it ends."""
    rows = [json.loads(line) for line in RECORDING.read_text().splitlines()]
    lines = [row["line"] for row in rows if row["scenario"] == "stream_json" and "line" in row]
    (tmp_path / "recording").write_text("\n".join(lines) + "\n")
    async with acp_run(tmp_path, **STREAM, stdin="none") as run:
        run.argv = ["cat", str(tmp_path / "recording")]
        await run.start("run it")
        await run.until_ended()
        assert [state for state, _ in run.states()][-1] == "complete"
        assert {state for state, _ in run.states()} == {"working", "complete"}
        assert run.state[1] == "The command printed: it is done"
        assert shown(run) == [
            (None, None, "run it"),
            ("message", None, "I run the command."),
            ("tool_call", "completed", "Bash: sleep 6; echo it is done\nit is done"),
            ("message", None, "The command printed: it is done"),
        ]
        assert run.usage() == {
            (1, "claude-opus-4-8[1m]"): {
                "input_tokens": 200, "output_tokens": 40, "cost": "0.002", "cache_read_tokens": 0,
                "cache_write_tokens": 0,
            },
            (1, ""): {"context_used": 100, "context_size": 1_000_000},
        }  # fmt: skip
        assert run.journal.stream_session == "e7a4b1ed-440b-489a-b067-75b62654a1a2"
        assert "takes no inputs" in str(await run.send("hello"))


def test_tokens_of_the_context_stay_within_a_report() -> None:
    """Each number is one that a report can hold, their sum is not."""
    usage = {"input_tokens": MAX_TOKENS, "output_tokens": MAX_TOKENS, "cache_read_input_tokens": 10**30}
    stream = ClaudeStream({}, {})
    stream.apply({"type": "assistant", "message": {"content": [], "usage": usage}})
    stream.apply({"type": "result", "subtype": "success", "result": "Done."})
    assert stream._usage[""]["context_used"] == MAX_TOKENS


def test_a_cost_without_models_counts() -> None:
    """A result of an earlier version tells the cost only."""
    stream = ClaudeStream({}, {})
    stream.apply({"type": "result", "subtype": "success", "total_cost_usd": 0.5, "result": "Done."})
    assert (stream.state, stream.last_words) == ("idle", "Done.")
    assert str(stream._usage[""]["cost"].amount) == "0.500000000"
