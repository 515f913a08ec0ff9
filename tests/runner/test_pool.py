from __future__ import annotations

import re
import uuid
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from tests.harness.api import running_api
from tests.harness.runner import RunnerHarness, RunnerSubprocess, eventually, eventually_async, runner_harness
from tests.harness.tcp_proxy import TcpProxy, through
from tests.harness.worker import running_worker, worker_harness

pytestmark = pytest.mark.timeout(180)
RUNNERS = ("r1", "r2")
START_REQUESTS = re.compile(
    r'^taskherd_runner_requests_total\{outcome="(\w+)",type="workspace.start"\} (\d+)', re.MULTILINE
)
DELETED = """
    SELECT count(*) > 0 FROM task_builds WHERE task_id = $1 AND transition = 'delete' AND job_status = 'succeeded'
"""


@pytest.fixture
async def impatient_harness(
    database_url: str, amqp_url: str, amqp_prefix: str, tmp_path: Path
) -> AsyncIterator[RunnerHarness]:
    """Yield a worker with short timeouts for heartbeats, for runners' answers and for requests."""
    timeouts = {"agent_lost_after": 4, "runner_answer_timeout": 1, "request_ttl": 10, "request_backoff_first": 0.5}
    settings = {**timeouts, "request_backoff_most": 1, "log_level": "warning"}
    async with (
        worker_harness(database_url, amqp_url, amqp_prefix, **settings) as worker,
        runner_harness(worker, tmp_path) as harness,
    ):
        yield harness


@pytest.fixture
async def patient_harness(
    database_url: str, amqp_url: str, amqp_prefix: str, tmp_path: Path
) -> AsyncIterator[RunnerHarness]:
    """Yield a worker that repeats requests only after five seconds, so that the queue contains each one once."""
    async with (
        worker_harness(database_url, amqp_url, amqp_prefix, log_level="warning") as worker,
        runner_harness(worker, tmp_path) as harness,
    ):
        yield harness


def runners_of(harness: RunnerHarness, task_id: uuid.UUID) -> list[str]:
    """Return the names of the runners that have a folder for the task."""
    return [name for name in RUNNERS if (harness.folder / name / str(task_id)).exists()]


async def pause_and_resume(harness: RunnerHarness, task_id: uuid.UUID) -> None:
    """Pause and resume a task."""
    assert (await harness.worker.command("task.pause", task_id))["ok"]
    await harness.until_status(task_id, "paused")
    assert (await harness.worker.command("task.resume", task_id))["ok"]
    await harness.until_status(task_id, "active")


async def test_runners_of_a_pool_share_its_tasks(patient_harness: RunnerHarness) -> None:
    """Each task is started once, by one of them, and later requests for it go to the same runner."""
    for name in RUNNERS:
        await patient_harness.start(name)
    tasks = [await patient_harness.task("file:trace", "say:up", "sleep") for _ in range(4)]
    for task_id in tasks:
        await patient_harness.until_output(task_id, "up")
    placement = {task_id: runners_of(patient_harness, task_id) for task_id in tasks}
    assert sorted({name for names in placement.values() for name in names}) == ["r1", "r2"]
    assert all(len(names) == 1 for names in placement.values())
    for task_id in (next(task for task in tasks if placement[task] == [name]) for name in RUNNERS):
        await pause_and_resume(patient_harness, task_id)
        assert runners_of(patient_harness, task_id) == placement[task_id]
        trace = patient_harness.folder / placement[task_id][0] / str(task_id) / "work/trace"
        await eventually_async(partial(_read, trace), "was here\nwas here\n".__eq__)
    assert patient_harness.worker.metric("taskherd_claims_total", type="build.claim", outcome="granted") == 6
    for kind in ("task.create", "task.update_input", "task.pause", "task.resume"):
        assert not patient_harness.worker.metric("taskherd_commands_total", type=kind, outcome="refused")
    assert patient_harness.worker.reasons() == []


async def test_copies_of_a_request_start_a_build_once(harness: RunnerHarness) -> None:
    """The pool's queue delivers repeated requests to any free runner; only one of them starts the build."""
    runners = [await harness.start(name) for name in RUNNERS]
    task_id = await harness.task("file:trace", "say:up", "sleep")
    await harness.until_output(task_id, "up")
    start = harness.worker.requests_of(task_id, "workspace.start")[0]
    for attempt in range(1, 9):
        await harness.repeat_request(start, attempt=attempt)
    for runner in runners:
        await eventually_async(partial(_start_requests, runner), (4).__le__)
    (name,) = runners_of(harness, task_id)
    assert (harness.folder / name / str(task_id) / "work/trace").read_text() == "was here\n"
    await pause_and_resume(harness, task_id)
    assert runners_of(harness, task_id) == [name]


