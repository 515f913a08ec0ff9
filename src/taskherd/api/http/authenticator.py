"""Authentication of users by token, with a cache.

A token is looked up in the database, and the result is cached for ``CACHE_TTL``. The cache is keyed by the token's id
and holds the stored hash, with which the secret of every request is compared. The revocation or expiry of a token and
the deactivation of its user take effect within that time.

A client that guesses tokens is not to cause a lookup for each guess, yet the valid tokens of others behind its address
are to pass. ``is_known`` therefore compares a token with those that this process has seen valid, and with a snapshot of
the valid tokens, which is read at most every ``SNAPSHOT_INTERVAL``, however many guesses there are.
"""

from __future__ import annotations

import asyncio
import hmac
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from uuid import UUID

from taskherd.api.http.sign_in_failures import SignInFailure
from taskherd.store import tokens
from taskherd.store.engine import transaction

if TYPE_CHECKING:
    from taskherd.api.http.user_tokens import ParsedToken
    from taskherd.store import AsyncEngine
    from taskherd.store.read_pool import ReadPool

CACHE_TTL: Final = 1.0
"""Seconds for which the result of a token lookup is cached."""
MAX_CACHED: Final = 10_000
SNAPSHOT_INTERVAL: Final = 5.0
"""Minimum number of seconds between two reads of all valid tokens."""
MAX_SNAPSHOT: Final = 20_000
"""Maximum number of tokens in a snapshot: those that were used or created last."""
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


@dataclass(frozen=True, slots=True)
class _InvalidToken:
    """A token that exists and is not valid."""

    reason: SignInFailure
    secret_hash: bytes = field(repr=False)


class Authenticator:
    """Authentication of users by token; ``now`` is a monotonic clock in seconds."""

    def __init__(self, reader: ReadPool, now: Callable[[], float]) -> None:
        self._reader = reader
        self._now = now
        self._cache: OrderedDict[str, _CachedToken] = OrderedDict()
        self._lookups: dict[str, asyncio.Task[_CachedToken | _InvalidToken | None]] = {}
        self._snapshot: dict[str, bytes] = {}
        self._snapshot_at = -SNAPSHOT_INTERVAL
        self._reading: asyncio.Task[None] | None = None
        self._used_at: dict[str, float] = {}

    def cached(self, token: ParsedToken) -> Caller | None:
        """Return the user of this token if it is cached and valid."""
        cached = self._cache.get(token.id)
        if cached is None or self._now() >= cached.valid_until:
            return None
        return self._verify(cached, token)

    async def is_known(self, token: ParsedToken) -> bool:
        """Return whether this token was valid a short time ago. This costs no lookup of the token.

        Raise ``Unavailable`` if the snapshot must be read and the database cannot be reached.
        """
        cached = self._cache.get(token.id)
        if cached is not None:
            return hmac.compare_digest(cached.secret_hash, token.secret_hash)
        if self._now() - self._snapshot_at >= SNAPSHOT_INTERVAL:
            if self._reading is None:
                self._reading = asyncio.create_task(self._read_snapshot())
            await asyncio.shield(self._reading)
        return hmac.compare_digest(self._snapshot.get(token.id, b""), token.secret_hash)

    async def authenticate(self, token: ParsedToken) -> Caller | SignInFailure:
        """Return the user of this token, or why it is not valid: unknown unless its secret is right.

        Raise ``Unavailable`` if the database cannot be reached.
        """
        caller = self.cached(token)
        if caller is not None:
            return caller
        found = await self._look_up_once(token.id)
        if isinstance(found, _InvalidToken):
            is_right = hmac.compare_digest(found.secret_hash, token.secret_hash)
            return found.reason if is_right else SignInFailure.UNKNOWN
        caller = None if found is None else self._verify(found, token)
        return caller or SignInFailure.UNKNOWN

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

    async def _look_up_once(self, token_id: str) -> _CachedToken | _InvalidToken | None:
        """Look the token up; concurrent requests with the same token share one query."""
        lookup = self._lookups.get(token_id)
        if lookup is None:
            lookup = self._lookups[token_id] = asyncio.create_task(self._look_up(token_id))
            lookup.add_done_callback(lambda _: self._lookups.pop(token_id, None))
        return await asyncio.shield(lookup)

    async def _look_up(self, token_id: str) -> _CachedToken | _InvalidToken | None:
        started = self._now()
        row = await self._reader.fetch_one(tokens.HOLDER, token_id)
        if row is None:
            self._cache.pop(token_id, None)
            return None
        secret_hash, user_id, username, expires_in, problem, issued = row
        if problem is None and issued:
            backed = await self._reader.fetch_one(tokens.BACKED, token_id)
            problem = None if backed is not None and backed["backed"] else SignInFailure.REVOKED
        if problem is not None:
            self._cache.pop(token_id, None)
            return _InvalidToken(SignInFailure(problem), secret_hash)
        valid_until = started + (CACHE_TTL if expires_in is None else min(CACHE_TTL, expires_in))
        cached = _CachedToken(Caller(user_id, username, token_id), secret_hash, valid_until)
        self._cache.pop(token_id, None)
        while len(self._cache) >= MAX_CACHED:
            self._cache.popitem(last=False)
        self._cache[token_id] = cached
        return cached

    async def _read_snapshot(self) -> None:
        try:
            rows = await self._reader.fetch(tokens.VALID_HASHES, MAX_SNAPSHOT)
            self._snapshot = dict(map(tuple, rows))
        finally:
            self._snapshot_at = self._now()
            self._reading = None
