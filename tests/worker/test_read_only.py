"""A database that rejects writes is an outage: the worker says so, loses nothing, and recovers by itself."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import urlsplit

import httpx

from taskherd.dev.services import Services
from tests.harness.api import running_api
from tests.harness.databases import connected
from tests.harness.worker import TIMEOUT, WorkerHarness, make_command, make_report, running_worker

TERMINATE = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1 AND application_name LIKE 'taskherd%'
"""


async def checks(port: int) -> tuple[int, dict[str, dict[str, Any]]]:
    """Return the status code of ``/readyz`` and its checks."""
    async with httpx.AsyncClient(timeout=TIMEOUT) as client:
        response = await client.get(f"http://127.0.0.1:{port}/readyz")
    return response.status_code, response.json()["checks"]


async def readiness(port: int) -> tuple[int, dict[str, Any]]:
    """Return the status code of ``/readyz`` and its check of the database."""
    code, found = await checks(port)
    return code, found["database"]


async def until_ready(port: int) -> None:
    """Poll ``/readyz`` until it answers 200."""
    async with asyncio.timeout(TIMEOUT):
        while (await readiness(port))[0] != 200:  # noqa: ASYNC110 - it does not notify
            await asyncio.sleep(0.05)


async def test_a_read_only_database_is_an_outage(
    external: WorkerHarness, services: Services, database_url: str, amqp_url: str, amqp_prefix: str
) -> None:
    """``/readyz`` of a worker is 503 and says why, that of an API stays 200; what was sent meanwhile is done later."""
    name = urlsplit(database_url).path[1:]
    async with (
        connected(services.database_url) as admin,
        running_worker(external) as worker,
        running_api(database_url, amqp_url, amqp_prefix) as api,
    ):
        await until_ready(worker.ops_port)
        task_id = await external.make_active()
        await admin.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
        await admin.execute(TERMINATE, name)
        await external.report(make_report("app.status", task_id, state="working", message="Sent while read-only"))
        pausing = await external.post(make_command("task.pause", task_id))
        async with asyncio.timeout(TIMEOUT):
            while "read-only" not in (check := (await readiness(worker.ops_port))[1]).get("reason", ""):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert check["ok"] is False
        assert (await readiness(worker.ops_port))[0] == 503
        await until_ready(api.ops_port)
        note = (await checks(api.ops_port))[1]["writable"]
        assert (note["ok"], "read-only" in note["reason"]) == (False, True)
        await external.until_metric(0, "taskherd_database_up")
        assert not pausing.done()
        await admin.execute(f'ALTER DATABASE "{name}" RESET default_transaction_read_only')
        assert (await asyncio.wait_for(pausing, TIMEOUT))["ok"]
        await external.until(lambda: external.state(task_id).get("message") == "Sent while read-only")
        await until_ready(worker.ops_port)
        assert not external.dead_letters
