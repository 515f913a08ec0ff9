from __future__ import annotations

import json
import re
import signal
import uuid
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import aio_pika
import pytest

from tests.harness.runner import RunnerHarness, RunnerSubprocess, eventually, eventually_async, is_alive, runner_harness
from tests.harness.tcp_proxy import TcpProxy
from tests.harness.worker import external_harness, running_worker

pytestmark = pytest.mark.timeout(180)
WORKING = "say:::taskherd state=working message=busy"
"""A step of an agent that counts as working until it says otherwise."""
STUBBORN = ("ignore-sigterm", WORKING, "sleep")
"""The steps of an agent that only SIGKILL ends."""
LONG = "10m"


@pytest.fixture
async def own(database_url: str, amqp_url: str, amqp_prefix: str, tmp_path: Path) -> AsyncIterator[RunnerHarness]:
    """Yield a harness without a worker; the test starts and stops its workers."""
    async with (
        external_harness(database_url, amqp_url, amqp_prefix) as worker,
        runner_harness(worker, tmp_path) as harness,
    ):
        yield harness


def journal(harness: RunnerHarness, task_id: uuid.UUID) -> dict[str, Any]:
    """Return the content of a task's journal."""
    content: dict[str, Any] = json.loads((harness.state(task_id) / "journal.json").read_text())
    return content


def statuses(harness: RunnerHarness, task_id: uuid.UUID) -> set[str]:
    """Return every status that the task has had."""
    return {event["task"]["status"] for event in harness.worker.events_of(task_id)}


async def until_restarted(harness: RunnerHarness, *tasks: uuid.UUID, build_number: int = 3) -> None:
    """Wait until the agents of all tasks run again, in this build."""
    for task_id in tasks:
        await harness.until(partial(is_up, harness, task_id, build_number))


def is_up(harness: RunnerHarness, task_id: uuid.UUID, build_number: int) -> bool:
    """Return whether the task is active in this build."""
    document = harness.worker.document(task_id)
    return document.get("status") == "active" and document["workspace_build_number"] == build_number


async def until_stopping(harness: RunnerHarness, task_id: uuid.UUID) -> None:
    """Wait until the runner has recorded that it stops the task's workspace."""
    await eventually(lambda: journal(harness, task_id)["transition"] == "stop")


async def drain_unreported(runner: RunnerSubprocess) -> None:
    """Stop a runner that cannot reach the broker; the second signal ends its wait for it."""
    runner.process.send_signal(signal.SIGTERM)
    await eventually(lambda: any(line["event"] == "agents paused" for line in runner.lines()))
    assert await runner.terminate() == 0
    assert any("the next runner sends them" in line["event"] for line in runner.lines())


async def start_working(harness: RunnerHarness, *steps: str, **run: Any) -> uuid.UUID:
    """Create a task and wait until its agent works."""
    task_id = await harness.task(*(steps or (WORKING, "sleep")), **run)
    await harness.until_state(task_id, "working", "busy")
    return task_id


async def test_ten_agents_at_work_go_on_with_the_next_runner(harness: RunnerHarness) -> None:
    """On SIGTERM all are stopped, the runner exits with 0, and the next one starts them again; none ends in error."""
    first = await harness.start(runner_drain="pause")
    await harness.template({})
    tasks = [await harness.task("file:trace", WORKING, "sleep", resume="prompt") for _ in range(10)]
    for task_id in tasks:
        await harness.until_state(task_id, "working", "busy")
    assert await first.terminate() == 0
    assert {task_id: harness.marked(task_id) for task_id in tasks} == {task_id: set() for task_id in tasks}
    await harness.start(runner_drain="pause")
    await until_restarted(harness, *tasks)
    for task_id in tasks:
        await harness.until_state(task_id, "working", "busy")
        assert (harness.work(task_id) / "trace").read_text() == "was here\n" * 2
        assert "error" not in statuses(harness, task_id)
        requested = [each for each in harness.worker.events_of(task_id) if each["task"]["workspace_build_number"] == 3]
        assert requested[0]["cause"]["type"] == "runner.drained"
        assert any("stopped, and started again" in text for text in await harness.output(task_id))
    assert harness.worker.reasons() == []


