"""A worker and an API server in this process, and HTTP clients for several users."""

from __future__ import annotations

import asyncio
import ssl
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from taskherd.api.app import ApiProcess
from taskherd.api.commands import NOT_CONFIRMED
from taskherd.api.http import user_tokens
from taskherd.settings import Settings
from taskherd.store import tokens
from taskherd.store.engine import dispose, open_engine, transaction
from tests.harness.tasks import prompt_of
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

TLS = ssl.create_default_context()
"""For all clients: httpx would read the certificates anew for each, in 50 ms."""

USERS = f"""
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
    """A worker, an API, and clients: ``alice`` and ``bob`` are members, ``carol`` is their admin."""

    worker: WorkerHarness
    api: ApiProcess
    base: str
    clients: dict[str, httpx.AsyncClient] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)

    @property
    def alice(self) -> httpx.AsyncClient:
        """The client of a member."""
        return self.clients["alice"]

    @property
    def bob(self) -> httpx.AsyncClient:
        """The client of another member of the same organization."""
        return self.clients["bob"]

    @property
    def carol(self) -> httpx.AsyncClient:
        """The client of the organization's admin."""
        return self.clients["carol"]

    @property
    def mallory(self) -> httpx.AsyncClient:
        """The client of an admin of another organization."""
        return self.clients["mallory"]

    @property
    def anonymous(self) -> httpx.AsyncClient:
        """A client without a token."""
        return self.clients[""]

    async def create(self, client: httpx.AsyncClient | None = None, user: str = "me", **fields: Any) -> dict[str, Any]:
        """Create a task over HTTP, whose prompt is its own unless ``input`` is given, and return its document.

        It is repeated if the worker did not confirm it in time, as on a machine that is busy with something else.
        """
        body = {"template_version_id": str(VERSION), "input": prompt_of(uuid.uuid4()), **fields}
        key = {"Idempotency-Key": str(uuid.uuid4())}
        expected = {201}
        async with asyncio.timeout(TIMEOUT):
            while True:
                response = await (client or self.alice).post(f"/tasks/{user}", json=body, headers=key)
                if response.status_code != 503 or response.json()["message"] != NOT_CONFIRMED:
                    break
                expected.add(200)
        assert response.status_code in expected, response.text
        document: dict[str, Any] = response.json()
        return document

    async def active(self, **fields: Any) -> dict[str, Any]:
        """Create a task, report all that makes it active, and return its document."""
        task = await self.create(**fields)
        await self.worker.make_active(uuid.UUID(task["id"]))
        return await self.get(task["id"])

    async def get(self, task: str, client: httpx.AsyncClient | None = None) -> dict[str, Any]:
        """Return a task's document."""
        response = await (client or self.alice).get(f"/tasks/me/{task}")
        assert response.status_code == 200, response.text
        document: dict[str, Any] = response.json()
        return document


async def token_for(database_url: str, username: str) -> str:
    """Create a token for this user, as ``taskherd token create`` does."""
    return (await tokens_for(database_url, username))[username]


async def tokens_for(database_url: str, *usernames: str) -> dict[str, str]:
    """Create a token for each of these users, and return them by user."""
    created: dict[str, str] = {}
    engine = open_engine(database_url, size=1, application_name="tests")
    async with transaction(engine) as connection:
        for username in usernames:
            created[username], stored = user_tokens.generate()
            assert await tokens.add(connection, stored.id, stored.secret_hash, username, None)
    await dispose(engine)
    return created


@asynccontextmanager
async def running_api(database_url: str, amqp_url: str, prefix: str, **settings: Any) -> AsyncIterator[ApiProcess]:
    """Run an API in this process on a free port while the block runs."""
    ports = {"api_port": 0, "ops_port": 0}
    unlimited = {"api_rate_limit": 0, "api_create_rate": 0, "api_agent_rate": 0}
    patient = {"api_command_timeout": TIMEOUT - 5}  # on a machine that is busy with something else
    defaults = {**ports, **unlimited, **patient, "amqp_prefix": prefix, "database_pool": 4}
    urls: dict[str, Any] = {"database_url": database_url, "amqp_url": amqp_url, "secret_key": SECRET}
    api = ApiProcess(Settings(**urls, **{**defaults, **settings}))
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
    database_url: str, amqp_url: str, prefix: str, *, worker: bool = True, served_url: str = "", **settings: Any
) -> AsyncIterator[ApiHarness]:
    """Run an API with these settings, and a worker unless the test starts one, on a directory with several users.

    Both reach the database at ``served_url``, if that is given.
    """
    worker_settings = {name: value for name, value in settings.items() if not name.startswith("api_")}
    async with AsyncExitStack() as stack:
        worker_harness = await stack.enter_async_context(external_harness(database_url, amqp_url, prefix))
        await worker_harness.database.execute(USERS)
        worker_harness.urls = (served_url or database_url, amqp_url)
        if worker:
            await stack.enter_async_context(running_worker(worker_harness, **worker_settings))
        api = await stack.enter_async_context(running_api(served_url or database_url, amqp_url, prefix, **settings))
        harness = ApiHarness(worker_harness, api, f"http://127.0.0.1:{api.port}")
        harness.tokens = {**await tokens_for(database_url, "alice", "bob", "carol", "mallory"), "": ""}
        for username, token in harness.tokens.items():
            headers = {"Coder-Session-Token": token} if token else {}
            base = f"{harness.base}/api/v2"
            client = httpx.AsyncClient(base_url=base, headers=headers, timeout=TIMEOUT, verify=TLS)
            harness.clients[username] = await stack.enter_async_context(client)
        yield harness


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
