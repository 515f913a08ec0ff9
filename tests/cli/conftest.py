"""Fixtures: a worker, alone or with an API, on a new database for each test, and commands as people run them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator, Callable
from typing import TypeAlias

import pytest

from tests.harness import fork_server
from tests.harness.api import ApiHarness, open_api_harness
from tests.harness.worker import WorkerHarness, worker_harness

Run: TypeAlias = Callable[..., subprocess.CompletedProcess[bytes]]


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


@pytest.fixture
def run(database_url: str) -> Run:
    """Return a function that runs a command of ``taskherd``, with ``content`` as its stdin."""

    def run(*arguments: str, content: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        environment = {**os.environ, "TASKHERD_DATABASE_URL": database_url, "COLUMNS": "300"}
        return fork_server.run(arguments, environment, content=content)

    return run
