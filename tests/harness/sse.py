"""A client of server-sent events, which reads them as a browser does."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from taskherd import sse
from tests.harness.api import TIMEOUT

VALID_LINE = re.compile(rb"$|:|(event|data|id): ")
"""The lines that the server may write: none that a parser would ignore."""
MAX_EVENT_BYTES = 16 * 1024 * 1024
"""More than the server may put into one event."""


@dataclass(frozen=True)
class ReceivedEvent:
    """One event, with the last event id at that time."""

    event: str
    data: dict[str, Any]
    id: str

    @property
    def version(self) -> int:
        """The version of a change."""
        return int(self.data["data"]["version"])

    @property
    def task(self) -> dict[str, Any]:
        """The document in a snapshot or a change."""
        document: dict[str, Any] = self.data if self.event == "task.snapshot" else self.data["data"]["task"]
        return document


@dataclass
class SseClient:
    """Everything received so far; ``last`` is the last event id."""

    events: list[ReceivedEvent] = field(default_factory=list)
    raw: bytes = b""
    comments: int = 0
    last: str = ""
    ended: bool = False
    received: asyncio.Event = field(default_factory=asyncio.Event)

    async def until(self, condition: Callable[[], Any]) -> None:
        """Wait until the received events make the condition true."""
        async with asyncio.timeout(TIMEOUT):
            while not condition():
                self.received.clear()
                await self.received.wait()

    async def ready(self) -> None:
        """Wait until the snapshot is complete and its position was received."""
        await self.until(lambda: self.last)

    async def until_position_changes(self, last: str) -> None:
        """Wait until the position is another than ``last``."""
        await self.until(lambda: self.last not in {"", last})

    async def status(self, status: str) -> None:
        """Wait until the last event is about a task with this status."""
        await self.until(lambda: self.events and self.events[-1].task["status"] == status)

    def types(self) -> list[str]:
        """Return the types of the events, in order."""
        return [each.event for each in self.events]

    async def read(self, response: httpx.Response) -> None:
        """Read events until the stream ends."""
        parser = sse.Parser(max_event_bytes=MAX_EVENT_BYTES)
        async for chunk in response.aiter_bytes():
            self.raw += chunk
            self.events += [ReceivedEvent(event.type, json.loads(event.data), event.id) for event in parser.feed(chunk)]
            self.comments, self.last = parser.comments, parser.last_event_id
            self.received.set()
        assert parser.dropped == 0
        self.ended = True
        self.received.set()


@asynccontextmanager
async def sse_client(client: httpx.AsyncClient, path: str, last: str = "", **query: str) -> AsyncIterator[SseClient]:
    """Read a stream while the block runs."""
    stream = SseClient()
    headers = {"Last-Event-ID": last} if last else {}
    async with client.stream("GET", path, params=query, headers=headers, timeout=None) as response:
        assert response.status_code == 200, await response.aread()
        assert response.headers["content-type"].startswith("text/event-stream")
        reading = asyncio.create_task(stream.read(response))
        try:
            yield stream
        finally:
            reading.cancel()
            await asyncio.wait({reading})
            assert all(VALID_LINE.match(line) for line in stream.raw.split(b"\n")[:-1])
            if not reading.cancelled() and (error := reading.exception()) is not None:
                raise error
