"""What the client makes of the answers of a server, also of broken ones."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus

import pytest

from taskherd.cli import bulk as commands
from taskherd.client import bulk, mcp_tools, tasks
from taskherd.client.errors import ApiError, ClientError, ExitCode, Unreachable
from taskherd.client.http import TOKEN, URL, Client, from_environment

BROKEN = (
    b"Transfer-Encoding: chunked\r\n\r\nno size\r\n",
    b"Content-Length: 9\r\n\r\n",
    b"Content-Length: 9\r\n\r\n{}",
)
"""The rests of answers whose body cannot be read."""


@asynccontextmanager
async def server(*answers: bytes | None, heads: list[bytes] | None = None) -> AsyncIterator[Client]:
    """Yield a client of a server that gives an answer to each request, and refuses connections after the last one.

    Args:
        answers: the status, headers and body of each; None closes the connection without an answer.
        heads: the list to which the head of each request is added.
    """
    left, seen = list(answers), [] if heads is None else heads

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        answer = left.pop(0)
        if not left:
            listening.close()
        if answer is not None:
            writer.write(b"HTTP/1.1 " + answer)
            await writer.drain()
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listening:
        yield Client(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}", "token")


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the list of the seconds that a write waits before it is repeated, which take no time."""
    found: list[float] = []
    monkeypatch.setattr("taskherd.client.tasks.time.sleep", found.append)
    return found


@pytest.mark.parametrize("rest", BROKEN)
@pytest.mark.parametrize("status", [HTTPStatus.NOT_FOUND, HTTPStatus.SERVICE_UNAVAILABLE])
async def test_an_error_whose_body_breaks_off_is_that_of_its_status(status: HTTPStatus, rest: bytes) -> None:
    """What the server says about it is lost, but not what it is."""
    async with server(b"%d Error\r\nRetry-After: 7\r\n" % status + rest) as client:
        with pytest.raises(ApiError, match=f"answered with status {status}") as found:
            await asyncio.to_thread(client.request, "GET", "tasks")
    assert (found.value.status, found.value.retry_after) == (status, 7)
    assert found.value.code is (ExitCode.NOT_FOUND if status == HTTPStatus.NOT_FOUND else ExitCode.ERROR)


@pytest.mark.parametrize(
    "rest",
    [
        b"Content-Length: 2\r\n\r\n",
        b"Content-Length: 3\r\n\r\n{}",
        b"Transfer-Encoding: chunked\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n",
    ],
)
async def test_an_answer_whose_body_breaks_off_is_none(rest: bytes, naps: list[float]) -> None:
    """Also before its first byte, or after what would be a whole document; a write is repeated."""
    async with server(b"200 OK\r\n" + rest, b"200 OK\r\nContent-Length: 2\r\n\r\n{}") as client:
        with pytest.raises(Unreachable, match="the response broke off") as found:
            await asyncio.to_thread(client.request, "GET", "tasks")
        assert found.value.may_have_arrived
        assert (await asyncio.to_thread(client.request, "GET", "tasks")).body == {}
    async with server(b"200 OK\r\n" + rest, b"204 No Content\r\n\r\n") as client:
        assert (await asyncio.to_thread(tasks.change, client, "POST", "tasks", "me")).body is None
    assert len(naps) == 1


async def test_a_write_waits_as_long_as_the_server_says(naps: list[float]) -> None:
    """Up to a minute; less would only be refused again."""
    refusals = (b"429 Slow\r\nRetry-After: %d\r\nContent-Length: 2\r\n\r\n{}" % wait for wait in (40, 400))
    async with server(*refusals, b"200 OK\r\nContent-Length: 2\r\n\r\n{}") as client:
        await asyncio.to_thread(tasks.change, client, "POST", "tasks", "me")
    assert naps == [40, 60]


async def test_a_write_whose_answer_is_lost_is_repeated_with_its_key(naps: list[float]) -> None:
    """It may have been done, and the key says that it is the same one."""
    heads: list[bytes] = []
    async with server(None, None, b"200 OK\r\nContent-Length: 2\r\n\r\n{}", heads=heads) as client:
        response = await asyncio.to_thread(tasks.change, client, "POST", "tasks", "me")
    assert response.status == HTTPStatus.OK
    keys = [line for head in heads for line in head.lower().split(b"\r\n") if line.startswith(b"idempotency-key: ")]
    assert (len(keys), len(set(keys))) == (3, 1)
    assert [0.8 <= naps[0] <= 1, 1.6 <= naps[1] <= 2, len(naps)] == [True, True, 2]


async def test_a_write_is_repeated_a_limited_number_of_times(naps: list[float]) -> None:
    """Also when the server, which may have done it, is away at the repeats; the error says that it may have."""
    for answers in ([None] * tasks.MAX_ATTEMPTS, [None]):
        naps.clear()
        async with server(*answers) as client:
            with pytest.raises(Unreachable) as found:
                await asyncio.to_thread(tasks.change, client, "POST", "tasks", "me")
        assert (found.value.may_have_arrived, len(naps)) == (True, tasks.MAX_ATTEMPTS - 1)


