"""Two runners of one pool with one name: requests for the one would go to either of the two."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from taskherd.runner import sole_consumer
from taskherd.runner.app import RunnerProcess
from taskherd.settings import Settings
from tests.harness.runner import RunnerHarness, eventually, eventually_async
from tests.harness.tcp_proxy import TcpProxy, through
from tests.harness.worker import WorkerHarness

pytestmark = pytest.mark.timeout(180)
TAKEN = "another runner has the name r1"


async def until_taken(harness: RunnerHarness, number: int) -> None:
    """Wait until the runner that was started as this one, from 0 on, says that its name is taken."""
    log = harness.folder / f"runner-{number}.log"
    await eventually(lambda: log.exists() and TAKEN in log.read_text())
    await eventually_async(partial(harness.runners[number].get, "/readyz"), lambda text: TAKEN in text)


async def test_a_runner_takes_no_work_while_another_one_has_its_name(harness: RunnerHarness) -> None:
    """Neither of its own nor of its pool; once the other one is gone it begins."""
    first = await harness.start("r1")
    task_id = await harness.task("say:up", "sleep")
    await harness.until_output(task_id, "up")
    starting = asyncio.create_task(harness.start("r1", runner_root=str(harness.folder / "other")))
    await until_taken(harness, 1)
    for target in ("r1", "default"):
        assert await harness.worker.queue_counts(f"work.{target}") == (0, 1)
    assert (await harness.worker.command("task.pause", task_id))["ok"]
    await harness.until_status(task_id, "paused")
    assert not harness.marked(task_id)
    assert not starting.done()
    assert await first.terminate() == 0
    await starting
    later = await harness.task("say:later", "sleep")
    await harness.until_output(later, "later")
    assert harness.marked(later, harness.folder / "other")
    assert harness.worker.reasons() == []


async def test_a_runner_whose_name_is_taken_reports_what_its_agents_do(harness: RunnerHarness) -> None:
    """They go on, too; when it has its name again, it executes requests for them."""
    first = await harness.start("r1")
    task_id = await harness.task("say:up", "await:go", "say:more", "sleep")
    await harness.until_output(task_id, "up")
    await first.kill()
    other = await harness.start("r1", runner_root=str(harness.folder / "other"))
    starting = asyncio.create_task(harness.start("r1"))
    await until_taken(harness, 2)
    (harness.work(task_id) / "go").touch()
    await harness.until_output(task_id, "more")
    assert not starting.done()
    assert await other.terminate() == 0
    await starting
    assert (await harness.worker.command("task.pause", task_id))["ok"]
    await harness.until_status(task_id, "paused")
    assert not harness.marked(task_id)


@asynccontextmanager
async def in_process(worker: WorkerHarness, root: Path, url: str) -> AsyncIterator[RunnerProcess]:
    """Run a runner in this process for the block."""
    process = RunnerProcess(
        Settings(
            amqp_url=url, amqp_prefix=worker.prefix, runner_name="r1", runner_root=str(root), ops_port=0, grace=5,
            log_level="warning",
        )
    )  # fmt: skip
    running = asyncio.create_task(process.run())
    try:
        yield process
    finally:
        process.stop()
        await running


async def ignore(_: object) -> None:
    """Leave a message unacknowledged."""


async def until(process: RunnerProcess, *, alone: bool) -> None:
    """Wait until a runner knows that it has its name alone, or that it has not."""
    sole = process._sole_consumer
    await eventually(lambda: (sole.is_confirmed and sole.problem is None) if alone else sole.problem)


async def test_a_runner_that_connects_again_does_not_wait_for_its_lost_connection(
    harness: RunnerHarness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RabbitMQ may count the old consumer for minutes; if it is there for longer, it is another runner's."""
    for name in ("CONFIRM_EVERY", "LOOK_EVERY"):
        monkeypatch.setattr(sole_consumer, name, 0.05)
    worker, queue = harness.worker, f"{harness.worker.prefix}.work.r1"
    harness.names.add("r1")
    proxy = await TcpProxy.before(worker.urls[1])
    async with in_process(worker, tmp_path / "root", through(worker.urls[1], proxy)) as process:
        await until(process, alone=True)
        other = await (await worker.channel.get_queue(queue, ensure=False)).consume(ignore, timeout=30)
        of_both_queues = process._consumer._epoch + 2
        proxy.cut()
        await eventually(lambda: process._consumer._epoch >= of_both_queues and process._consumer.consuming)
        await eventually_async(partial(worker.queue_counts, "work.r1"), lambda counts: counts[1] == 2)
        assert process._sole_consumer.problem is None
        monkeypatch.setattr(sole_consumer, "MAX_LINGERING", 0.2)
        await until(process, alone=False)
        assert process._consumer.consumes(queue), "the other one may not be a runner"
        await (await worker.channel.get_queue(queue, ensure=False)).cancel(other, timeout=30)
        await until(process, alone=True)
    await proxy.stop()


async def test_one_of_two_runners_that_come_at_the_same_time_keeps_the_name(
    harness: RunnerHarness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each may have looked before the other one consumed."""
    for name in ("CONFIRM_EVERY", "LOOK_EVERY"):
        monkeypatch.setattr(sole_consumer, name, 0.5)
    worker = harness.worker
    harness.names.add("r1")
    has_looked = asyncio.Barrier(2)

    def let_in(check: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
        calls = iter([has_looked.wait])

        async def look() -> None:
            await next(calls, check)()

        return look

    async with (
        in_process(worker, tmp_path / "one", worker.urls[1]) as one,
        in_process(worker, tmp_path / "two", worker.urls[1]) as two,
    ):
        both = [one._sole_consumer, two._sole_consumer]
        for sole in both:
            monkeypatch.setattr(sole, "check", let_in(sole.check))
        await eventually(
            lambda: sorted((each.is_confirmed, each.problem is None) for each in both) == [(False, False), (True, True)]
        )
        for target in ("r1", "default"):
            assert await worker.queue_counts(f"work.{target}") == (0, 1)
