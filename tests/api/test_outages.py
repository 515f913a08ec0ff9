"""Outages: reads work as long as possible, writes are rejected in time, and the API recovers automatically."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import suppress
from typing import Any

import asyncpg
import httpx
import pytest

from taskherd.broker import repeating_client
from taskherd.dev.services import Services
from tests.api.conftest import StartApi
from tests.harness.api import TIMEOUT, VERSION, ApiHarness, running_api
from tests.harness.worker import running_worker

BODY: dict[str, Any] = {"template_version_id": str(VERSION), "input": "Once"}


async def until_created(api_harness: ApiHarness, headers: dict[str, str]) -> httpx.Response:
    """Repeat a create, as Retry-After asks for, until the response is not a 503."""
    async with asyncio.timeout(TIMEOUT):
        while True:
            response = await api_harness.alice.post("/tasks/me", json=BODY, headers=headers)
            if response.status_code != 503:
                return response


async def test_without_a_worker(start_api: StartApi) -> None:
    """Reads work; a write gets a 503 with Retry-After in time, and is done once if it is repeated with its key."""
    async with start_api(worker=False, api_command_timeout=0.5) as api_harness:
        assert (await api_harness.alice.get("/tasks")).json() == {"tasks": [], "count": 0}
        key = {"Idempotency-Key": "once"}
        started = asyncio.get_running_loop().time()
        refused = await api_harness.alice.post("/tasks/me", json=BODY, headers=key)
        assert refused.status_code == 503
        assert int(refused.headers["Retry-After"]) >= 1
        assert asyncio.get_running_loop().time() - started < 5
        async with running_worker(api_harness.worker):
            created = await until_created(api_harness, key)
            assert created.status_code in {200, 201}
            assert await api_harness.worker.database.fetchval("SELECT count(*) FROM tasks") == 1
            assert (await api_harness.alice.get("/tasks")).json()["tasks"] == [created.json()]


async def test_a_command_that_expired_is_not_executed_later(start_api: StartApi) -> None:
    """A command that got a 503 because there was no worker is not executed when one starts."""
    async with start_api(worker=False, api_command_timeout=0.5) as api_harness:
        assert (await api_harness.alice.post("/tasks/me", json={**BODY, "name": "late"})).status_code == 503
        await api_harness.worker.until(lambda: api_harness.worker.dead_letters)
        async with running_worker(api_harness.worker):
            await api_harness.worker.create(name="next")
            assert await api_harness.worker.database.fetchval("SELECT count(*) FROM tasks") == 1


async def rename_database(server: asyncpg.Connection, old: str, new: str) -> None:
    """Rename a database, ending all connections to it."""
    async with asyncio.timeout(TIMEOUT):
        while True:
            await server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", old)
            with suppress(asyncpg.ObjectInUseError):
                await server.execute(f'ALTER DATABASE "{old}" RENAME TO "{new}"')
                return


async def test_without_the_database(start_api: StartApi, services: Services) -> None:
    """Every request gets a JSON 503 with Retry-After while the database is unavailable; then the API recovers."""
    async with start_api(worker=False) as api_harness:
        assert (await api_harness.alice.get("/tasks")).status_code == 200
        name = await api_harness.worker.database.fetchval("SELECT current_database()")
        server = await asyncpg.connect(services.database_url, timeout=30, command_timeout=10)
        await rename_database(server, name, f"{name}_away")
        refused = [await api_harness.alice.get("/tasks") for _ in range(10)]
        assert {each.status_code for each in refused} == {503}
        assert {each.headers["Retry-After"] for each in refused} == {"2"}
        assert "Postgres" not in refused[0].text
        await rename_database(server, f"{name}_away", name)
        await server.close()
        async with asyncio.timeout(TIMEOUT):
            while (await api_harness.alice.get("/tasks")).status_code != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.1)


async def test_a_write_is_visible_in_another_process(
    start_api: StartApi, database_url: str, amqp_url: str, amqp_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that one process has answered is visible to the next read from another process."""
    monkeypatch.setattr(repeating_client, "REPEAT_AFTER", 30.0)  # both may say 201 once they have sent a command again
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


async def test_requests_in_progress_are_finished_on_stop(start_api: StartApi) -> None:
    """On stop, the API finishes the requests in progress."""
    async with start_api(worker=False, api_command_timeout=10) as api_harness:
        waiting = asyncio.create_task(api_harness.alice.post("/tasks/me", json={**BODY, "name": str(uuid.uuid4())[:8]}))
        async with asyncio.timeout(TIMEOUT):
            while not api_harness.api.metrics.registry.get_sample_value("taskherd_api_commands_waiting"):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        api_harness.api.stop()
        async with running_worker(api_harness.worker):
            assert (await waiting).status_code == 201


async def test_a_lost_reply_is_read_from_the_database(start_api: StartApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without replies, as while a node of RabbitMQ hangs, writes get the committed result, and repeated ones too."""
    async with start_api() as api_harness:
        monkeypatch.setattr(api_harness.worker.worker._replies, "offer", lambda _: None)
        key = {"Idempotency-Key": "no reply arrives"}
        created = await api_harness.alice.post("/tasks/me", json=BODY, headers=key)
        again = await api_harness.alice.post("/tasks/me", json=BODY, headers=key)
        assert (created.status_code, again.status_code) == (201, 200)
        assert created.json() == again.json()
        task = f"/tasks/me/{created.json()['id']}"
        assert (await api_harness.alice.post(f"{task}/pause")).status_code == 409  # its first build is pending
        assert (await api_harness.alice.delete(task)).status_code == 202
        other = await api_harness.alice.post("/tasks/me", json={**BODY, "input": "Another one"}, headers=key)
        assert other.status_code == 409  # its key belongs to another command
