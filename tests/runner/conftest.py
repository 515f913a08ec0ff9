"""A worker, and somewhere to run runners, for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.harness.runner import RunnerHarness, runner_harness
from tests.harness.worker import worker_harness


@pytest.fixture
async def own(database_url: str, amqp_url: str, amqp_prefix: str, tmp_path: Path) -> AsyncIterator[RunnerHarness]:
    """A worker on a database and queues of its own, and no runner yet."""
    soon = {"request_backoff_first": 0.5, "request_backoff_most": 1, "log_level": "warning"}
    async with (
        worker_harness(database_url, amqp_url, amqp_prefix, **soon) as harness,
        runner_harness(harness, tmp_path) as made,
    ):
        yield made
