"""A cluster of three RabbitMQ nodes on this machine, and a load balancer in front of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from taskherd.dev import rabbitmq
from taskherd.dev.rabbitmq import RabbitNode
from taskherd.dev.sources import Missing

NODES = 3


@dataclass(frozen=True, slots=True)
class Cluster:
    """The nodes, of which the first one holds the users and the port mapper."""

    nodes: tuple[RabbitNode, ...]

    def url(self, index: int) -> str:
        """Return the URL of a node, counted from 0."""
        port = urlsplit(self.nodes[index].url).port
        parts = urlsplit(self.nodes[0].url)
        return parts._replace(netloc=f"{parts.username}:{parts.password}@{parts.hostname}:{port}").geturl()


@contextmanager
def running_cluster(folder: Path) -> Iterator[Cluster]:
    """Run a cluster until the end of the block."""
    binaries = rabbitmq.find()
    assert not isinstance(binaries, Missing), binaries.reason
    seed = RabbitNode(binaries, folder / "0")
    nodes = (seed, *(RabbitNode(binaries, folder / str(index), seed) for index in range(1, NODES)))
    try:
        for node in nodes:
            node.start()
        yield Cluster(nodes)
    finally:
        for node in reversed(nodes):
            node.unfreeze()
            node.kill()
            node.stop()


class LoadBalancer:
    """A TCP proxy whose new connections go to the port ``target``; existing ones stay where they are."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self._pumps: set[asyncio.Task[None]] = set()

    async def forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Connect a client to the target."""
        upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", self.target)
        for source, sink in ((reader, upstream_writer), (upstream_reader, writer)):
            pump = asyncio.create_task(_pump(source, sink))
            self._pumps.add(pump)
            pump.add_done_callback(self._pumps.discard)

    async def stop(self) -> None:
        """End all connections."""
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    try:
        with suppress(OSError):
            while chunk := await source.read(65_536):
                sink.write(chunk)
                await sink.drain()
    finally:
        sink.transport.abort()


@asynccontextmanager
async def load_balancer(url: str) -> AsyncIterator[tuple[LoadBalancer, str]]:
    """Run a load balancer that starts with the node of ``url``; the second value is the URL through it."""
    parts = urlsplit(url)
    balancer = LoadBalancer(parts.port or 0)
    server = await asyncio.start_server(balancer.forward, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield balancer, parts._replace(netloc=f"{parts.username}:{parts.password}@127.0.0.1:{port}").geturl()
    finally:
        server.close()
        await balancer.stop()
