"""Outages: streams stay connected and catch up afterwards; writes are rejected meanwhile."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import httpx
import pytest

from taskherd.api.tasks import sse
from taskherd.dev.services import Services
from tests.api.conftest import StartApi
from tests.api.test_outages import BODY, rename_database
from tests.harness.api import TIMEOUT, ApiHarness, running_api
from tests.harness.sse import sse_client


class BrokerProxy:
    """A TCP proxy to the broker that can cut all connections and accept no new ones."""

    def __init__(self, url: str) -> None:
        self._url = urlsplit(url)
        self._connected = asyncio.Event()
        self._connected.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> str:
        """Start, and return the URL of the broker through the proxy."""
        self._server = await asyncio.start_server(self._forward, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        netloc = f"{self._url.username}:{self._url.password}@127.0.0.1:{port}"
        return urlunsplit(self._url._replace(netloc=netloc))

    def disconnect(self) -> None:
        """End all connections and accept no new ones."""
        self._connected.clear()
        for writer in self._writers:
            writer.transport.abort()

    def reconnect(self) -> None:
        """Accept connections again."""
        self._connected.set()

    async def stop(self) -> None:
        """End all connections and stop."""
        self.disconnect()
        if self._server is not None:
            self._server.close()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._connected.is_set():
            writer.transport.abort()
            return
        from_broker, to_broker = await asyncio.open_connection(self._url.hostname, self._url.port)
        if not self._connected.is_set():  # it was cut meanwhile
            for each in (writer, to_broker):
                each.transport.abort()
            return
        self._writers |= {writer, to_broker}
        await asyncio.gather(_copy(reader, to_broker), _copy(from_broker, writer))
        self._writers -= {writer, to_broker}


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while part := await reader.read(65_536):
            writer.write(part)
            await writer.drain()
    writer.transport.abort()


@asynccontextmanager
async def broker_proxy(url: str) -> AsyncIterator[tuple[BrokerProxy, str]]:
    """Run a proxy while the block runs; the second value is the URL of the broker through it."""
    proxy = BrokerProxy(url)
    try:
        yield proxy, await proxy.start()
    finally:
        await proxy.stop()


async def create(client: httpx.AsyncClient, name: str) -> uuid.UUID:
    """Create a task over HTTP, once the broker is available, and return its id."""
    async with asyncio.timeout(TIMEOUT):
        while True:
            created = await client.post("/tasks/me", json={**BODY, "name": name}, headers={"Idempotency-Key": name})
            if created.status_code != 503:
                assert created.status_code in {200, 201}, created.text
                return uuid.UUID(created.json()["id"])


async def test_without_the_broker(api_harness: ApiHarness, database_url: str, amqp_url: str, amqp_prefix: str) -> None:
    """Streams stay connected and poll the feed; writes get a 503 in time; everything recovers automatically."""
    async with (
        broker_proxy(amqp_url) as (proxy, url),
        running_api(database_url, url, amqp_prefix, api_command_timeout=3) as api,
        httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{api.port}/api/v2", headers=api_harness.alice.headers, timeout=TIMEOUT
        ) as client,
    ):
        task_id = await create(client, "first")
        api.change_feed._poll_interval = 0.2
        async with sse_client(client, "/tasks/watch") as stream:
            await stream.ready()
            proxy.disconnect()
            refused = await client.post("/tasks/me", json=BODY)
            assert (refused.status_code, refused.headers["Retry-After"]) == (503, "2")
            assert (await client.get("/tasks")).json()["count"] == 1
            await api_harness.worker.make_active(task_id)
            await stream.status("active")
            waited = await client.get(f"/tasks/me/{task_id}", params={"wait": "10s", "until": "active"})
            assert waited.json()["status"] == "active"
            proxy.reconnect()
            api.change_feed._poll_interval = 600.0  # from now on only a wakeup causes a read
            await create(client, "back")
            await stream.until(lambda: stream.events[-1].task["name"] == "back")
            assert not stream.ended


async def test_without_the_database(start_api: StartApi, services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams stay connected while the database is unavailable, and then receive every change once."""
    monkeypatch.setattr(sse, "COMMENT_INTERVAL", 0.2)
    async with start_api() as api_harness:
        task = await api_harness.active()
        await api_harness.worker.until_row("SELECT count(*) FROM outbox", is_=0)
        async with sse_client(api_harness.alice, "/tasks/watch") as stream:
            await stream.ready()
            name = await api_harness.worker.database.fetchval("SELECT current_database()")
            server = await asyncpg.connect(services.database_url, timeout=30, command_timeout=30)
            await rename_database(server, name, f"{name}_away")
            assert (await api_harness.alice.get("/tasks")).status_code == 503
            comments = stream.comments
            await stream.until(lambda: stream.comments > comments + 3)
            await rename_database(server, f"{name}_away", name)
            await server.close()
            for seq, state in enumerate(("working", "idle"), 1):
                fields = {"state": state, "message": "", "seq": seq, "build_number": 1}
                await api_harness.worker.report({"type": "app.status", "task_id": task["id"], **fields})
            await stream.until(lambda: (stream.events[-1].task["current_state"] or {}).get("state") == "idle")
            versions = [each.version for each in stream.events[1:]]
            assert versions == list(range(versions[0], versions[0] + len(versions)))
            assert not stream.ended
