from __future__ import annotations

import asyncio
import gzip
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from itertools import repeat

import httpx
import pytest

from taskherd.runner.agents import agentapi_client
from taskherd.runner.agents.agentapi_client import MAX_ANSWER_BYTES
from taskherd.runner.listeners import Peer, identify_peer
from tests.harness.runner import eventually
from tests.pure.runner.contexts import has_only_the_agent

MESSAGE = {"content": "hello", "type": "user"}
ENCODED = "an answer is encoded"


@asynccontextmanager
async def agentapi(body: Iterable[bytes], *headers: str, pause: float = 0) -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client of an AgentAPI that gives each request this answer, with a pause after each part of its body.

    The heads of the requests that it got are in the body's place of a last request to ``/requests``.
    """
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write("\r\n".join(("HTTP/1.1 200 OK", "Connection: close", *headers, "", "")).encode())
        with suppress(OSError):  # the client has had enough
            for part in (b"".join(heads),) if heads[-1].startswith(b"GET /requests") else body:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(pause)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, agentapi_client.open_client(server.sockets[0].getsockname()[1], has_only_the_agent) as client:
        yield client


async def test_an_answer_without_end_is_given_up() -> None:
    """An agent could fill the runner's memory with it, that of all tenants."""
    async with agentapi(repeat(b" " * 65_536)) as client:
        with pytest.raises(httpx.RemoteProtocolError, match="more than 65536 bytes"):
            await agentapi_client.fetch_status(client)
        with pytest.raises(httpx.RemoteProtocolError, match="more than 65536 bytes"):
            await agentapi_client.post(client, MESSAGE, 5)


async def test_an_answer_may_be_as_large_as_the_limit() -> None:
    """It is read whole."""
    async with agentapi([b"a" * (MAX_ANSWER_BYTES - 1), b"\xff"]) as client:
        answer = await agentapi_client.post(client, MESSAGE, 5)
    assert (answer.is_success, len(answer.body), answer.text[-2:]) == (True, MAX_ANSWER_BYTES, "a\ufffd")


async def test_an_encoded_answer_is_refused() -> None:
    """A megabyte of it could be a gigabyte; AgentAPI is asked for none."""
    async with agentapi([gzip.compress(b"{}")], "Content-Encoding: gzip") as client:
        with pytest.raises(httpx.RemoteProtocolError, match=ENCODED):
            await agentapi_client.fetch_status(client)
        with pytest.raises(httpx.RemoteProtocolError, match=ENCODED):
            await agentapi_client.post(client, MESSAGE, 5)
        with pytest.raises(httpx.RemoteProtocolError, match=ENCODED):
            async with agentapi_client.open_events(client):
                pass
    async with agentapi([b"{}"]) as client:
        await agentapi_client.fetch_status(client)
        await agentapi_client.post(client, MESSAGE, 5)
        async with agentapi_client.open_events(client):
            pass
        heads = (await client.get("/requests")).text.lower().split("\r\n\r\n")
    assert ["accept-encoding: identity" in head for head in heads[:3]] == [True] * 3


async def test_a_status_that_trickles_in_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time is that of the whole answer: the follower does nothing else meanwhile."""
    monkeypatch.setattr(agentapi_client, "REQUEST_TIMEOUT", 0.3)
    async with agentapi(repeat(b" "), pause=0.01) as client:
        with pytest.raises(httpx.ReadTimeout, match=r"no answer within 0\.3 s"):
            await agentapi_client.fetch_status(client)


POSE = """
import socket
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
connection, _ = listener.accept()
listener.close()
print("it listens no more", flush=True)
received = b""
try:
    while part := connection.recv(65_536):
        received += part
        connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\n{}")
except ConnectionError:  # a request that came in two parts was answered twice
    pass
print(len(received), flush=True)
"""


@pytest.mark.parametrize("is_agent", [False, True])
async def test_nothing_is_sent_to_a_stranger_who_listens_no_more(*, is_agent: bool) -> None:
    """One who listened on the agent's port first, accepted the runner's connection and keeps it."""
    poses = [sys.executable, "-I", "-S", "-c", POSE]
    with (
        subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE) as agent,
        subprocess.Popen(poses, stdout=subprocess.PIPE, text=True) as stranger,
    ):
        assert stranger.stdout is not None
        port = int(stranger.stdout.readline())

        async def identify(own_port: int) -> Peer:
            assert stranger.stdout is not None
            assert await asyncio.to_thread(stranger.stdout.readline) == "it listens no more\n"
            return await identify_peer(own_port, port, os.getpid() if is_agent else agent.pid, None)

        async with agentapi_client.open_client(port, identify) as client:
            if is_agent:
                assert (await agentapi_client.fetch_status(client)).body == b"{}"
                assert (await agentapi_client.post(client, MESSAGE, 5)).body == b"{}"
            else:
                with pytest.raises(agentapi_client.ForeignListener, match=f"port {port}; the runner sends it nothing"):
                    await agentapi_client.fetch_status(client)
        assert (int(await asyncio.to_thread(stranger.stdout.readline)) > 0) is is_agent
        agent.kill()


@pytest.mark.parametrize("error", [None, OSError("no /proc")])
async def test_nothing_is_sent_to_nobody_knows_whom(error: OSError | None) -> None:
    """The connection is closed, and another one is tried with the next request."""
    arrived: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arrived.append(await reader.read(1))
        writer.close()

    async def identify(_: int) -> Peer:
        if error is not None:
            raise error
        return Peer.UNKNOWN

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, agentapi_client.open_client(server.sockets[0].getsockname()[1], identify) as client:
        for count in (1, 2):
            with pytest.raises(httpx.ConnectError, match="not known who has the other end"):
                await agentapi_client.fetch_status(client)
            await eventually(lambda: len(arrived) == count, 30)  # noqa: B023 - awaited within the loop
    assert arrived == [b"", b""]


async def test_cookies_are_not_kept() -> None:
    """Otherwise each answer could add some, in memory and to each further request."""
    async with agentapi([b"{}"], "Set-Cookie: a=b") as client:
        await agentapi_client.fetch_status(client)
        assert "cookie" not in (await client.get("/requests")).text.lower()
        assert list(client.cookies.jar) == []
