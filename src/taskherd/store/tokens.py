"""API tokens of users and their tools, ``id-secret``; only the SHA-256 of the secret is stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A token without its secret; ``state`` is ``active``, ``expired`` or ``revoked``."""

    id: str
    username: str
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    state: str


IS_VALID: Final = "k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now()) AND u.active"
"""The token ``k`` of the user ``u`` is valid."""

# For ``ReadPool``. ``holds``: the remaining lifetime in seconds, by the database clock, which also set the expiry;
# ``problem``: why the token is not valid, or null.
HOLDER: Final = """
SELECT k.secret_hash, u.id, u.username, extract(epoch FROM k.expires_at - now())::float8 AS holds,
       CASE WHEN k.revoked_at IS NOT NULL THEN 'revoked' WHEN k.expires_at <= now() THEN 'expired'
            WHEN NOT u.active THEN 'deactivated' END AS problem
FROM api_tokens AS k JOIN users AS u ON u.id = k.user_id
WHERE k.id = $1
"""

VALID_HASHES: Final = f"""
SELECT k.id, k.secret_hash
FROM api_tokens AS k JOIN users AS u ON u.id = k.user_id
WHERE {IS_VALID}
ORDER BY greatest(k.created_at, k.last_used_at) DESC
LIMIT $1
"""

ADD: Final = text("""
INSERT INTO api_tokens (id, user_id, secret_hash, expires_at)
SELECT :id, u.id, :secret_hash, now() + CAST(:lifetime AS interval)
FROM users AS u WHERE lower(u.username) = lower(:username) AND u.active
RETURNING user_id
""")

# A token for somebody else needs an admin of every organization of that user, so that it opens
# nothing that was closed to the admin. It ends no later than the token with which it was requested.
ISSUE: Final = text("""
INSERT INTO api_tokens (id, user_id, secret_hash, expires_at)
SELECT :id, u.id, :secret_hash, least(now() + CAST(:lifetime AS interval), k.expires_at)
FROM users AS u JOIN api_tokens AS k ON k.id = :presented
WHERE u.id = :user_id AND u.active
  AND (u.id = :caller OR EXISTS (SELECT 1 FROM memberships AS b WHERE b.user_id = u.id AND b.active)
       AND NOT EXISTS (
           SELECT 1 FROM memberships AS b WHERE b.user_id = u.id AND b.active AND NOT EXISTS (
               SELECT 1 FROM memberships AS a WHERE a.user_id = :caller AND a.organization_id = b.organization_id
               AND a.role = 'admin' AND a.active)))
RETURNING user_id
""")

VALID: Final = text("""
SELECT count(*) FROM api_tokens
WHERE user_id = :user_id AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())
""")

LIST: Final = text("""
SELECT k.id, u.username, k.created_at, k.expires_at, k.last_used_at,
       CASE WHEN k.revoked_at IS NOT NULL OR NOT u.active THEN 'revoked'
            WHEN k.expires_at <= now() THEN 'expired' ELSE 'active' END
FROM api_tokens AS k JOIN users AS u ON u.id = k.user_id
WHERE CAST(:username AS text) IS NULL OR lower(u.username) = lower(:username)
ORDER BY k.created_at DESC, k.id
LIMIT :limit
""")

REVOKE: Final = text("UPDATE api_tokens SET revoked_at = now() WHERE id = :id AND revoked_at IS NULL RETURNING id")

RECORD_USE: Final = text("""
UPDATE api_tokens AS k SET last_used_at = now() - make_interval(secs => uses.seconds_ago)
FROM unnest(CAST(:ids AS text[]), CAST(:seconds_ago AS float8[])) AS uses(id, seconds_ago)
WHERE k.id = uses.id
""")


async def add(
    connection: AsyncConnection, token_id: str, secret_hash: bytes, username: str, lifetime: timedelta | None
) -> UUID | None:
    """Store a token of an active user, which never expires without a ``lifetime``.

    Return the user's id, or None if there is no such user.
    """
    values = {"id": token_id, "secret_hash": secret_hash, "username": username, "lifetime": lifetime}
    user_id: UUID | None = (await connection.execute(ADD, values)).scalar_one_or_none()
    return user_id


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token to issue on behalf of ``caller``, who presented the token ``presented``."""

    id: str
    secret_hash: bytes
    user_id: UUID
    caller: UUID
    presented: str


async def issue(connection: AsyncConnection, token: NewToken, lifetime: timedelta) -> bool:
    """Store a token of a user for the caller. Return False if there is no such user for whom the caller may."""
    values = {
        "id": token.id,
        "secret_hash": token.secret_hash,
        "user_id": token.user_id,
        "caller": token.caller,
        "presented": token.presented,
        "lifetime": lifetime,
    }
    return (await connection.execute(ISSUE, values)).scalar_one_or_none() is not None


async def count_valid(connection: AsyncConnection, user_id: UUID) -> int:
    """Return how many tokens of a user are valid."""
    return int((await connection.execute(VALID, {"user_id": user_id})).scalar_one())


async def list_tokens(connection: AsyncConnection, username: str | None, limit: int) -> list[TokenRow]:
    """Return up to ``limit`` tokens of one user or of all users, newest first."""
    return [TokenRow(*row) for row in await connection.execute(LIST, {"username": username, "limit": limit})]


async def revoke(connection: AsyncConnection, token_id: str) -> bool:
    """Revoke a token and return whether it existed and was not revoked yet."""
    return (await connection.execute(REVOKE, {"id": token_id})).scalar_one_or_none() is not None


async def record_use(connection: AsyncConnection, seconds_ago: Mapping[str, float]) -> None:
    """Store when tokens were last used, given as seconds ago by token id."""
    ids = sorted(seconds_ago)
    await connection.execute(RECORD_USE, {"ids": ids, "seconds_ago": [seconds_ago[token_id] for token_id in ids]})
