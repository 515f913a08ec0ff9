from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from taskherd.messages.limits import MAX_TITLE_CHARACTERS, MAX_TOKENS
from taskherd.runner.agents.event_stream.codex import MAX_COMMAND, CodexStream
from tests.harness.runner import eventually
from tests.runner.acp import AcpRun, acp_run

HARNESS = Path(__file__).parents[1] / "harness"
TRANSCRIPT = Path(__file__).parent / "transcripts" / "codex-exec-0.166.0.jsonl"
SESSION = "01a219d0-9eeb-7100-a346-66bdc35b917b"
STREAM: dict[str, Any] = {"agent": "stdio", "output": "codex-json"}
WARNING = (
    "taskherd: the agent says: Model metadata for `scripted` not found. Defaulting to fallback metadata; this can"
    " degrade performance and cause issues."
)
pytestmark = pytest.mark.timeout(120)


def drive(run: AcpRun, session: str = "s1", used: int = 0) -> None:
    """Have the run's agent be the tests' Codex, which continues a session in which tokens were used."""
    run.argv = [sys.executable, str(HARNESS / "codex_agent.py"), session, str(used)]


def shown(run: AcpRun, build: int = 1) -> list[tuple[Any, Any, str]]:
    """Return kind, status and content of the entries of a build's log, without the prompt."""
    latest: dict[int, dict[str, Any]] = {}
    for report in run.reports("task.log"):
        if report["build_number"] == build:
            latest |= {entry["id"]: entry for entry in report["entries"]}
    return [(each.get("kind"), each.get("status"), each["content"]) for _, each in sorted(latest.items())][1:]


def prompts() -> list[str]:
    """Return the prompts of the transcript."""
    records = [json.loads(line) for line in TRANSCRIPT.read_text().splitlines()]
    return [record["text"] for record in records if record["direction"] == "in"]


async def test_the_recorded_codex_is_followed(tmp_path: Path) -> None:
    """What a real Codex wrote, byte by byte, leads to its log, states, session and usage, over five builds."""
    states = ["complete", "complete", "complete", "failed", "idle"]
    async with acp_run(tmp_path, **STREAM) as run:
        run.argv = [sys.executable, str(HARNESS / "replay_events.py"), str(TRANSCRIPT), str(tmp_path / "position")]
        for number, (prompt, state) in enumerate(zip(prompts(), states, strict=True), 1):
            await run.start(prompt)
            if state == "idle":
                await run.until_state("working", "sleep 60")
                assert run.session is not None
                assert await run.session.follower.interrupt() == "stopped"
            await run.until_ended()
            assert (number, run.state[0]) == (number, state)
            assert run.journal.stream_session == SESSION
        said = ("message", None, "I run the command.")
        assert shown(run, 1) == [
            ("notice", None, WARNING), ("thought", None, "I ponder it."), said,
            ("tool_call", "completed", "echo it is done > result; cat result\nit is done"),
            ("message", None, "The command printed: it is done"),
        ]  # fmt: skip
        failed = "cat result missing (failed)\ncat: missing: No such file or directory\nit is done"
        assert ("tool_call", "failed", failed) in shown(run, 2)
        assert ("tool_call", "completed", "Write: /work/new.txt") in shown(run, 3)
        assert shown(run, 4)[1:] == [
            ("notice", None, "taskherd: the agent says: Credit balance is too low"),
            ("notice", None, "taskherd: The agent could not carry out its turn: Credit balance is too low"),
        ]
        assert shown(run, 5)[-1] == ("tool_call", None, "sleep 60")
        one = {"input_tokens": 200, "output_tokens": 40, "cache_read_tokens": 0, "cache_write_tokens": 0}
        assert run.usage() == {(build, ""): one for build in (1, 2, 3)}
        data = [entry["data"] for entry in run.entries() if entry.get("kind") == "tool_call"]
        assert {"kind": "edit", "locations": [{"path": "/work/new.txt"}]} in data
        assert {"kind": "execute"} in data


