"""When something is away: reads go on while they can, writes are refused in time, and all comes back by itself."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import suppress
from typing import Any

import asyncpg
import httpx

from taskherd.dev.services import Services
from tests.api.conftest import StartApi
from tests.harness.api import TIMEOUT, VERSION, ApiHarness, running_api
from tests.harness.worker import running_worker

BODY: dict[str, Any] = {"template_version_id": str(VERSION), "input": "Once"}


async def until_created(api_harness: ApiHarness, headers: dict[str, str]) -> httpx.Response:
    """Try a create again and again, as a client that was told to, until it is answered otherwise than by 503."""
    async with asyncio.timeout(TIMEOUT):
        while True:
            response = await api_harness.alice.post("/tasks/me", json=BODY, headers=headers)
            if response.status_code != 503:
                return response


async def test_without_a_worker(start_api: StartApi) -> None:
    """Reads go on; a write answers 503 with Retry-After in time, and sent again with its key it is done once."""
    async with start_api(worker=False, api_command_timeout=0.5) as api_harness:
        assert (await api_harness.alice.get("/tasks")).json() == {"tasks": [], "count": 0}
        key = {"Idempotency-Key": "once"}
        began = asyncio.get_running_loop().time()
        refused = await api_harness.alice.post("/tasks/me", json=BODY, headers=key)
        assert refused.status_code == 503
        assert int(refused.headers["Retry-After"]) >= 1
        assert asyncio.get_running_loop().time() - began < 5
        async with running_worker(api_harness.worker):
            made = await until_created(api_harness, key)
            assert made.status_code in {200, 201}
            assert await api_harness.worker.database.fetchval("SELECT count(*) FROM tasks") == 1
            assert (await api_harness.alice.get("/tasks")).json()["tasks"] == [made.json()]


async def test_a_command_that_nobody_took_is_not_done_later(start_api: StartApi) -> None:
    """What was refused with 503 because no worker was there is not carried out when one comes."""
    async with start_api(worker=False, api_command_timeout=0.5) as api_harness:
        assert (await api_harness.alice.post("/tasks/me", json={**BODY, "name": "late"})).status_code == 503
        await api_harness.worker.until(lambda: api_harness.worker.dead_letters)
        async with running_worker(api_harness.worker):
            await api_harness.worker.create(name="next")
            assert await api_harness.worker.database.fetchval("SELECT count(*) FROM tasks") == 1


async def renamed(server: asyncpg.Connection, old: str, new: str) -> None:
    """Rename a database under whoever is connected to it."""
    async with asyncio.timeout(TIMEOUT):
        while True:
            await server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", old)
            with suppress(asyncpg.ObjectInUseError):
                await server.execute(f'ALTER DATABASE "{old}" RENAME TO "{new}"')
                return


async def test_without_the_database(start_api: StartApi, services: Services) -> None:
    """Every request answers 503 with Retry-After as JSON while the database is not there, then goes on by itself."""
    async with start_api(worker=False) as api_harness:
        assert (await api_harness.alice.get("/tasks")).status_code == 200
        name = await api_harness.worker.database.fetchval("SELECT current_database()")
        server = await asyncpg.connect(services.database_url, timeout=5, command_timeout=10)
        await renamed(server, name, f"{name}_away")
        refused = [await api_harness.alice.get("/tasks") for _ in range(10)]
        assert {each.status_code for each in refused} == {503}
        assert {each.headers["Retry-After"] for each in refused} == {"2"}
        assert "Postgres" not in refused[0].text
        await renamed(server, f"{name}_away", name)
        await server.close()
        async with asyncio.timeout(TIMEOUT):
            while (await api_harness.alice.get("/tasks")).status_code != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.1)


async def test_two_processes_are_one(start_api: StartApi, database_url: str, amqp_url: str, amqp_prefix: str) -> None:
    """A write that one process answered is seen by the next read from another."""
    async with start_api() as api_harness, running_api(database_url, amqp_url, amqp_prefix) as other:
        headers = {"Coder-Session-Token": api_harness.tokens["alice"]}
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{other.port}/api/v2", headers=headers) as second:
            for number in range(5):
                task = await api_harness.create(name=f"t{number}")
                assert (await second.get(f"/tasks/me/{task['id']}")).json() == task
                assert (await second.delete(f"/tasks/me/{task['id']}")).status_code == 202
                assert (await api_harness.alice.get(f"/tasks/me/{task['id']}")).status_code == 404
            key = {"Idempotency-Key": "shared"}
            both = await asyncio.gather(
                api_harness.alice.post("/tasks/me", json=BODY, headers=key),
                second.post("/tasks/me", json=BODY, headers=key),
            )
            assert sorted(each.status_code for each in both) == [200, 201]
            assert both[0].json()["id"] == both[1].json()["id"]


async def test_it_leaves_when_the_requests_in_hand_are_answered(start_api: StartApi) -> None:
    """Told to stop, it answers what is in hand, and is not ready meanwhile."""
    async with start_api(worker=False, api_command_timeout=10) as api_harness:
        waiting = asyncio.create_task(api_harness.alice.post("/tasks/me", json={**BODY, "name": str(uuid.uuid4())[:8]}))
        async with asyncio.timeout(TIMEOUT):
            while not api_harness.api.metrics.registry.get_sample_value("taskherd_api_commands_waiting"):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        api_harness.api.stop()
        async with running_worker(api_harness.worker):
            assert (await waiting).status_code == 201
