from __future__ import annotations

import json
import signal

import pytest

from tests.harness import held_removal
from tests.harness.runner import RunnerHarness, eventually, is_alive

pytestmark = pytest.mark.timeout(180)


async def test_resume_continues_in_the_same_directory(harness: RunnerHarness) -> None:
    """Pausing stops the agent and keeps its files; resuming starts it there again, with the updated prompt."""
    await harness.start()
    task_id = await harness.task("file:trace", "say:up", "env", "sleep", prompt="first")
    await harness.until_output(task_id, "TASKHERD_PROMPT=first")
    agent = harness.agent(task_id)["agent"]
    assert (await harness.worker.command("task.pause", task_id))["ok"]
    await harness.until_status(task_id, "paused")
    assert not is_alive(agent)
    assert (harness.work(task_id) / "trace").read_text() == "was here\n"
    assert (await harness.worker.command("task.update_input", task_id, input="second"))["ok"]
    assert (await harness.worker.command("task.resume", task_id))["ok"]
    await harness.until_output(task_id, "TASKHERD_PROMPT=second")
    await harness.until_status(task_id, "active")
    assert harness.worker.document(task_id)["workspace_build_number"] == 3
    assert (harness.work(task_id) / "trace").read_text() == "was here\n" * 2
    assert harness.worker.reasons() == []


async def test_an_agent_that_ignores_sigterm_is_killed_after_the_grace_time(harness: RunnerHarness) -> None:
    """Stopping sends SIGTERM first and SIGKILL after the grace time."""
    await harness.start()
    task_id = await harness.task("ignore-sigterm", "say:ready", "sleep", grace=0.5)
    await harness.until_output(task_id, "ready")
    agent = harness.agent(task_id)["agent"]
    assert (await harness.worker.command("task.pause", task_id))["ok"]
    await harness.until_status(task_id, "paused")
    assert not is_alive(agent)
    record = json.loads((harness.state(task_id) / "run-1/exit.json").read_text())
    assert (record["reason"], record["signal"]) == ("stopped", signal.SIGKILL)


async def test_stopping_ends_all_descendants(harness: RunnerHarness) -> None:
    """Grandchildren in their own sessions, and processes that keep forking and exiting, are gone after a stop."""
    await harness.start()
    task_id = await harness.task("fork:5", "respawn:5", "say:all up", "sleep", grace=0.2)
    await harness.until_output(task_id, "all up")
    before = harness.marked(task_id)
    assert len(before) >= 7
    assert (await harness.worker.command("task.pause", task_id))["ok"]
    await harness.until_status(task_id, "paused")
    assert harness.marked(task_id) == set()


async def test_delete_removes_the_directory(harness: RunnerHarness) -> None:
    """After a delete the runner has no process and no file of the task."""
    await harness.start()
    task_id = await harness.task("file:trace", "say:up", "sleep")
    await harness.until_output(task_id, "up")
    agent = harness.agent(task_id)["agent"]
    assert (await harness.worker.command("task.delete", task_id))["ok"]
    await eventually(lambda: not (harness.root / str(task_id)).exists())
    assert not is_alive(agent)
    await harness.worker.until_row(
        "SELECT (state::json->'deletion'->>2)::boolean FROM tasks WHERE id = $1", task_id, is_=True
    )


async def test_a_runner_that_removes_files_stops_in_time_and_the_next_one_goes_on(harness: RunnerHarness) -> None:
    """However many files are left: the delete has not failed, and is not done until they are removed."""
    first = await harness.start(prefix=held_removal.PREFIX)
    task_id = await harness.task("file:trace", f"file:{held_removal.HELD}", "say:up", "sleep")
    await harness.until_output(task_id, "up")
    assert (await harness.worker.command("task.delete", task_id))["ok"]
    await eventually(lambda: not (harness.work(task_id) / "trace").exists())
    assert await first.terminate() == 0
    assert (harness.work(task_id) / held_removal.HELD).exists()
    assert not any(line["event"] in {"build failed", "supervisor failed, restarting it"} for line in first.lines())
    journal = json.loads((harness.state(task_id) / "journal.json").read_text())
    assert (journal["transition"], journal["phase"]) == ("delete", "accepted")
    await harness.start()
    await eventually(lambda: not (harness.root / str(task_id)).exists())
    await harness.worker.until_row(
        "SELECT (state::json->'deletion'->>2)::boolean FROM tasks WHERE id = $1", task_id, is_=True
    )


async def test_an_agent_that_exceeds_its_time_limit_has_failed(harness: RunnerHarness) -> None:
    """A timeout is reported as such, and no process keeps running."""
    await harness.start()
    task_id = await harness.task("fork:1", "sleep", limits={"timeout": "1s"})
    await harness.until_state(task_id, "failed", "exceeded its time limit")
    await harness.until_status(task_id, "error")
    assert harness.marked(task_id) == set()


async def test_an_agent_that_crashes_has_failed(harness: RunnerHarness) -> None:
    """The state's message contains the signal's name and the agent's last output."""
    await harness.start()
    task_id = await harness.task("say:all is well", "crash")
    await harness.until_state(task_id, "failed", "signal 11 (SIGSEGV)")
    assert "all is well" in harness.worker.state(task_id)["message"]
    await harness.until_status(task_id, "error")


async def test_killing_the_shim_ends_all_processes_of_the_agent(harness: RunnerHarness) -> None:
    """If the shim is killed, the agent and its descendants are killed too, and the loss is reported."""
    await harness.start()
    task_id = await harness.task("fork:3", "sleep")
    await harness.until_output(task_id, "forked")
    harness.kill(harness.agent(task_id)["pid"])
    await harness.until_state(task_id, "failed", "lost")
    await eventually(lambda: harness.marked(task_id) == set())


async def test_a_command_that_cannot_be_started_fails_the_build(harness: RunnerHarness) -> None:
    """The task's state contains the error of the command or of the template."""
    await harness.start()
    await harness.template({"command": ["/no/such/program"]})
    task_id = await harness.worker.create()
    await harness.until_state(task_id, "failed", "No such file or directory: '/no/such/program'")
    await harness.template({"command": "sh -c true", "colour": "red"})
    task_id = await harness.worker.create()
    await harness.until_state(task_id, "failed", "The template's `run` is invalid: command: ")
    assert "colour: Extra inputs are not permitted" in harness.worker.state(task_id)["message"]