async def test_without_a_worker_only_the_only_copy_is_started(harness: RunnerHarness) -> None:
    """If no worker answers the claim, only a request that certainly has no other copy is executed."""
    runner = await harness.start("r1")
    first = await harness.task("say:up", "sleep")
    await harness.until_output(first, "up")
    start = harness.worker.requests_of(first, "workspace.start")[0]
    harness.worker.worker.stop()
    await eventually_async(partial(harness.worker.queue_counts, "claims"), (0, 0).__eq__)
    other, third = uuid.uuid4(), uuid.uuid4()
    await harness.repeat_request(start, task_id=str(other), attempt=1)
    await harness.repeat_request(start, task_id=str(third), attempt=2)
    await eventually_async(partial(_start_requests, runner, "left"), (1).__eq__)  # its claim has timed out
    await eventually(lambda: harness.marked(other))
    assert not (harness.root / str(third)).exists()
    await eventually_async(partial(harness.worker.queue_counts, "claims"), (2, 0).__eq__)  # they wait for the worker


async def test_a_refused_claim_starts_nothing(harness: RunnerHarness) -> None:
    """A runner that the worker does not trust starts not even an only copy; once it is trusted, the next copy."""
    runner = await harness.start("r1")
    harness.worker.worker.stop()
    await eventually_async(partial(harness.worker.queue_counts, "claims"), (0, 0).__eq__)
    async with running_worker(harness.worker, report_senders="another=*", request_backoff_first=0.5):
        task_id = await harness.task("say:up", "sleep")
        await eventually_async(partial(_start_requests, runner, "refused"), (2).__le__)
        assert not harness.marked(task_id)
        await harness.until(lambda: "untrusted_sender" in harness.worker.reasons())
    refusals = [line["reason"] for line in runner.lines() if line["event"] == "claim refused"]
    assert refusals
    assert all("untrusted_sender" in reason for reason in refusals)
    async with running_worker(harness.worker, request_backoff_first=0.5, request_backoff_most=1):
        await harness.until_output(task_id, "up")


async def move_to_another_runner(harness: RunnerHarness, task_id: uuid.UUID) -> None:
    """Pause a task whose runner ``r1`` does not answer, and resume it on ``r2``; requests to ``r1`` expire."""
    assert (await harness.worker.command("task.pause", task_id))["ok"]
    await harness.until(lambda: harness.worker.document(task_id).get("workspace_status") == "failed")
    await harness.start("r2")
    assert (await harness.worker.command("task.resume", task_id))["ok"]
    await harness.until(lambda: harness.worker.document(task_id).get("workspace_agent_health") == {"healthy": True})
    assert harness.marked(task_id)
    own_queue = await harness.worker.channel.get_queue(f"{harness.worker.prefix}.work.r1", ensure=False)
    await own_queue.purge(timeout=30)


async def until_only_the_new_agent_runs(harness: RunnerHarness, task_id: uuid.UUID) -> None:
    """Wait until ``r1`` has ended its agent; that of ``r2`` goes on, and the task's builds are the same."""
    await eventually(lambda: not harness.marked(task_id))
    assert harness.marked(task_id, harness.folder / "r2")
    assert harness.worker.document(task_id)["workspace_build_number"] == 3
    assert harness.worker.document(task_id)["status"] == "active"


async def test_a_returning_runner_stops_an_agent_whose_task_moved(impatient_harness: RunnerHarness) -> None:
    """It asks whose its tasks are, also if all copies of requests to it have expired."""
    first = await impatient_harness.start("r1")
    task_id = await impatient_harness.task("say:up", "sleep")
    await impatient_harness.until_output(task_id, "up")
    await first.kill()
    await move_to_another_runner(impatient_harness, task_id)
    second = await impatient_harness.start("r1")
    await until_only_the_new_agent_runs(impatient_harness, task_id)
    await second.kill()
    await impatient_harness.start("r1")  # it does not take the task for its own again
    assert not impatient_harness.marked(task_id)
    assert impatient_harness.worker.reasons() == []


async def test_a_reconnecting_runner_stops_an_agent_whose_task_moved(impatient_harness: RunnerHarness) -> None:
    """A runner that was cut off asks again, and ends only the agents of tasks that it has lost."""
    url = impatient_harness.worker.urls[1]
    host, port = re.findall(r"@([^:/]+):(\d+)", url)[0]
    relay = TcpProxy(host, int(port))
    relay_port = await relay.start()
    await impatient_harness.start("r1", amqp_url=url.replace(f":{port}", f":{relay_port}"))
    moved, kept = [await impatient_harness.task("say:up", "sleep") for _ in range(2)]
    for task_id in (moved, kept):
        await impatient_harness.until_output(task_id, "up")
    relay.freeze()
    relay.cut()
    await move_to_another_runner(impatient_harness, moved)
    agents = impatient_harness.marked(kept)
    relay.thaw()
    await until_only_the_new_agent_runs(impatient_harness, moved)
    await impatient_harness.until_status(kept, "active")
    assert impatient_harness.marked(kept) == agents
    await relay.stop()