async def test_the_next_runner_goes_on_in_the_middle_of_a_line(tmp_path: Path) -> None:
    """A runner that is killed in the middle of a turn, and of a line, loses no event, and tells none twice."""
    async with acp_run(tmp_path, **STREAM) as run:
        drive(run)
        await run.start(
            "say: before\nrun: make\ndone: ok\ntorn: go\nrun: make test\nwait: again\ndone: 9 passed\nsay: after"
        )
        await run.until_state("working", "before")
        await eventually(lambda: len(shown(run)) == 2)
        await run.take_over()
        run.touch("go")
        await run.until_state("working", "make test")
        await run.take_over()
        run.touch("again")
        await run.until_ended()
        assert [text for _, _, text in shown(run)] == [
            "before", "make\nok", "Grüße in zwei Teilen", "make test\n9 passed", "after",
        ]  # fmt: skip
        assert run.state == ("complete", "after")
        assert {report["guessed_from"] for report in run.reports("app.status") if "guessed_from" in report} == {
            "Codex's stream of events"
        }


async def test_a_flood_is_told_in_full(tmp_path: Path) -> None:
    """Thousands of events at once are all in the log, in order."""
    async with acp_run(tmp_path, **STREAM) as run:
        drive(run)
        await run.start("flood: 3000")
        await run.until_ended()
        assert [text for _, _, text in shown(run)] == [f"message {number}" for number in range(3_000)]


async def test_what_is_no_event_is_output(tmp_path: Path) -> None:
    """Words on stdout are in the log; events of another form, and unknown ones, are left out, and the turn goes on."""
    broken = [
        "[]", '"x"', "{}", "1", '{"type": "item.completed"}', '{"type": "item.completed", "item": []}',
        '{"type": "item.completed", "item": {"id": 1, "type": "agent_message"}}', '{"type": "turn.failed"}',
        '{"type": "item.started", "item": {"id": "x", "type": "file_change", "changes": {}}}',
        '{"type": "item.updated", "item": {"id": "x", "type": "todo_list", "items": "abc"}}',
        '{"type": "item.completed", "item": {"id": "x", "type": "from_the_future", "text": "hm"}}',
        '{"type": "thread.renamed", "name": "hm"}', '{"type": "turn.completed", "usage": {"input_tokens": "many"',
    ]  # fmt: skip
    async with acp_run(tmp_path, **STREAM) as run:
        drive(run)
        await run.start("\n".join([*(f"raw: {line}" for line in broken), "raw: Not logged in", "say: Hm."]))
        await run.until_ended()
        assert run.state == ("complete", "Hm.")
        texts = [text for _, _, text in shown(run)]
        assert "\n".join(texts).split("\n") == [broken[-1], "Not logged in", "Hm."]  # one entry if they come together


@pytest.mark.parametrize(
    ("last", "words"), [("exit: 0", "middle of its turn"), ("exit: 3", "status 3"), ("kill: 9", "SIGKILL")]
)
async def test_codex_that_dies_has_failed(tmp_path: Path, last: str, words: str) -> None:
    """One that ends in the middle of its turn has failed, whatever its exit status; its call has no outcome."""
    async with acp_run(tmp_path, **STREAM) as run:
        drive(run)
        await run.start(f"run: make\n{last}")
        await run.until_ended()
        assert run.state[0] == "failed"
        assert words in run.state[1]
        assert ("tool_call", None, "make") in shown(run)
        assert run.usage() == {}


async def test_a_turn_that_fails_says_why(tmp_path: Path) -> None:
    """The words of a failed turn are the state's message; the agent takes no inputs."""
    async with acp_run(tmp_path, **STREAM) as run:
        drive(run)
        await run.start("wait: go\nerror: Missing environment variable: `OPENAI_API_KEY`.")
        await run.until_state("working")
        assert "takes no inputs" in str(await run.send("hello"))
        run.touch("go")
        await run.until_ended()
        assert run.state[0] == "failed"
        assert "Missing environment variable: `OPENAI_API_KEY`." in run.state[1]


async def test_usage_is_what_the_session_has_risen_by(tmp_path: Path) -> None:
    """A build counts what its turn added to the session's tokens; in a new session it counts from zero."""
    async with acp_run(tmp_path, **STREAM) as run:
        for session, used in (("s1", 0), ("s1", 100), ("s2", 0)):
            drive(run, session, used)
            await run.start(f"say: {session} {used}")
            await run.until_ended()
        inputs = [run.usage()[build, ""]["input_tokens"] for build in (1, 2, 3)]
        assert inputs == [70, 100, 70]  # of the first 100, 30 came from a cache, and the second turn read no more
        assert [run.usage()[build, ""]["cache_read_tokens"] for build in (1, 2, 3)] == [30, 0, 30]


def told(*events: dict[str, Any]) -> CodexStream:
    """Return a stream to which events were applied."""
    stream = CodexStream({}, {})
    for event in events:
        stream.apply(event)
    return stream


