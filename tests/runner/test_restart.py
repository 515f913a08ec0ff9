from __future__ import annotations

import json
import re
import signal

import aio_pika
import pytest

from tests.harness.runner import RunnerHarness, eventually, is_alive

pytestmark = pytest.mark.timeout(180)


async def test_the_next_runner_adopts_running_agents(harness: RunnerHarness) -> None:
    """After SIGKILL of the runner the agent keeps working, and the next runner continues to read its output."""
    first = await harness.start()
    task_id = await harness.task("count:200", "echo")
    await harness.until_output(task_id, "line 20")
    agent = harness.agent(task_id)["agent"]
    await first.kill()
    assert is_alive(agent)
    await harness.start()
    await harness.until_output(task_id, "line 199")
    numbers = [int(number) for text in await harness.output(task_id) for number in re.findall(r"line (\d+)", text)]
    assert numbers == list(range(200))
    assert harness.agent(task_id)["agent"] == agent
    await harness.until_state(task_id, "idle")
    assert (await harness.worker.command("task.send", task_id, input="still there?"))["ok"]
    await harness.until_output(task_id, "got still there?")
    assert harness.worker.reasons() == []


async def test_an_exit_without_a_runner_is_reported_with_its_status(harness: RunnerHarness) -> None:
    """If an agent exits while no runner is up, the next runner reports its exit status."""
    first = await harness.start()
    task_id = await harness.task("say:up", "await:go", "say:last line", "exit:3")
    await harness.until_output(task_id, "up")
    await first.kill()
    (harness.work(task_id) / "go").touch()
    await eventually((harness.state(task_id) / "run-1/exit.json").exists)
    await harness.start()
    await harness.until_state(task_id, "failed", "exit status 3")
    await harness.until_output(task_id, "last line")
    await harness.until_status(task_id, "error")


async def test_success_without_a_runner_is_reported_as_complete(harness: RunnerHarness) -> None:
    """If an agent succeeds after the runner was stopped, the next runner reports that."""
    first = await harness.start()
    task_id = await harness.task("say:up", "await:go", "say:well done")
    await harness.until_output(task_id, "up")
    assert await first.terminate() == 0
    (harness.work(task_id) / "go").touch()
    await eventually((harness.state(task_id) / "run-1/exit.json").exists)
    await harness.start()
    await harness.until_state(task_id, "complete", "well done")


async def test_a_lost_exit_status_is_reported(harness: RunnerHarness) -> None:
    """If runner, shim and agent were all killed, the next runner reports the loss, and resuming works."""
    first = await harness.start()
    task_id = await harness.task("say:up", "sleep")
    await harness.until_output(task_id, "up")
    await first.kill()
    harness.kill_all(task_id)
    await harness.start()
    await harness.until_state(task_id, "failed", "exit status is lost")
    await harness.until_status(task_id, "error")
    assert (await harness.worker.command("task.pause", task_id))["ok"]
    await harness.until_status(task_id, "paused")
    assert (await harness.worker.command("task.resume", task_id))["ok"]
    await harness.until_status(task_id, "active")


async def test_a_supervisor_that_failed_is_started_again(harness: RunnerHarness) -> None:
    """An unexpected error stops only its own task, which continues as soon as the cause is gone."""
    first = await harness.start()
    task_id = await harness.task("say:up", "await:go", "say:well done")
    await harness.until_output(task_id, "up")
    await first.kill()
    (harness.work(task_id) / "go").touch()
    await eventually((harness.state(task_id) / "run-1/exit.json").exists)
    journal = harness.state(task_id) / "journal.json"
    readable = journal.read_text()
    record = json.loads(readable)
    journal.write_text(json.dumps({**record, "start": {**record["start"], "run": {}}}))
    second = await harness.start()
    await eventually(lambda: any(line["event"].startswith("supervisor failed") for line in second.lines()))
    other = await harness.task("say:also up", "sleep")
    await harness.until_output(other, "also up")
    journal.write_text(readable)
    await harness.until_state(task_id, "complete", "well done")
    assert second.process.returncode is None


