"""API tokens of users and their tools, ``id-secret``; only the SHA-256 of the secret is stored.

A token that was issued over HTTP counts only while the token with which it was requested does, and while who requested
it may hold it: ``issued_from`` and ``issued_by``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A token without its secret.

    ``state`` is ``active``, or why the token is not valid. It is so for good if it is ``revoked``, or one from which it
    was issued has ended, or ``expired``; but ``deactivated`` until its user is reactivated, and ``suspended`` until who
    requested it may hold it again.
    """

    id: str
    username: str
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    state: str


MAX_DEPTH: Final = 8
"""Maximum number of tokens from which a token was issued, one from the other: each costs every lookup of it."""


def _may_issue_for(issuer: str, user: str) -> str:
    """Return the condition that a user, given as SQL, may hold a token of another one.

    That needs an admin of every organization of the other user, so that it opens nothing that is closed to the admin.
    As scalar subqueries this leaves the planner a single plan, lookups by primary key.
    """
    return f"""COALESCE((
    SELECT bool_and(COALESCE((
        SELECT a.role = 'admin' AND a.active
        FROM memberships AS a WHERE a.user_id = {issuer} AND a.organization_id = b.organization_id), false))
    FROM memberships AS b WHERE b.user_id = {user} AND b.active), false)"""


# Lookups by primary key for each token from which this one was issued, and none for others.
_IS_BACKED: Final = f"""(k.issued_from IS NULL OR NOT EXISTS (
    WITH RECURSIVE links AS (
        SELECT k.issued_from, k.issued_by, k.user_id, true AS valid
        UNION ALL
        SELECT p.issued_from, p.issued_by, p.user_id,
               p.revoked_at IS NULL AND (p.expires_at IS NULL OR p.expires_at > now()) AND h.active
        FROM links AS l JOIN api_tokens AS p ON p.id = l.issued_from JOIN users AS h ON h.id = p.user_id
        WHERE l.valid
    )
    SELECT FROM links AS l
    WHERE NOT l.valid OR l.issued_by <> l.user_id AND NOT {_may_issue_for("l.issued_by", "l.user_id")}))"""
"""All tokens from which the token ``k`` was issued are valid, and who issued it may still hold it."""

# As many lookups by primary key.
_PARENT_ENDED: Final = """EXISTS (
    WITH RECURSIVE links AS (
        SELECT k.issued_from, false AS ended
        UNION ALL
        SELECT p.issued_from, p.revoked_at IS NOT NULL OR p.expires_at <= now()
        FROM links AS l JOIN api_tokens AS p ON p.id = l.issued_from
    )
    SELECT FROM links AS l WHERE l.ended)"""
"""A token from which the token ``k`` was issued was revoked or has expired."""

IS_VALID: Final = f"""k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now()) AND u.active
    AND {_IS_BACKED}"""
"""The token ``k`` of the user ``u`` is valid."""

# For ``ReadPool``. ``holds``: the remaining lifetime in seconds, by the database clock, which also set the expiry;
# ``problem``: why the token is not valid, or null. For one that was issued from another (``issued``) that is not all:
# see ``BACKED``. Most were not, and wait for no lock of a table that they have nothing to do with.
HOLDER: Final = """
SELECT k.secret_hash, u.id, u.username, extract(epoch FROM k.expires_at - now())::float8 AS holds,
       CASE WHEN k.revoked_at IS NOT NULL THEN 'revoked' WHEN k.expires_at <= now() THEN 'expired'
            WHEN NOT u.active THEN 'deactivated' END AS problem, k.issued_from IS NOT NULL AS issued
FROM api_tokens AS k JOIN users AS u ON u.id = k.user_id
WHERE k.id = $1
"""

BACKED: Final = f"SELECT {_IS_BACKED} AS backed FROM api_tokens AS k WHERE k.id = $1"

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

