"""A worker with everything around it, one for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import TypeAlias

import pytest

from tests.harness.worker import WorkerHarness, external_harness, worker_harness

StartWorker: TypeAlias = Callable[..., AbstractAsyncContextManager[WorkerHarness]]


@pytest.fixture
async def harness(start_worker: StartWorker) -> AsyncIterator[WorkerHarness]:
    """A worker on a database and queues of its own."""
    async with start_worker() as own:
        yield own


@pytest.fixture
def start_worker(database_url: str, amqp_url: str, amqp_prefix: str) -> StartWorker:
    """What starts such a worker with settings of the test's choice."""
    return partial(worker_harness, database_url, amqp_url, amqp_prefix)


@pytest.fixture
async def alone(database_url: str, amqp_url: str, amqp_prefix: str) -> AsyncIterator[WorkerHarness]:
    """Everything but a worker; the test starts those."""
    async with external_harness(database_url, amqp_url, amqp_prefix) as own:
        yield own
