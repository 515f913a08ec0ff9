from __future__ import annotations

import json
import re
import signal

import aio_pika
import pytest

from tests.harness.runner import RunnerHarness, eventually, is_alive

pytestmark = pytest.mark.timeout(180)


async def test_the_next_runner_adopts_what_lives(own: RunnerHarness) -> None:
    """Kill -9 the runner: the agent works on, and the next runner follows it from where the first one was."""
    first = await own.start()
    task_id = await own.task("count:200", "echo")
    await own.until_output(task_id, "line 20")
    agent = own.agent(task_id)["agent"]
    await first.kill()
    assert is_alive(agent)
    await own.start()
    await own.until_output(task_id, "line 199")
    counted = [int(number) for text in await own.output(task_id) for number in re.findall(r"line (\d+)", text)]
    assert counted == list(range(200))
    assert own.agent(task_id)["agent"] == agent
    await own.until_state(task_id, "idle")
    assert (await own.worker.command("task.send", task_id, input="still there?"))["ok"]
    await own.until_output(task_id, "got still there?")
    assert own.worker.reasons() == []


async def test_what_ended_meanwhile_is_told_with_its_real_exit_status(own: RunnerHarness) -> None:
    """While no runner was there an agent ended: the next one says how."""
    first = await own.start()
    task_id = await own.task("say:up", "await:go", "say:last words", "exit:3")
    await own.until_output(task_id, "up")
    await first.kill()
    (own.work(task_id) / "go").touch()
    await eventually((own.state(task_id) / "run-1/exit.json").exists)
    await own.start()
    await own.until_state(task_id, "failed", "exit status 3")
    await own.until_output(task_id, "last words")
    await own.until_status(task_id, "error")


async def test_success_that_nobody_saw_is_success(own: RunnerHarness) -> None:
    """The same with exit 0, by a runner that left in order."""
    first = await own.start()
    task_id = await own.task("say:up", "await:go", "say:well done")
    await own.until_output(task_id, "up")
    assert await first.leave() == 0
    (own.work(task_id) / "go").touch()
    await eventually((own.state(task_id) / "run-1/exit.json").exists)
    await own.start()
    await own.until_state(task_id, "complete", "well done")


async def test_where_nothing_survived_it_says_so(own: RunnerHarness) -> None:
    """The container died with runner, shim and agent: the next runner tells the loss, and resuming works."""
    first = await own.start()
    task_id = await own.task("say:up", "sleep")
    await own.until_output(task_id, "up")
    await first.kill()
    for pid in own.marked(task_id):
        own.kill(pid)
    await eventually(lambda: own.marked(task_id) == set())
    await own.start()
    await own.until_state(task_id, "failed", "exit status are lost")
    await own.until_status(task_id, "error")
    assert (await own.worker.command("task.pause", task_id))["ok"]
    await own.until_status(task_id, "paused")
    assert (await own.worker.command("task.resume", task_id))["ok"]
    await own.until_status(task_id, "active")


async def test_a_repeated_request_is_done_once(own: RunnerHarness) -> None:
    """Whatever the worker repeats, before and after a restart, a build is done once, and an older one never again."""
    first = await own.start()
    task_id = await own.task("file:trace", "say:up", "sleep")
    await own.until_output(task_id, "up")
    start = own.worker.requests_of(task_id, "workspace.start")[0]
    await own.repeat_request(start)
    await first.kill()
    second = await own.start()
    await own.repeat_request(start)
    await eventually(lambda: any(line["event"] == "broker connected" for line in second.lines()))
    assert (await own.worker.command("task.pause", task_id))["ok"]
    await own.until_status(task_id, "paused")
    await own.repeat_request(start)
    assert (await own.worker.command("task.resume", task_id))["ok"]
    await own.until_status(task_id, "active")
    await eventually(lambda: (own.work(task_id) / "trace").read_text() == "was here\n" * 2)


async def test_what_was_accepted_is_done_by_the_next_runner(own: RunnerHarness) -> None:
    """A runner that dies between noting a request and doing it leaves it to the next one."""
    first = await own.start()
    task_id = await own.task("file:trace", "say:up", "sleep")
    await own.until_output(task_id, "up")
    await first.kill()
    journal = own.state(task_id) / "journal.json"
    said = json.loads(journal.read_text())
    start = {**said["start"], "build_number": 2}
    journal.write_text(json.dumps({**said, "build_number": 2, "phase": "accepted", "start": start, "ready": False}))
    agent = own.agent(task_id)["agent"]
    own.kill(own.agent(task_id)["pid"])
    await eventually(lambda: not is_alive(agent))
    await own.start()
    await eventually(lambda: (own.work(task_id) / "trace").read_text() == "was here\n" * 2)
    await own.until(lambda: own.worker.document(task_id).get("workspace_build_number") == 2)
    await own.until_status(task_id, "active")


async def test_a_stop_that_was_begun_is_finished(own: RunnerHarness) -> None:
    """A runner that dies while it stops an agent leaves that to the next one."""
    first = await own.start()
    task_id = await own.task("deaf", "say:up", "sleep", grace=3)
    await own.until_output(task_id, "up")
    agent = own.agent(task_id)["agent"]
    assert (await own.worker.command("task.pause", task_id))["ok"]
    await eventually(lambda: json.loads((own.state(task_id) / "journal.json").read_text())["transition"] == "stop")
    first.process.send_signal(signal.SIGKILL)
    await first.process.wait()
    await own.start()
    await own.until_status(task_id, "paused")
    assert not is_alive(agent)


async def test_a_request_that_nobody_can_read_stops_nothing(own: RunnerHarness) -> None:
    """Bytes that are no request are put aside, and the next request is done."""
    await own.start()
    exchange = await own.worker.channel.get_exchange(f"{own.worker.prefix}.work", ensure=False)
    await exchange.publish(aio_pika.Message(b"\x89PNG"), "workspace.start.default", timeout=5)
    task_id = await own.task("say:up", "sleep")
    await own.until_output(task_id, "up")