# The token ends no later than the one with which it was requested, also when that is revoked: see ``_IS_BACKED``.
ISSUE: Final = text(f"""
INSERT INTO api_tokens (id, user_id, secret_hash, expires_at, issued_from, issued_by)
SELECT :id, o.id, :secret_hash, least(now() + CAST(:lifetime AS interval), k.expires_at), k.id, u.id
FROM api_tokens AS k JOIN users AS u ON u.id = k.user_id JOIN users AS o ON o.id = :user_id AND o.active
WHERE k.id = :presented AND {IS_VALID} AND (o.id = u.id OR {_may_issue_for("u.id", "o.id")})
RETURNING user_id
""")

VALID: Final = text(f"SELECT {IS_VALID} FROM api_tokens AS k JOIN users AS u ON u.id = k.user_id WHERE k.id = :id")

COUNT_VALID: Final = text(f"""
SELECT count(*) FROM api_tokens AS k JOIN users AS u ON u.id = k.user_id WHERE k.user_id = :user_id AND {IS_VALID}
""")

COUNT_KEPT: Final = text(f"""
SELECT count(*) FROM api_tokens AS k
WHERE k.user_id = ANY(CAST(:user_ids AS uuid[])) AND k.revoked_at IS NULL
  AND (k.expires_at IS NULL OR k.expires_at > now()) AND NOT {_PARENT_ENDED}
""")

DEPTH: Final = text("""
WITH RECURSIVE links AS (
    SELECT issued_from FROM api_tokens WHERE id = :id
    UNION ALL
    SELECT p.issued_from FROM links AS l JOIN api_tokens AS p ON p.id = l.issued_from
)
SELECT count(issued_from) FROM links
""")

LIST: Final = text(f"""
SELECT k.id, u.username, k.created_at, k.expires_at, k.last_used_at,
       CASE WHEN k.revoked_at IS NOT NULL THEN 'revoked' WHEN k.expires_at <= now() THEN 'expired'
            WHEN {_PARENT_ENDED} THEN 'revoked' WHEN NOT u.active THEN 'deactivated'
            WHEN NOT {_IS_BACKED} THEN 'suspended' ELSE 'active' END
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

PRUNE: Final = text("SELECT taskherd_prune_tokens(:before, :limit)")


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
    """A token of a user to issue on behalf of who presented the token ``presented``."""

    id: str
    secret_hash: bytes
    user_id: UUID
    presented: str


async def issue(connection: AsyncConnection, token: NewToken, lifetime: timedelta) -> bool:
    """Store a token of a user for who presented another one.

    Return False if there is no such user for whom that holder may, or if the presented token is not valid.
    """
    values = {
        "id": token.id,
        "secret_hash": token.secret_hash,
        "user_id": token.user_id,
        "presented": token.presented,
        "lifetime": lifetime,
    }
    return (await connection.execute(ISSUE, values)).scalar_one_or_none() is not None


async def is_valid(connection: AsyncConnection, token_id: str) -> bool:
    """Return whether a token is valid."""
    return bool((await connection.execute(VALID, {"id": token_id})).scalar_one_or_none())


async def count_valid(connection: AsyncConnection, user_id: UUID) -> int:
    """Return how many tokens of a user are valid."""
    return int((await connection.execute(COUNT_VALID, {"user_id": user_id})).scalar_one())


async def count_kept(connection: AsyncConnection, user_ids: Collection[UUID]) -> int:
    """Return how many tokens of users have not ended for good, whether these users are active or not."""
    return int((await connection.execute(COUNT_KEPT, {"user_ids": list(user_ids)})).scalar_one())


async def depth(connection: AsyncConnection, token_id: str) -> int:
    """Return from how many tokens a token was issued, one from the other."""
    return int((await connection.execute(DEPTH, {"id": token_id})).scalar_one())


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


async def prune(connection: AsyncConnection, before: datetime, limit: int) -> int:
    """Delete up to ``limit`` tokens that were revoked or expired before ``before``, with those issued from them.

    Return the number deleted. One that may be valid again, as of a deactivated user, has not ended.
    """
    return int((await connection.execute(PRUNE, {"before": before, "limit": limit})).scalar_one())
