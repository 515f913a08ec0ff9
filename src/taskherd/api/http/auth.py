"""Who asks: a token's holder, looked up in the database and believed for a second.

What is remembered is the token's id with the hash that the database has, so every request is compared with it. A
revoked token, a deactivated user and an expiry are noticed within that second.
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
    from taskherd.store.reader import Reader

CACHE_TTL: Final = 1.0
"""Seconds for which what the database said of a token is believed."""
MAX_CACHED: Final = 10_000
NOTE_USE_EVERY: Final = 30.0


@dataclass(frozen=True, slots=True)
class Caller:
    """A user, by the token that was presented."""

    user_id: UUID
    username: str
    token_id: str


@dataclass(frozen=True, slots=True)
class _Holder:
    caller: Caller
    secret_hash: bytes = field(repr=False)
    until: float


class Authenticator:
    """Finds out who asks; `now` is a monotonic clock in seconds."""

    def __init__(self, reader: Reader, now: Callable[[], float]) -> None:
        self._reader = reader
        self._now = now
        self._cache: OrderedDict[str, _Holder] = OrderedDict()
        self._asked: dict[str, asyncio.Task[_Holder | None]] = {}
        self._used: dict[str, float] = {}

    def cached(self, presented: ParsedToken) -> Caller | None:
        """Who presents this token, if that was looked up within the last second."""
        holder = self._cache.get(presented.id)
        if holder is None or self._now() >= holder.until:
            return None
        return self._checked(holder, presented)

    async def authenticate(self, presented: ParsedToken) -> Caller | None:
        """Who presents this token; None if it doesn't hold. Raises Unavailable."""
        caller = self.cached(presented)
        if caller is not None:
            return caller
        holder = await self._look_up(presented.id)
        return None if holder is None else self._checked(holder, presented)

    async def note_uses(self, engine: AsyncEngine) -> None:
        """Write down when tokens were last used, all that were since the last time. Raises Unavailable."""
        used, self._used = self._used, {}
        if used:
            async with transaction(engine) as connection:
                await tokens.record_use(connection, {each: self._now() - at for each, at in used.items()})

    def _checked(self, holder: _Holder, presented: ParsedToken) -> Caller | None:
        if not hmac.compare_digest(holder.secret_hash, presented.secret_hash):
            return None
        if len(self._used) < MAX_CACHED or presented.id in self._used:
            self._used[presented.id] = self._now()
        return holder.caller

    async def _look_up(self, token_id: str) -> _Holder | None:
        """Ask the database once, however many requests of one token wait for it."""
        asked = self._asked.get(token_id)
        if asked is None:
            asked = self._asked[token_id] = asyncio.create_task(self._holder(token_id))
            asked.add_done_callback(lambda _: self._asked.pop(token_id, None))
        return await asyncio.shield(asked)

    async def _holder(self, token_id: str) -> _Holder | None:
        began = self._now()
        row = await self._reader.fetch_one(tokens.HOLDER, token_id)
        if row is None:
            self._cache.pop(token_id, None)
            return None
        secret_hash, user_id, username, holds = row
        until = began + (CACHE_TTL if holds is None else min(CACHE_TTL, holds))
        holder = _Holder(Caller(user_id, username, token_id), secret_hash, until)
        while len(self._cache) >= MAX_CACHED:
            self._cache.popitem(last=False)
        self._cache[token_id] = holder
        return holder
