from __future__ import annotations

import re
import uuid
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from tests.harness.api import running_api
from tests.harness.runner import RunnerHarness, RunnerSubprocess, eventually, eventually_async, runner_harness
from tests.harness.worker import worker_harness

pytestmark = pytest.mark.timeout(180)
RUNNERS = ("r1", "r2")
TAKEN = re.compile(r'^taskherd_runner_requests_total\{.*type="workspace.start".*\} (\d+)', re.MULTILINE)
BUILDS = "SELECT count(*) FROM task_builds WHERE task_id = $1 AND number = $2 AND job_status = $3"


@pytest.fixture
async def hasty(database_url: str, amqp_url: str, amqp_prefix: str, tmp_path: Path) -> AsyncIterator[RunnerHarness]:
    """A worker that soon gives up waiting: for an agent's word, for a runner's answer, for a request."""
    soon = {"agent_lost_after": 4, "runner_answer_timeout": 1, "request_ttl": 10, "request_backoff_first": 0.5}
    settings = {**soon, "request_backoff_most": 1, "log_level": "warning"}
    async with (
        worker_harness(database_url, amqp_url, amqp_prefix, **settings) as harness,
        runner_harness(harness, tmp_path) as made,
    ):
        yield made


@pytest.fixture
async def calm(database_url: str, amqp_url: str, amqp_prefix: str, tmp_path: Path) -> AsyncIterator[RunnerHarness]:
    """A worker that repeats nothing before five seconds have passed, so that the queue hands out each request once."""
    async with (
        worker_harness(database_url, amqp_url, amqp_prefix, log_level="warning") as harness,
        runner_harness(harness, tmp_path) as made,
    ):
        yield made


def homes(own: RunnerHarness, task_id: uuid.UUID) -> list[str]:
    """The runners that have a folder for the task."""
    return [name for name in RUNNERS if (own.folder / name / str(task_id)).exists()]


async def run_again(own: RunnerHarness, task_id: uuid.UUID) -> None:
    """Pause and resume a task."""
    assert (await own.worker.command("task.pause", task_id))["ok"]
    await own.until_status(task_id, "paused")
    assert (await own.worker.command("task.resume", task_id))["ok"]
    await own.until_status(task_id, "active")


async def test_runners_of_a_pool_share_its_tasks(calm: RunnerHarness) -> None:
    """Each task is started once, by one of them, and what is asked of it later goes to that one."""
    for name in RUNNERS:
        await calm.start(name)
    tasks = [await calm.task("file:trace", "say:up", "sleep") for _ in range(4)]
    for task_id in tasks:
        await calm.until_output(task_id, "up")
    places = {task_id: homes(calm, task_id) for task_id in tasks}
    assert sorted({name for place in places.values() for name in place}) == ["r1", "r2"]
    assert all(len(place) == 1 for place in places.values())
    for task_id in (next(task for task in tasks if places[task] == [name]) for name in RUNNERS):
        await run_again(calm, task_id)
        assert homes(calm, task_id) == places[task_id]
        trace = calm.folder / places[task_id][0] / str(task_id) / "work/trace"
        await eventually_async(partial(_read, trace), "was here\nwas here\n".__eq__)
    assert calm.worker.reasons() == []


async def test_copies_of_a_request_that_reach_two_runners_are_begun_by_one(own: RunnerHarness) -> None:
    """Requests are repeated, and the pool's queue hands each copy to whoever is free: only one may begin the build."""
    runners = [await own.start(name) for name in RUNNERS]
    task_id = await own.task("file:trace", "say:up", "sleep")
    await own.until_output(task_id, "up")
    start = own.worker.requests_of(task_id, "workspace.start")[0]
    for attempt in range(1, 9):
        await own.repeat_request(start, attempt=attempt)
    for runner in runners:
        await eventually_async(partial(_taken, runner), (4).__le__)
    (home,) = homes(own, task_id)
    assert (own.folder / home / str(task_id) / "work/trace").read_text() == "was here\n"
    await run_again(own, task_id)
    assert homes(own, task_id) == [home]


async def test_without_a_worker_only_a_copy_that_is_the_only_one_is_begun(own: RunnerHarness) -> None:
    """A claim that nobody answers holds up what was asked for once, and leaves the rest to the next repeat."""
    runner = await own.start("r1")
    sole = await own.task("say:up", "sleep")
    await own.until_output(sole, "up")
    start = own.worker.requests_of(sole, "workspace.start")[0]
    own.worker.worker.stop()
    await eventually_async(partial(own.worker.queue, "commands"), (0, 0).__eq__)
    other, third = uuid.uuid4(), uuid.uuid4()
    await own.repeat_request(start, task_id=str(other), attempt=1)
    await own.repeat_request(start, task_id=str(third), attempt=2)
    await eventually_async(partial(_taken, runner), (2).__eq__)
    assert own.marked(other)
    assert not (own.root / str(third)).exists()
    assert await own.worker.queue("commands") == (2, 0)  # the claims, for the worker to find


async def test_a_runner_that_comes_back_ends_what_another_has_taken_over(hasty: RunnerHarness) -> None:
    """It was away for so long that its task was started elsewhere: it finds its agent alive, and ends it."""
    first = await hasty.start("r1")
    task_id = await hasty.task("say:up", "sleep")
    await hasty.until_output(task_id, "up")
    await first.kill()
    assert (await hasty.worker.command("task.pause", task_id))["ok"]
    await hasty.until(lambda: hasty.worker.document(task_id).get("workspace_status") == "failed")
    own_queue = await hasty.worker.channel.get_queue(f"{hasty.worker.prefix}.work.r1", ensure=False)
    await own_queue.purge(timeout=5)  # as if what asked it to stop had expired by now
    await hasty.start("r2")
    assert (await hasty.worker.command("task.resume", task_id))["ok"]
    await hasty.until(lambda: hasty.worker.document(task_id).get("workspace_agent_health") == {"healthy": True})
    assert hasty.marked(task_id)
    await hasty.start("r1")
    await eventually(lambda: not hasty.marked(task_id))
    assert hasty.marked(task_id, hasty.folder / "r2")
    assert hasty.worker.document(task_id)["workspace_build_number"] == 3


async def test_of_a_runner_that_is_gone_for_good_the_tasks_go_to_another(hasty: RunnerHarness) -> None:
    """Its agents have lost connection, and say so; resuming starts them elsewhere, and deleting comes to an end."""
    first = await hasty.start("r1")
    kept, doomed = [await hasty.task("file:trace", "say:up", "sleep") for _ in range(2)]
    for task_id in (kept, doomed):
        await hasty.until_output(task_id, "up")
    await hasty.start("r2")
    await first.kill()
    for pid in hasty.marked(kept) | hasty.marked(doomed):
        hasty.kill(pid)
    for task_id in (kept, doomed):
        await hasty.until(partial(_is_lost, hasty, task_id))
    assert (await hasty.worker.command("task.delete", doomed))["ok"]
    assert (await hasty.worker.command("task.pause", kept))["ok"]
    await hasty.worker.until_row(BUILDS, doomed, 2, "succeeded", is_=1)
    await hasty.until(
        lambda: hasty.worker.document(kept).get("workspace_status") == "failed"
    )  # nobody was there to stop it
    assert (await hasty.worker.command("task.resume", kept))["ok"]
    await hasty.until(lambda: hasty.worker.document(kept).get("workspace_agent_health") == {"healthy": True})
    assert homes(hasty, kept) == ["r1", "r2"]
    assert (hasty.folder / "r2" / str(kept) / "work/trace").read_text() == "was here\n"


async def test_an_agent_reports_for_itself(
    own: RunnerHarness, database_url: str, amqp_url: str, amqp_prefix: str
) -> None:
    """Over HTTP, with the token it was given: its state is what it says, and when it dies the runner says that."""
    async with running_api(database_url, amqp_url, amqp_prefix) as api:
        await own.start(agent_api_url=f"http://127.0.0.1:{api.port}")
        words = ("report:working:Looking around", "await:go", "report:complete:Found it", "await:end", "exit:7")
        task_id = await own.task(*words, agent="self")
        await own.until_state(task_id, "working", "Looking around")
        await own.until_status(task_id, "active")
        (own.work(task_id) / "go").touch()
        await own.until_state(task_id, "complete", "Found it")
        (own.work(task_id) / "end").touch()
        await own.until_state(task_id, "failed", "exit status 7")
        await own.until_status(task_id, "error")
    assert own.worker.reasons() == []


def _is_lost(own: RunnerHarness, task_id: uuid.UUID) -> bool:
    health = own.worker.document(task_id).get("workspace_agent_health") or {}
    return "lost connection" in health.get("reason", "")


async def _taken(runner: RunnerSubprocess) -> int:
    """How many requests to start a runner has taken."""
    return sum(int(value) for value in re.findall(TAKEN, await runner.metrics()))


async def _read(path: Path) -> str:
    return path.read_text()
