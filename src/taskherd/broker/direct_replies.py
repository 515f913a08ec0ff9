"""Receive replies without a queue, on the channel that publishes the messages (direct reply-to).

Such a reply needs no right but that of publishing the message, and no declaration, which waits while a node of the
cluster hangs (https://www.rabbitmq.com/docs/direct-reply-to).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from uuid import uuid4

from taskherd.broker.patches.delivery_dispatcher import DeliveryDispatcher
from taskherd.broker.patches.frame_reader import TAG_PREFIX
from taskherd.broker.reply_queues import DIRECT
from taskherd.broker.requests import REQUEST_TIMEOUT, map_errors

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiormq.channel import Channel

    from taskherd.broker.delivery import Delivery
    from taskherd.broker.publisher import Publisher


def _ignore() -> None:
    """Do nothing."""


def publisher_with_replies(
    publisher: Publisher, receive: Callable[[Delivery], None], on_lost: Callable[[], None] = _ignore
) -> Publisher:
    """Return a publisher whose messages with ``reply_to=DIRECT`` are answered to ``receive``.

    It uses the connection of ``publisher``, but a channel of its own. No reply arrives to what was published before
    ``on_lost`` is called. ``receive`` must not block, because it runs where frames are read.
    """

    async def subscribe(channel: Channel) -> None:
        tag = f"{TAG_PREFIX}replies.{uuid4().hex}"
        callback = DeliveryDispatcher(channel).register(tag, receive)
        with map_errors("consuming replies"):
            async with asyncio.timeout(REQUEST_TIMEOUT):
                await channel.basic_consume(DIRECT, callback, no_ack=True, consumer_tag=tag)
        channel.closing.add_done_callback(lambda _: on_lost())

    return publisher.on_own_channel(subscribe)
