"""A limit on the bytes of large responses that clients have not read yet: they are in memory until then."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from taskherd.api.http.errors import unavailable

if TYPE_CHECKING:
    from uuid import UUID

    from starlette.types import Send

SMALL: Final = 64 * 1024
"""Size in bytes of a body up to which it is not counted: the server writes no more than that ahead of its client."""
MOST: Final = 128 * 1024 * 1024
MOST_OF_USER: Final = MOST // 4
"""Number of unread bytes of one process, of all users and of one."""
WAIT: Final = 0.5
"""Seconds within which others must have been read, or a response is refused."""
TOO_MANY: Final = "Too many large responses have not been read yet."


class UnreadResponses:
    """The unread bytes of the large responses of one process, by user."""

    def __init__(self) -> None:
        self._bytes: Counter[UUID] = Counter()
        self._freed = asyncio.Event()

    @asynccontextmanager
    async def hold(self, user_id: UUID, size: int, *, may_refuse: bool = True) -> AsyncIterator[None]:
        """Count a response of ``size`` bytes while the block sends it. Raise a 503 if there is no room in time.

        One that is the only one of its user has room in the user's share, however large it is.
        """
        if may_refuse:
            await self._wait_for_room(user_id, size)
        self._bytes[user_id] += size
        try:
            yield
        finally:
            self._bytes[user_id] -= size
            if not self._bytes[user_id]:
                del self._bytes[user_id]
            freed, self._freed = self._freed, asyncio.Event()
            freed.set()

    async def _wait_for_room(self, user_id: UUID, size: int) -> None:
        try:
            async with asyncio.timeout(WAIT):
                while not self._has_room(user_id, size):
                    await self._freed.wait()
        except TimeoutError:
            raise unavailable(TOO_MANY) from None

    def _has_room(self, user_id: UUID, size: int) -> bool:
        of_user = self._bytes[user_id]  # a Counter adds nothing when it is read
        return self._bytes.total() + size <= MOST and (not of_user or of_user + size <= MOST_OF_USER)


async def send_and_wait(send: Send, body: bytes) -> None:
    """Send a part of a body, and return once the client has read almost all of it, or its connection is lost.

    A client that does not read it in ``http_protocol.STUCK_AFTER`` loses its connection.
    """
    await send({"type": "http.response.body", "body": body, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": True})
