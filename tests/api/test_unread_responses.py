"""Large responses that clients do not read are limited in bytes, of one user and of all, because memory holds them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import httpx
import pytest

from taskherd.api.http import unread
from tests.harness.sse import sse_client

if TYPE_CHECKING:
    from tests.harness.api import ApiHarness

TASKS, PROMPT = 30, "x" * 250_000
PLAIN = {"Accept-Encoding": "identity"}


@asynccontextmanager
async def unread_list(
    api_harness: ApiHarness, user: str, path: str = "/tasks"
) -> AsyncIterator[tuple[asyncio.StreamReader, int]]:
    """Request a list without reading the response; yield its reader, after the head, and the length of its body."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    sock.settimeout(0)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", api_harness.api.port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=4_096)
    token = api_harness.tokens[user]
    writer.write(f"GET /api/v2{path} HTTP/1.1\r\nHost: api\r\nCoder-Session-Token: {token}\r\n\r\n".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    fields = dict(line.split(b": ", 1) for line in head.lower().split(b"\r\n")[1:] if line)
    try:
        yield reader, int(fields[b"content-length"])
    finally:
        writer.transport.abort()


async def list_of(client: httpx.AsyncClient, **query: str) -> httpx.Response:
    """Read a list that is not compressed."""
    return await client.get("/tasks", params=query, headers=PLAIN)


async def test_a_user_has_so_many_bytes_unread(api_harness: ApiHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next large response is a 503, others are served; once it is read, or its client is gone, there is room."""
    monkeypatch.setattr(unread, "WAIT", 0.2)
    await asyncio.gather(*(api_harness.create(input=PROMPT) for _ in range(TASKS)))
    size = len((await list_of(api_harness.alice)).content)
    assert size > TASKS * len(PROMPT)
    monkeypatch.setattr(unread, "MOST_OF_USER", size)
    monkeypatch.setattr(unread, "MOST", 2 * size + 350_000)
    async with unread_list(api_harness, "alice") as (reader, length):
        assert length == size
        refused = await list_of(api_harness.alice)
        assert (refused.status_code, refused.headers.get("Retry-After")) == (503, "2")
        assert refused.json()["message"] == unread.TOO_MANY
        assert (await api_harness.alice.get("/users/me")).status_code == 200
        created = await api_harness.create(input=PROMPT)  # a change is made, so its response is sent
        assert created["initial_prompt"] == PROMPT
        assert (await list_of(api_harness.carol)).status_code == 200
        async with unread_list(api_harness, "carol"):
            await api_harness.create(api_harness.bob, input=PROMPT)
            assert (await list_of(api_harness.bob)).status_code == 503  # all of them have so many, too
        await reader.readexactly(length)
        assert (await list_of(api_harness.alice)).status_code == 200
    assert api_harness.api.metrics.registry.get_sample_value("taskherd_api_requests_in_flight") == 0


async def test_a_stream_whose_client_does_not_read_is_counted_too(
    api_harness: ApiHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one ends before a large part, so that its client comes back; small parts are sent."""
    monkeypatch.setattr(unread, "WAIT", 0.2)
    await asyncio.gather(*(api_harness.create(input=PROMPT) for _ in range(TASKS)))
    monkeypatch.setattr(unread, "MOST_OF_USER", len(PROMPT))
    async with unread_list(api_harness, "alice"), sse_client(api_harness.alice, "/tasks/watch") as stream:
        await stream.until(lambda: stream.ended)
        assert stream.types() == ["resume"]
    async with sse_client(api_harness.alice, "/tasks/watch") as stream:
        await stream.until(lambda: len(stream.events) == TASKS)
        assert not stream.ended
