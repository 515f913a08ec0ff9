"""Read how many messages and consumers queues have: a passive declaration needs no permission.

https://www.rabbitmq.com/docs/access-control#authorisation lists what each operation needs.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from aiormq.exceptions import ChannelNotFoundEntity

from taskherd.broker.diagnostics import QueueInfo
from taskherd.broker.requests import REQUEST_TIMEOUT, map_errors, share_out

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from aiormq.abc import AbstractChannel

    from taskherd.broker.connection import SupervisedConnection

MAX_CHANNELS: Final = 16
"""Maximum number of queues that the broker is asked about at the same time, each on a channel of its own."""
QUEUES_OF_EACH: Final = 8
"""Number of queues for which it is worth opening another channel."""


async def read(connection: SupervisedConnection, queues: Iterable[str]) -> dict[str, QueueInfo]:
    """Return those of ``queues`` that exist, by name. Raise ``Unavailable`` if the broker does not answer."""
    names, found = list(dict.fromkeys(queues)), dict[str, QueueInfo]()
    channels = min(MAX_CHANNELS, -(-len(names) // QUEUES_OF_EACH))
    await share_out(names, [partial(_read, connection, found)] * channels)
    return found


async def _read(connection: SupervisedConnection, found: dict[str, QueueInfo], remaining: Iterator[str]) -> None:
    """Look at one of the remaining queues after the other."""
    channel: AbstractChannel | None = None
    try:
        for name in remaining:
            if channel is None or channel.is_closed:  # the broker closes it if a queue does not exist
                channel = await connection.channel()
            with map_errors(f"looking at {name}"):
                try:
                    declared = await channel.queue_declare(name, passive=True, timeout=REQUEST_TIMEOUT)
                except ChannelNotFoundEntity:
                    continue
            found[name] = QueueInfo(name, declared.message_count or 0, declared.consumer_count or 0)
    finally:
        if channel is not None and not channel.is_closed:
            with map_errors("closing a channel"):
                await channel.close()