def item(moment: str, **fields: Any) -> dict[str, Any]:
    """Return the event of an item."""
    return {"type": f"item.{moment}", "item": {"id": "i", **fields}}


def test_other_tools_have_titles_and_results() -> None:
    """Calls of MCP tools, searches and helpers are tool calls; the events are made up from the published source."""
    result = {"content": [{"type": "text", "text": "3 found"}]}
    calls: list[tuple[dict[str, Any], str, str]] = [
        ({"type": "mcp_tool_call", "server": "docs", "tool": "find", "result": result, "error": None},
         "docs: find", "3 found"),
        ({"type": "mcp_tool_call", "server": "docs", "tool": "find", "result": None, "error": {"message": "gone"},
          "status": "failed"}, "docs: find", "gone"),
        ({"type": "web_search", "query": "how"}, "Search: how", ""),
        ({"type": "collab_tool_call", "tool": "spawn_agent", "prompt": "Look"}, "spawn_agent Look", ""),
        ({"type": "file_change", "changes": [{"path": "a", "kind": "delete"}], "status": "completed"}, "Delete: a", ""),
        ({"type": "command_execution", "command": "bash -lc 'it", "aggregated_output": None}, "bash -lc 'it", ""),
    ]  # fmt: skip
    for fields, title, text in calls:
        (entry,) = told(item("completed", **fields))._changed.values()
        assert (entry["title"], entry["text"]) == (title, text)
        assert entry["status"] == ("failed" if fields.get("status") == "failed" else "completed")


def title_of(command: str) -> str:
    """Return the title of the call of a command."""
    (entry,) = told(item("started", type="command_execution", command=command))._changed.values()
    return str(entry["title"])


def test_the_title_of_a_long_command_is_its_beginning_without_the_shell() -> None:
    """Wherever it is cut: within quotes, after a backslash, or in what follows."""
    begun = "echo " + "it's " * 50
    for rest in ("", "é" * MAX_COMMAND, "'" * MAX_COMMAND, '"' * MAX_COMMAND, "\\" * MAX_COMMAND):
        assert title_of(f"/bin/bash -lc {shlex.quote(begun + rest)}") == begun[:MAX_TITLE_CHARACTERS]
    assert title_of('bash -c "' + begun + "\\" * MAX_COMMAND) == begun[:MAX_TITLE_CHARACTERS]
    assert title_of("python run.py " + "a " * MAX_COMMAND).startswith("python run.py a a")


def test_a_command_of_any_size_takes_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Splitting all of it into words took the runner ten seconds, in which it did nothing for any task."""
    sizes = []
    split = shlex.split

    def measured(text: str) -> list[str]:
        sizes.append(len(text))
        return split(text)

    monkeypatch.setattr(shlex, "split", measured)
    assert title_of(f"bash -lc {shlex.quote('a' * 600_000)}") == "a" * MAX_TITLE_CHARACTERS
    assert max(sizes) <= MAX_COMMAND + 1


def test_a_plan_is_one_entry() -> None:
    """An update of a plan replaces it; however long it is, it fits an entry."""
    steps = [{"text": "é" * 500, "completed": False}] * 500
    stream = told(item("started", type="todo_list", items=[{"text": "a", "completed": False}]))
    stream.apply(item("updated", type="todo_list", items=[{"text": "a", "completed": True}]))
    (entry,) = stream._changed.values()
    assert (entry["text"], entry["data"]["entries"][0]["status"]) == ("[x] a", "completed")
    stream.apply(item("completed", type="todo_list", items=steps))
    (entry,) = stream._changed.values()
    assert len(json.dumps(entry["data"], ensure_ascii=False).encode()) < 16 * 1024


def test_what_is_repeated_is_told_once() -> None:
    """While Codex tries to reach its model again and again, the log says so once."""
    event = {"type": "error", "message": "Reconnecting... waiting for network"}
    stream = told({"type": "turn.started"}, event, event, event)
    assert (len(stream._changed), stream.activity, stream.in_turn) == (1, event["message"], True)


def test_tokens_stay_within_a_report() -> None:
    """Absurd numbers of tokens are cut or left out."""
    usage = {"input_tokens": MAX_TOKENS, "output_tokens": -1, "cached_input_tokens": 10**30}
    stream = told({"type": "turn.completed", "usage": usage}, {"type": "turn.completed", "usage": {"input_tokens": 5}})
    assert stream._usage[""] == {"cache_read_tokens": 0, "cache_write_tokens": 0, "input_tokens": MAX_TOKENS}
