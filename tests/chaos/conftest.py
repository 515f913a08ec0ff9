"""Stages for chaos tests: on the run's own services, or on private ones that a test may break."""

from __future__ import annotations

import asyncio
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from taskherd.dev.services import Services, start
from taskherd.dev.sources import Broker, Database
from taskherd.store import migrate
from tests.chaos.figures import Figures
from tests.harness.chaos import ChaosHarness, chaos_harness, create_database

FIGURES = Figures.from_environment()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Have a test that fails in the table too."""
    if report.failed:
        FIGURES.failed(report.nodeid, report.longreprtext)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the short variants of what a campaign runs at full size."""
    if not FIGURES.wanted:
        return
    full = {_test(item) for item in items if item.get_closest_marker("chaos")}
    short = [item for item in items if not item.get_closest_marker("chaos") and _test(item) in full]
    config.hook.pytest_deselected(items=short)
    items[:] = [item for item in items if item not in short]


def _test(item: pytest.Item) -> str:
    return item.nodeid.partition("[")[0]


@pytest.fixture(scope="session")
def figures() -> Figures:
    """Where a test notes its row of figures."""
    return FIGURES


@pytest.fixture
async def stage(
    services: Services, database_url: str, amqp_url: str, amqp_prefix: str, tmp_path: Path
) -> AsyncIterator[ChaosHarness]:
    """A stage on the run's RabbitMQ and PostgreSQL, which stay whole."""
    async with chaos_harness(database_url, amqp_url, amqp_prefix, tmp_path) as stage:
        await _watched(stage, services)
        yield stage


@pytest.fixture(scope="module")
def breakable(announce: Callable[[str], None]) -> Iterator[Services]:
    """A RabbitMQ and a PostgreSQL of this module's own, for its tests to kill."""
    with (
        tempfile.TemporaryDirectory(prefix="taskherd-chaos-") as folder,
        start(Path(folder), announce=announce, fast=True, environ={}) as running,
    ):
        yield running


@pytest.fixture
def rabbit(breakable: Services) -> Broker:
    """The RabbitMQ that may be killed."""
    assert breakable.rabbit is not None
    return breakable.rabbit


@pytest.fixture
def postgres(breakable: Services) -> Database:
    """The PostgreSQL that may be killed."""
    assert breakable.postgres is not None
    return breakable.postgres


@pytest.fixture
async def breakable_stage(breakable: Services, tmp_path: Path) -> AsyncIterator[ChaosHarness]:
    """A stage on services that may be killed."""
    name = f"taskherd_{uuid.uuid4().hex[:8]}"
    database_url = await create_database(breakable.database_url, name)
    await asyncio.to_thread(migrate.upgrade, database_url)
    async with chaos_harness(database_url, breakable.amqp_url, f"c{uuid.uuid4().hex[:8]}", tmp_path) as stage:
        await _watched(stage, breakable)
        yield stage


async def _watched(stage: ChaosHarness, services: Services) -> None:
    """Have the broker's redeliveries counted from now on, if anybody wants the figure and the broker can be asked."""
    if FIGURES.wanted and services.rabbit is not None:
        stage.rabbit = services.rabbit
        stage.redelivered_before = await stage.redelivered() or 0
