"""Agents from PyPI that carry out one prompt, as their shipped templates start them; only the model is scripted."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from tests.harness.runner import RunnerHarness, eventually
from tests.harness.templates import shipped_run
from tests.real_agents.conftest import START_TIMEOUT, ModelServer, not_tried, pause_and_resume, start_runner

pytestmark = [pytest.mark.agents, pytest.mark.timeout(600)]


def path_of(program: str) -> str:
    """Return a PATH with a program from PyPI, named by the variable that ``make agents`` sets."""
    found = shutil.which(program, path=os.environ.get("PYTHON_AGENTS") or os.environ["PATH"])
    if found is None:
        not_tried(program, "run `make agents`, with PYTHON_3_12 for a Python that it runs on")
    return os.pathsep.join([os.path.dirname(found), os.environ["PATH"]])  # noqa: PTH120 - a part of a PATH


async def test_mini_swe_agent(harness: RunnerHarness, model: ModelServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs a command and submits; a runner that is killed meanwhile changes nothing."""
    path = path_of("mini")
    await start_runner(harness, model, path, monkeypatch)
    await harness.template(shipped_run("mini-swe-agent.yaml"))
    task_id = await harness.worker.create(input="run: sleep 8; echo it is done > result; cat result")
    await eventually(lambda: harness.marked(task_id), 60)
    await harness.until_state(task_id, "working", "sleep 8")
    await harness.runners[0].kill()
    await start_runner(harness, model, path, monkeypatch)
    await harness.until_state(task_id, "complete", "has submitted its work")
    assert (harness.work(task_id) / "project/result").read_text() == "it is done\n"
    assert any("it is done" in text for text in await harness.output(task_id))
    assert (await harness.worker.command("task.delete", task_id))["ok"]
    await eventually(lambda: not harness.marked(task_id))


@pytest.mark.parametrize("ends", ["interrupt", "kill"])
async def test_mini_swe_agent_is_ended(
    harness: RunnerHarness, model: ModelServer, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    """Interrupted or killed while it runs a command, it leaves nothing; resumed, it is given its prompt again."""
    await start_runner(harness, model, path_of("mini"), monkeypatch)
    await harness.template(shipped_run("mini-swe-agent.yaml"))
    prompt = "run: [ -e begun ] || { touch begun; tail -f begun; }; echo it is done"
    task_id = await harness.worker.create(input=prompt)
    await eventually((harness.work(task_id) / "project/begun").exists, START_TIMEOUT)
    await harness.until_state(task_id, "working")
    if ends == "interrupt":
        assert (await harness.worker.command("task.interrupt", task_id))["ok"]
        await harness.until_state(task_id, "idle", "interrupt")
    else:
        harness.kill(harness.agent(task_id)["agent"])
        await harness.until_state(task_id, "failed", "signal 9")
    await eventually(lambda: not harness.marked(task_id))
    await pause_and_resume(harness, task_id)
    await harness.until_state(task_id, "complete", "has submitted its work")


async def test_mini_swe_agent_that_gives_up(
    harness: RunnerHarness, model: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that refuses ends it, after one attempt instead of ten, and the task has failed."""
    await start_runner(harness, model, path_of("mini"), monkeypatch)
    run = shipped_run("mini-swe-agent.yaml")
    run["env"]["set"]["MSWEA_MODEL_RETRY_STOP_AFTER_ATTEMPT"] = "1"
    await harness.template(run)
    task_id = await harness.worker.create(input="refuse: Credit balance is too low")
    await harness.until_state(task_id, "failed")
    assert (await harness.worker.command("task.delete", task_id))["ok"]


async def test_aider(harness: RunnerHarness, model: ModelServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """It writes a file and commits it, in a repository that it creates."""
    await start_runner(harness, model, path_of("aider"), monkeypatch)
    await harness.template(shipped_run("aider.yaml"))
    task_id = await harness.worker.create(input="write: result.txt it is done")
    await harness.until_state(task_id, "complete")
    project = harness.work(task_id) / "project"
    assert (project / "result.txt").read_text() == "it is done\n"
    command = ["git", "-c", "safe.directory=*", "-C", str(project), "log", "--name-only", "--format=%an"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() == ["Aider", "result.txt"]
    assert any("Applied edit to result.txt" in text for text in await harness.output(task_id))
