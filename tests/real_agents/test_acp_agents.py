"""Each real agent that speaks ACP, as its shipped template starts it, through the whole product."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from uuid import UUID

import psutil
import pytest

from tests.harness.runner import RunnerHarness, eventually
from tests.harness.templates import shipped_run
from tests.real_agents.conftest import ModelServer, answer, create_task, pause_and_resume, start_runner
from tests.real_agents.protocol import PROGRAMS

pytestmark = [pytest.mark.agents, pytest.mark.timeout(300)]

REJECTED = {
    "claude-code": "refused permission",
    "codex": "was rejected",
    "gemini": "by the user",
    "opencode": "I run the",
}
"""Part of the state's message after a tool was rejected: what the agent's model or the agent itself says then."""
SESSIONS = ("claude-code", "codex", "opencode")
"""The agents that can continue a session."""
FEW_RETRIES = {"claude-code": {"CLAUDE_CODE_MAX_RETRIES": "1"}}
"""The variables with which an agent gives up soon: by itself Claude Code repeats a request for three minutes."""
ERRORS = [
    ("claude-code", "refuse", "failed", "API Error: 400 the stars are not right"),
    ("claude-code", "fail", "failed", "API Error: 500 the stars are not right"),
    ("codex", "refuse", "idle", "the stars are not right"),
    ("codex", "fail", "idle", "high demand"),
    ("gemini", "refuse", "failed", "the stars are not right"),
    ("opencode", "refuse", "failed", "the stars are not right"),
    ("opencode", "fail", "failed", "the stars are not right"),
]
"""A template, the script's word for an error, the state in which the turn ends, and a part of what is said of it.
Gemini CLI is not made to fail with 500: it repeats such a request for more than three minutes."""
FOREVER = "run: tail -f /dev/null"


def states(harness: RunnerHarness, task_id: UUID) -> list[str]:
    """Return the states that the task has shown, without repetitions."""
    shown = [event["task"]["current_state"] for event in harness.worker.events_of(task_id)]
    return [state for state, _ in groupby(each["state"] for each in shown if each)]


def seed(project: Path) -> Path:
    """Write a test that fails because of a file, which is returned; both belong to the project's user."""
    file, test = project / "answer.py", project / "test_answer.py"
    file.write_text("# A line that stays.\n" * 9 + "ANSWER = 41\n")
    test.write_text(
        "from unittest import TestCase\n\nfrom answer import ANSWER\n\n\nclass Test(TestCase):\n"
        "    def test_answer(self):\n        self.assertEqual(ANSWER, 42)\n"
    )
    for each in (file, test):
        os.chown(each, project.stat().st_uid, project.stat().st_gid)
    failed = subprocess.run([sys.executable, "-B", "-m", "unittest"], cwd=project, capture_output=True, check=False)
    assert b"41 != 42" in failed.stderr
    return file


def running(harness: RunnerHarness, task_id: UUID, command: str) -> bool:
    """Return whether a process of the task runs a command."""
    with suppress(psutil.NoSuchProcess):
        return any(command in " ".join(psutil.Process(pid).cmdline()) for pid in harness.marked(task_id))
    return True


@pytest.mark.parametrize("template", PROGRAMS)
@pytest.mark.parametrize(("policy", "is_run"), [("allow", True), ("deny", False)])
async def test_a_tool_runs_as_the_policy_says(
    runner: RunnerHarness, template: str, policy: str, *, is_run: bool
) -> None:
    """A command runs if the policy allows it, and otherwise the turn ends without it; either is told to the task."""
    harness = runner
    prompt = "run: echo it is done > result; cat result"
    task_id = await create_task(harness, template, prompt, approvals={"default": policy})
    await harness.until_state(task_id, "idle", "The command printed: it is done" if is_run else REJECTED[template])
    assert (harness.work(task_id) / "project/result").exists() == is_run
    assert (await harness.worker.command("task.delete", task_id))["ok"]
    await eventually(lambda: not harness.marked(task_id))


