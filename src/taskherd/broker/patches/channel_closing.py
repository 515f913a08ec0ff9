"""Send Channel.Close once, also if closing a channel is given up before the broker has answered.

Library: aiormq, in the range that ``frame_reader`` supports.

Why: aiormq closes a channel whose request was cancelled or timed out. Where that request was the closing itself, it
sends a second Channel.Close. The broker has closed the channel by then, and closes the whole connection for it
("CHANNEL_ERROR - expected 'channel.open'"), so that all channels of the connection lose their deliveries.

Replaced: ``Channel.__close_after_failure``, which does nothing after a Channel.Close. The channel's number is free as
before, once the broker answers.

Gain: ``tests/broker/test_connection.py`` cancels the closing of 20 channels, and the connection stays; without the
patch, the first one of them costs the connection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from aiormq.channel import Channel
from pamqp.commands import Channel as ChannelMethods

from taskherd.broker.patches import frame_reader

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_METHOD: Final = "_Channel__close_after_failure"
_close_after_failure: Final[Callable[[Channel, Any], Awaitable[None]] | None] = getattr(Channel, _METHOD, None)


def install() -> None:
    """Replace the method for the whole process, if aiormq's version is supported; idempotent."""
    if frame_reader.applies():
        setattr(Channel, _METHOD, _close_once)


async def _close_once(channel: Channel, request: Any) -> None:
    """Close a channel after a ``request`` on it has failed, unless that has closed it."""
    assert _close_after_failure is not None
    if not isinstance(request, ChannelMethods.Close):
        await _close_after_failure(channel, request)
