"""A TCP proxy in front of PostgreSQL that cuts a worker's connections at COMMIT.

The worker cannot know whether its COMMIT took effect. Alternately, it did (the server's response is withheld) and did
not (the server never received it).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from random import Random
from urllib.parse import urlsplit

CHUNK = 65536
COMMIT = b"COMMIT"


@dataclass(slots=True)
class CommitCutter:
    """A proxy that cuts connections at a ``share`` of all COMMITs while ``armed``, and counts them by their effect."""

    url: str
    random: Random
    share: float
    armed: bool = False
    took_effect: int = 0
    never_arrived: int = 0

    @property
    def cuts(self) -> int:
        """Number of COMMITs without a response."""
        return self.took_effect + self.never_arrived

    async def serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        """Forward bytes between a client and the server until either closes the connection or it is cut."""
        target = urlsplit(self.url)
        to_server: asyncio.StreamWriter | None = None
        with suppress(OSError):
            server, to_server = await asyncio.open_connection(target.hostname, target.port)
            withhold = asyncio.Event()
            directions = {
                asyncio.create_task(self._forward_requests(client, to_server, withhold)),
                asyncio.create_task(_forward_responses(server, to_client, withhold)),
            }
            await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
            for direction in directions:
                direction.cancel()
            await asyncio.gather(*directions, return_exceptions=True)
        for writer in (to_client, to_server):
            if writer is not None:
                writer.transport.abort()

    async def _forward_requests(
        self, client: asyncio.StreamReader, to_server: asyncio.StreamWriter, withhold: asyncio.Event
    ) -> None:
        while chunk := await client.read(CHUNK):
            if self.armed and COMMIT in chunk and self.random.random() < self.share:
                if self.never_arrived < self.took_effect:
                    self.never_arrived += 1
                    return
                self.took_effect += 1
                withhold.set()
            to_server.write(chunk)
            await to_server.drain()


async def _forward_responses(
    server: asyncio.StreamReader, to_client: asyncio.StreamWriter, withhold: asyncio.Event
) -> None:
    while chunk := await server.read(CHUNK):
        if withhold.is_set():
            return
        to_client.write(chunk)
        await to_client.drain()


@asynccontextmanager
async def commit_cutter(database_url: str, random: Random, share: float) -> AsyncIterator[tuple[CommitCutter, str]]:
    """Run a proxy for the server of this URL, and yield it with the URL that leads through it."""
    cutter = CommitCutter(database_url, random, share)
    listening = await asyncio.start_server(cutter.serve, "127.0.0.1", 0)
    target = urlsplit(database_url)
    port = listening.sockets[0].getsockname()[1]
    try:
        yield cutter, target._replace(netloc=target.netloc.replace(f":{target.port}", f":{port}")).geturl()
    finally:
        listening.close()
