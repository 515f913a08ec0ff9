"""A write whose command or reply is stuck with a hung peer is sent again, and is answered and done exactly once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
import pytest

from taskherd.api import commands
from taskherd.broker import command_client, repeating_client
from taskherd.broker.repeating_client import REPEAT_AFTER
from tests.harness.api import TIMEOUT, VERSION, running_api, token_for
from tests.harness.tcp_proxy import TcpProxy, through
from tests.harness.worker import WorkerHarness, external_harness, running_worker

COUNT = "SELECT count(*) FROM tasks"


@asynccontextmanager
async def api_through(harness: WorkerHarness, amqp_url: str) -> AsyncIterator[httpx.AsyncClient]:
    """Run an API with this broker URL, and yield a client that may create tasks."""
    database_url, _ = harness.urls
    async with running_api(database_url, amqp_url, harness.prefix) as api:
        headers = {"Coder-Session-Token": await token_for(database_url, "alice")}
        base_url = f"http://127.0.0.1:{api.port}/api/v2"
        async with httpx.AsyncClient(base_url=base_url, headers=headers, timeout=TIMEOUT) as client:
            yield client


async def create(
    client: httpx.AsyncClient, prompt: str, key: str | None = None, name: str | None = None
) -> httpx.Response:
    """Create a task over HTTP."""
    headers = {"Idempotency-Key": key} if key else {}
    body = {"template_version_id": str(VERSION), "input": prompt, "name": name}
    return await client.post("/tasks/me", json=body, headers=headers)


@pytest.fixture
async def external(database_url: str, amqp_url: str, amqp_prefix: str) -> AsyncIterator[WorkerHarness]:
    """Yield a harness without worker and API."""
    async with external_harness(database_url, amqp_url, amqp_prefix) as harness:
        yield harness


async def test_a_refusal_that_is_read_from_the_database_names_the_task(external: WorkerHarness, amqp_url: str) -> None:
    """The record does not name it, and the caller sees what a reply would have said."""
    first, second = await TcpProxy.before(amqp_url), await TcpProxy.before(amqp_url)
    async with running_worker(external), api_through(external, through(amqp_url, first, second)) as client:
        assert (await create(client, "The first", name="taken")).status_code == 201
        expected = await create(client, "Another", "key", "Taken")
        assert (expected.status_code, expected.json()["message"]) == (409, 'Workspace "Taken" already exists.')
        repeated = await create(client, "Another", "key", "Taken")
        assert (repeated.status_code, repeated.json()) == (409, expected.json())
        first.freeze_responses()
        read = await create(client, "Another one", name="Taken")
        assert (read.status_code, read.json()) == (409, expected.json())
        first.thaw()
    await first.stop()
    await second.stop()


@pytest.mark.parametrize("direction", ["both", "responses"])
async def test_a_write_over_a_frozen_connection_is_answered_over_another(
    external: WorkerHarness, amqp_url: str, direction: str
) -> None:
    """It gets its 201 and makes one task, whether the command or its reply is stuck; the next write waits no more."""
    first, second = await TcpProxy.before(amqp_url), await TcpProxy.before(amqp_url)
    async with running_worker(external), api_through(external, through(amqp_url, first, second)) as client:
        assert (await create(client, "Before the freeze")).status_code == 201
        if direction == "both":
            first.freeze()
        else:
            first.freeze_responses()
        response = await create(client, "Sent into the freeze")
        assert response.status_code == 201, response.text
        assert await external.database.fetchval(COUNT) == 2
        await external.until(lambda: len({event["subject"] for event in external.events}) == 2)
        created = [event for event in external.events if event["subject"] == response.json()["id"]]
        assert [event["data"]["version"] for event in created if event["type"].endswith("created.v1")] == [1]
        async with asyncio.timeout(TIMEOUT):
            while True:
                began = asyncio.get_running_loop().time()
                assert (await create(client, "After it")).status_code == 201
                if asyncio.get_running_loop().time() - began < REPEAT_AFTER:
                    break
        assert not external.dead_letters
        first.thaw()
    await first.stop()
    await second.stop()


async def test_a_repeat_of_the_api_is_not_one_of_the_caller(
    external: WorkerHarness, amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the first reply to come is that to a repeated command, the caller's one request has made the task."""
    monkeypatch.setattr(commands, "CLOCK_TOLERANCE", 0)  # the second request comes at once, and all clocks are one
    first, second = await TcpProxy.before(amqp_url), await TcpProxy.before(amqp_url)
    async with api_through(external, through(amqp_url, first, second)) as client:
        async with running_worker(external):
            assert (await create(client, "Before the freeze")).status_code == 201
        first.freeze_responses()
        creating = asyncio.create_task(create(client, "Sent into the freeze", "once"))
        async with asyncio.timeout(TIMEOUT):
            while (await external.queue_counts("commands"))[0] < 2:  # noqa: ASYNC110 - the broker does not notify
                await asyncio.sleep(0.05)
        async with running_worker(external):
            response = await creating
            assert response.status_code == 201, response.text
            assert (await create(client, "Sent into the freeze", "once")).status_code == 200
        first.thaw()
    await first.stop()
    await second.stop()