async def test_a_reconnecting_runner_removes_a_task_that_another_one_has_deleted(
    impatient_harness: RunnerHarness,
) -> None:
    """It asks again, also if all copies of the delete to it have expired; another agent of its own goes on."""
    relay = await TcpProxy.before(impatient_harness.worker.urls[1])
    await impatient_harness.start("r1", amqp_url=through(impatient_harness.worker.urls[1], relay))
    deleted, kept = [await impatient_harness.task("say:up", "sleep") for _ in range(2)]
    for task_id in (deleted, kept):
        await impatient_harness.until_output(task_id, "up")
    agents = impatient_harness.marked(kept)
    relay.freeze()
    relay.cut()
    await impatient_harness.start("r2")
    assert (await impatient_harness.worker.command("task.delete", deleted))["ok"]
    await impatient_harness.worker.until_row(DELETED, deleted)
    assert impatient_harness.marked(deleted)
    own_queue = await impatient_harness.worker.channel.get_queue(
        f"{impatient_harness.worker.prefix}.work.r1", ensure=False
    )
    await own_queue.purge(timeout=30)
    relay.thaw()
    await eventually(lambda: runners_of(impatient_harness, deleted) == [])
    assert not impatient_harness.marked(deleted)
    await impatient_harness.until_status(kept, "active")
    assert impatient_harness.marked(kept) == agents
    assert impatient_harness.worker.reasons() == []
    await relay.stop()


async def test_a_copy_of_a_request_tells_a_runner_that_its_task_moved(impatient_harness: RunnerHarness) -> None:
    """Its claim is refused, and it ends its agent of the earlier build."""
    first = await impatient_harness.start("r1")
    task_id = await impatient_harness.task("say:up", "sleep")
    await impatient_harness.until_output(task_id, "up")
    await first.kill()
    await move_to_another_runner(impatient_harness, task_id)
    start = impatient_harness.worker.requests_of(task_id, "workspace.start")[-1]
    await impatient_harness.repeat_request(start, target="r1")
    await impatient_harness.start("r1")
    await until_only_the_new_agent_runs(impatient_harness, task_id)


async def test_tasks_of_a_permanently_lost_runner_move_to_another(impatient_harness: RunnerHarness) -> None:
    """Its agents are shown as lost; resuming starts them on another runner, and deleting completes."""
    first = await impatient_harness.start("r1")
    kept, deleted = [await impatient_harness.task("file:trace", "say:up", "sleep") for _ in range(2)]
    for task_id in (kept, deleted):
        await impatient_harness.until_output(task_id, "up")
    await impatient_harness.start("r2")
    await first.kill()
    impatient_harness.kill_all(kept, deleted)
    for task_id in (kept, deleted):
        await impatient_harness.until(partial(_is_lost, impatient_harness, task_id))
    assert (await impatient_harness.worker.command("task.delete", deleted))["ok"]
    assert (await impatient_harness.worker.command("task.pause", kept))["ok"]
    await impatient_harness.worker.until_row(DELETED, deleted)
    await impatient_harness.until(
        lambda: impatient_harness.worker.document(kept).get("workspace_status") == "failed"
    )  # no runner was there to stop it
    assert (await impatient_harness.worker.command("task.resume", kept))["ok"]
    await impatient_harness.until(
        lambda: impatient_harness.worker.document(kept).get("workspace_agent_health") == {"healthy": True}
    )
    assert runners_of(impatient_harness, kept) == ["r1", "r2"]
    trace = impatient_harness.folder / "r2" / str(kept) / "work/trace"
    await impatient_harness.until(lambda: trace.exists() and trace.read_text() == "was here\n")


async def test_a_self_reporting_agent_sets_its_state(
    harness: RunnerHarness, database_url: str, amqp_url: str, amqp_prefix: str
) -> None:
    """It reports over HTTP with its token; when it exits with an error, the runner reports that."""
    async with running_api(database_url, amqp_url, amqp_prefix) as api:
        await harness.start(agent_api_url=f"http://127.0.0.1:{api.port}")
        steps = ("report:working:Looking around", "await:go", "report:complete:Found it", "await:end", "exit:7")
        task_id = await harness.task(*steps, agent="self")
        await harness.until_state(task_id, "working", "Looking around")
        await harness.until_status(task_id, "active")
        (harness.work(task_id) / "go").touch()
        await harness.until_state(task_id, "complete", "Found it")
        (harness.work(task_id) / "end").touch()
        await harness.until_state(task_id, "failed", "exit status 7")
        await harness.until_status(task_id, "error")
    assert harness.worker.reasons() == []


def _is_lost(harness: RunnerHarness, task_id: uuid.UUID) -> bool:
    health = harness.worker.document(task_id).get("workspace_agent_health") or {}
    return "lost connection" in health.get("reason", "")


async def _start_requests(runner: RunnerSubprocess, outcome: str = "") -> int:
    """Return the number of start requests that a runner has handled, with any outcome or with this one."""
    counts = re.findall(START_REQUESTS, await runner.metrics())
    return sum(int(value) for found, value in counts if outcome in {"", found})


async def _read(path: Path) -> str:
    return path.read_text()
