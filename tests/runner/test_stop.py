from __future__ import annotations

import json
import signal

import pytest

from tests.harness.runner import RunnerHarness, eventually, is_alive

pytestmark = pytest.mark.timeout(180)


async def test_pause_keeps_the_directory_and_resume_goes_on_there(own: RunnerHarness) -> None:
    """A paused task's process is gone, its files are there; resume starts the next build on them, with its prompt."""
    await own.start()
    task_id = await own.task("file:trace", "say:up", "env", "sleep", prompt="first")
    await own.until_output(task_id, "TASKHERD_PROMPT=first")
    agent = own.agent(task_id)["agent"]
    assert (await own.worker.command("task.pause", task_id))["ok"]
    await own.until_status(task_id, "paused")
    assert not is_alive(agent)
    assert (own.work(task_id) / "trace").read_text() == "was here\n"
    assert (await own.worker.command("task.update_input", task_id, input="second"))["ok"]
    assert (await own.worker.command("task.resume", task_id))["ok"]
    await own.until_output(task_id, "TASKHERD_PROMPT=second")
    await own.until_status(task_id, "active")
    assert own.worker.document(task_id)["workspace_build_number"] == 3
    assert (own.work(task_id) / "trace").read_text() == "was here\n" * 2
    assert own.worker.reasons() == []


async def test_an_agent_that_ignores_sigterm_is_killed_after_its_grace(own: RunnerHarness) -> None:
    """SIGTERM first, so that it can tidy up; SIGKILL when it did not."""
    await own.start()
    task_id = await own.task("deaf", "say:deaf", "sleep", grace=0.5)
    await own.until_output(task_id, "deaf")
    agent = own.agent(task_id)["agent"]
    assert (await own.worker.command("task.pause", task_id))["ok"]
    await own.until_status(task_id, "paused")
    assert not is_alive(agent)
    said = json.loads((own.state(task_id) / "run-1/exit.json").read_text())
    assert (said["why"], said["signal"]) == ("stopped", signal.SIGKILL)


async def test_nothing_that_an_agent_started_outlives_its_stop(own: RunnerHarness) -> None:
    """Grandchildren in sessions of their own, and a process that forks and exits for ever, are gone after stop."""
    await own.start()
    task_id = await own.task("fork:5", "hydra:5", "say:all up", "sleep", grace=0.2)
    await own.until_output(task_id, "all up")
    before = own.marked(task_id)
    assert len(before) >= 7
    assert (await own.worker.command("task.pause", task_id))["ok"]
    await own.until_status(task_id, "paused")
    assert own.marked(task_id) == set()


async def test_delete_removes_the_directory(own: RunnerHarness) -> None:
    """After delete nothing of the task is left on the runner: no process, no file."""
    await own.start()
    task_id = await own.task("file:trace", "say:up", "sleep")
    await own.until_output(task_id, "up")
    agent = own.agent(task_id)["agent"]
    assert (await own.worker.command("task.delete", task_id))["ok"]
    await eventually(lambda: not (own.root / str(task_id)).exists())
    assert not is_alive(agent)
    await own.worker.until_row(
        "SELECT (memory::json->'deletion'->>2)::boolean FROM tasks WHERE id = $1", task_id, is_=True
    )


async def test_an_agent_that_used_up_its_time_has_failed(own: RunnerHarness) -> None:
    """A timeout is told as what it is, and leaves nothing running."""
    await own.start()
    task_id = await own.task("fork:1", "sleep", limits={"timeout": "1s"})
    await own.until_state(task_id, "failed", "used up its time")
    await own.until_status(task_id, "error")
    assert own.marked(task_id) == set()


async def test_an_agent_that_crashes_has_failed(own: RunnerHarness) -> None:
    """A signal is told by its name, together with the agent's last words."""
    await own.start()
    task_id = await own.task("say:all is well", "crash")
    await own.until_state(task_id, "failed", "signal 11 (SIGSEGV)")
    assert "all is well" in own.worker.state(task_id)["message"]
    await own.until_status(task_id, "error")


async def test_a_killed_shim_leaves_nothing_behind(own: RunnerHarness) -> None:
    """Where the shim itself is killed, its agent and all that came from it is cleaned up, and the loss is told."""
    await own.start()
    task_id = await own.task("fork:3", "sleep")
    await own.until_output(task_id, "forked")
    own.kill(own.agent(task_id)["pid"])
    await own.until_state(task_id, "failed", "lost")
    await eventually(lambda: own.marked(task_id) == set())


async def test_a_command_that_can_not_be_started_fails_the_build(own: RunnerHarness) -> None:
    """What is wrong with a template is told where its author looks: in the task."""
    await own.start()
    await own.template({"command": ["/no/such/program"]})
    task_id = await own.worker.create()
    await own.until_state(task_id, "failed", "No such file or directory: '/no/such/program'")
    await own.template({"command": "sh -c true", "colour": "red"})
    task_id = await own.worker.create()
    await own.until_state(task_id, "failed", "command: ")
    assert "colour: Extra inputs are not permitted" in own.worker.state(task_id)["message"]
