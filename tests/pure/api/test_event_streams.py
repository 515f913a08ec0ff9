"""Server-sent events: what ends a stream, and what is sent last."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import pytest

from taskherd.api.http import sse
from taskherd.api.http.authenticator import Caller
from taskherd.api.http.open_requests import AccessLoss, AccessMonitor
from taskherd.api.http.sse import COMMENT, PING, EventStream

if TYPE_CHECKING:
    from taskherd.api.context import RequestContext

TASK = UUID(int=2)
CALLER = Caller(UUID(int=1), "alice", "token")


class Client:
    """A client of a stream with these frames, which then ends or goes on."""

    def __init__(self, *frames: bytes, ends: bool = True) -> None:
        self.time = 0.0
        self.monitor = AccessMonitor(cast("Any", None), lambda: self.time)
        self.incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.sent: list[dict[str, Any]] = []
        self.closed = False
        self.checks_end_with = b"late"
        self._frames = frames
        self._ends = ends

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """Yield the frames."""
        try:
            for each in self._frames:
                if each == self.checks_end_with:
                    self.time += 100
                yield each
            if not self._ends:
                await asyncio.Event().wait()
        finally:
            self.closed = True

    async def send(self, message: Any) -> None:
        """Take a message of the server."""
        self.sent.append(message)

    async def stream(self, method: str = "GET", last: bytes = b"last", task_id: UUID | None = TASK) -> None:
        """Receive the stream to its end."""
        request = cast("RequestContext", SimpleNamespace(api=SimpleNamespace(access=self.monitor), caller=CALLER))
        stream = EventStream(request, self.frames(), task_id=task_id, last=last)
        await asyncio.wait_for(stream({"type": "http", "method": method}, self.incoming.get, self.send), 30)

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until the stream, which needs no time for anything, has come so far."""
        async with asyncio.timeout(30):
            while not condition():  # noqa: ASYNC110 - what it sends tells of nothing
                await asyncio.sleep(0)

    @property
    def bodies(self) -> list[tuple[bytes, bool]]:
        """The parts of the body, each with whether more follow."""
        return [(each["body"], each.get("more_body", False)) for each in self.sent[1:]]

    def lose(self, loss: AccessLoss = AccessLoss.SIGNED_OUT) -> None:
        """Take the access from the client."""
        (request,) = vars(self.monitor)["_requests"]
        assert request.key.task_id == TASK
        request.end(loss)


@asynccontextmanager
async def following(stream: EventStream) -> AsyncIterator[Callable[[], Awaitable[bytes]]]:
    """Yield a function that waits for the next part of a stream's body; in the end its client disconnects."""
    incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    parts: asyncio.Queue[bytes] = asyncio.Queue()

    async def send(message: Any) -> None:
        if "body" in message:
            parts.put_nowait(message["body"])

    async with asyncio.timeout(30):
        sending = asyncio.create_task(stream({"type": "http", "method": "GET"}, incoming.get, send))
        try:
            yield parts.get
        finally:
            incoming.put_nowait({"type": "http.disconnect"})
            await sending


def lose_access(monitor: AccessMonitor, task_id: UUID | None) -> None:
    """Take the access from the one client that follows something, which is of this task or of none."""
    (request,) = vars(monitor)["_requests"]
    assert request.key.task_id == task_id
    request.end(AccessLoss.SIGNED_OUT)


async def test_a_stream_ends_with_its_frames() -> None:
    """And nothing is sent after them. It must neither be stored nor be held back on its way."""
    client = Client(b"one", COMMENT, b"two")
    await client.stream()
    assert client.bodies == [(b"one", True), (COMMENT, True), (b"two", True), (b"", False)]
    start = client.sent[0]
    assert (start["type"], start["status"]) == ("http.response.start", 200)
    assert dict(start["headers"]) == {
        b"content-type": b"text/event-stream; charset=utf-8",
        b"cache-control": b"no-store",
        b"x-accel-buffering": b"no",
    }
    assert client.closed


async def test_of_a_head_request_only_the_headers_are_sent() -> None:
    """The frames are not even made."""
    client = Client(b"one")
    await client.stream("HEAD")
    assert client.bodies == [(b"", False)]


async def test_a_stream_ends_with_its_client() -> None:
    """Whatever else that sends; nobody is there to be told."""
    client = Client(b"one", ends=False)
    client.incoming.put_nowait({"type": "http.request"})
    client.incoming.put_nowait({"type": "http.disconnect"})
    await client.stream()
    assert client.incoming.empty()
    assert client.bodies == [(b"one", True)]
    assert client.closed


@pytest.mark.parametrize("last", [b"last", b""])
async def test_a_stream_ends_with_the_access_of_the_caller(last: bytes) -> None:
    """The frame that ends the response says so; it may be empty."""
    client = Client(b"one", ends=False)
    streaming = asyncio.create_task(client.stream(last=last))
    await client.until(lambda: client.bodies)
    client.lose()
    await streaming
    assert client.bodies == [(b"one", True), (last, False)]
    assert client.closed


async def test_a_stream_that_has_ended_has_no_further_frame() -> None:
    """Also if the access is lost just when all was sent."""

    class Losing(Client):
        async def send(self, message: Any) -> None:
            await super().send(message)
            if message.get("body") == b"":
                self.lose()

    client = Losing(b"one")
    await client.stream()
    assert client.bodies == [(b"one", True), (b"", False)]


@pytest.mark.parametrize("frame", [COMMENT, PING])
async def test_frames_without_data_need_no_check(frame: bytes) -> None:
    """They only keep the connection open."""
    client = Client(frame)
    client.checks_end_with = frame
    await client.stream()
    assert client.bodies == [(frame, True), (b"", False)]


async def test_without_a_check_no_data_is_sent() -> None:
    """A frame with data waits for the next one."""
    client = Client(b"one", COMMENT, b"late", PING, ends=False)
    streaming = asyncio.create_task(client.stream())
    await client.until(lambda: client.time)
    assert [body for body, _ in client.bodies] == [b"one", COMMENT]
    client.lose(AccessLoss.UNCHECKED)
    await streaming
    assert [body for body, _ in client.bodies] == [b"one", COMMENT, b"last"]


async def test_a_client_that_takes_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for long after it has lost its access."""
    assert vars(sse)["_END_TIMEOUT"] == 1
    monkeypatch.setattr(sse, "_END_TIMEOUT", 0.01)
    client = Client(b"one", ends=False)
    send = client.send

    async def stall(message: Any) -> None:
        await send(message)
        if message.get("body"):
            await asyncio.Event().wait()

    monkeypatch.setattr(client, "send", stall)
    streaming = asyncio.create_task(client.stream())
    await client.until(lambda: client.bodies)
    client.lose()
    await streaming
    assert [body for body, _ in client.bodies] == [b"one", b"last"]


async def test_an_error_of_the_frames_is_not_hidden() -> None:
    """The server logs it."""

    async def broken() -> AsyncGenerator[bytes, None]:
        yield b"one"
        raise KeyError

    client = Client()
    client.frames = broken  # type: ignore[method-assign]
    with pytest.raises(KeyError):
        await client.stream()
    assert client.bodies == [(b"one", True)]
