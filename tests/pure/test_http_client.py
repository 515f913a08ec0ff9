"""What the client makes of the answers of a server, also of broken ones."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus

import pytest

from taskherd.client import bulk, tasks
from taskherd.client.errors import ApiError, ExitCode
from taskherd.client.http import Client

BROKEN = b"Transfer-Encoding: chunked\r\n\r\nno size\r\n"
"""The rest of an answer whose body cannot be read."""


@asynccontextmanager
async def server(*answers: bytes) -> AsyncIterator[Client]:
    """Yield a client of a server that gives an answer to each request: its status, headers and body."""
    left = list(answers)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 " + left.pop(0))
        await writer.drain()
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listening:
        yield Client(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}", "token")


@pytest.mark.parametrize("status", [HTTPStatus.NOT_FOUND, HTTPStatus.SERVICE_UNAVAILABLE])
async def test_an_error_whose_body_breaks_off_is_that_of_its_status(status: HTTPStatus) -> None:
    """What the server says about it is lost, but not what it is."""
    async with server(b"%d Error\r\nRetry-After: 7\r\n" % status + BROKEN) as client:
        with pytest.raises(ApiError, match=f"answered with status {status}") as found:
            await asyncio.to_thread(client.request, "GET", "tasks")
    assert (found.value.status, found.value.retry_after) == (status, 7)
    assert found.value.code is (ExitCode.NOT_FOUND if status == HTTPStatus.NOT_FOUND else ExitCode.ERROR)


async def test_a_write_waits_as_long_as_the_server_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to a minute; less would only be refused again."""
    naps: list[float] = []
    monkeypatch.setattr("taskherd.client.tasks.time.sleep", naps.append)
    refusals = (b"429 Slow\r\nRetry-After: %d\r\nContent-Length: 2\r\n\r\n{}" % wait for wait in (40, 400))
    async with server(*refusals, b"200 OK\r\nContent-Length: 2\r\n\r\n{}") as client:
        await asyncio.to_thread(tasks.change, client, "POST", "tasks", "me")
    assert naps == [40, 60]


async def test_an_action_is_followed_only_as_long_as_there_is_time() -> None:
    """It is not over then, which its last document says."""
    action = {"id": "1", "finished_at": None}
    body = json.dumps(action).encode()
    seen: list[bulk.Action] = []

    def follow(client: Client) -> None:
        for each in bulk.follow_action(client, action, sleep=lambda _: None, left=lambda: 3 - len(seen)):
            seen.append(each)  # noqa: PERF402 - what is left depends on it

    async with server(*[b"200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)] * 2) as client:
        await asyncio.to_thread(follow, client)
    assert seen == [action] * 3
