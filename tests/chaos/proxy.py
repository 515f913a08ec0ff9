"""A TCP proxy before PostgreSQL that cuts a worker's connections where it hurts most: at COMMIT.

Whoever sent that COMMIT can't know whether it took effect. By turns it did (the server's answer is withheld) and did
not (the server never saw it).
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
    """Cuts a `share` of all COMMITs while it is `armed`, and counts them by what became of them."""

    url: str
    dice: Random
    share: float
    armed: bool = False
    took_effect: int = 0
    never_arrived: int = 0

    @property
    def cuts(self) -> int:
        """How many COMMITs were left without an answer."""
        return self.took_effect + self.never_arrived

    async def serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        """Pass bytes both ways between a client and the server, until either ends or a cut."""
        target = urlsplit(self.url)
        to_server: asyncio.StreamWriter | None = None
        with suppress(OSError):
            server, to_server = await asyncio.open_connection(target.hostname, target.port)
            withhold = asyncio.Event()
            ways = {
                asyncio.create_task(self._ask(client, to_server, withhold)),
                asyncio.create_task(_answer(server, to_client, withhold)),
            }
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
        for writer in (to_client, to_server):
            if writer is not None:
                writer.transport.abort()

    async def _ask(
        self, client: asyncio.StreamReader, to_server: asyncio.StreamWriter, withhold: asyncio.Event
    ) -> None:
        while chunk := await client.read(CHUNK):
            if self.armed and COMMIT in chunk and self.dice.random() < self.share:
                if self.never_arrived < self.took_effect:
                    self.never_arrived += 1
                    return
                self.took_effect += 1
                withhold.set()
            to_server.write(chunk)
            await to_server.drain()


async def _answer(server: asyncio.StreamReader, to_client: asyncio.StreamWriter, withhold: asyncio.Event) -> None:
    while chunk := await server.read(CHUNK):
        if withhold.is_set():
            return
        to_client.write(chunk)
        await to_client.drain()


@asynccontextmanager
async def cutting(database_url: str, dice: Random, share: float) -> AsyncIterator[tuple[CommitCutter, str]]:
    """A proxy before the server of this URL, and the URL that leads through it."""
    cutter = CommitCutter(database_url, dice, share)
    listening = await asyncio.start_server(cutter.serve, "127.0.0.1", 0)
    target = urlsplit(database_url)
    port = listening.sockets[0].getsockname()[1]
    try:
        yield cutter, target._replace(netloc=target.netloc.replace(f":{target.port}", f":{port}")).geturl()
    finally:
        listening.close()
