"""The command line behind a proxy that has no answer in time, and says so with a page."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

import pytest

from taskherd.backoff import Backoff
from taskherd.client import outages
from taskherd.client.errors import Unreachable
from taskherd.client.tasks import MAX_ATTEMPTS
from tests.api.test_command_line import Shell, quiet
from tests.harness.api import ApiHarness
from tests.harness.worker import make_report

__all__ = ["quiet"]

PAGE = b"<html><body>Gateway Time-out</body></html>"


@asynccontextmanager
async def gateway(base: str, answers: list[tuple[bytes, bytes]]) -> AsyncIterator[str]:
    """Yield the URL of a proxy that answers the next request with such words in its first line by such a status."""
    target = urlsplit(base)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if answers and answers[0][0] in head.split(b"\r\n")[0]:
            status = answers.pop(0)[1]
            kind = b"Content-Type: text/html\r\nContent-Length: %d\r\nConnection: close" % len(PAGE)
            writer.write(b"HTTP/1.1 %b\r\n%b\r\n\r\n%b" % (status, kind, PAGE))
        else:
            from_api, to_api = await asyncio.open_connection(target.hostname, target.port)
            to_api.write(head)
            await asyncio.gather(pump(reader, to_api), pump(from_api, writer))
            to_api.close()
        with suppress(OSError):
            await writer.drain()
        writer.close()

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while chunk := await source.read(65536):
                sink.write(chunk)
                await sink.drain()
            sink.write_eof()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await server.wait_closed()


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repeat requests soon."""
    monkeypatch.setattr(outages, "BACKOFF", Backoff(first=0.01, maximum=0.05, jitter=0))


async def test_a_wait_outlives_errors_of_a_proxy(api_harness: ApiHarness) -> None:
    """A page that says that the API is away, or has not answered in time, does not end a wait; the deadline does."""
    task = uuid.UUID((await api_harness.active(name="behind"))["id"])
    answers = [(b"wait=", status) for status in (b"504 Gateway Time-out", b"502 Bad Gateway", b"503 Busy", b"429 Slow")]
    async with gateway(api_harness.base, answers) as url:
        waiting = asyncio.create_task(Shell(api_harness).code("wait", "behind", "--timeout", "60s", TASKHERD_URL=url))
        await api_harness.worker.report(make_report("app.status", task, state="idle", message="Done", uri=""))
        assert await waiting == (0, "")
        assert answers == []
        answers += [(b"wait=", b"504 Gateway Time-out")] * (outages.MAX_FAILURES + 1)
        code, message = await Shell(api_harness).code("wait", "behind", TASKHERD_URL=url)
        assert (code, "the server answered with status 504" in message, answers) == (1, True, [])


async def test_a_change_is_repeated_after_errors_of_a_proxy(
    api_harness: ApiHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a 503 of the API, with the same key; a page where an answer should be is not from the API."""
    monkeypatch.setattr("taskherd.client.tasks.MAX_RETRY_AFTER", 0.01)
    shell = Shell(api_harness)
    answers = [(b"POST", b"502 Bad Gateway"), (b"POST", b"504 Gateway Time-out")]
    async with gateway(api_harness.base, answers) as url:
        assert (await shell.json("create", "Go through", "--name", "through", TASKHERD_URL=url))["name"] == "through"
        assert answers == []
        answers += [(b"GET", b"500 Oops")]
        assert "the server answered with status 500" in (await shell.code("show", "through", TASKHERD_URL=url))[1]
        for status in (b"200 OK", b"404 Not Found"):
            answers += [(b"GET", status)]
            code, message = await shell.code("show", "through", TASKHERD_URL=url)
            assert (code, "it is not from the taskherd API" in message) == (1, True)


async def test_a_create_that_failed_can_be_repeated(api_harness: ApiHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it may have been made all the same, the key is printed with which a repeat makes it once."""
    monkeypatch.setattr("taskherd.client.tasks.MAX_RETRY_AFTER", 0.01)
    shell = Shell(api_harness)
    answers = [(b"POST", b"504 Gateway Time-out")] * MAX_ATTEMPTS
    async with gateway(api_harness.base, answers) as url:
        code, message = await shell.code("create", "Make it once", TASKHERD_URL=url)
    key = re.search(r"repeat the command with --idempotency-key (\S+):", message)
    assert key is not None, message
    assert code == 1
    words = ("create", "Make it once", "--idempotency-key", key[1])
    first, second = [await shell.json(*words) for _ in range(2)]
    assert first["id"] == second["id"]
    code, message = await shell.code("create", "Refused", "--name", "not a name")
    assert (code, "--idempotency-key" in message) == (6, False)


async def test_a_send_that_failed_can_be_repeated(api_harness: ApiHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a create can, with the key that is printed: the agent gets the input once."""
    monkeypatch.setattr("taskherd.client.tasks.MAX_RETRY_AFTER", 0.01)
    await api_harness.active(name="once")
    shell = Shell(api_harness)
    answers = [(b"POST", b"504 Gateway Time-out")] * MAX_ATTEMPTS
    async with gateway(api_harness.base, answers) as url:
        code, message = await shell.code("send", "once", "Only once", TASKHERD_URL=url)
    key = re.search(r"repeat the command with --idempotency-key (\S+): what was sent is not sent again", message)
    assert key is not None, message
    assert code == 1
    for _ in range(2):
        assert (await shell.code("send", "once", "Only once", "--idempotency-key", key[1]))[0] == 0
    assert await api_harness.worker.database.fetchval("SELECT count(*) FROM inputs") == 1


async def test_a_create_that_was_interrupted_can_be_repeated(
    api_harness: ApiHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Ctrl-C, too, the key is printed, since the task may have been created."""

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("taskherd.client.tasks.change", interrupt)
    code, message = await Shell(api_harness).code("create", "Stop before the answer", "--idempotency-key", "tuesday")
    assert (code, "repeat the command with --idempotency-key tuesday:" in message) == (130, True)


def _left(*seconds: float) -> Callable[[], float]:
    times = iter(seconds)
    return lambda: next(times)


def test_a_request_is_repeated_only_as_long_as_there_is_time() -> None:
    """The last wait is as long as the rest of the time, after which the request is sent once more."""
    naps: list[float] = []

    def fail() -> None:
        raise Unreachable("away")

    with pytest.raises(Unreachable, match="away"):
        outages.repeat(fail, sleep=naps.append, left=_left(0.001, 0.001, 0))
    assert naps == [0.001]
