"""Fixtures: a worker with its surroundings, one for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import TypeAlias

import pytest

from tests.harness.worker import WorkerHarness, external_harness, worker_harness

StartWorker: TypeAlias = Callable[..., AbstractAsyncContextManager[WorkerHarness]]

TIMERS = {"sweep_every": 0.1, "relay_every": 0.2, "probe_every": 0.1}
"""Tests of the worker are often about its timers; for others, frequent sweeps only cost CPU."""


@pytest.fixture
async def harness(start_worker: StartWorker) -> AsyncIterator[WorkerHarness]:
    """Yield a harness with a running worker, on its own database and queues."""
    async with start_worker() as running:
        yield running


@pytest.fixture
def start_worker(database_url: str, amqp_url: str, amqp_prefix: str) -> StartWorker:
    """Return a function that starts such a worker with the settings passed to it."""
    return partial(worker_harness, database_url, amqp_url, amqp_prefix, **TIMERS)


@pytest.fixture
async def external(database_url: str, amqp_url: str, amqp_prefix: str) -> AsyncIterator[WorkerHarness]:
    """Yield a harness without a worker; the test starts its workers."""
    async with external_harness(database_url, amqp_url, amqp_prefix) as without_worker:
        yield without_worker
