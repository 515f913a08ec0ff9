"""A TCP proxy that cuts, freezes or delays connections, and URLs that lead through several of them."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit, urlunsplit

if TYPE_CHECKING:
    from collections.abc import Coroutine

_BEGINNING = 4_096
"""Bytes of what a client sends in which the name of its connection is."""


def through(url: str, *proxies: TcpProxy, query: str = "") -> str:
    """Return ``url`` with the proxies as its hosts, in order."""
    parts = urlsplit(url)
    hosts = ",".join(f"127.0.0.1:{proxy.port}" for proxy in proxies)
    return urlunsplit(parts._replace(netloc=f"{parts.netloc.rpartition('@')[0]}@{hosts}", query=query))


def _address(url: str) -> tuple[str, int]:
    """Return the only host of a URL and its port."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


class _Connection:
    """What the client has sent at the beginning of a connection, and whether what comes is forwarded."""

    def __init__(self) -> None:
        self.beginning = bytearray()
        self.flowing = asyncio.Event()
        self.flowing.set()


class TcpProxy:
    """A TCP proxy in front of a server that can cut or freeze all connections; frozen, it accepts and never answers."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self.port = 0
        self.accepted = 0
        self.max_responses: int | None = None
        """Number of responses, or parts of one, that a connection forwards before it hangs; None: all."""
        self.delay = 0.0
        """Seconds by which each response, or part of one, is delayed."""
        self._connections: list[_Connection] = []
        self._server: asyncio.Server | None = None
        self._requests = asyncio.Event()
        self._responses = asyncio.Event()
        self.thaw()
        self._open: set[asyncio.WriteTransport] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = False

    @classmethod
    async def before(cls, url: str) -> Self:
        """Return a proxy in front of the only host of a URL that is listening on ``port``."""
        proxy = cls(*_address(url))
        await proxy.start()
        return proxy

    async def start(self, address: str = "127.0.0.1", port: int = 0) -> int:
        """Listen and return the port."""
        self._server = await asyncio.start_server(self._accept, address, port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self.port

    def lead_to(self, url: str) -> None:
        """Forward new connections to the only host of another URL; the present ones stay where they are."""
        self._target = _address(url)

    def cut(self) -> None:
        """Reset every connection."""
        for transport in list(self._open):
            transport.abort()

    def freeze(self) -> None:
        """Keep all connections open, but forward nothing."""
        self._requests.clear()
        self._responses.clear()

    def freeze_those(self, words: bytes) -> None:
        """Freeze the present connections at whose beginning the client has sent these words, such as their name."""
        for connection in self._connections:
            if words in connection.beginning:
                connection.flowing.clear()

    def freeze_responses(self) -> None:
        """Forward what clients send, but nothing that the server sends."""
        self._responses.clear()

    def thaw(self) -> None:
        """Forward again."""
        for connection in self._connections:
            connection.flowing.set()
        self._requests.set()
        self._responses.set()

    async def stop(self) -> None:
        """Reset every connection, also one that is just being accepted, and stop listening."""
        assert self._server is not None
        self._stopped = True
        # A connection that is accepted when its server closes is lost unclosed: asyncio fails to attach it.
        for listener in self._server.sockets:
            asyncio.get_running_loop().remove_reader(listener.fileno())
        await asyncio.sleep(0)
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.cut()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self._open.add(writer.transport)
        if self._stopped:
            writer.transport.abort()
        else:
            self._start(self._serve(reader, writer))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        self._open.add(server_writer.transport)
        connection = _Connection()
        self._connections.append(connection)
        self._start(self._pump(reader, server_writer, self._requests, None, connection))
        self._start(self._pump(server_reader, writer, self._responses, self.max_responses, connection))

    def _start(self, work: Coroutine[None, None, None]) -> None:
        self._tasks.add(asyncio.create_task(work))

    async def _pump(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        flowing: asyncio.Event,
        most: int | None,
        connection: _Connection,
    ) -> None:
        forwarded = 0
        with suppress(OSError):
            while chunk := await source.read(65536):
                if flowing is self._requests and len(connection.beginning) < _BEGINNING:
                    connection.beginning += chunk
                if forwarded != most:
                    await flowing.wait()
                    await connection.flowing.wait()
                    if flowing is self._responses and self.delay:
                        await asyncio.sleep(self.delay)
                    sink.write(chunk)
                    await sink.drain()
                    forwarded += 1
        sink.transport.abort()
        self._open.discard(sink.transport)
