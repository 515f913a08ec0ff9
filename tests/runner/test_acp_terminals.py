"""Commands that an agent runs through the runner (``terminal/*``), under real shims: bounded, and ended in time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from taskherd.runner.agents import output
from taskherd.runner.agents.acp import terminals
from taskherd.runner.agents.acp.connection import INTERNAL_ERROR, INVALID_PARAMS, METHOD_NOT_FOUND, RESOURCE_NOT_FOUND
from taskherd.runner.workspaces.folders import RunFolder
from tests.harness.runner import RunnerHarness, eventually, marked_by
from tests.runner.acp import AcpRun, acp_run
from tests.runner.test_acp_runner import acp_task

pytestmark = pytest.mark.timeout(120)
CREATED = {"terminalId": "terminal-0"}
FOREVER = "exec tail -f /dev/null"


def create(number: int, command: str, **params: Any) -> str:
    """Return the step of the tests' agent that runs a command, in its request of this number."""
    return f"request: {number} terminal/create {json.dumps({'command': command, **params})}"


def about(number: int, deed: str, terminal: int = 0, verb: str = "request") -> str:
    """Return the step that does something with a command."""
    return f"{verb}: {number} terminal/{deed} " + json.dumps({"terminalId": f"terminal-{terminal}"})


def answers(run: AcpRun) -> list[Any]:
    """Return what the agent was answered, in order: results, and the codes of errors."""
    responses = [each for each in run.received() if "method" not in each]
    return [each["error"]["code"] if "error" in each else each["result"] for each in responses]


def living(run: AcpRun) -> set[int]:
    """Return the processes of the agent's commands, and their shims."""
    return marked_by(f"{run.task.run(run.build).path}/terminals/")


async def carry_out(run: AcpRun, *steps: str) -> list[Any]:
    """Let the agent carry out a prompt, and return what it was answered."""
    await run.start("\n".join([*steps, "line: That was all."]))
    await run.until_state("idle", "That was all.")
    return answers(run)


async def test_a_command_is_run_and_its_output_told(tmp_path: Path) -> None:
    """It has the agent's variables and its own, runs in the task's folder, and its output is in the log, too."""
    async with acp_run(tmp_path, client_terminals=True) as run:
        (run.task.work / "sub").mkdir()
        given = await carry_out(
            run,
            "tool: 1 Run make",
            create(1, "echo $GREETING; pwd; cat; echo oops >&2; exit 3", env=[{"name": "GREETING", "value": "hi"}]),
            "show: 1 terminal-0",
            about(2, "wait_for_exit"),
            about(3, "output"),
            about(4, "release"),
            about(5, "output"),
            create(6, "pwd", args=["-P"], cwd=f"{run.task.work}/sub"),
            about(7, "wait_for_exit", 1),
            about(8, "output", 1),
        )  # fmt: skip
        ended = {"exitCode": 3, "signal": None}
        text = f"hi\n{run.task.work}\noops\n"
        shown = {"output": text, "truncated": False, "exitStatus": ended}
        there = {"exitCode": 0, "signal": None}
        assert given == [
            CREATED, ended, shown, {}, RESOURCE_NOT_FOUND, {"terminalId": "terminal-1"}, there,
            {"output": f"{run.task.work}/sub\n", "truncated": False, "exitStatus": there},
        ]  # fmt: skip
        await eventually(lambda: run.texts("tool_call") == [f"Run make\n{text}"])
        initialize = run.received()[0]
        assert initialize["params"]["clientCapabilities"]["terminal"] is True
        assert not run.task.run(1).terminal(0).path.exists()


async def test_commands_are_offered_only_if_the_template_says_so(tmp_path: Path) -> None:
    """Without ``client_terminals`` nothing is offered, and nothing runs."""
    async with acp_run(tmp_path) as run:
        assert await carry_out(run, create(1, "touch planted")) == [METHOD_NOT_FOUND]
        assert run.received()[0]["params"]["clientCapabilities"]["terminal"] is False
        assert not (run.task.work / "planted").exists()


