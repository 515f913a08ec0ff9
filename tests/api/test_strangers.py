"""What clients without a valid token can do to others: nothing. They guess tokens, and hold connections open."""

from __future__ import annotations

import asyncio
import socket
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TypeAlias

import httpx
import pytest
from structlog.testing import capture_logs

from taskherd import http_protocol
from taskherd.api.http import authenticator, user_tokens
from taskherd.api.http.connections import LIMITS
from taskherd.messages.agent_tokens import agent_token
from tests.api.conftest import StartApi
from tests.harness.api import TIMEOUT, ApiHarness, token_for
from tests.harness.asking import OWN
from tests.harness.sse import sse_client
from tests.harness.worker import SECRET

CountLookups: TypeAlias = "Callable[[ApiHarness], Lookups]"
MALLORY, NEIGHBOR = "127.0.0.66", "127.0.0.7"
SILENT = 4_500
"""Silent connections of the attack, which would be more than an API has in all."""


UNREAD = 16 * b"GET /api/v2/openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
"""Requests on one connection, with more responses than the kernel keeps for a client that reads none."""


def guess() -> dict[str, str]:
    """Return the headers of a request with a token that has the right form."""
    return {"Coder-Session-Token": user_tokens.generate()[0]}


@asynccontextmanager
async def client_at(api_harness: ApiHarness, address: str, token: str = "") -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client that connects from this address of the loopback network."""
    transport = httpx.AsyncHTTPTransport(local_address=address)
    headers = {"Coder-Session-Token": token} if token else {}
    base = f"{api_harness.base}/api/v2"
    async with httpx.AsyncClient(base_url=base, headers=headers, timeout=TIMEOUT, transport=transport) as client:
        yield client


def failures(api_harness: ApiHarness, reason: str) -> float:
    """Return how many failed sign-ins were counted for this reason."""
    value = api_harness.api.metrics.registry.get_sample_value
    return value("taskherd_api_sign_in_failures_total", {"reason": reason}) or 0


class Lookups:
    """The number of queries that the API has sent about tokens."""

    def __init__(self, api_harness: ApiHarness) -> None:
        self._reader = api_harness.api._reader
        self._fetch = self._reader.fetch
        self.statements: Counter[str] = Counter()

    async def fetch(self, statement: str, *values: object) -> object:
        """Count a query and send it."""
        self.statements[statement] += 1
        return await self._fetch(statement, *values)

    @property
    def count(self) -> int:
        """Queries about tokens so far."""
        return sum(count for statement, count in self.statements.items() if "api_tokens" in statement)


@pytest.fixture
def lookups(monkeypatch: pytest.MonkeyPatch) -> CountLookups:
    """Return a function that starts counting the queries about tokens."""

    def start(api_harness: ApiHarness) -> Lookups:
        counted = Lookups(api_harness)
        monkeypatch.setattr(api_harness.api._reader, "fetch", counted.fetch)
        return counted

    return start


async def test_guessing_does_not_shut_out_valid_tokens_behind_the_same_address(
    start_api: StartApi, lookups: CountLookups, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one client guesses, valid tokens from its address are accepted, also those that were not used before.

    The guesses beyond the limit cost no lookups.
    """
    monkeypatch.setattr(authenticator, "CACHE_TTL", 0.01)
    async with start_api(api_rate_limit=0.01, api_rate_burst=15) as api_harness:
        unused = await token_for(api_harness.worker.urls[0], "carol")
        counted = lookups(api_harness)
        statuses = [(await api_harness.anonymous.get("/users/me", headers=guess())).status_code for _ in range(30)]
        assert statuses[0] == 401
        assert statuses[-1] == 429
        valid: list[int] = []
        for _ in range(8):
            valid.append((await api_harness.alice.get("/users/me")).status_code)
            guesses = await asyncio.gather(
                *(api_harness.anonymous.get("/users/me", headers=guess()) for _ in range(20))
            )
            assert {each.status_code for each in guesses} <= {401, 429}
        first_use = await api_harness.anonymous.get("/users/me", headers={"Coder-Session-Token": unused})
        assert (valid, first_use.status_code) == ([200] * 8, 200)
        wrong_secret = {"Coder-Session-Token": unused[:11] + "x" * 32}
        assert (await api_harness.anonymous.get("/users/me", headers=wrong_secret)).status_code in {401, 429}
        assert counted.count < 60
        assert failures(api_harness, "rate_limited") > 100


@pytest.mark.parametrize(("trusted", "other"), [("127.0.0.0/8", 401), ("", 429)])
async def test_the_client_behind_a_trusted_proxy(start_api: StartApi, trusted: str, other: int) -> None:
    """Failures count for the client that a trusted proxy names; without trust the header changes nothing."""
    async with start_api(api_rate_limit=0.01, api_rate_burst=3, api_trusted_proxies=trusted) as api_harness:

        async def failing(client: str) -> int:
            headers = {**guess(), "X-Forwarded-For": f"198.51.100.99, {client}"}
            return (await api_harness.anonymous.get("/users/me", headers=headers)).status_code

        assert [await failing("203.0.113.9") for _ in range(5)] == [401] * 3 + [429] * 2
        assert await failing("203.0.113.10") == other


async def test_failed_sign_ins_are_counted_by_reason_and_logged(api_harness: ApiHarness) -> None:
    """Each failure is counted by its reason, the first one of a client is logged, and no line has the token."""
    database = api_harness.worker.database
    tokens = {
        "expired": await token_for(api_harness.worker.urls[0], "alice"),
        "revoked": await token_for(api_harness.worker.urls[0], "bob"),
        "deactivated": api_harness.tokens["mallory"],
        "malformed": "not a token",
        "unknown": user_tokens.generate()[0],
        "missing": "",
    }
    await database.execute("UPDATE api_tokens SET expires_at = now() WHERE id = $1", tokens["expired"][:10])
    await database.execute("UPDATE api_tokens SET revoked_at = now() WHERE id = $1", tokens["revoked"][:10])
    await database.execute("UPDATE users SET active = false WHERE username = 'mallory'")
    with capture_logs() as lines:
        for reason, token in tokens.items():
            headers = {"Coder-Session-Token": token} if token else {}
            response = await api_harness.anonymous.get("/users/me", headers=headers)
            assert (response.status_code, failures(api_harness, reason)) == (401, 1), reason
    logged = [line for line in lines if line["event"] == "sign-in failed"]
    assert [(line["client"], line["reason"]) for line in logged] == [("127.0.0.1", "expired")]
    assert not any(token[-8:] in str(lines) for token in tokens.values() if token)
    stolen_id = tokens["revoked"][:11] + "x" * 32
    await api_harness.anonymous.get("/users/me", headers={"Coder-Session-Token": stolen_id})
    assert (failures(api_harness, "unknown"), failures(api_harness, "revoked")) == (2, 1)


async def test_failed_sign_ins_of_agents_are_counted_and_logged(api_harness: ApiHarness) -> None:
    """A forged token and one whose task is deleted are told apart, with the client; no line has a token."""
    task_id = uuid.UUID((await api_harness.active())["id"])
    tokens = {"unknown": agent_token("of another key" * 3, task_id, 1), "revoked": agent_token(SECRET, task_id, 1)}
    assert (await api_harness.alice.delete(f"/tasks/me/{task_id}")).status_code == 202
    path = f"{OWN}/{uuid.uuid4()}"
    with capture_logs() as lines:
        assert (await api_harness.anonymous.get(path)).status_code == 401
        for address, token in zip((MALLORY, NEIGHBOR), tokens.values(), strict=True):
            async with client_at(api_harness, address, token) as client:
                assert (await client.get(path)).status_code == 401
    failed = {"event": "sign-in failed", "log_level": "warning"}
    assert [line for line in lines if line["event"] == failed["event"]] == [
        {**failed, "client": MALLORY, "reason": "unknown"},
        {**failed, "client": NEIGHBOR, "reason": "revoked"},
    ]
    assert {reason: failures(api_harness, reason) for reason in ("missing", *tokens)} == dict.fromkeys(
        ("missing", *tokens), 1
    )
    assert not any(token.rpartition(".")[2] in str(lines) for token in tokens.values())


@asynccontextmanager
async def silent_connections(port: int, count: int, address: str) -> AsyncIterator[list[socket.socket]]:
    """Hold connections open that send nothing, from one address, while the block runs."""
    loop = asyncio.get_running_loop()
    opened: list[socket.socket] = []
    try:
        for _ in range(count):
            sock = socket.socket()
            opened.append(sock)
            sock.setblocking(False)  # noqa: FBT003 - the function takes it so
            sock.setsockopt(socket.IPPROTO_IP, getattr(socket, "IP_BIND_ADDRESS_NO_PORT", 24), 1)
            sock.bind((address, 0))
            await loop.sock_connect(sock, ("127.0.0.1", port))
        yield opened
    finally:
        for sock in opened:
            sock.close()


async def test_silent_connections_do_not_keep_others_out(start_api: StartApi) -> None:
    """4,500 silent connections of one address keep out neither its own valid tokens nor another address."""
    async with start_api(api_anonymous_connections=100, api_read_timeout=60) as api_harness:
        token = api_harness.tokens["alice"]
        async with silent_connections(api_harness.api.port, SILENT, MALLORY):
            for address in (MALLORY, NEIGHBOR):
                async with client_at(api_harness, address, token) as client:
                    assert (await client.get("/users/me")).status_code == 200, address
                async with client_at(api_harness, address) as client:
                    assert (await client.get("/users/me")).status_code == 401, address
            async with asyncio.timeout(TIMEOUT):
                async with client_at(api_harness, MALLORY, token) as client:
                    for _ in range(20):
                        assert (await client.get("/users/me")).status_code == 200
        value = api_harness.api.metrics.registry.get_sample_value
        closed = value("taskherd_api_connections_closed_total", {"reason": "client"})
        assert closed is not None
        assert closed >= SILENT - 100


async def test_connections_with_a_valid_token_stay_while_strangers_flood(start_api: StartApi) -> None:
    """A stream and a connection that presented a valid token outlive a flood from their own and other addresses."""
    async with start_api(api_connections=60, api_anonymous_connections=20, api_read_timeout=60) as api_harness:
        task = await api_harness.create()
        async with (
            client_at(api_harness, MALLORY, api_harness.tokens["alice"]) as client,
            client.stream("GET", f"/tasks/me/{task['id']}/watch") as stream,
        ):
            events = stream.aiter_text()
            async with asyncio.timeout(TIMEOUT):
                assert await anext(events)
            for number in range(60, 70):
                async with silent_connections(api_harness.api.port, 50, f"127.0.0.{number}"):
                    assert (await client.get("/users/me")).status_code == 200
            renamed = await client.delete(f"/tasks/me/{task['id']}")
            assert renamed.status_code == 202
            async with asyncio.timeout(TIMEOUT):
                assert await anext(events)


async def test_connections_with_a_valid_token_do_not_keep_others_out(start_api: StartApi) -> None:
    """A user and an agent that hold all connections lose idle ones, without an error; requests in progress go on."""
    async with start_api(api_connections=12) as api_harness, AsyncExitStack() as stack:
        task = await api_harness.active()
        agent = agent_token(SECRET, uuid.UUID(task["id"]), 1)
        stream = await stack.enter_async_context(sse_client(api_harness.bob, "/tasks/watch"))
        await stream.ready()
        requests = [(api_harness.tokens["bob"], "/users/me", 200), (agent, f"{OWN}/{uuid.uuid4()}", 404)] * 8
        kept = [
            (await stack.enter_async_context(client_at(api_harness, MALLORY, token)), path, status)
            for token, path, status in requests
        ]
        for _ in range(2):
            for client, path, status in kept:
                assert (await client.get(path)).status_code == status
        for _ in range(20):
            async with client_at(api_harness, NEIGHBOR, api_harness.tokens["alice"]) as client:
                assert (await client.get("/users/me")).status_code == 200
        created = await api_harness.create(api_harness.bob)
        await stream.until(lambda: any(each.task["id"] == created["id"] for each in stream.events))
        value = api_harness.api.metrics.registry.get_sample_value
        closed = {each: value("taskherd_api_connections_closed_total", {"reason": each}) for each in LIMITS}
        assert closed.pop("idle")
        assert set(closed.values()) == {0}


async def test_responses_that_nobody_reads_behind_a_proxy_keep_nobody_out(start_api: StartApi) -> None:
    """Who sends requests without a token through a trusted proxy and reads nothing loses the quietest connection."""
    async with start_api(api_connections=20, api_trusted_proxies=MALLORY) as api_harness, AsyncExitStack() as stack:
        loop, port = asyncio.get_running_loop(), api_harness.api.port
        for _ in range(20):
            sock = stack.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            sock.setblocking(False)  # noqa: FBT003 - its only parameter
            sock.bind((MALLORY, 0))
            async with asyncio.timeout(TIMEOUT):
                await loop.sock_connect(sock, ("127.0.0.1", port))
                await loop.sock_sendall(sock, UNREAD)
                assert await loop.sock_recv(sock, 12) == b"HTTP/1.1 200"
        async with client_at(api_harness, NEIGHBOR, api_harness.tokens["alice"]) as client:
            assert (await client.get("/users/me")).status_code == 200
        value = api_harness.api.metrics.registry.get_sample_value
        assert value("taskherd_api_connections_closed_total", {"reason": "total"}) == 1


async def test_agents_of_one_user_do_not_keep_others_out(start_api: StartApi) -> None:
    """The connections of agents count for the owner of their tasks, also those with a request that never ends."""
    async with start_api(api_connections=4) as api_harness, AsyncExitStack() as stack:
        tasks = [uuid.UUID((await api_harness.create())["id"]) for _ in range(4)]
        opened = []
        for task_id in tasks:
            reader, writer = await asyncio.open_connection("127.0.0.1", api_harness.api.port)
            stack.callback(writer.close)
            token = agent_token(SECRET, task_id, 1)
            headers = f"Host: x\r\nCoder-Session-Token: {token}\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n"
            writer.write(f"POST /api/v2{OWN} HTTP/1.1\r\n{headers}".encode())
            async with asyncio.timeout(TIMEOUT):
                assert b" 100 " in await reader.readline()  # the token is valid, and the body is waited for
            opened.append(reader)
        async with client_at(api_harness, NEIGHBOR, api_harness.tokens["bob"]) as client:
            assert (await client.get("/users/me")).status_code == 200
        async with asyncio.timeout(TIMEOUT):
            with suppress(ConnectionError):
                assert await opened[0].read() == b"\r\n"
        value = api_harness.api.metrics.registry.get_sample_value
        assert value("taskherd_api_connections_closed_total", {"reason": "busy"}) == 1


async def test_a_connection_that_is_closed_for_others_says_why(start_api: StartApi) -> None:
    """The quiet connection that is closed gets a 429 that says why."""
    async with start_api(api_anonymous_connections=1, api_read_timeout=60) as api_harness:
        reader, writer = await asyncio.open_connection("127.0.0.1", api_harness.api.port)
        other = await asyncio.open_connection("127.0.0.1", api_harness.api.port)
        async with asyncio.timeout(TIMEOUT):
            answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 429 Too Many Requests")
        assert b"Too many connections of this client have presented no valid token." in answer
        for each in (writer, other[1]):
            each.close()
            with suppress(OSError):
                await each.wait_closed()


async def test_a_silent_connection_ends(start_api: StartApi) -> None:
    """A connection that sends no request in time is closed, and so is one that sends one byte now and then."""
    async with start_api(api_read_timeout=0.5) as api_harness:
        async with silent_connections(api_harness.api.port, 1, MALLORY) as (sock,):
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(TIMEOUT):
                assert (await loop.sock_recv(sock, 1_000)).startswith(b"HTTP/1.1 408")
        reader, writer = await asyncio.open_connection("127.0.0.1", api_harness.api.port)
        async with asyncio.timeout(TIMEOUT):
            drips = asyncio.create_task(drip(writer))
            assert (await reader.read()).startswith(b"HTTP/1.1 408")
        drips.cancel()
        await asyncio.wait({drips})
        writer.close()


@asynccontextmanager
async def rejected_connection(api_harness: ApiHarness) -> AsyncIterator[socket.socket]:
    """Yield a connection that has received its 408 to the end, and is open in the other direction."""
    loop = asyncio.get_running_loop()
    async with silent_connections(api_harness.api.port, 1, MALLORY) as (sock,), asyncio.timeout(TIMEOUT):
        await loop.sock_sendall(sock, b"GET / HTTP/1.1\r\nX: ")
        received = b""
        while part := await loop.sock_recv(sock, 1_000):
            received += part
        assert received.startswith(b"HTTP/1.1 408")
        yield sock


async def test_a_client_that_sends_on_is_not_cut_off_from_its_408(
    start_api: StartApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it still sends is read: a reset could take the response away before the client has read it."""
    monkeypatch.setattr(http_protocol, "LINGER_TIMEOUT", TIMEOUT)
    async with start_api(api_read_timeout=0.5) as api_harness, rejected_connection(api_harness) as sock:
        for _ in range(20):
            await asyncio.get_running_loop().sock_sendall(sock, b"x" * 100_000)  # fails after a reset
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


async def test_a_client_that_does_not_close_after_its_408_is_not_waited_for(
    start_api: StartApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It keeps its connection only a moment longer."""
    monkeypatch.setattr(http_protocol, "LINGER_TIMEOUT", 0.2)
    async with start_api(api_read_timeout=0.5) as api_harness, rejected_connection(api_harness) as sock:
        with pytest.raises(ConnectionError):
            await send_until_reset(sock)


async def send_until_reset(sock: socket.socket) -> None:
    """Send now and then, until that fails."""
    while True:
        await asyncio.get_running_loop().sock_sendall(sock, b"x")
        await asyncio.sleep(0.02)


async def drip(writer: asyncio.StreamWriter) -> None:
    """Send a head without end, one byte at a time."""
    with suppress(OSError):
        writer.write(b"GET / HTTP/1.1\r\nX: ")
        while not writer.is_closing():
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.05)
