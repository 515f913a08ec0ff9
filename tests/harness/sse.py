"""Who listens to server-sent events, as a browser reads them."""

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

WRITTEN = re.compile(rb"$|:|(event|data|id): ")
"""The lines that the server writes: nothing that a parser would ignore."""


@dataclass(frozen=True)
class ReceivedEvent:
    """One event, with the id that held when it came."""

    event: str
    data: dict[str, Any]
    id: str

    @property
    def version(self) -> int:
        """The version that a change tells of."""
        return int(self.data["data"]["version"])

    @property
    def task(self) -> dict[str, Any]:
        """The document that a snapshot or a change carries."""
        document: dict[str, Any] = self.data if self.event == "task.snapshot" else self.data["data"]["task"]
        return document


@dataclass
class SseClient:
    """All that was heard so far; `last` is what a reader sends as Last-Event-ID."""

    events: list[ReceivedEvent] = field(default_factory=list)
    raw: bytes = b""
    comments: int = 0
    last: str = ""
    over: bool = False
    noticed: asyncio.Event = field(default_factory=asyncio.Event)

    async def until(self, condition: Callable[[], Any]) -> None:
        """Wait until what was heard makes the condition true."""
        async with asyncio.timeout(TIMEOUT):
            while not condition():
                self.noticed.clear()
                await self.noticed.wait()

    async def ready(self) -> None:
        """Wait until everything that there was has been told, and the reader knows where it is."""
        await self.until(lambda: self.last)

    async def moved_on(self, last: str) -> None:
        """Wait until the reader is elsewhere than it was."""
        await self.until(lambda: self.last not in {"", last})

    async def status(self, status: str) -> None:
        """Wait until the last that was heard is a task of this status."""
        await self.until(lambda: self.events and self.events[-1].task["status"] == status)

    def names(self) -> list[str]:
        """The events' names, in order."""
        return [each.event for each in self.events]

    async def listen(self, response: httpx.Response) -> None:
        """Read until the stream ends."""
        parser = sse.Parser()
        async for chunk in response.aiter_bytes():
            self.raw += chunk
            self.events += [ReceivedEvent(event.type, json.loads(event.data), event.id) for event in parser.feed(chunk)]
            self.comments, self.last = parser.comments, parser.last_event_id
            self.noticed.set()
        assert parser.dropped == 0
        self.over = True
        self.noticed.set()


@asynccontextmanager
async def sse_client(client: httpx.AsyncClient, path: str, last: str = "", **query: str) -> AsyncIterator[SseClient]:
    """Follow until the block is left."""
    ear = SseClient()
    headers = {"Last-Event-ID": last} if last else {}
    async with client.stream("GET", path, params=query, headers=headers, timeout=None) as response:
        assert response.status_code == 200, await response.aread()
        assert response.headers["content-type"].startswith("text/event-stream")
        reading = asyncio.create_task(ear.listen(response))
        try:
            yield ear
        finally:
            reading.cancel()
            await asyncio.wait({reading})
            assert all(WRITTEN.match(line) for line in ear.raw.split(b"\n")[:-1])
            if not reading.cancelled() and (error := reading.exception()) is not None:
                raise error
