"""A worker starts once it has a database that fits it."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest
from structlog.testing import capture_logs

from taskherd.dev import ports
from taskherd.errors import Misconfigured
from taskherd.store.tables import SCHEMA_VERSION_TABLE
from tests.harness.runner import eventually
from tests.harness.tcp_proxy import TcpProxy, through
from tests.harness.worker import WorkerHarness, running_worker


async def test_a_worker_waits_for_its_database(external: WorkerHarness) -> None:
    """It says that there is none, connects to no broker before, and tries again until there is one."""
    target = urlsplit(external.urls[0])
    proxy = TcpProxy(target.hostname or "", target.port or 0)
    proxy.port = ports.find_free([None])[0]
    external.urls = (through(external.urls[0], proxy, query=target.query), external.urls[1])
    with capture_logs() as logged:
        async with running_worker(external) as worker:
            await eventually(lambda: "database unavailable" in [each["event"] for each in logged], 60)
            assert not worker._connections.consume.is_started
            assert external.metric("taskherd_database_up") == 0
            await proxy.start(port=proxy.port)
            await external.create()
            await external.until_metric(1, "taskherd_database_up")
    await proxy.stop()


async def test_a_worker_that_does_not_fit_its_database_does_not_start(external: WorkerHarness) -> None:
    """It ends with the reason, connects to no broker, and closes what it opened."""
    await external.database.execute(f"UPDATE {SCHEMA_VERSION_TABLE} SET version_num = '9999'")
    with capture_logs() as logged, pytest.raises(Misconfigured, match="newer"):
        async with running_worker(external) as worker:
            await eventually(lambda: "worker stopped" in [each["event"] for each in logged], 60)
    assert not worker._connections.consume.is_started
