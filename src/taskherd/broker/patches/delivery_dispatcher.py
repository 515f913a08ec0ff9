"""Pass each delivery that ``FrameReader`` assembled to its consumer by a function call.

Library: aiormq, in the range that ``frame_reader`` supports.

Why: aiormq passes every frame of a channel through a queue to another task and starts a task for each message.

Replaced: the ``put`` method of a channel's frame queue. All other frames still pass through that queue, in order.
Outside the range nothing is replaced, and aiormq calls the callback that ``register`` returns.

Gain: measured together with ``frame_reader``.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from aiormq.abc import AbstractChannel, DeliveredMessage

from taskherd.broker.delivery import DecodedDelivery, Delivery, RawDelivery
from taskherd.broker.patches import frame_reader

Receive = Callable[[Delivery], None]


class DeliveryDispatcher:
    """A dispatcher of the deliveries of one channel to receivers, by consumer tag."""

    def __init__(self, channel: AbstractChannel) -> None:
        self._receivers: dict[bytes, Receive] = {}
        if frame_reader.applies():
            self._enqueue = channel.frames.put
            channel.frames.put = self._put  # type: ignore[method-assign]

    def register(self, consumer_tag: str, receive: Receive) -> Callable[[DeliveredMessage], Coroutine[Any, Any, None]]:
        """Register ``receive`` for ``consumer_tag``, and return the callback to pass to ``basic_consume``.

        aiormq calls the callback only if ``FrameReader`` is not installed. It must not do more than this, because
        aiormq cancels callbacks when the connection drops.
        """
        self._receivers[consumer_tag.encode()] = receive

        async def on_message(message: DeliveredMessage) -> None:
            receive(DecodedDelivery(message))

        return on_message

    def unregister(self, consumer_tag: str) -> None:
        """Forget a consumer, once the broker has confirmed that it is canceled."""
        self._receivers.pop(consumer_tag.encode(), None)

    async def _put(self, item: tuple[int, Any]) -> None:
        frame = item[1]
        if type(frame) is RawDelivery:
            self._receivers[frame.consumer_tag](frame)
        elif frame is not frame_reader.BODY_CONTINUES:
            await self._enqueue(item)
