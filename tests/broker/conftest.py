"""A declared topology, links that are closed afterwards, and a TCP relay that can cut or freeze them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import TypeVar
from urllib.parse import urlsplit, urlunsplit

import pytest
from aiormq.abc import AbstractChannel

from taskherd.broker import topology
from taskherd.broker.connection import SupervisedConnection
from taskherd.broker.consume import Consumer, Source
from taskherd.broker.publish import Publisher
from taskherd.broker.topology import TopologyNames


class TcpRelay:
    """Passes bytes between clients and the broker, until told otherwise."""

    def __init__(self, host: str, port: int) -> None:
        self._broker = (host, port)
        self._server: asyncio.Server | None = None
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._open: set[asyncio.WriteTransport] = set()
        self._pumps: set[asyncio.Task[None]] = set()
        self.accepted = 0

    async def start(self) -> int:
        """Listen and return the port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def cut(self) -> None:
        """Reset every connection."""
        for transport in list(self._open):
            transport.abort()

    def freeze(self) -> None:
        """Keep connections open and pass nothing on."""
        self._flowing.clear()

    def thaw(self) -> None:
        """Pass bytes on again."""
        self._flowing.set()

    async def stop(self) -> None:
        """Cut everything and stop listening."""
        assert self._server is not None
        self._server.close()
        self.cut()
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        there_reader, there_writer = await asyncio.open_connection(*self._broker)
        for source, sink in ((reader, there_writer), (there_reader, writer)):
            self._open.add(sink.transport)
            pump = asyncio.create_task(self._pump(source, sink))
            self._pumps.add(pump)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while chunk := await source.read(65536):
                await self._flowing.wait()
                sink.write(chunk)
                await sink.drain()
        sink.transport.abort()
        self._open.discard(sink.transport)


@pytest.fixture
async def relay(amqp_url: str) -> AsyncIterator[tuple[TcpRelay, str]]:
    """A relay in front of the broker, and the URL that goes through it."""
    parts = urlsplit(amqp_url)
    relay = TcpRelay(parts.hostname or "127.0.0.1", parts.port or 5672)
    port = await relay.start()
    credentials = parts.netloc.rpartition("@")[0]
    yield relay, urlunsplit(parts._replace(netloc=f"{credentials}@127.0.0.1:{port}"))
    await relay.stop()


LinkTo = Callable[[str, str], SupervisedConnection]


@pytest.fixture
async def link_to() -> AsyncIterator[LinkTo]:
    """Make started links; all are closed in the end."""
    links: list[SupervisedConnection] = []

    def make(url: str, name: str) -> SupervisedConnection:
        link = SupervisedConnection(url, name)
        link.start()
        links.append(link)
        return link

    yield make
    for link in links:
        await link.close()


@pytest.fixture
async def names(amqp_url: str, amqp_prefix: str) -> AsyncIterator[TopologyNames]:
    """A declared topology of this test's own."""
    link = SupervisedConnection(amqp_url, "topology of a test")
    link.start()
    names = TopologyNames(amqp_prefix)
    await topology.declare(await link.channel(), names)
    yield names
    await link.close()


@pytest.fixture
async def publisher(amqp_url: str, link_to: LinkTo) -> Publisher:
    """A publisher on a link of its own."""
    return Publisher(link_to(amqp_url, "test publishes"))


IntakeOn = Callable[..., Consumer]


@pytest.fixture
async def intake_on(names: TopologyNames) -> AsyncIterator[IntakeOn]:
    """Make started intakes of the reports; all are closed in the end."""
    intakes: list[Consumer] = []

    def make(link: SupervisedConnection, prefetch: int = 100) -> Consumer:
        async def prepare(channel: AbstractChannel) -> list[Source]:
            await topology.declare(channel, names)
            return [Source(names.reports)]

        intake = Consumer(link, prepare, prefetch=prefetch)
        intake.start()
        intakes.append(intake)
        return intake

    yield make
    for intake in intakes:
        await intake.close()


T = TypeVar("T")


async def until(look: Callable[[], Awaitable[T]], holds: Callable[[T], bool], within: float = 20.0) -> T:
    """Look again and again until what is seen `holds`, and return it."""
    async with asyncio.timeout(within):
        while not holds(seen := await look()):  # noqa: ASYNC110 - the broker can only be asked
            await asyncio.sleep(0.02)
        return seen


@pytest.fixture
def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