async def test_a_waiting_runner_pauses_the_idle_and_lets_the_working_end(harness: RunnerHarness) -> None:
    """What ends well is left as it is; what waits is paused at once, what still works at the end of the wait."""
    first = await harness.start(runner_drain=f"wait:{LONG}")
    ending = await start_working(harness, WORKING, "await:go", "say:::taskherd state=complete message=finished")
    busy = await start_working(harness)
    idle = await harness.task("say:Which package?", "sleep")
    await harness.until_state(idle, "idle")
    first.process.send_signal(signal.SIGTERM)
    await harness.until(lambda: harness.worker.document(idle)["workspace_build_number"] == 3)
    assert is_alive(harness.agent(busy)["agent"])
    (harness.work(ending) / "go").touch()
    await harness.until(lambda: (harness.worker.document(ending).get("agent_exit") or {}).get("why") == "exited")
    assert is_alive(harness.agent(busy)["agent"])
    assert await first.terminate() == 0  # the second signal ends the wait
    assert harness.marked(busy) == set()
    await harness.start()
    await until_restarted(harness, busy, idle)
    document = harness.worker.document(ending)
    assert (document["status"], document["workspace_build_number"]) == ("active", 1)
    assert document["current_state"]["state"] == "complete"
    assert harness.worker.reasons() == []


async def test_the_wait_for_working_agents_ends(harness: RunnerHarness) -> None:
    """An agent that works for longer than the runner waits is paused and started again."""
    first = await harness.start(runner_drain="wait:500ms")
    task_id = await start_working(harness)
    assert await first.terminate() == 0
    assert harness.marked(task_id) == set()
    await harness.start()
    await until_restarted(harness, task_id)


async def test_a_second_signal_kills_agents_that_do_not_end(harness: RunnerHarness) -> None:
    """Meanwhile the runner is not ready and says why; the task goes on with the next runner."""
    first = await harness.start(runner_drain="pause", grace=LONG)
    task_id = await start_working(harness, *STUBBORN, grace=600)
    first.process.send_signal(signal.SIGTERM)
    await until_stopping(harness, task_id)
    await eventually_async(lambda: first.get("/readyz"), lambda answer: "503" in answer and "draining" in answer)
    assert "taskherd_runner_draining 1.0" in await first.metrics()
    assert await first.terminate() == 0
    assert harness.marked(task_id) == set()
    await harness.start()
    await until_restarted(harness, task_id)
    assert "error" not in statuses(harness, task_id)


async def test_the_grace_time_bounds_agents_that_do_not_end(harness: RunnerHarness) -> None:
    """An agent whose template allows it ten minutes to end is killed in time for its reports."""
    first = await harness.start(runner_drain="pause", grace="6s")
    task_id = await start_working(harness, *STUBBORN, grace=600)
    assert await first.terminate() == 0
    await eventually(lambda: harness.marked(task_id) == set())
    await harness.start()
    await until_restarted(harness, task_id)


async def test_a_drain_that_was_killed_is_finished_by_the_next_runner(harness: RunnerHarness) -> None:
    """SIGKILL of the runner and everything in its container in the middle of a drain; the agents start again."""
    first = await harness.start(runner_drain="pause", grace=LONG)
    tasks = [await start_working(harness, *STUBBORN, grace=600) for _ in range(3)]
    first.process.send_signal(signal.SIGTERM)
    for task_id in tasks:
        await until_stopping(harness, task_id)
    await first.kill()
    harness.kill_all(*tasks)
    second = await harness.start()
    await until_restarted(harness, *tasks)
    assert 'taskherd_runner_endings_total{reason="lost"} 0.0' in await second.metrics(), "it was being stopped"
    assert all("error" not in statuses(harness, task_id) for task_id in tasks)
    assert harness.worker.reasons() == []


async def test_a_drain_whose_reports_are_lost_is_reported_again(harness: RunnerHarness) -> None:
    """The journal alone suffices for the restart, for example after a crash of the machine."""
    host, port = re.findall(r"@([^:/]+):(\d+)", harness.worker.urls[1])[0]
    relay = TcpProxy(host, int(port))
    relay_port = await relay.start()
    url = harness.worker.urls[1].replace(f":{port}", f":{relay_port}")
    first = await harness.start(runner_drain="pause", grace="30s", amqp_url=url)
    task_id = await start_working(harness)
    relay.freeze()
    relay.cut()
    await drain_unreported(first)
    await relay.stop()
    assert journal(harness, task_id)["phase"] == "done"
    outbox = harness.state(task_id) / "outbox.jsonl"
    assert b"restart" in outbox.read_bytes()
    outbox.unlink()
    assert harness.worker.document(task_id)["workspace_build_number"] == 1
    await harness.start()
    await until_restarted(harness, task_id)


