"""Checks of the broker for ``taskherd doctor``; they create nothing and touch no message."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import aiormq
from aiormq.exceptions import ChannelAccessRefused, ChannelNotFoundEntity, ChannelPreconditionFailed

from taskherd.broker.connection import Socket, endpoints_of
from taskherd.broker.requests import REQUEST_TIMEOUT, map_errors
from taskherd.broker.topology import DELIVERY_LIMIT, TopologyNames
from taskherd.errors import Unavailable
from taskherd.settings.urls import with_host

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from aiormq.abc import AbstractChannel, AbstractConnection
    from pamqp.common import FieldTable

    from taskherd.endpoints import Endpoint

CONNECTION_NAME: Final = "taskherd doctor"
_NO_SUCH_KEY = "taskherd.doctor.binds.nothing"


@dataclass(frozen=True, slots=True)
class QueueInfo:
    """An existing queue."""

    name: str
    messages: int
    consumers: int


@dataclass(frozen=True, slots=True)
class TopologyReport:
    """The shared queues that exist, and descriptions of the exchanges and queues with problems."""

    queues: tuple[QueueInfo, ...]
    missing: tuple[str, ...]
    different: tuple[str, ...]
    forbidden: tuple[str, ...]


@asynccontextmanager
async def connect(url: str) -> AsyncIterator[AbstractConnection]:
    """Connect to a host of ``url`` for the duration of the block. Raise ``Unavailable`` if none can be reached."""

    async def connect_to(endpoint: Endpoint) -> AbstractConnection:
        socket = Socket(endpoint)
        connection = aiormq.Connection(with_host(url, endpoint.host), transport_factory=socket)
        with socket.connecting():
            await connection.connect({"connection_name": CONNECTION_NAME})
        return connection

    connection, _ = await endpoints_of(url).connect(connect_to, (Unavailable,))
    try:
        yield connection
    finally:
        with map_errors("closing"):
            async with asyncio.timeout(REQUEST_TIMEOUT):
                await connection.close()


def server_version(connection: AbstractConnection) -> tuple[int, ...]:
    """Return the broker's version, such as (4, 0, 5); empty if it is unknown."""
    value = getattr(connection, "server_properties", {}).get("version", "")
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    numbers = text.partition("-")[0].split(".")
    return tuple(int(number) for number in numbers) if all(number.isdecimal() for number in numbers) else ()


async def check_topology(connection: AbstractConnection, names: TopologyNames, partitions: int) -> TopologyReport:
    """Check all exchanges and shared queues. Raise ``Unavailable`` if the broker becomes unreachable."""
    existing: list[QueueInfo] = []
    missing: list[str] = []
    different: list[str] = []
    forbidden: list[str] = []
    queues = dict.fromkeys((*names.queues, *names.report_queues(partitions)))
    for name, kind in [*((each, "exchange") for each in names.exchanges), *((each, "queue") for each in queues)]:
        try:
            if kind == "exchange":
                await _check_exchange(connection, names, name)
            else:
                existing.append(await _check_queue(connection, names, name))
        except ChannelNotFoundEntity:
            missing.append(f"{kind} {name}")
        except ChannelPreconditionFailed as error:
            different.append(f"{kind} {name} ({error})")
        except ChannelAccessRefused as error:
            forbidden.append(f"{kind} {name} ({error})")
    return TopologyReport(tuple(existing), tuple(missing), tuple(different), tuple(forbidden))


async def queue_infos(connection: AbstractConnection, queues: Iterable[str]) -> dict[str, QueueInfo]:
    """Return the queues among ``queues`` that exist, by name; this needs no permission.

    Raises:
        Unavailable: the broker became unreachable.
    """
    found: dict[str, QueueInfo] = {}
    for name in dict.fromkeys(queues):
        with suppress(ChannelNotFoundEntity):
            async with open_channel(connection) as channel:
                declared = await channel.queue_declare(name, passive=True, timeout=REQUEST_TIMEOUT)
                found[name] = QueueInfo(name, declared.message_count or 0, declared.consumer_count or 0)
    return found