async def test_a_write_that_is_sent_again_after_a_lost_connection_is_no_repeat_of_the_caller(
    external: WorkerHarness, amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However soon there is a new one, the caller's one request has made the task, and a second one repeats it."""
    monkeypatch.setattr(command_client, "RECORDED_AFTER", 3_600)
    monkeypatch.setattr(repeating_client, "REPEAT_AFTER", 3_600)
    proxy = await TcpProxy.before(amqp_url)
    async with running_worker(external), api_through(external, through(amqp_url, proxy)) as client:
        assert (await create(client, "Before the loss")).status_code == 201
        proxy.freeze_responses()
        creating = asyncio.create_task(create(client, "Lost with its reply", "once"))
        async with asyncio.timeout(TIMEOUT):
            while await external.database.fetchval(COUNT) < 2:  # noqa: ASYNC110 - the database does not notify
                await asyncio.sleep(0.01)
        proxy.cut()
        proxy.thaw()
        response = await creating
        assert response.status_code == 201, response.text
        assert (await create(client, "Lost with its reply", "once")).status_code == 200
        assert await external.database.fetchval(COUNT) == 2
    await proxy.stop()


async def test_a_command_that_is_stuck_with_a_worker_goes_to_another(external: WorkerHarness, amqp_url: str) -> None:
    """Of two workers one is frozen with the commands that it was delivered: every write still gets its 201."""
    proxy = await TcpProxy.before(amqp_url)
    healthy = external.urls
    async with AsyncExitStack() as stack:
        external.urls = (healthy[0], through(amqp_url, proxy))
        await stack.enter_async_context(running_worker(external, grace=1))
        external.urls = healthy
        await stack.enter_async_context(running_worker(external))
        client = await stack.enter_async_context(api_through(external, amqp_url))
        async with asyncio.timeout(TIMEOUT):
            while (await external.queue_counts("commands"))[1] < 2:  # noqa: ASYNC110 - the broker does not notify
                await asyncio.sleep(0.05)
        proxy.freeze()
        responses = await asyncio.gather(*(create(client, f"Number {number}") for number in range(6)))
        assert [response.status_code for response in responses] == [201] * 6
        assert await external.database.fetchval(COUNT) == 6
        proxy.thaw()
    await proxy.stop()


async def test_a_write_that_nobody_takes_ends_in_time(external: WorkerHarness, amqp_url: str) -> None:
    """Repeats do not extend the time limit, and no copy is executed after it."""
    database_url, _ = external.urls
    async with running_api(database_url, amqp_url, external.prefix, api_command_timeout=3 * REPEAT_AFTER) as api:
        headers = {"Coder-Session-Token": await token_for(database_url, "alice")}
        async with httpx.AsyncClient(headers=headers, timeout=TIMEOUT) as client:
            began = asyncio.get_running_loop().time()
            url = f"http://127.0.0.1:{api.port}/api/v2/tasks/me"
            response = await client.post(url, json={"template_version_id": str(VERSION), "input": "Nobody takes it"})
            assert response.status_code == 503
            assert asyncio.get_running_loop().time() - began < 5 * REPEAT_AFTER
        await external.until(lambda: len(external.dead_letters) == 3)
        assert await external.queue_counts("commands") == (0, 0)
