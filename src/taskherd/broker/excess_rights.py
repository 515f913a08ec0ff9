"""Find out which rights a RabbitMQ user has, with operations that change nothing, for ``taskherd doctor``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aiormq.exceptions import ChannelAccessRefused, ChannelNotFoundEntity

from taskherd.broker.diagnostics import open_channel
from taskherd.broker.requests import REQUEST_TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from aiormq.abc import AbstractChannel, AbstractConnection

DEFAULT_EXCHANGE: Final = "amq.default"
"""How rights name the exchange without a name (https://www.rabbitmq.com/docs/access-control)."""
NONEXISTENT: Final = "taskherd-doctor.nothing"
"""A name outside every prefix, of which nothing exists."""


async def excess_rights(
    connection: AbstractConnection, configure: Iterable[str], write: Iterable[str], read: Iterable[str]
) -> tuple[str, ...]:
    """Return which of these rights the user has, as ``configure NAME`` and the like.

    RabbitMQ checks the right first, so an operation on what does not exist tells it. Queues to configure or read must
    not exist; exchanges to write to must.

    Raises:
        Unavailable: the broker became unreachable.
    """
    attempts = (("configure", configure, _delete), ("write", write, _write), ("read", read, _get))
    return tuple(
        [
            f"{right} {name}"
            for right, names, attempt in attempts
            for name in names
            if await _is_permitted(connection, attempt, name)
        ]
    )


async def _is_permitted(
    connection: AbstractConnection, attempt: Callable[[AbstractChannel, str], Awaitable[None]], name: str
) -> bool:
    try:
        async with open_channel(connection) as channel:
            await attempt(channel, name)
    except ChannelNotFoundEntity:
        return True
    except ChannelAccessRefused as error:
        return f"'{name}'" not in str(error) and name != DEFAULT_EXCHANGE
    return True


async def _delete(channel: AbstractChannel, queue: str) -> None:
    await channel.queue_delete(queue, timeout=REQUEST_TIMEOUT)


async def _write(channel: AbstractChannel, exchange: str) -> None:
    """Remove a binding that does not exist, or publish to a queue that does not: both need the right to write."""
    if exchange == DEFAULT_EXCHANGE:
        await channel.basic_publish(b"", routing_key=NONEXISTENT, timeout=REQUEST_TIMEOUT)
    else:
        await channel.exchange_unbind(exchange, NONEXISTENT, NONEXISTENT, timeout=REQUEST_TIMEOUT)


async def _get(channel: AbstractChannel, queue: str) -> None:
    await channel.basic_get(queue, timeout=REQUEST_TIMEOUT)
