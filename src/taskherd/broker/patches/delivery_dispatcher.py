"""Pass each delivery that ``FrameReader`` assembled to its consumer by a plain call.

Library: aiormq, in the range that ``frame_reader`` supports.

Why: aiormq passes every frame of a channel through a queue to another task and starts a task for each message.

What is replaced: the ``put`` of the queue that a channel's frames go through. All other frames still go through that
queue, in order. Outside the range nothing is replaced, and aiormq calls the callback that ``register`` returns.

What it earns: measured together with ``frame_reader``.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from aiormq.abc import AbstractChannel, DeliveredMessage

from taskherd.broker.delivery import DecodedDelivery, Delivery, RawDelivery
from taskherd.broker.patches import frame_reader

Receive = Callable[[Delivery], None]


class DeliveryDispatcher:
    """The receivers of one channel's deliveries, by consumer tag."""

    def __init__(self, channel: AbstractChannel) -> None:
        self._receivers: dict[bytes, Receive] = {}
        if frame_reader.applies():
            self._enqueue = channel.frames.put
            channel.frames.put = self._put  # type: ignore[method-assign]

    def register(self, consumer_tag: str, receive: Receive) -> Callable[[DeliveredMessage], Coroutine[Any, Any, None]]:
        """Pass the deliveries for ``consumer_tag`` to ``receive``, and return the callback to consume with.

        aiormq calls the callback only where ``FrameReader`` is not installed. It has to stay as short as this: aiormq
        cancels callbacks when the connection drops.
        """
        self._receivers[consumer_tag.encode()] = receive

        async def on_message(message: DeliveredMessage) -> None:
            receive(DecodedDelivery(message))

        return on_message

    async def _put(self, item: tuple[int, Any]) -> None:
        frame = item[1]
        if type(frame) is RawDelivery:
            self._receivers[frame.consumer_tag](frame)
        elif frame is not frame_reader.BODY_CONTINUES:
            await self._enqueue(item)
