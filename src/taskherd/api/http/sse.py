"""Sending server-sent events: a response that ends when its frames do, or when whoever reads them has gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

from starlette.responses import Response

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

_HEAD: Final = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # nginx would hold events back otherwise
}


class EventStream(Response):
    """Frames as they come; the generator is closed in any case."""

    def __init__(self, frames: AsyncGenerator[bytes, None]) -> None:
        super().__init__(status_code=200, headers=_HEAD)
        del self.headers["content-length"]
        self._frames = frames

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the frames end or the reader has gone."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        pumping = asyncio.create_task(self._pump(send, bodiless=scope["method"] == "HEAD"))
        leaving = asyncio.create_task(_wait_disconnect(receive))
        try:
            await asyncio.wait({pumping, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            pumping.cancel()
            leaving.cancel()
            ended = await asyncio.gather(pumping, leaving, return_exceptions=True)
        if isinstance(ended[0], Exception):
            raise ended[0]

    async def _pump(self, send: Send, *, bodiless: bool) -> None:
        async with aclosing(self._frames) as frames:
            if not bodiless:
                async for part in frames:
                    await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def _wait_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue
