"""Fixtures of failovers of PostgreSQL: one cluster for all tests, and a harness on a database of its own for each.

There RabbitMQ is the single node of the test run. ``test_broker_failovers.py`` breaks a cluster of RabbitMQ, and there
PostgreSQL is the single server.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from taskherd.store import migrate
from tests.chaos.conftest import FIGURES, figures, pytest_runtest_logreport
from tests.cluster.patroni import PatroniCluster, patroni_cluster
from tests.harness.chaos import ChaosHarness, chaos_harness, create_database

__all__ = ["FIGURES", "figures", "pytest_runtest_logreport"]


@pytest.fixture(scope="session")
async def cluster(
    tmp_path_factory: pytest.TempPathFactory, announce: Callable[[str], None]
) -> AsyncIterator[PatroniCluster]:
    """Yield a PostgreSQL cluster of three members."""
    async with patroni_cluster(tmp_path_factory.mktemp("patroni"), announce) as cluster:
        yield cluster


@pytest.fixture
async def harness(cluster: PatroniCluster, amqp_url: str, tmp_path: Path) -> AsyncIterator[ChaosHarness]:
    """Yield a harness on a database of the healthy cluster."""
    await cluster.until_healthy()
    database_url = await create_database(cluster.url, f"taskherd_{uuid.uuid4().hex[:8]}")
    await asyncio.to_thread(migrate.upgrade, database_url)
    async with chaos_harness(database_url, amqp_url, f"c{uuid.uuid4().hex[:8]}", tmp_path) as harness:
        yield harness