async def test_the_broker_is_away_during_a_drain(harness: RunnerHarness) -> None:
    """The reports stay on disk when the runner waits no longer for the broker, and the next runner sends them."""
    host, port = re.findall(r"@([^:/]+):(\d+)", harness.worker.urls[1])[0]
    relay = TcpProxy(host, int(port))
    relay_port = await relay.start()
    url = harness.worker.urls[1].replace(f":{port}", f":{relay_port}")
    first = await harness.start(runner_drain="pause", grace="30s", amqp_url=url)
    tasks = [await start_working(harness) for _ in range(3)]
    relay.freeze()
    relay.cut()
    await drain_unreported(first)
    assert all(harness.marked(task_id) == set() for task_id in tasks)
    await relay.stop()
    await harness.start()
    await until_restarted(harness, *tasks)


async def test_no_worker_is_there_during_a_drain(own: RunnerHarness) -> None:
    """The reports wait in the queue; once there is a worker, it requests the starts."""
    async with running_worker(own.worker):
        first = await own.start(runner_drain="pause")
        tasks = [await start_working(own) for _ in range(3)]
    assert await first.terminate() == 0
    await own.start()
    async with running_worker(own.worker):
        await until_restarted(own, *tasks)
        assert all("error" not in statuses(own, task_id) for task_id in tasks)


async def test_a_draining_runner_takes_no_more(harness: RunnerHarness) -> None:
    """A task that is created meanwhile is started by another runner of the pool."""
    first = await harness.start(runner_drain=f"wait:{LONG}")
    busy = await start_working(harness)
    first.process.send_signal(signal.SIGTERM)
    await eventually_async(lambda: first.get("/readyz"), lambda answer: "draining" in answer)
    task_id = await harness.task(WORKING, "sleep")
    await harness.start("r2")
    await harness.until_status(task_id, "active")
    assert harness.marked(task_id, harness.folder / "r2")
    assert harness.marked(task_id) == set()
    assert is_alive(harness.agent(busy)["agent"])


async def test_a_pause_and_a_delete_during_the_wait_count(harness: RunnerHarness) -> None:
    """The draining runner still executes them, at once, and nothing starts these tasks again."""
    first = await harness.start(runner_drain=f"wait:{LONG}")
    paused, deleted, busy = [await start_working(harness) for _ in range(3)]
    first.process.send_signal(signal.SIGTERM)
    await eventually_async(lambda: first.get("/readyz"), lambda answer: "draining" in answer)
    assert (await harness.worker.command("task.pause", paused))["ok"]
    assert (await harness.worker.command("task.delete", deleted))["ok"]
    await harness.until_status(paused, "paused")
    await eventually(lambda: not (harness.root / str(deleted)).exists())
    assert await first.terminate() == 0
    await harness.start()
    await until_restarted(harness, busy)
    assert harness.worker.document(paused)["status"] == "paused"
    assert len({each["request_id"] for each in harness.worker.requests_of(paused, "workspace.start")}) == 1


async def test_a_request_of_the_worker_replaces_a_drain_with_its_number(own: RunnerHarness) -> None:
    """A delete that the worker numbered before it heard of the drain is executed by the next runner."""
    async with running_worker(own.worker):
        first = await own.start(runner_drain="pause")
        task_id = await start_working(own)
    assert await first.terminate() == 0
    await publish_request(own, task_id, type="workspace.delete", build_number=2)
    await own.start()
    await eventually(lambda: not (own.root / str(task_id)).exists())


async def test_an_input_waits_for_the_restarted_agent(own: RunnerHarness) -> None:
    """An input that the drained agent did not receive reaches its next run, even if it arrives before the start."""
    async with running_worker(own.worker):
        first = await own.start(runner_drain="pause")
        task_id = await own.task("say:ready", "echo")
        await own.until_state(task_id, "idle")
    assert await first.terminate() == 0
    await publish_request(own, task_id, type="agent.input", input_id=str(uuid.uuid4()), input="still there?")
    await own.start()
    async with running_worker(own.worker):
        await own.until_output(task_id, "got still there?")


async def publish_request(harness: RunnerHarness, task_id: uuid.UUID, **fields: Any) -> None:
    """Publish a work request for the task to the queue of runner ``r1``."""
    start = harness.worker.requests_of(task_id, "workspace.start")[0]
    common = {key: value for key, value in start.items() if key not in {"prompt", "preset", "agent_token"}}
    request = {**common, "request_id": str(uuid.uuid4()), **fields}
    exchange = await harness.worker.channel.get_exchange(f"{harness.worker.prefix}.work", ensure=False)
    await exchange.publish(aio_pika.Message(json.dumps(request).encode()), f"{request['type']}.r1", timeout=30)
