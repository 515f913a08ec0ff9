"""A worker and a runner harness for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.harness.runner import RunnerHarness, runner_harness
from tests.harness.worker import worker_harness


@pytest.fixture
async def harness(database_url: str, amqp_url: str, amqp_prefix: str, tmp_path: Path) -> AsyncIterator[RunnerHarness]:
    """Yield a worker with its own database and queues, and no runner yet."""
    settings = {
        "request_backoff_first": 0.5,
        "request_backoff_most": 1,
        "interrupt_timeout": 600,  # what becomes of an interrupt is what its runner says, however slow the machine
        "log_level": "warning",
    }
    async with (
        worker_harness(database_url, amqp_url, amqp_prefix, **settings) as worker,
        runner_harness(worker, tmp_path) as harness,
    ):
        yield harness
