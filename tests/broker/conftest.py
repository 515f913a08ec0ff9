"""Fixtures: a declared topology, connections, publishers, consumers, and a TCP proxy that cuts or freezes them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

import pytest
from aiormq.abc import AbstractChannel

from taskherd.broker import topology
from taskherd.broker.connection import SupervisedConnection
from taskherd.broker.consumer import Consumer
from taskherd.broker.publisher import Publisher
from taskherd.broker.subscription import Source
from taskherd.broker.topology import TopologyNames
from tests.harness.tcp_proxy import TcpProxy, through


@pytest.fixture
async def proxied(amqp_url: str) -> AsyncIterator[tuple[TcpProxy, str]]:
    """Yield a proxy in front of the broker, and the broker's URL through it."""
    proxy = await TcpProxy.before(amqp_url)
    yield proxy, through(amqp_url, proxy)
    await proxy.stop()


ConnectTo = Callable[[str, str], SupervisedConnection]


@pytest.fixture
async def connect_to() -> AsyncIterator[ConnectTo]:
    """Yield a function that starts a connection; all are closed after the test."""
    connections: list[SupervisedConnection] = []

    def make(url: str, name: str) -> SupervisedConnection:
        connection = SupervisedConnection(url, name)
        connection.start()
        connections.append(connection)
        return connection

    yield make
    for connection in connections:
        await connection.close()


@pytest.fixture
async def names(amqp_url: str, amqp_prefix: str) -> AsyncIterator[TopologyNames]:
    """Yield a topology declared for this test alone."""
    connection = SupervisedConnection(amqp_url, "topology of a test")
    connection.start()
    names = TopologyNames(amqp_prefix)
    await topology.declare(await connection.channel(), names)
    yield names
    await connection.close()


@pytest.fixture
async def publisher(amqp_url: str, connect_to: ConnectTo) -> Publisher:
    """Return a publisher with its own connection."""
    return Publisher(connect_to(amqp_url, "test publishes"))


ConsumeReports = Callable[..., Consumer]


@pytest.fixture
async def consume_reports(names: TopologyNames) -> AsyncIterator[ConsumeReports]:
    """Yield a function that starts a consumer of the reports queue; all are closed after the test."""
    consumers: list[Consumer] = []

    def make(connection: SupervisedConnection, prefetch: int = 100, *, exclusive: bool = False) -> Consumer:
        async def prepare(channel: AbstractChannel) -> list[Source]:
            await topology.declare(channel, names)
            return [Source(names.reports)]

        consumer = Consumer(connection, prepare, prefetch=prefetch, exclusive=exclusive)
        consumer.start()
        consumers.append(consumer)
        return consumer

    yield make
    for consumer in consumers:
        await consumer.close()


T = TypeVar("T")


async def until(read: Callable[[], Awaitable[T]], accept: Callable[[T], bool], timeout: float = 20.0) -> T:  # noqa: ASYNC109
    """Poll ``read`` until ``accept`` returns True for its result, and return that result."""
    async with asyncio.timeout(timeout):
        while not accept(result := await read()):  # noqa: ASYNC110 - the broker does not notify
            await asyncio.sleep(0.02)
        return result


@pytest.fixture
def free_port() -> int:
    """Return a port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
