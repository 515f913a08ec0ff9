"""What `taskherd doctor` asks the broker; nothing is declared that is not there, and no message is touched."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import aiormq
from aiormq.exceptions import ChannelAccessRefused, ChannelNotFoundEntity, ChannelPreconditionFailed

from taskherd.broker.connection import TIMEOUT, map_errors
from taskherd.broker.topology import DELIVERY_LIMIT, TopologyNames
from taskherd.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aiormq.abc import AbstractChannel, AbstractConnection
    from pamqp.common import FieldTable

_NO_SUCH_KEY = "taskherd.doctor.binds.nothing"


@dataclass(frozen=True, slots=True)
class QueueInfo:
    """A queue that is there."""

    name: str
    messages: int
    consumers: int


@dataclass(frozen=True, slots=True)
class TopologyReport:
    """The shared queues that are there, and in words what is wrong with what else should be."""

    queues: tuple[QueueInfo, ...]
    missing: tuple[str, ...]
    different: tuple[str, ...]
    forbidden: tuple[str, ...]


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[AbstractConnection]:
    """Connect for as long as the body takes; raises `Unavailable`."""
    connection = aiormq.Connection(url)
    try:
        with map_errors("connecting to RabbitMQ"):
            async with asyncio.timeout(TIMEOUT):
                await connection.connect()
        yield connection
    finally:
        with map_errors("closing"):
            async with asyncio.timeout(TIMEOUT):
                await connection.close()


def version(connection: AbstractConnection) -> tuple[int, ...]:
    """Return the broker's version, as (4, 0, 5); empty where it does not say."""
    said = getattr(connection, "server_properties", {}).get("version", "")
    written = said.decode(errors="replace") if isinstance(said, bytes) else str(said)
    numbers = written.partition("-")[0].split(".")
    return tuple(int(number) for number in numbers) if all(number.isdecimal() for number in numbers) else ()


async def topology(connection: AbstractConnection, names: TopologyNames, partitions: int) -> TopologyReport:
    """Return how the exchanges and shared queues stand; raises `Unavailable` where the broker goes away."""
    found: list[QueueInfo] = []
    missing: list[str] = []
    different: list[str] = []
    forbidden: list[str] = []
    queues = dict.fromkeys((*names.queues, *names.report_queues(partitions)))
    for name, kind in [*((each, "exchange") for each in names.exchanges), *((each, "queue") for each in queues)]:
        try:
            if kind == "exchange":
                await _check_exchange(connection, names, name)
            else:
                found.append(await _check_queue(connection, names, name))
        except ChannelNotFoundEntity:
            missing.append(f"{kind} {name}")
        except ChannelPreconditionFailed as error:
            different.append(f"{kind} {name} ({error})")
        except ChannelAccessRefused as error:
            forbidden.append(f"{kind} {name} ({error})")
    return TopologyReport(tuple(found), tuple(missing), tuple(different), tuple(forbidden))


async def _check_exchange(connection: AbstractConnection, names: TopologyNames, name: str) -> None:
    """Look for it, declare it as it should be, and unbind what is not bound: that needs all three rights."""
    async with _channel(connection) as channel:
        await channel.exchange_declare(name, passive=True, timeout=TIMEOUT)
        await channel.exchange_declare(name, exchange_type="topic", durable=True, timeout=TIMEOUT)
        other = names.events if name != names.events else names.work
        await channel.exchange_unbind(name, other, _NO_SUCH_KEY, timeout=TIMEOUT)


async def _check_queue(connection: AbstractConnection, names: TopologyNames, name: str) -> QueueInfo:
    async with _channel(connection) as channel:
        declared = await channel.queue_declare(name, passive=True, timeout=TIMEOUT)
        await channel.queue_declare(name, durable=True, arguments=_arguments(names, name), timeout=TIMEOUT)
    return QueueInfo(name, declared.message_count or 0, declared.consumer_count or 0)


def _arguments(names: TopologyNames, queue: str) -> FieldTable:
    """What `topology.declare` gives a queue; a test keeps the two the same."""
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
async def _channel(connection: AbstractConnection) -> AsyncIterator[AbstractChannel]:
    """Open a channel of its own for the body, since each refusal closes the one it happens on."""
    with map_errors("opening a channel"):
        async with asyncio.timeout(TIMEOUT):
            channel = await connection.channel()
    try:
        yield channel
    except (ChannelNotFoundEntity, ChannelPreconditionFailed, ChannelAccessRefused):
        raise
    except Exception as error:
        raise Unavailable(f"looking at the topology: {str(error) or type(error).__name__}") from error
    finally:
        if not channel.is_closed:
            with map_errors("closing a channel"):
                async with asyncio.timeout(TIMEOUT):
                    await channel.close()
