"""An API and its worker on a schema that is not the one of their release."""

from __future__ import annotations

import asyncio
import os
import sys

import asyncpg
import httpx
import pytest

from taskherd.store import migrate
from taskherd.store.tables import SCHEMA_VERSION_TABLE
from tests.harness.api import TIMEOUT, ApiHarness
from tests.harness.worker import SECRET


async def until_readiness(port: int, status: int, schema: str | None, release: str | None) -> None:
    """Poll ``/readyz`` until it has this status, and each check a reason with this text, or none."""
    async with asyncio.timeout(TIMEOUT), httpx.AsyncClient(timeout=TIMEOUT, trust_env=False) as client:
        while True:
            response = await client.get(f"http://127.0.0.1:{port}/readyz")
            checks = response.json()["checks"]
            reasons = checks["schema"].get("reason"), checks["release"].get("reason")
            if response.status_code == status and all(map(_is_as_expected, reasons, (schema, release))):
                return
            await asyncio.sleep(0.05)


def _is_as_expected(reason: str | None, expected: str | None) -> bool:
    return reason is None if expected is None else expected in (reason or "")


async def test_processes_work_on_while_the_schema_is_of_a_later_release(api_harness: ApiHarness) -> None:
    """Otherwise an upgrade would take every API off its service before one of the new release serves.

    ``/readyz`` says so. With an older schema, as after a restore, statements fail, and it is 503.
    """
    task = await api_harness.active()
    ports = [api_harness.api.ops_port, api_harness.worker.worker.ops_port]
    change = f"UPDATE {SCHEMA_VERSION_TABLE} SET version_num = $1"
    await api_harness.worker.database.execute(change, "9999")
    for port in ports:
        await until_readiness(port, 200, None, "The schema is at 9999")
    assert (await api_harness.get(task["id"]))["status"] == "active"
    await api_harness.create()
    await api_harness.worker.database.execute(change, migrate.revisions()[-2])
    for port in ports:
        await until_readiness(port, 503, "run `taskherd db upgrade`", None)
    await api_harness.worker.database.execute(change, migrate.revisions()[-1])
    for port in ports:
        await until_readiness(port, 200, None, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (f"UPDATE {SCHEMA_VERSION_TABLE} SET version_num = '9999'", "or a newer one"),
        (f"DELETE FROM {SCHEMA_VERSION_TABLE}", "run `taskherd db upgrade`"),
    ],
    ids=["newer", "none"],
)
@pytest.mark.parametrize("name", ["worker", "api"])
async def test_no_process_starts_on_a_schema_that_does_not_fit(
    database_url: str, amqp_url: str, name: str, change: str, message: str
) -> None:
    """It exits with 2, and names the schema found, the schema needed and what to do."""
    database = await asyncpg.connect(database_url, timeout=TIMEOUT)
    await database.execute(change)
    await database.close()
    environment = {
        "TASKHERD_DATABASE_URL": database_url,
        "TASKHERD_AMQP_URL": amqp_url,
        "TASKHERD_SECRET_KEY": SECRET,
        "TASKHERD_API_PORT": "0",
        "TASKHERD_OPS_PORT": "0",
        "TASKHERD_MIGRATE": "never",
    }
    command = (sys.executable, "-m", "taskherd", name)
    process = await asyncio.create_subprocess_exec(
        *command, env={**os.environ, **environment}, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(TIMEOUT):
            _, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 2
    assert "TASKHERD_DATABASE_URL" in errors.decode()
    assert message in errors.decode()
