from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.harness.runner import eventually, runner_harness
from tests.harness.worker import external_harness, running_worker

pytestmark = pytest.mark.timeout(180)


async def test_a_runner_waits_until_a_worker_declares_its_queues(
    database_url: str, amqp_url: str, amqp_prefix: str, tmp_path: Path
) -> None:
    """It is not ready and says what it waits for; once a worker is there it takes work by itself."""
    async with (
        external_harness(database_url, amqp_url, amqp_prefix) as worker,
        runner_harness(worker, tmp_path) as harness,
    ):
        starting = asyncio.create_task(harness.start())
        log = tmp_path / "runner-0.log"
        await eventually(lambda: log.exists() and "waiting for a worker to declare" in log.read_text())
        assert not starting.done()
        async with running_worker(worker):
            await starting
            task_id = await harness.task("say:up", "sleep")
            await harness.until_output(task_id, "up")
            assert worker.reasons() == []
        await worker.channel.queue_delete(f"{amqp_prefix}.work.default", timeout=30)