async def test_what_cannot_be_run_is_refused_and_nothing_runs(tmp_path: Path) -> None:
    """Folders outside of the task's, links out of it, and what is no command: each is an error that says so."""
    async with acp_run(tmp_path, client_terminals=True) as run:
        work = run.task.work
        (work / "link").symlink_to("/")
        (work / "file").touch()
        run.task.home.mkdir()
        touch = {"command": "touch", "args": [f"{work}/planted"]}
        refused: list[dict[str, Any]] = [
            {**touch, "cwd": "/"},
            {**touch, "cwd": str(run.task.path)},
            {**touch, "cwd": f"{work}/../home"},
            {**touch, "cwd": f"{work}/link"},
            {**touch, "cwd": f"{work}/link/tmp"},
            {**touch, "cwd": f"{work}/file"},
            {**touch, "cwd": f"{work}/missing"},
            {**touch, "cwd": "."},
            {**touch, "cwd": f"{work}\0"},
            {**touch, "env": [{"name": "A=B", "value": "c"}]},
            {**touch, "env": [{"name": "A", "value": "\0"}]},
            {**touch, "args": ["x" * 70_000, f"{work}/planted"]},
            {**touch, "command": ""},
            {"args": ["planted"]},
        ]
        requests = [f"request: {number} terminal/create {json.dumps(each)}" for number, each in enumerate(refused)]
        missing = create(99, "no-such-program", args=["-v"])
        given = await carry_out(run, *requests, missing, about(100, "output"))
        assert given == [*[INVALID_PARAMS] * len(refused), INTERNAL_ERROR, RESOURCE_NOT_FOUND]
        (error,) = [each["error"]["message"] for each in run.received() if each.get("id") == "ask-99"]
        assert "no-such-program" in error
        assert not (work / "planted").exists()


async def test_of_endless_output_the_latest_is_kept(tmp_path: Path) -> None:
    """Disk and answers are bounded; what is cut begins with a whole character, and the agent is told that it is cut."""
    async with acp_run(tmp_path, client_terminals=True) as run:
        folder = run.task.run(1).terminal(0).output
        await run.start(
            "\n".join([
                create(1, "yes äöü & touch running; wait", outputByteLimit=101), "wait: go", about(2, "output"),
                about(3, "kill"), about(4, "wait_for_exit"), about(5, "output"),
                create(6, "yes äöü | head -c 899997"), about(7, "wait_for_exit", 1), about(8, "output", 1),
                "line: That was all.",
            ])
        )  # fmt: skip
        await eventually((run.task.work / "running").exists)
        await eventually(lambda: min((int(each.name) for each in folder.glob("*")), default=0) > 4_000_000)
        run.touch("go")
        await run.until_state("idle", "That was all.")
        assert sum(each.stat().st_size for each in folder.iterdir()) < 2_500_000
        _, live, killed, ended, after, _, _, whole = answers(run)
        assert (live["truncated"], "exitStatus" in live, killed) == (True, False, {})
        assert set(live["output"]) <= set("äöü\n")
        assert 95 <= len(live["output"].encode()) <= 101
        assert ended == after["exitStatus"] == {"exitCode": None, "signal": "SIGTERM"}
        assert whole["truncated"]
        assert terminals.MAX_OUTPUT - 4 <= len(whole["output"].encode()) <= terminals.MAX_OUTPUT


async def test_a_character_that_is_not_complete_is_not_shown_yet(tmp_path: Path) -> None:
    """Output ends with a whole character while it goes on, wherever its bytes were cut."""
    command = r"printf 'a\303'; touch running; until [ -e on ]; do sleep 0.01; done; printf '\244\303'"
    async with acp_run(tmp_path, client_terminals=True) as run:
        await run.start(
            "\n".join([
                create(1, command), "wait: go", about(2, "output"), "wait: on", about(3, "wait_for_exit"),
                about(4, "output"), "line: That was all.",
            ])
        )  # fmt: skip
        await eventually((run.task.work / "running").exists)
        run.touch("go")
        await eventually(lambda: len(answers(run)) == 2)
        run.touch("on")
        await run.until_state("idle", "That was all.")
        _, live, _, after = answers(run)
        assert (live["output"], after["output"]) == ("a", "aä\ufffd")


