"""Read how many messages and consumers queues have: a passive declaration needs no permission.

https://www.rabbitmq.com/docs/access-control#authorisation lists what each operation needs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from aiormq.exceptions import ChannelNotFoundEntity

from taskherd.broker.connection import REQUEST_TIMEOUT, map_errors
from taskherd.broker.diagnostics import QueueInfo

if TYPE_CHECKING:
    from aiormq.abc import AbstractChannel

    from taskherd.broker.connection import SupervisedConnection


async def read(connection: SupervisedConnection, queues: Iterable[str]) -> dict[str, QueueInfo]:
    """Return those of ``queues`` that exist, by name. Raise ``Unavailable`` if the broker does not answer."""
    found: dict[str, QueueInfo] = {}
    channel: AbstractChannel | None = None
    try:
        for name in dict.fromkeys(queues):
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
    return found
