"""Fixtures of the chaos tests: a harness on the services of the test run, or on private ones that a test may break."""

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
    """Record a failed test for the table."""
    if report.failed:
        FIGURES.record_failure(report.nodeid, report.longreprtext)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the short variants of the tests that a campaign runs at full size."""
    if not FIGURES.enabled:
        return
    full = {_test(item) for item in items if item.get_closest_marker("chaos")}
    short = [item for item in items if not item.get_closest_marker("chaos") and _test(item) in full]
    config.hook.pytest_deselected(items=short)
    items[:] = [item for item in items if item not in short]


def _test(item: pytest.Item) -> str:
    return item.nodeid.partition("[")[0]


@pytest.fixture(scope="session")
def figures() -> Figures:
    """Return the collector of the rows of figures."""
    return FIGURES


@pytest.fixture
async def harness(
    services: Services, database_url: str, amqp_url: str, amqp_prefix: str, tmp_path: Path
) -> AsyncIterator[ChaosHarness]:
    """Yield a harness on the test run's RabbitMQ and PostgreSQL, which must not be broken."""
    async with chaos_harness(database_url, amqp_url, amqp_prefix, tmp_path) as harness:
        await _count_redeliveries(harness, services)
        yield harness


@pytest.fixture(scope="module")
def breakable(announce: Callable[[str], None]) -> Iterator[Services]:
    """Start a private RabbitMQ and PostgreSQL for this module, which its tests may kill."""
    with (
        tempfile.TemporaryDirectory(prefix="taskherd-chaos-") as folder,
        start(Path(folder), announce=announce, fast=True, environ={}) as running,
    ):
        yield running


@pytest.fixture
def rabbit(breakable: Services) -> Broker:
    """Return the RabbitMQ that may be killed."""
    assert breakable.rabbit is not None
    return breakable.rabbit


@pytest.fixture
def postgres(breakable: Services) -> Database:
    """Return the PostgreSQL that may be killed."""
    assert breakable.postgres is not None
    return breakable.postgres


@pytest.fixture
async def breakable_harness(breakable: Services, tmp_path: Path) -> AsyncIterator[ChaosHarness]:
    """Yield a harness on services that may be killed."""
    name = f"taskherd_{uuid.uuid4().hex[:8]}"
    database_url = await create_database(breakable.database_url, name)
    await asyncio.to_thread(migrate.upgrade, database_url)
    async with chaos_harness(database_url, breakable.amqp_url, f"c{uuid.uuid4().hex[:8]}", tmp_path) as harness:
        await _count_redeliveries(harness, breakable)
        yield harness


async def _count_redeliveries(harness: ChaosHarness, services: Services) -> None:
    """Count the broker's redeliveries from now on, if figures are recorded and the broker is taskherd's own node."""
    if FIGURES.enabled and services.rabbit is not None:
        harness.rabbit = services.rabbit
        harness.redelivered_before = await harness.redelivered() or 0