async def check_publisher(
    connection: AbstractConnection, names: TopologyNames, written: tuple[str, ...], read: tuple[str, ...]
) -> TopologyReport:
    """Check that the exchanges exist and that the user may publish to ``written`` and bind queues to ``read``.

    Removing a binding that does not exist needs the right to write its destination, which is checked first, and the
    right to read its source; a refusal of another exchange than those asked about is ignored. Raise ``Unavailable`` if
    the broker becomes unreachable.
    """
    source = read[0] if read else names.work
    missing: list[str] = []
    forbidden: list[str] = []
    for name in dict.fromkeys((*written, *read)):
        try:
            async with open_channel(connection) as channel:
                await channel.exchange_declare(name, passive=True, timeout=REQUEST_TIMEOUT)
        except ChannelNotFoundEntity:
            missing.append(f"exchange {name}")
    for name in () if missing else written:
        try:
            async with open_channel(connection) as channel:
                await channel.exchange_unbind(name, source, _NO_SUCH_KEY, timeout=REQUEST_TIMEOUT)
        except ChannelNotFoundEntity:
            missing.append(f"exchange {source}")
        except ChannelAccessRefused as error:
            if any(f"'{exchange}'" in str(error) for exchange in (name, *read)):
                forbidden.append(f"exchange {name} ({error})")
    return TopologyReport((), tuple(dict.fromkeys(missing)), (), tuple(forbidden))


async def _check_exchange(connection: AbstractConnection, names: TopologyNames, name: str) -> None:
    """Check that the exchange exists as declared, and that the user has configure, write and read permissions.

    Removing a binding that does not exist needs the last two, and changes nothing.
    """
    async with open_channel(connection) as channel:
        await channel.exchange_declare(name, passive=True, timeout=REQUEST_TIMEOUT)
        await channel.exchange_declare(name, exchange_type="topic", durable=True, timeout=REQUEST_TIMEOUT)
        other = names.events if name != names.events else names.work
        await channel.exchange_unbind(name, other, _NO_SUCH_KEY, timeout=REQUEST_TIMEOUT)


async def _check_queue(connection: AbstractConnection, names: TopologyNames, name: str) -> QueueInfo:
    async with open_channel(connection) as channel:
        declared = await channel.queue_declare(name, passive=True, timeout=REQUEST_TIMEOUT)
        await channel.queue_declare(name, durable=True, arguments=_arguments(names, name), timeout=REQUEST_TIMEOUT)
    return QueueInfo(name, declared.message_count or 0, declared.consumer_count or 0)


def _arguments(names: TopologyNames, queue: str) -> FieldTable:
    """Return the arguments with which ``topology.declare`` declares the queue; a test checks that both agree."""
    if queue == names.dead:
        return {"x-queue-type": "quorum", "x-delivery-limit": -1}
    arguments: FieldTable = {
        "x-queue-type": "quorum",
        "x-delivery-limit": DELIVERY_LIMIT,
        "x-dead-letter-exchange": names.dead,
    }
    if queue not in names.queues:
        arguments["x-single-active-consumer"] = True
    return arguments


@asynccontextmanager
async def open_channel(connection: AbstractConnection) -> AsyncIterator[AbstractChannel]:
    """Open a channel for the block; each check needs its own, because the broker closes a channel on an error."""
    with map_errors("opening a channel"):
        async with asyncio.timeout(REQUEST_TIMEOUT):
            channel = await connection.channel()
    try:
        yield channel
    except (ChannelNotFoundEntity, ChannelPreconditionFailed, ChannelAccessRefused):
        raise
    except Exception as error:
        raise Unavailable(f"checking the topology: {str(error) or type(error).__name__}") from error
    finally:
        if not channel.is_closed:
            with map_errors("closing a channel"):
                async with asyncio.timeout(REQUEST_TIMEOUT):
                    await channel.close()
