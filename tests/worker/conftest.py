"""Fixtures: a worker with its surroundings, one for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from datetime import timedelta
from functools import partial
from typing import Any, TypeAlias

import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

from taskherd.settings import Settings
from taskherd.store.engine import dispose
from taskherd.worker.app import Worker
from tests.harness.worker import SECRET, WorkerHarness, external_harness, worker_harness
from tests.worker.loads import opened_engine

StartWorker: TypeAlias = Callable[..., AbstractAsyncContextManager[WorkerHarness]]

TIMERS = {"sweep_every": 0.1, "relay_every": 0.2, "probe_every": 0.1}
"""Tests of the worker are often about its timers; for others, frequent sweeps only cost CPU."""

PARKED, COMMANDS, HISTORY, LOGS, DELETED, ACTIONS = (timedelta(days=days) for days in range(1, 7))
"""How long the worker of ``resting`` keeps what: each for a time of its own."""


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


@pytest.fixture
async def resting(external: WorkerHarness) -> AsyncIterator[WorkerHarness]:
    """Yield a harness whose worker does nothing by itself: the test has its parts do things, at times of its own."""
    database_url, amqp_url = external.urls
    worker = Worker(
        Settings(
            database_url=database_url,
            amqp_url=amqp_url,
            amqp_prefix=external.prefix,
            secret_key=SECRET,
            parked_ttl=PARKED.total_seconds(),
            command_memory=COMMANDS.total_seconds(),
            history_retention=HISTORY.total_seconds(),
            log_retention=LOGS.total_seconds(),
            deleted_retention=DELETED.total_seconds(),
            action_retention=ACTIONS.total_seconds(),
        )
    )
    external.worker = worker
    worker._connections.dead.start()
    assert await worker._prepare()  # connects, however long that takes
    yield external
    await worker._connections.close()
    await dispose(worker._engine)


@contextmanager
def noted_statements(harness: WorkerHarness) -> Iterator[list[tuple[str, int]]]:
    """Note the statements that the worker executes within the block, each with its number of rows."""
    noted: list[tuple[str, int]] = []

    def note(_: object, cursor: Any, statement: str, *_others: object) -> None:
        noted.append((" ".join(statement.split()), cursor.rowcount))

    engine = harness.worker._engine.sync_engine
    event.listen(engine, "after_cursor_execute", note)
    yield noted
    event.remove(engine, "after_cursor_execute", note)


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    """Yield an engine on a database with a directory of two people, on which no worker runs."""
    async with opened_engine(database_url) as opened:
        yield opened
