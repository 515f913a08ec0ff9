"""Fixtures: a worker, alone or with an API, on a new database for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.harness.api import ApiHarness, open_api_harness
from tests.harness.worker import WorkerHarness, worker_harness


@pytest.fixture
async def harness(database_url: str, amqp_url: str, amqp_prefix: str) -> AsyncIterator[WorkerHarness]:
    """Run a worker on its own database and queues."""
    async with worker_harness(database_url, amqp_url, amqp_prefix) as harness:
        yield harness


@pytest.fixture
async def api_harness(database_url: str, amqp_url: str, amqp_prefix: str) -> AsyncIterator[ApiHarness]:
    """Run a worker and an API on their own database and queues."""
    async with open_api_harness(database_url, amqp_url, amqp_prefix) as harness:
        yield harness
