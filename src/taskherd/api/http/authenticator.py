"""Authentication of users by token, with a cache.

A token is looked up in the database, and the result is cached for ``CACHE_TTL``. The cache is keyed by the token's id
and holds the stored hash, with which the secret of every request is compared. The revocation or expiry of a token and
the deactivation of its user take effect within that time.
"""

from __future__ import annotations

import asyncio
import hmac
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from uuid import UUID

from taskherd.store import tokens
from taskherd.store.engine import transaction

if TYPE_CHECKING:
    from taskherd.api.http.user_tokens import ParsedToken
    from taskherd.store import AsyncEngine
    from taskherd.store.read_pool import ReadPool

CACHE_TTL: Final = 1.0
"""Seconds for which the result of a token lookup is cached."""
MAX_CACHED: Final = 10_000
NOTE_USE_INTERVAL: Final = 30.0
"""Seconds between two writes of the last-used times of tokens."""


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated user."""

    user_id: UUID
    username: str
    token_id: str


@dataclass(frozen=True, slots=True)
class _CachedToken:
    caller: Caller
    secret_hash: bytes = field(repr=False)
    valid_until: float


class Authenticator:
    """Authentication of users by token; ``now`` is a monotonic clock in seconds."""

    def __init__(self, reader: ReadPool, now: Callable[[], float]) -> None:
        self._reader = reader
        self._now = now
        self._cache: OrderedDict[str, _CachedToken] = OrderedDict()
        self._lookups: dict[str, asyncio.Task[_CachedToken | None]] = {}
        self._used_at: dict[str, float] = {}

    def cached(self, token: ParsedToken) -> Caller | None:
        """Return the user of this token if it is cached and valid."""
        cached = self._cache.get(token.id)
        if cached is None or self._now() >= cached.valid_until:
            return None
        return self._verify(cached, token)

    async def authenticate(self, token: ParsedToken) -> Caller | None:
        """Return the user of this token, or None if it is not valid.

        Raise ``Unavailable`` if the database cannot be reached.
        """
        caller = self.cached(token)
        if caller is not None:
            return caller
        cached = await self._look_up_once(token.id)
        return None if cached is None else self._verify(cached, token)

    async def note_uses(self, engine: AsyncEngine) -> None:
        """Store the last-used times of all tokens used since the previous call.

        Raise ``Unavailable`` if the database cannot be reached; these times are lost then.
        """
        used_at, self._used_at = self._used_at, {}
        if used_at:
            async with transaction(engine) as connection:
                await tokens.record_use(connection, {each: self._now() - at for each, at in used_at.items()})

    def _verify(self, cached: _CachedToken, token: ParsedToken) -> Caller | None:
        if not hmac.compare_digest(cached.secret_hash, token.secret_hash):
            return None
        if len(self._used_at) < MAX_CACHED or token.id in self._used_at:
            self._used_at[token.id] = self._now()
        return cached.caller

    async def _look_up_once(self, token_id: str) -> _CachedToken | None:
        """Look the token up; concurrent requests with the same token share one query."""
        lookup = self._lookups.get(token_id)
        if lookup is None:
            lookup = self._lookups[token_id] = asyncio.create_task(self._look_up(token_id))
            lookup.add_done_callback(lambda _: self._lookups.pop(token_id, None))
        return await asyncio.shield(lookup)

    async def _look_up(self, token_id: str) -> _CachedToken | None:
        started = self._now()
        row = await self._reader.fetch_one(tokens.HOLDER, token_id)
        if row is None:
            self._cache.pop(token_id, None)
            return None
        secret_hash, user_id, username, expires_in = row
        valid_until = started + (CACHE_TTL if expires_in is None else min(CACHE_TTL, expires_in))
        cached = _CachedToken(Caller(user_id, username, token_id), secret_hash, valid_until)
        while len(self._cache) >= MAX_CACHED:
            self._cache.popitem(last=False)
        self._cache[token_id] = cached
        return cached