@pytest.mark.parametrize("template", PROGRAMS)
async def test_a_turn_outlives_its_runner(
    runner: RunnerHarness, model: ModelServer, acp_path: str, template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runner is killed in a turn; the next one follows the same process, and sees the turn's end."""
    harness = runner
    task_id = await create_task(harness, template, "run: sleep 8; echo it is done > result; cat result")
    await harness.until_state(task_id, "working", "sleep 8")
    agent = harness.agent(task_id)["agent"]
    await harness.runners[0].kill()
    await start_runner(harness, model, acp_path, monkeypatch)
    await harness.until_state(task_id, "idle", "The command printed: it is done")
    output = await harness.output(task_id)
    answer = "The command printed: it is done"
    assert sum(answer in text for text in output) == 1, output  # it is told once, whichever runner was up
    assert (harness.work(task_id) / "project/result").read_text() == "it is done\n"
    assert harness.agent(task_id)["agent"] == agent
    assert (await harness.worker.command("task.delete", task_id))["ok"]
    await eventually(lambda: not harness.marked(task_id))


@pytest.mark.parametrize("template", PROGRAMS)
async def test_an_agent_continues_its_session(runner: RunnerHarness, template: str) -> None:
    """A resumed task continues its session, conversation and all, or begins a new one, and its log says so."""
    harness = runner
    task_id = await create_task(harness, template, "Good morning")
    await harness.until_state(task_id, "idle", "You said: Good morning")
    await pause_and_resume(harness, task_id)
    assert (await harness.worker.command("task.send", task_id, input="recall"))["ok"]
    remembered = "Good morning" if template in SESSIONS else "recall"
    await harness.until_state(task_id, "idle", f"You began with: {remembered}")
    says_that_it_cannot = any("cannot continue its earlier" in text for text in await harness.output(task_id))
    assert says_that_it_cannot == (template not in SESSIONS)


@pytest.mark.parametrize("template", PROGRAMS)
async def test_a_request_outlives_its_runner(
    runner: RunnerHarness, model: ModelServer, acp_path: str, template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runner is killed while a person thinks; the same process gets the answer from the next one, and goes on."""
    harness = runner
    prompt = "run: echo it is done > result; cat result"
    task_id = await create_task(harness, template, prompt, approvals={"default": "ask"})
    await eventually(lambda: harness.worker.document(task_id).get("requests_open"), 120)
    agent = harness.agent(task_id)["agent"]
    await harness.runners[0].kill()
    await start_runner(harness, model, acp_path, monkeypatch)
    await answer(harness, task_id, "allow_once")
    await harness.until_state(task_id, "idle", "The command printed: it is done")
    assert harness.agent(task_id)["agent"] == agent


@pytest.mark.parametrize("template", PROGRAMS)
async def test_a_turn_is_interrupted_and_steered(runner: RunnerHarness, template: str) -> None:
    """An interrupt ends a turn and what it runs, and so does a steer, which then begins another; the process stays."""
    harness = runner
    task_id = await create_task(harness, template, FOREVER)
    await harness.until_state(task_id, "working", "tail -f")
    agent = harness.agent(task_id)["agent"]
    assert (await harness.worker.command("task.interrupt", task_id))["ok"]
    await harness.until_state(task_id, "idle", "interrupted")
    assert (await harness.worker.command("task.send", task_id, input=FOREVER))["ok"]
    await harness.until_state(task_id, "working", "tail -f")
    assert (await harness.worker.command("task.send", task_id, input="Thank you", interrupt=True))["ok"]
    await harness.until_state(task_id, "idle", "You said: Thank you")
    assert harness.agent(task_id)["agent"] == agent
    await eventually(lambda: not running(harness, task_id, "tail -f"))


@pytest.mark.parametrize("template", PROGRAMS)
async def test_an_agent_is_killed(runner: RunnerHarness, template: str) -> None:
    """An agent that is killed in a turn has failed, and leaves nothing; resumed, it is given its prompt again."""
    harness = runner
    task_id = await create_task(
        harness, template, "run: [ -e begun ] || { touch begun; tail -f begun; }; echo it is done"
    )
    await eventually((harness.work(task_id) / "project/begun").exists)
    assert harness.worker.state(task_id)["state"] == "working"
    harness.kill(harness.agent(task_id)["agent"])
    await harness.until_state(task_id, "failed", "signal 9")
    await eventually(lambda: not harness.marked(task_id))
    await pause_and_resume(harness, task_id)
    await harness.until_state(task_id, "idle", "The command printed: it is done")


@pytest.mark.parametrize("template", PROGRAMS)
async def test_a_turn_completes_a_task_if_the_template_says_so(runner: RunnerHarness, template: str) -> None:
    """With ``complete_after_turn`` the end of the prompt's turn is that of the task's work."""
    harness = runner
    task_id = await create_task(
        harness, template, "run: echo it is done > result; cat result", complete_after_turn=True
    )
    await harness.until_state(task_id, "complete", "The command printed: it is done")


@pytest.mark.parametrize("template", PROGRAMS)
async def test_a_turn_goes_on_after_a_rate_limit(runner: RunnerHarness, model: ModelServer, template: str) -> None:
    """An agent that its model's server has limited asks again within the same turn, which ends well."""
    harness = runner
    task_id = await create_task(harness, template, "limit: too many requests")
    await harness.until_state(task_id, "idle", "You said: limit: too many requests")
    assert (await model.request_counts())["429"] == 1
    assert set(states(harness, task_id)) == {"working", "idle"}


@pytest.mark.parametrize(("template", "word", "state", "words"), ERRORS)
async def test_an_error_of_the_model_is_shown(
    runner: RunnerHarness, template: str, word: str, state: str, words: str
) -> None:
    """A turn whose requests fail each time ends with what the agent says of it; the same process takes the next one."""
    harness = runner
    shipped = shipped_run(f"{template}.yaml")["env"]
    env = {**shipped, "set": {**shipped.get("set", {}), **FEW_RETRIES.get(template, {})}}
    task_id = await create_task(harness, template, f"{word}: the stars are not right", env=env)
    agent = harness.agent(task_id)["agent"]
    await eventually(lambda: harness.worker.state(task_id).get("state") in {"idle", "failed"}, 200)
    assert harness.worker.state(task_id)["state"] == state
    if state == "failed":
        assert words in harness.worker.state(task_id)["message"]
    else:  # for the agent it is a turn like any other, and what it says of the error may not be a sentence
        await harness.until_output(task_id, words)
    assert (await harness.worker.command("task.send", task_id, input="Thank you"))["ok"]
    await harness.until_state(task_id, "idle", "You said: Thank you")
    assert harness.agent(task_id)["agent"] == agent
    assert states(harness, task_id)[:2] == ["working", state]


@pytest.mark.parametrize("template", PROGRAMS)
async def test_an_agent_edits_a_file_and_runs_its_tests(runner: RunnerHarness, template: str) -> None:
    """A test that fails passes after an edit by the agent's own tool, and the log has the edit with its diff."""
    harness = runner
    task_id = await create_task(harness, template, "Good morning")
    await harness.until_state(task_id, "idle", "You said: Good morning")
    file = seed(harness.work(task_id) / "project")
    before = file.read_text()
    prompt = f"edit: {file} ANSWER = 41 -> ANSWER = 42\nrun: {sys.executable} -B -m unittest 2>&1 | tail -n 3"
    assert (await harness.worker.command("task.send", task_id, input=prompt))["ok"]
    await harness.until_output(task_id, "The command printed: Ran 1 test")
    await harness.until_state(task_id, "idle", "OK")
    assert file.read_text() == before.replace("41", "42")
    query = "SELECT status, data::text FROM task_logs WHERE task_id = $1 AND kind = 'tool_call' ORDER BY log_id"
    rows = await harness.worker.database.fetch(query, task_id)
    (edit,) = [row for row in rows if "diff" in json.loads(row["data"])]
    assert edit["status"] == "completed"
    diff = json.loads(edit["data"])["diff"]
    assert diff["path"] == str(file)
    assert before.replace(diff["old"], diff["new"]) == file.read_text()  # of the whole file, or around the change