def test_output_is_read_again_if_it_was_deleted_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that was slower than endless output shows what comes later, from a whole character on."""
    folder, read = RunFolder(tmp_path), output._read
    folder.output.mkdir()
    older, newer = (folder.output / f"{start:020d}" for start in (0, 1_000))
    older.write_text("older")

    def read_late(path: str, position: int, limit: int) -> bytes:
        if older.exists():
            older.unlink()
            newer.write_bytes("ä newer".encode()[1:])
        return read(path, position, limit)

    monkeypatch.setattr(output, "_read", read_late)
    assert terminals._tail(folder, 100, goes_on=True) == (" newer", True)


async def test_an_agent_has_only_so_many_commands(tmp_path: Path) -> None:
    """One too many is refused until another was released, and so are too many requests that wait for an end."""
    most, waits = terminals.MAX_TERMINALS, terminals.MAX_WAITS
    async with acp_run(tmp_path, client_terminals=True) as run:
        begun = [create(number, FOREVER) for number in range(most)]
        posted = [about(50 + number, "wait_for_exit", verb="post") for number in range(waits + 1)]
        prompt = [
            *begun, create(20, FOREVER), *posted, f"answer-of: {50 + waits}", about(90, "release"), "answer-of: 50",
            create(91, "true"), "line: That was all.",
        ]  # fmt: skip
        await run.start("\n".join(prompt))
        await run.until_state("idle", "That was all.")
        given = answers(run)
        assert given[:most] == [{"terminalId": f"terminal-{number}"} for number in range(most)]
        assert given[most : most + 3] == [INVALID_PARAMS, INVALID_PARAMS, {}]
        assert given.count({"exitCode": None, "signal": "SIGTERM"}) == waits
        assert given[-1] == {"terminalId": f"terminal-{most}"}
        await eventually(lambda: not living(run))


async def test_commands_end_with_their_turn(tmp_path: Path) -> None:
    """Of one that is left open nothing runs after the turn, also if it ignores SIGTERM."""
    async with acp_run(tmp_path, client_terminals=True) as run:
        stubborn = 'trap "" TERM; echo started; while :; do sleep 0.1; done'
        assert await carry_out(run, create(1, stubborn)) == [CREATED]
        await eventually(lambda: not living(run), 30)
        assert await run.send(about(2, "output")) is None
        await eventually(lambda: len(answers(run)) == 2)
        assert answers(run)[1] == RESOURCE_NOT_FOUND
        assert not run.task.run(1).list_terminals()


@pytest.mark.parametrize("traits", [(), ("ignore-cancel", "ignore-sigint", "ignore-sigterm")])
async def test_an_interrupt_ends_commands(
    tmp_path: Path, traits: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the turn end with it, whatever the agent does, and a cancelled turn begins none."""
    monkeypatch.setattr("taskherd.runner.agents.acp.cancelling.CANCEL_TIMEOUT", 1.0)
    monkeypatch.setattr("taskherd.runner.agents.acp.cancelling.INTERRUPT_TIMEOUT", 1.0)
    async with acp_run(tmp_path, *traits, client_terminals=True) as run:
        waiting = about(2, "wait_for_exit")
        await run.start("\n".join([create(1, FOREVER), waiting, create(3, "touch planted"), "hang"]))
        await eventually(lambda: answers(run) == [CREATED])
        assert await run.follower.interrupt() in {"stopped", "ended"}
        await eventually(lambda: not living(run), 30)
        assert not (run.task.work / "planted").exists()


