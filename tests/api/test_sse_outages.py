"""When something is away: who follows keeps the connection and catches up; writes are refused meanwhile."""

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
from tests.api.test_outages import BODY, renamed
from tests.harness.api import TIMEOUT, ApiHarness, running_api
from tests.harness.sse import sse_client


class Cable:
    """A connection to the broker that can be cut: everything through it ends, and nothing new gets through."""

    def __init__(self, url: str) -> None:
        where = urlsplit(url)
        self._to = (where.hostname, where.port)
        self._where = where
        self._whole = True
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def lay(self) -> str:
        """Begin, and return the URL to use."""
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        netloc = f"{self._where.username}:{self._where.password}@127.0.0.1:{port}"
        return urlunsplit(self._where._replace(netloc=netloc))

    def cut(self) -> None:
        """End everything that goes through."""
        self._whole = False
        for writer in self._writers:
            writer.transport.abort()

    def mend(self) -> None:
        """Let connections through again."""
        self._whole = True

    async def remove(self) -> None:
        """End for good."""
        self.cut()
        if self._server is not None:
            self._server.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._whole:
            writer.transport.abort()
            return
        there, back = await asyncio.open_connection(*self._to)
        self._writers |= {writer, back}
        await asyncio.gather(_pass(reader, back), _pass(there, writer))
        self._writers -= {writer, back}


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while part := await reader.read(65_536):
            writer.write(part)
            await writer.drain()
    writer.transport.abort()


@asynccontextmanager
async def cabled(url: str) -> AsyncIterator[tuple[Cable, str]]:
    """A cable and the URL of the broker through it."""
    cable = Cable(url)
    try:
        yield cable, await cable.lay()
    finally:
        await cable.remove()


async def test_without_the_broker(api_harness: ApiHarness, database_url: str, amqp_url: str, amqp_prefix: str) -> None:
    """Readers keep their connection and go on by looking; writes are 503 in time; all comes back by itself."""
    async with (
        cabled(amqp_url) as (cable, url),
        running_api(database_url, url, amqp_prefix, api_command_timeout=1) as api,
        httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{api.port}/api/v2", headers=api_harness.alice.headers, timeout=TIMEOUT
        ) as client,
    ):
        task = await api_harness.create(client)
        task_id = uuid.UUID(task["id"])
        api.change_feed._poll_interval = 0.2
        async with sse_client(client, "/tasks/watch") as ear:
            await ear.ready()
            cable.cut()
            refused = await client.post("/tasks/me", json=BODY)
            assert (refused.status_code, refused.headers["Retry-After"]) == (503, "2")
            assert (await client.get("/tasks")).json()["count"] == 1
            await api_harness.worker.active(task_id)
            await ear.status("active")
            waited = await client.get(f"/tasks/me/{task_id}", params={"wait": "10s", "until": "active"})
            assert waited.json()["status"] == "active"
            cable.mend()
            api.change_feed._poll_interval = 600.0  # from now on only the bell can tell
            async with asyncio.timeout(TIMEOUT):
                while (await client.post("/tasks/me", json={**BODY, "name": "back"})).status_code == 503:
                    continue
            await ear.until(lambda: ear.events[-1].task["name"] == "back")
            assert not ear.over


async def test_without_the_database(start_api: StartApi, services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers keep their connection while the database is not there, and hear what came after, nothing twice."""
    monkeypatch.setattr(sse, "CHECK_INTERVAL", 0.2)
    async with start_api() as api_harness:
        task = await api_harness.active()
        await api_harness.worker.until_row("SELECT count(*) FROM outbox", is_=0)
        async with sse_client(api_harness.alice, "/tasks/watch") as ear:
            await ear.ready()
            name = await api_harness.worker.database.fetchval("SELECT current_database()")
            server = await asyncpg.connect(services.database_url, timeout=5, command_timeout=10)
            await renamed(server, name, f"{name}_away")
            assert (await api_harness.alice.get("/tasks")).status_code == 503
            comments = ear.comments
            await ear.until(lambda: ear.comments > comments + 3)
            await renamed(server, f"{name}_away", name)
            await server.close()
            for seq, state in enumerate(("working", "idle"), 1):
                fields = {"state": state, "message": "", "seq": seq, "build_number": 1}
                await api_harness.worker.report({"type": "app.status", "task_id": task["id"], **fields})
            await ear.until(lambda: (ear.events[-1].task["current_state"] or {}).get("state") == "idle")
            told = [each.version for each in ear.events[1:]]
            assert told == list(range(told[0], told[0] + len(told)))
            assert not ear.over