async def test_a_repeated_request_is_executed_once(harness: RunnerHarness) -> None:
    """However often a request is repeated, a build is executed once, and an older build is never executed again."""
    first = await harness.start()
    task_id = await harness.task("file:trace", "say:up", "sleep")
    await harness.until_output(task_id, "up")
    start = harness.worker.requests_of(task_id, "workspace.start")[0]
    await harness.repeat_request(start)
    await first.kill()
    second = await harness.start()
    await harness.repeat_request(start)
    await eventually(lambda: any(line["event"] == "broker connected" for line in second.lines()))
    assert (await harness.worker.command("task.pause", task_id))["ok"]
    await harness.until_status(task_id, "paused")
    await harness.repeat_request(start)
    assert (await harness.worker.command("task.resume", task_id))["ok"]
    await harness.until_status(task_id, "active")
    await eventually(lambda: (harness.work(task_id) / "trace").read_text() == "was here\n" * 2)


async def test_the_next_runner_executes_accepted_requests(harness: RunnerHarness) -> None:
    """If a runner dies after it has recorded a request and before it has executed it, the next one executes it."""
    first = await harness.start()
    task_id = await harness.task("file:trace", "say:up", "sleep")
    await harness.until_output(task_id, "up")
    await first.kill()
    journal = harness.state(task_id) / "journal.json"
    record = json.loads(journal.read_text())
    start = {**record["start"], "build_number": 2}
    journal.write_text(
        json.dumps({**record, "build_number": 2, "phase": "accepted", "start": start, "ready_reported": False})
    )
    agent = harness.agent(task_id)["agent"]
    harness.kill(harness.agent(task_id)["pid"])
    await eventually(lambda: not is_alive(agent))
    await harness.start()
    await eventually(lambda: (harness.work(task_id) / "trace").read_text() == "was here\n" * 2)
    await harness.until(lambda: harness.worker.document(task_id).get("workspace_build_number") == 2)
    await harness.until_status(task_id, "active")


async def test_a_start_that_is_resumed_does_not_begin_again(harness: RunnerHarness) -> None:
    """If a runner dies after its agent was ready and before it has recorded that, the task is active, takes inputs."""
    first = await harness.start()
    task_id = await harness.task("say:up", "await:go", "say:on we go", "echo")
    await harness.until_output(task_id, "up")
    await first.kill()
    journal = harness.state(task_id) / "journal.json"
    record = json.loads(journal.read_text())
    assert record["ready_reported"]
    journal.write_text(json.dumps({**record, "phase": "accepted"}))
    await harness.start()
    await eventually(lambda: json.loads(journal.read_text())["phase"] == "done")
    (harness.work(task_id) / "go").touch()
    await harness.until_output(task_id, "on we go")  # all that was reported before that has been processed
    assert (await harness.worker.command("task.send", task_id, input="still there?"))["ok"]
    await harness.until_output(task_id, "got still there?")
    await harness.until_status(task_id, "active")


async def test_the_next_runner_finishes_a_stop(harness: RunnerHarness) -> None:
    """If a runner dies while it stops an agent, the next one finishes the stop."""
    first = await harness.start()
    task_id = await harness.task("ignore-sigterm", "say:up", "sleep", grace=3)
    await harness.until_output(task_id, "up")
    agent = harness.agent(task_id)["agent"]
    assert (await harness.worker.command("task.pause", task_id))["ok"]
    await eventually(lambda: json.loads((harness.state(task_id) / "journal.json").read_text())["transition"] == "stop")
    first.process.send_signal(signal.SIGKILL)
    await first.process.wait()
    await harness.start()
    await harness.until_status(task_id, "paused")
    assert not is_alive(agent)


async def test_an_undecodable_request_is_dropped(harness: RunnerHarness) -> None:
    """An undecodable request is acknowledged, and the next request is executed."""
    await harness.start()
    exchange = await harness.worker.channel.get_exchange(f"{harness.worker.prefix}.work", ensure=False)
    await exchange.publish(aio_pika.Message(b"\x89PNG"), "workspace.start.default", timeout=30)
    task_id = await harness.task("say:up", "sleep")
    await harness.until_output(task_id, "up")
