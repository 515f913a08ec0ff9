"""A real worker and a real API server in this process, and who speaks to them over a socket."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from taskherd.api.app import ApiProcess
from taskherd.api.http import user_tokens
from taskherd.settings import Settings
from taskherd.store import tokens
from taskherd.store.engine import dispose, open_engine, transaction
from tests.harness.worker import (
    ALICE,
    ORGANIZATION,
    SECRET,
    TEMPLATE,
    TIMEOUT,
    VERSION,
    WorkerHarness,
    external_harness,
    running_worker,
)

BOB, CAROL, MALLORY = (uuid.UUID(f"00000000-0000-4000-8000-0000000000a{number}") for number in (2, 3, 4))
OTHER = uuid.UUID("00000000-0000-4000-8000-000000000002")
OTHER_TEMPLATE, OTHER_VERSION = uuid.UUID(int=0xB2), uuid.UUID(int=0xC9)

PEOPLE = f"""
INSERT INTO organizations (id, name, display_name) VALUES ('{OTHER}', 'other', 'Other');
INSERT INTO users (id, username, name, email, avatar_url) VALUES
    ('{BOB}', 'bob', 'Bob', 'bob@example.com', '/bob.png'),
    ('{CAROL}', 'carol', 'Carol', 'carol@example.com', ''),
    ('{MALLORY}', 'mallory', 'Mallory', 'mallory@example.com', '');
INSERT INTO memberships (user_id, organization_id, role) VALUES
    ('{BOB}', '{ORGANIZATION}', 'member'), ('{CAROL}', '{ORGANIZATION}', 'admin'), ('{MALLORY}', '{OTHER}', 'admin');
INSERT INTO templates (id, organization_id, name, display_name, icon, active_version_id)
    VALUES ('{OTHER_TEMPLATE}', '{OTHER}', 'codex', 'Codex', '', '{OTHER_VERSION}');
INSERT INTO template_versions (id, template_id, name, run) VALUES ('{OTHER_VERSION}', '{OTHER_TEMPLATE}', 'v1', '{{}}');
"""


@dataclass
class ApiHarness:
    """Everything that a test of the API stands on: `alice` and `bob` are members, `carol` is their admin."""

    worker: WorkerHarness
    api: ApiProcess
    base: str
    clients: dict[str, httpx.AsyncClient] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)

    @property
    def alice(self) -> httpx.AsyncClient:
        """A member."""
        return self.clients["alice"]

    @property
    def bob(self) -> httpx.AsyncClient:
        """Another member of the same organization."""
        return self.clients["bob"]

    @property
    def carol(self) -> httpx.AsyncClient:
        """The organization's admin."""
        return self.clients["carol"]

    @property
    def mallory(self) -> httpx.AsyncClient:
        """An admin, of another organization."""
        return self.clients["mallory"]

    @property
    def anonymous(self) -> httpx.AsyncClient:
        """Somebody without a token."""
        return self.clients[""]

    async def create(self, client: httpx.AsyncClient | None = None, user: str = "me", **fields: Any) -> dict[str, Any]:
        """Create a task over HTTP and return its document."""
        body = {"template_version_id": str(VERSION), "input": "Fix the flaky test", **fields}
        response = await (client or self.alice).post(f"/tasks/{user}", json=body)
        assert response.status_code == 201, response.text
        document: dict[str, Any] = response.json()
        return document

    async def active(self, **fields: Any) -> dict[str, Any]:
        """Create a task and bring it up with the reports of a real one; its document."""
        task = await self.create(**fields)
        await self.worker.active(uuid.UUID(task["id"]))
        return await self.get(task["id"])

    async def get(self, task: str, client: httpx.AsyncClient | None = None) -> dict[str, Any]:
        """A task's document."""
        response = await (client or self.alice).get(f"/tasks/me/{task}")
        assert response.status_code == 200, response.text
        document: dict[str, Any] = response.json()
        return document


async def token_for(database_url: str, username: str) -> str:
    """A token of this user, made as `taskherd token create` makes it."""
    token, kept = user_tokens.generate()
    engine = open_engine(database_url, size=1, application_name="tests")
    async with transaction(engine) as connection:
        assert await tokens.add(connection, kept.id, kept.secret_hash, username, None)
    await dispose(engine)
    return token


@asynccontextmanager
async def running_api(database_url: str, amqp_url: str, prefix: str, **settings: Any) -> AsyncIterator[ApiProcess]:
    """An API process's inside, listening on a free port, until the block is left."""
    chosen = {"api_port": 0, "ops_port": 0, "amqp_prefix": prefix, "database_pool": 4, "api_rate_limit": 0}
    urls: dict[str, Any] = {"database_url": database_url, "amqp_url": amqp_url, "secret_key": SECRET}
    api = ApiProcess(Settings(**urls, **{**chosen, **settings}))
    running = asyncio.create_task(api.run())
    listening = asyncio.create_task(api.listening.wait())
    await asyncio.wait({running, listening}, timeout=TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
    assert not running.done(), running.exception()
    try:
        yield api
    finally:
        api.stop()
        await asyncio.wait_for(running, TIMEOUT)


@asynccontextmanager
async def open_api_harness(
    database_url: str, amqp_url: str, prefix: str, *, worker: bool = True, **settings: Any
) -> AsyncIterator[ApiHarness]:
    """A directory with people, an API with `settings`, a worker unless a test starts one itself, and clients."""
    shared = {name: value for name, value in settings.items() if not name.startswith("api_")}
    async with AsyncExitStack() as stack:
        herd = await stack.enter_async_context(external_harness(database_url, amqp_url, prefix))
        await herd.database.execute(PEOPLE)
        if worker:
            await stack.enter_async_context(running_worker(herd, **shared))
        api = await stack.enter_async_context(running_api(database_url, amqp_url, prefix, **settings))
        own = ApiHarness(herd, api, f"http://127.0.0.1:{api.port}")
        for username in ("alice", "bob", "carol", "mallory", ""):
            token = await token_for(database_url, username) if username else ""
            own.tokens[username] = token
            headers = {"Coder-Session-Token": token} if token else {}
            client = httpx.AsyncClient(base_url=f"{own.base}/api/v2", headers=headers, timeout=TIMEOUT)
            own.clients[username] = await stack.enter_async_context(client)
        yield own


__all__ = [
    "ALICE",
    "BOB",
    "CAROL",
    "MALLORY",
    "ORGANIZATION",
    "OTHER",
    "OTHER_VERSION",
    "TEMPLATE",
    "TIMEOUT",
    "VERSION",
    "ApiHarness",
    "open_api_harness",
    "running_api",
]
