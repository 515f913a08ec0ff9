"""The process of the API: what it says of itself while it runs and when it stops, and what it leaves behind."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from aio_pika.abc import AbstractIncomingMessage

from tests.api.conftest import StartApi
from tests.harness.api import TIMEOUT, VERSION, ApiHarness, running_api
from tests.harness.worker import running_worker


def shown(api_harness: ApiHarness, name: str) -> float | None:
    """Return the value of a metric without labels."""
    return api_harness.api.metrics.registry.get_sample_value(f"taskherd_{name}")


async def until_shown(api_harness: ApiHarness, name: str, value: float) -> None:
    """Poll until a metric without labels has this value."""
    async with asyncio.timeout(TIMEOUT):
        while shown(api_harness, name) != value:  # noqa: ASYNC110 - a gauge sends no notification
            await asyncio.sleep(0.02)


async def readiness(api_harness: ApiHarness) -> tuple[int, dict[str, Any]]:
    """Return the status of ``/readyz`` and its checks."""
    async with httpx.AsyncClient(timeout=TIMEOUT, trust_env=False) as client:
        response = await client.get(f"http://127.0.0.1:{api_harness.api.ops_port}/readyz")
    return response.status_code, response.json()["checks"]


async def test_what_is_in_progress_is_shown(start_api: StartApi) -> None:
    """Requests, and the connections that reads and writes use; nothing of it is left when they have ended."""
    async with start_api(worker=False, database_pool=4) as api_harness:
        database, stopping = api_harness.worker.database, asyncio.Event()

        async def repeat(method: str, path: str, **fields: Any) -> None:
            while not stopping.is_set():  # the database cancels what waits for a lock
                await api_harness.alice.request(method, path, **fields)

        async with database.transaction():
            await database.execute("LOCK TABLE task_actions IN SHARE MODE")
            body = {"action": "pause", "q": "owner:me"}
            requests = [asyncio.create_task(repeat("POST", "/task-actions", json=body))]
            await until_shown(api_harness, "database_connections_in_use", 1)
            await database.execute("LOCK TABLE directory_revision IN ACCESS EXCLUSIVE MODE")
            requests += [asyncio.create_task(repeat("GET", "/tasks")) for _ in range(3)]
            await until_shown(api_harness, "api_requests_in_flight", 4)
            await until_shown(api_harness, "database_connections_in_use", 2 + 1)
            stopping.set()
        await asyncio.gather(*requests)
        await until_shown(api_harness, "api_requests_in_flight", 0)
        await until_shown(api_harness, "database_connections_in_use", 0)
        assert (shown(api_harness, "api_seconds_count") or 0) >= 4


async def test_a_process_that_stops_says_so_until_its_requests_have_ended(start_api: StartApi) -> None:
    """A proxy in front of it then sends new requests elsewhere."""
    async with start_api(worker=False, api_command_timeout=30) as api_harness:
        status, checks = await readiness(api_harness)
        assert (status, checks["serving"]["ok"], checks["database"]["ok"]) == (200, True, True)
        body = {"template_version_id": str(VERSION), "input": "Begun before the stop"}
        waiting = asyncio.create_task(api_harness.alice.post("/tasks/me", json=body))
        await until_shown(api_harness, "api_commands_waiting", 1)
        api_harness.api.stop()
        async with asyncio.timeout(TIMEOUT):
            while (await readiness(api_harness))[0] != 503:  # noqa: ASYNC110 - readiness sends no notification
                await asyncio.sleep(0.02)
        status, checks = await readiness(api_harness)
        assert (status, checks["serving"]["reason"]) == (503, "stopping")
        async with running_worker(api_harness.worker):
            assert (await waiting).status_code == 201
        await until_shown(api_harness, "api_commands_waiting", 0)


async def test_a_process_that_has_ended_leaves_nothing_open(api_harness: ApiHarness) -> None:
    """Neither a port nor a connection to the database."""
    database = api_harness.worker.database
    count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1"
    async with running_api(*api_harness.worker.urls, api_harness.worker.prefix) as other:
        name = f"taskherd api {other.id}"[:63]
        async with httpx.AsyncClient(headers=api_harness.alice.headers, trust_env=False) as client:
            response = await client.post(
                f"http://127.0.0.1:{other.port}/api/v2/task-actions", json={"action": "pause", "q": "owner:me"}
            )
        assert response.status_code == 202
        assert await database.fetchval(count, name) > 1
        ports = (other.port, other.ops_port)
    await api_harness.worker.until_row(count, name, is_=0)
    for port in ports:
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)


async def test_a_command_names_the_rabbitmq_user_who_sent_it(start_api: StartApi) -> None:
    """Also when it is sent again over another connection: a worker may accept commands of certain users only."""
    async with start_api(worker=False, api_command_timeout=20) as api_harness:
        channel, prefix = api_harness.worker.channel, api_harness.worker.prefix
        queue = await channel.declare_queue(exclusive=True)
        await queue.bind(f"{prefix}.commands", "#")
        arrived: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()
        await queue.consume(arrived.put, no_ack=True)
        body = {"template_version_id": str(VERSION), "input": "Sent again"}
        posting = asyncio.create_task(api_harness.alice.post("/tasks/me", json=body))
        async with asyncio.timeout(TIMEOUT):
            first, again = await arrived.get(), await arrived.get()
        assert first.body == again.body
        user = urlsplit(api_harness.worker.urls[1]).username
        assert (first.user_id, again.user_id) == (user, user)
        posting.cancel()
        await asyncio.gather(posting, return_exceptions=True)