async def test_a_command_outlives_its_runner(tmp_path: Path) -> None:
    """It is run once, its end is told once to who waits for it, and the next runner knows what it wrote before."""
    async with acp_run(tmp_path, client_terminals=True) as run:
        command = "echo before; echo once >> count; while [ ! -e go ]; do sleep 0.05; done; echo after"
        prompt = [create(1, command), about(2, "wait_for_exit"), about(3, "output"), "line: That was all."]
        await run.start("\n".join(prompt))
        await eventually((run.task.work / "count").exists)
        for _ in range(3):
            await run.take_over()
        run.touch("go")
        await run.until_state("idle", "That was all.")
        ended = {"exitCode": 0, "signal": None}
        shown = {"output": "before\nafter\n", "truncated": False, "exitStatus": ended}
        assert answers(run) == [CREATED, ended, shown]
        assert (run.task.work / "count").read_text() == "once\n"


def _die(*_: object) -> None:
    raise OSError("the runner is killed here")


def _die_once_started(_terminals: object, _terminal: object, folder: RunFolder) -> None:
    if folder.started.exists():  # a shim that has not come so far is killed, and its command refused
        _die()


@pytest.mark.parametrize(
    ("instant", "die", "given"),
    [
        ("taskherd.runner.agents.acp.terminals.Terminals._start", _die, INTERNAL_ERROR),
        ("taskherd.runner.agents.acp.terminals.Terminals._answer_start", _die_once_started, CREATED),
        ("taskherd.runner.agents.acp.connection.Connection.submit", _die, CREATED),
    ],
)
async def test_a_runner_that_dies_at_the_start_of_a_command_starts_it_at_most_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instant: str, die: Callable[..., None], given: object
) -> None:
    """Killed before the start, before it is known, or before the agent was told: it is run at most once."""
    async with acp_run(tmp_path, client_terminals=True) as run:
        prompt = ["wait: go", create(1, "echo once >> count"), about(2, "wait_for_exit"), "line: That was all."]
        await run.start("\n".join(prompt))
        await eventually(lambda: "session/prompt" in run.received_methods())
        await eventually(lambda: not run.follower._connection.lines)
        with monkeypatch.context() as patch:
            patch.setattr(instant, die)
            run.touch("go")
            await eventually(lambda: kept(run))
            if given is not INTERNAL_ERROR:
                await eventually((run.task.work / "count").exists)
        await run.take_over()
        await run.until_state("idle", "That was all.")
        assert answers(run)[0] == given
        count = run.task.work / "count"
        assert (count.read_text() if count.exists() else "") == ("" if given is INTERNAL_ERROR else "once\n")


def kept(run: AcpRun) -> list[dict[str, Any]]:
    """Return the commands in the last checkpoint."""
    found: list[dict[str, Any]] = run.outbox.checkpoint.get("terminals", {}).get("kept", [])
    return found


@pytest.mark.parametrize("deed", ["task.pause", "task.delete"])
async def test_nothing_is_left_of_a_task_that_ends(harness: RunnerHarness, deed: str) -> None:
    """Under a real runner: commands of an agent that is stopped, and of one that was killed, end with it."""
    await harness.start()
    task_id = await acp_task(
        harness, prompt="\n".join([create(1, f"touch up; {FOREVER}"), "hang"]), client_terminals=True
    )
    await eventually((harness.work(task_id) / "up").exists, 60)
    assert len(harness.marked(task_id)) >= 4  # the agent and its command, and their shims
    await harness.until_status(task_id, "active")  # a pause is refused while its start is under way
    assert (await harness.worker.command(deed, task_id))["ok"]
    await eventually(lambda: not harness.marked(task_id), 60)


async def test_nothing_is_left_of_an_agent_that_was_killed(harness: RunnerHarness) -> None:
    """The agent and its runner are killed while a command runs: the next runner ends it."""
    runner = await harness.start()
    task_id = await acp_task(
        harness, prompt="\n".join([create(1, f"touch up; {FOREVER}"), "hang"]), client_terminals=True
    )
    await eventually((harness.work(task_id) / "up").exists, 60)
    await runner.kill()
    harness.kill(harness.agent(task_id)["agent"])
    await harness.start()
    await harness.until_state(task_id, "failed")
    await eventually(lambda: not harness.marked(task_id), 60)
