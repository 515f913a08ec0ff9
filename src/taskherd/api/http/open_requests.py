"""Access checks of open requests (streams, long polls, WebSockets), with one query for all of a process.

A request that stays open outlives the authentication at its start. While requests are open, ``AccessMonitor`` checks
every ``CHECK_INTERVAL`` whether their tokens are valid and their tasks visible, and ends those that have lost either.

While the database cannot answer, no data is sent once the latest check is older than ``MAX_CHECK_AGE``: changes come
from the same database, so there is hardly any. Requests stay open, to continue afterwards, for ``OUTAGE_GRACE``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Final

import structlog

from taskherd.api.http.authenticator import CACHE_TTL
from taskherd.errors import Retry, Unavailable
from taskherd.store import access_queries
from taskherd.store.access_queries import AccessKey

if TYPE_CHECKING:
    from uuid import UUID

    from taskherd.api.http.authenticator import Caller
    from taskherd.store.read_pool import ReadPool

log = structlog.get_logger(__name__)

CHECK_INTERVAL: Final = 1.0
"""Seconds between two checks of all open requests."""
MAX_CHECK_AGE: Final = 4.0
"""Maximum age in seconds of the check that allows to send data; with the sending it is less than five seconds."""
OUTAGE_GRACE: Final = 60.0
"""Seconds without a check after which a request is ended."""


class AccessLoss(StrEnum):
    """Why an open request has lost its access."""

    SIGNED_OUT = "signed out"
    """The token was revoked or has expired, or its user was deactivated."""
    NOT_VISIBLE = "task not visible"
    """The user may no longer see the task, for example after leaving its organization."""
    UNCHECKED = "not checked"
    """The database did not answer for ``OUTAGE_GRACE`` seconds."""


class OpenRequest:
    """A request that stays open, and the outcome of its latest access check."""

    def __init__(self, key: AccessKey, checked_at: float, now: Callable[[], float]) -> None:
        self.key = key
        self.checked_at = checked_at
        """When the latest successful check began, on the clock ``now``."""
        self.loss: AccessLoss | None = None
        self._now = now
        self._checked = asyncio.Event()
        self._lost = asyncio.Event()

    async def may_send(self) -> bool:
        """Return whether data may be sent, after waiting for the next check if the latest one is too old."""
        while self.loss is None and self._now() - self.checked_at > MAX_CHECK_AGE:
            self._checked.clear()
            await self._checked.wait()
        return self.loss is None

    async def next_check(self) -> None:
        """Wait for a check that begins after this call, or until the access is lost."""
        asked_at = self._now()
        while self.loss is None and self.checked_at < asked_at:
            self._checked.clear()
            await self._checked.wait()

    async def wait_lost(self) -> AccessLoss:
        """Wait until the access is lost."""
        await self._lost.wait()
        assert self.loss is not None
        return self.loss

    def record_check(self, checked_at: float) -> None:
        """Record that a check which began at ``checked_at`` allowed the request."""
        self.checked_at = checked_at
        self._checked.set()

    def end(self, loss: AccessLoss) -> None:
        """End the request."""
        self.loss = loss
        self._checked.set()
        self._lost.set()


class AccessMonitor:
    """All open requests of a process; ``now`` is a monotonic clock in seconds."""

    def __init__(self, reader: ReadPool, now: Callable[[], float]) -> None:
        self._reader = reader
        self._now = now
        self._requests: set[OpenRequest] = set()

    @contextmanager
    def watch(self, caller: Caller, task_id: UUID | None) -> Iterator[OpenRequest]:
        """Check the caller's token, and whether the caller may see the task if one is given, while the block runs."""
        key = AccessKey(caller.token_id, caller.user_id, task_id)
        request = OpenRequest(key, self._now() - CACHE_TTL, self._now)
        self._requests.add(request)
        try:
            yield request
        finally:
            self._requests.discard(request)

    async def run(self) -> None:
        """Check periodically, until cancelled."""
        while True:
            await asyncio.sleep(CHECK_INTERVAL)
            await self.check_once()

    async def check_once(self) -> None:
        """Check all open requests with one query, and end those that have lost their access."""
        requests = list(self._requests)
        if not requests:
            return
        started = self._now()
        try:
            lost = await access_queries.lost(self._reader, list({request.key for request in requests}))
        except (Unavailable, Retry) as error:
            log.warning("cannot check the access of open requests", requests=len(requests), reason=str(error))
            for request in requests:
                if self._now() - request.checked_at > OUTAGE_GRACE:
                    request.end(AccessLoss.UNCHECKED)
            return
        for request in requests:
            signed_in = lost.get(request.key)
            if signed_in is None:
                request.record_check(started)
            else:
                request.end(AccessLoss.NOT_VISIBLE if signed_in else AccessLoss.SIGNED_OUT)
                log.info("open request ended", reason=request.loss, user_id=str(request.key.user_id))