async def test_a_refusal_after_a_lost_answer_does_not_say_that_nothing_was_done(
    naps: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    """The token may have ended between the two, so the key is printed; a refusal of the first attempt does say so."""
    refusal = b"401 Unauthorized\r\nContent-Length: 2\r\n\r\n{}"
    for answers, advice in (((None, refusal), "Repeat it with the key.\n"), ((refusal,), "")):
        async with server(*answers) as client:
            with pytest.raises(ApiError) as found, commands.advise_repeat("Repeat it with the key."):
                await asyncio.to_thread(tasks.change, client, "POST", "tasks", "me")
        assert (capsys.readouterr().err, found.value.may_have_arrived) == (advice, bool(advice))
    assert len(naps) == 1


def test_a_write_that_cannot_have_arrived_fails_at_once(naps: list[float]) -> None:
    """Nothing listens there, so whoever waits learns it now."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        client = Client(f"http://127.0.0.1:{bound.getsockname()[1]}", "token")
        with pytest.raises(Unreachable, match="Connection refused") as found:
            tasks.change(client, "POST", "tasks", "me")
    assert (found.value.may_have_arrived, naps) == (False, [])


async def test_a_write_to_another_server_fails_at_once(naps: list[float]) -> None:
    """A page where an answer should be is not from the API, which has done nothing."""
    async with server(b"200 OK\r\nContent-Length: 6\r\n\r\n<html>") as client:
        with pytest.raises(Unreachable, match="not from the taskherd API") as found:
            await asyncio.to_thread(tasks.change, client, "POST", "tasks", "me")
    assert (found.value.may_have_arrived, naps) == (False, [])


def open_client(names: tuple[str, str], url: str) -> Client:
    """Return the client of the command line, or of the MCP tools that have such a token."""
    url_name, token_name = names
    environ = {url_name: url, token_name: "token"}
    if token_name == TOKEN:
        return from_environment(environ)
    (*_, tool) = mcp_tools.available(environ)
    client: Client = tool.call.__self__._client  # type: ignore[attr-defined]
    return client


VARIABLES = [(URL, TOKEN), ("TASKHERD_API_URL", "TASKHERD_AGENT_TOKEN"), ("CODER_URL", "CODER_SESSION_TOKEN")]
"""The variables of a URL and its token: of a user, of an agent, and as Coder names them."""


@pytest.mark.parametrize("names", VARIABLES)
@pytest.mark.parametrize(
    "url",
    [
        "http://alice:hunter2@localhost:7080",
        "http://hunter2@localhost:7080",
        "alice:hunter2@localhost:7080",
        "http://alice:hunt/hunter2@localhost:7080",
        "http://localhost:7080?password=hunter2",
        "http://localhost:7080#hunter2",
        "http://localhost:7080/?",
        "http://localhost:0",
        "http://[::1:7080",
        "http://localhost:70800",
        "http://localhost:port",
        "http://local host:7080",
        "http://localhost\n:7080",
        "http://local..host:7080",
        "http://localhost:7080/\u00e4",
        "http://local\udc80host:7080",
        "http://",
        "http://:7080",
        "localhost:7080",
        "ftp://localhost",
        " ",
    ],
)
def test_a_url_that_is_none_of_a_server_is_refused_in_a_line(names: tuple[str, str], url: str) -> None:
    """The line names the variable, and has no password: it may be logged, or shown to a model."""
    with pytest.raises(ClientError, match=rf"^{names[0]}: [\x20-\x7e]*\Z") as found:
        open_client(names, url)
    assert found.value.code is ExitCode.USAGE
    assert "hunter2" not in found.value.message + found.value.advice


@pytest.mark.parametrize("names", VARIABLES)
@pytest.mark.parametrize(
    "url", ["https://taskherd.example/behind/a/proxy", "http://[::1]:7080", "http://b\u00fccher.example"]
)
def test_a_url_of_a_server_is_taken(names: tuple[str, str], url: str) -> None:
    """Also with a path, of an address, with other letters, and with a slash or a space after it."""
    assert open_client(names, f" {url}/ ").page() == url


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


async def test_the_attempts_of_a_write_take_no_longer_than_one(naps: list[float]) -> None:
    """A server that says nothing has had its time after the first one: whoever waits may give up and try again."""
    heads: list[bytes] = []
    given_up = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        await given_up.wait()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listening:
        client = Client(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}", "token")
        with pytest.raises(Unreachable) as found:
            await asyncio.to_thread(tasks.change, client, "POST", "tasks", "me", timeout=0.5)
        given_up.set()
    assert (len(heads), found.value.may_have_arrived, naps) == (1, True, [])
