"""Server-sent events: a response that ends with its frames, when the client disconnects or when it loses its access."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Final

import structlog
from starlette.responses import Response

from taskherd.api.http import unread
from taskherd.api.http.errors import HTTPError

if TYPE_CHECKING:
    from uuid import UUID

    from starlette.types import Receive, Scope, Send

    from taskherd.api.context import RequestContext
    from taskherd.api.http.open_requests import OpenRequest

log = structlog.get_logger(__name__)

COMMENT: Final = b": keep-alive\n\n"
PING: Final = b"event: ping\n\n"
_WITHOUT_DATA: Final = frozenset({COMMENT, PING})
"""Frames that keep a connection open, also while the client's access cannot be checked."""
_END_TIMEOUT: Final = 1.0
"""Seconds within which a client that has lost its access must take the last frame."""

_HEADERS: Final = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # otherwise nginx buffers the events
}


class EventStream(Response):
    """A response that sends frames as they are generated, and always closes their generator.

    Args:
        frames: the frames.
        task_id: the task that the caller must be able to see, if the stream is about one task.
        last: the frame that ends the stream if the caller loses its access.
    """

    def __init__(
        self,
        request: RequestContext,
        frames: AsyncGenerator[bytes, None],
        *,
        task_id: UUID | None,
        last: bytes = b"",
    ) -> None:
        super().__init__(status_code=200, headers=_HEADERS)
        del self.headers["content-length"]
        self._request = request
        self._frames = frames
        self._task_id = task_id
        self._last = last
        self._sent_all = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the frames end, the client disconnects or the caller loses its access."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        with self._request.api.access.watch(self._request.caller, self._task_id) as access:
            sending = asyncio.create_task(self._send_frames(send, access, head_only=scope["method"] == "HEAD"))
            disconnect = asyncio.create_task(_wait_disconnect(receive))
            lost = asyncio.create_task(access.wait_lost())
            try:
                await asyncio.wait({sending, disconnect, lost}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for each in (sending, disconnect, lost):
                    each.cancel()
                results = await asyncio.gather(sending, disconnect, lost, return_exceptions=True)
        if isinstance(results[0], Exception):
            raise results[0]
        if access.loss is not None and not self._sent_all:
            with suppress(TimeoutError):
                async with asyncio.timeout(_END_TIMEOUT):
                    await send({"type": "http.response.body", "body": self._last})

    async def _send_frames(self, send: Send, access: OpenRequest, *, head_only: bool) -> None:
        async with aclosing(self._frames) as frames:
            if not head_only:
                async for part in frames:
                    if part not in _WITHOUT_DATA and not await access.may_send():
                        return
                    if not await self._send_part(send, part):
                        break
        self._sent_all = True
        await send({"type": "http.response.body", "body": b""})

    async def _send_part(self, send: Send, part: bytes) -> bool:
        """Send a part, or the last frame instead of a large one while too much has not been read yet; return which."""
        if len(part) <= unread.SMALL:
            await send({"type": "http.response.body", "body": part, "more_body": True})
            return True
        try:
            async with self._request.api.unread.hold(self._request.caller.user_id, len(part)):
                await unread.send_and_wait(send, part)
        except HTTPError:
            log.info("stream ended, client must resume", reason=unread.TOO_MANY)
            await send({"type": "http.response.body", "body": self._last, "more_body": True})
            return False
        return True


async def _wait_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue
