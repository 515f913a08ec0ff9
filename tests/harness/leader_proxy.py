"""A TCP proxy to the one server that a test names, whose sessions are cut when that changes."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

_CHUNK = 65_536


class LeaderProxy:
    """A proxy to the server that ``lead`` names; without one, it closes new connections."""

    def __init__(self) -> None:
        self.port = 0
        self._target: int | None = None
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.WriteTransport] = set()

    async def start(self) -> None:
        """Listen on a free port of the loopback address."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Cut all connections, and listen no more."""
        self.lead(None)
        if self._server is not None:
            self._server.close()

    def lead(self, port: int | None) -> None:
        """Forward new connections to this port; cut the others if it is another one than before."""
        if port == self._target:
            return
        self._target = port
        for transport in list(self._open):
            transport.abort()

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        target, to_server = self._target, None
        self._open.add(to_client.transport)
        with suppress(OSError):
            if target is not None:
                server, to_server = await asyncio.open_connection("127.0.0.1", target)
                self._open.add(to_server.transport)
                if target == self._target:
                    await _join(_pump(client, to_server), _pump(server, to_client))
        for writer in (to_client, to_server):
            if writer is not None:
                self._open.discard(writer.transport)
                writer.transport.abort()


async def _join(*pumps: Coroutine[Any, Any, None]) -> None:
    tasks = {asyncio.create_task(pump) for pump in pumps}
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(_CHUNK):
        writer.write(chunk)
        await writer.drain()
