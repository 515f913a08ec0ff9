"""A worker consumes from queues that exist without declaring anything, which would wait for a hung node."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest

from taskherd.dev.services import Services
from tests.harness.worker import WorkerHarness, build_report, running_worker

pytestmark = [pytest.mark.timeout(240)]


@pytest.fixture
async def undeclaring_url(services: Services) -> AsyncIterator[str]:
    """Yield the URL of a user that may do everything but declare."""
    assert services.rabbit is not None
    name = f"reader-{uuid.uuid4().hex[:6]}"
    definitions = {
        "users": [{"name": name, "password": "pw", "tags": []}],
        "permissions": [{"user": name, "vhost": "/", "configure": "^$", "write": ".*", "read": ".*"}],
    }
    await asyncio.to_thread(services.rabbit.import_definitions, json.dumps(definitions).encode())
    parts = urlsplit(services.amqp_url)
    yield parts._replace(netloc=f"{name}:pw@{parts.hostname}:{parts.port}").geturl()
    await asyncio.to_thread(services.rabbit.ctl, "delete_user", name)


async def test_a_worker_declares_only_what_is_missing(external: WorkerHarness, undeclaring_url: str) -> None:
    """With a user that may not declare, a worker takes reports and commands, and answers a known runner."""
    hello = {"type": "runner.hello", "runner": "r-one", "pool": "default"}
    async with running_worker(external):
        assert (await external.ask(hello))["ok"]
    external.urls = (external.urls[0], undeclaring_url)
    async with running_worker(external):
        task_id = await external.create()
        await external.report(build_report(task_id, 1, "start", "failed", error="Nothing was declared"))
        await external.until(lambda: external.document(task_id).get("status") == "error")
        assert (await external.ask(hello))["ok"]
        await external.until_metric(1, "taskherd_drained")
    await external.channel.queue_delete(f"{external.prefix}.work.r-one", timeout=30)


async def test_the_connection_for_declarations_may_break(external: WorkerHarness, services: Services) -> None:
    """RabbitMQ closes the connection of a declaration that a hung node holds up; the worker goes on consuming."""
    rabbit = services.rabbit
    assert rabbit is not None
    async with running_worker(external) as worker:
        await external.until_metric(1, "taskherd_drained")
        listed = await asyncio.to_thread(rabbit.ctl, "list_connections", "pid", "client_properties")
        (process,) = [line.split()[0] for line in listed.splitlines() if f"worker {worker._id} declare" in line]
        await asyncio.to_thread(rabbit.ctl, "close_connection", process, "a binding took too long")
        await external.until_metric(1, "taskherd_reconnects_total", connection="declare")
        assert (await external.ask({"type": "runner.hello", "runner": "r-late", "pool": "default"}))["ok"]
        assert await external.queue_counts("work.r-late") == (0, 0)
        for connection in ("consume", "publish", "reports"):
            assert external.metric("taskherd_reconnects_total", connection=connection) == 0
    await external.channel.queue_delete(f"{external.prefix}.work.r-late", timeout=30)
