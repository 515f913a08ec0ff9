"""Server-sent events: a response that ends with its frames or when the client disconnects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

from starlette.responses import Response

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

_HEADERS: Final = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # otherwise nginx buffers the events
}


class EventStream(Response):
    """A response that sends frames as they are generated, and always closes their generator."""

    def __init__(self, frames: AsyncGenerator[bytes, None]) -> None:
        super().__init__(status_code=200, headers=_HEADERS)
        del self.headers["content-length"]
        self._frames = frames

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the frames end or the client disconnects."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        sending = asyncio.create_task(self._send_frames(send, head_only=scope["method"] == "HEAD"))
        disconnect = asyncio.create_task(_wait_disconnect(receive))
        try:
            await asyncio.wait({sending, disconnect}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sending.cancel()
            disconnect.cancel()
            results = await asyncio.gather(sending, disconnect, return_exceptions=True)
        if isinstance(results[0], Exception):
            raise results[0]

    async def _send_frames(self, send: Send, *, head_only: bool) -> None:
        async with aclosing(self._frames) as frames:
            if not head_only:
                async for part in frames:
                    await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def _wait_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue
