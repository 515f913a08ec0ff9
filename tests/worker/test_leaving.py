"""A worker that cannot reach its database, or that finds an unsuitable schema, exits cleanly."""

from __future__ import annotations

import asyncio
import os
import sys

import asyncpg
import pytest

from taskherd.dev import ports
from taskherd.store.tables import SCHEMA_VERSION_TABLE
from tests.harness.worker import SECRET, TIMEOUT


async def test_a_worker_that_waits_for_its_database_exits_with_0_on_sigterm(amqp_url: str) -> None:
    """SIGTERM ends the wait for an unreachable database, and is not a failure."""
    environment = {
        "TASKHERD_DATABASE_URL": f"postgresql://taskherd:nobody@127.0.0.1:{ports.find_free([None])[0]}/taskherd",
        "TASKHERD_AMQP_URL": amqp_url,
        "TASKHERD_SECRET_KEY": SECRET,
        "TASKHERD_OPS_PORT": "0",
    }
    command = (sys.executable, "-m", "taskherd", "worker")
    worker = await asyncio.create_subprocess_exec(
        *command, env={**os.environ, **environment}, stderr=asyncio.subprocess.PIPE
    )
    assert worker.stderr is not None
    async with asyncio.timeout(TIMEOUT):
        while b"database unavailable" not in await worker.stderr.readline():
            continue
        worker.terminate()
        await worker.stderr.read()
        assert await worker.wait() == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (f"UPDATE {SCHEMA_VERSION_TABLE} SET version_num = '9999'", "or a newer one"),
        (f"DELETE FROM {SCHEMA_VERSION_TABLE}", "run `taskherd db upgrade`"),
    ],
    ids=["newer", "none"],
)
async def test_a_worker_refuses_a_schema_that_does_not_fit(
    database_url: str, amqp_url: str, change: str, message: str
) -> None:
    """It exits with 2 before it consumes a message, and names the schema found, the schema needed and what to do."""
    database = await asyncpg.connect(database_url, timeout=5)
    await database.execute(change)
    await database.close()
    environment = {
        "TASKHERD_DATABASE_URL": database_url,
        "TASKHERD_AMQP_URL": amqp_url,
        "TASKHERD_SECRET_KEY": SECRET,
        "TASKHERD_OPS_PORT": "0",
        "TASKHERD_MIGRATE": "never",
    }
    command = (sys.executable, "-m", "taskherd", "worker")
    worker = await asyncio.create_subprocess_exec(
        *command, env={**os.environ, **environment}, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(TIMEOUT):
        _, errors = await worker.communicate()
    assert worker.returncode == 2
    assert "TASKHERD_DATABASE_URL" in errors.decode()
    assert message in errors.decode()
