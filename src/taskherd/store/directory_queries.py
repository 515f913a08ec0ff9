"""Queries of the directory on behalf of a caller: users, organizations and templates of the caller's organizations.

The statements are for ``ReadPool``; ``$1`` is always the caller. Deactivated entries are neither listed nor found by
name. Template versions are found by id even then, because tasks refer to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from taskherd.store.read_pool import Reader, Row

_USERS: Final = """
SELECT u.id, u.username, u.name, u.email, u.avatar_url, ARRAY(
    SELECT o.id FROM memberships AS b JOIN memberships AS a USING (organization_id)
    JOIN organizations AS o ON o.id = b.organization_id
    WHERE b.user_id = u.id AND b.active AND a.user_id = $1 AND a.active AND o.active ORDER BY lower(o.name)
) AS organization_ids
FROM users AS u
WHERE u.active AND (u.id = $1 OR EXISTS (
    SELECT 1 FROM memberships AS b JOIN memberships AS a USING (organization_id)
    WHERE b.user_id = u.id AND b.active AND a.user_id = $1 AND a.active))
"""
USERS: Final = f"""{_USERS}
AND ($2::bigint IS NULL OR u.github_com_user_id = $2)
AND ($3::text IS NULL OR strpos(lower(u.username), $3) > 0 OR strpos(lower(u.email), $3) > 0)
ORDER BY lower(u.username) LIMIT $4
"""

_IS_MEMBER: Final = """EXISTS (
    SELECT 1 FROM memberships AS a WHERE a.user_id = $1 AND a.organization_id = o.id AND a.active)"""

_ORGANIZATIONS: Final = f"""
SELECT o.id, o.name, o.display_name FROM organizations AS o WHERE o.active AND {_IS_MEMBER}"""
ORGANIZATIONS_OF: Final = f"""{_ORGANIZATIONS} AND EXISTS (
    SELECT 1 FROM memberships AS b WHERE b.user_id = $2 AND b.organization_id = o.id AND b.active)
ORDER BY lower(o.name) <> 'default', lower(o.name)
"""

_TEMPLATES: Final = f"""
SELECT t.id, t.name, t.display_name, t.description, t.icon, t.active_version_id, o.id AS organization_id,
       o.name AS organization_name, o.display_name AS organization_display_name
FROM templates AS t JOIN organizations AS o ON o.id = t.organization_id
WHERE t.active AND o.active AND {_IS_MEMBER}
"""
TEMPLATES: Final = f"""{_TEMPLATES}
AND ($2::uuid IS NULL OR o.id = $2)
AND ($3::text IS NULL OR lower(t.name) = $3)
AND ($4::text IS NULL OR strpos(lower(t.name), $4) > 0 OR strpos(lower(t.display_name), $4) > 0)
ORDER BY lower(t.name), o.id LIMIT $5
"""

_VERSIONS: Final = f"""
SELECT v.id, v.name, v.active, t.id AS template_id, t.name AS template_name, t.display_name AS template_display_name,
       t.icon AS template_icon, t.active_version_id, o.id AS organization_id
FROM template_versions AS v JOIN templates AS t ON t.id = v.template_id
JOIN organizations AS o ON o.id = t.organization_id
WHERE {_IS_MEMBER}
"""
VERSION: Final = f"{_VERSIONS} AND v.id = $2"
VERSION_OF: Final = f"{_VERSIONS} AND v.active AND t.id = $2 AND lower(v.name) = lower($3)"

# A version without presets gives one row with nulls, a version that does not exist gives none.
PRESETS: Final = f"""
SELECT p.id, p.name, p.is_default, CAST(p.parameters AS text) AS parameters
FROM ({_VERSIONS} AND v.id = $2) AS v LEFT JOIN presets AS p ON p.template_version_id = v.id AND p.active
ORDER BY NOT p.is_default, lower(p.name)
"""


@dataclass(frozen=True, slots=True)
class UserFilter:
    """The users to list: by GitHub account, or by a lowercase part of their username or email address."""

    limit: int
    github_com_user_id: int | None = None
    search: str | None = None


@dataclass(frozen=True, slots=True)
class TemplateFilter:
    """The templates to list: by organization, by lowercase name, or by a lowercase part of the name or display name."""

    limit: int
    organization: UUID | None = None
    name: str | None = None
    part: str | None = None


async def users(pool: Reader, caller: UUID, criteria: UserFilter) -> Sequence[Row]:
    """Return the caller and the users who share an organization with the caller, by name."""
    return await pool.fetch(USERS, caller, criteria.github_com_user_id, criteria.search, criteria.limit)


async def user(pool: Reader, caller: UUID, user: UUID | str) -> Row | None:
    """Return one of these users, by id or username."""
    return await pool.fetch_one(f"{_USERS} AND {_matches('u', 'username', user)}", caller, user)


async def organization(pool: Reader, caller: UUID, id_or_name: UUID | str) -> Row | None:
    """Return one of the caller's organizations, by id or name."""
    return await pool.fetch_one(f"{_ORGANIZATIONS} AND {_matches('o', 'name', id_or_name)}", caller, id_or_name)


async def organizations_of(pool: Reader, caller: UUID, user_id: UUID) -> Sequence[Row]:
    """Return the organizations that this user and the caller share, one named ``default`` first."""
    return await pool.fetch(ORGANIZATIONS_OF, caller, user_id)


async def templates(pool: Reader, caller: UUID, criteria: TemplateFilter) -> Sequence[Row]:
    """Return templates of the caller's organizations, by name."""
    return await pool.fetch(TEMPLATES, caller, criteria.organization, criteria.name, criteria.part, criteria.limit)


async def template(pool: Reader, caller: UUID, organization_id: UUID, id_or_name: UUID | str) -> Row | None:
    """Return a template of one of the caller's organizations, by id or name."""
    statement = f"{_TEMPLATES} AND o.id = $2 AND {_matches('t', 'name', id_or_name, '$3')}"
    return await pool.fetch_one(statement, caller, organization_id, id_or_name)


async def template_by_id(pool: Reader, caller: UUID, template_id: UUID) -> Row | None:
    """Return a template of any of the caller's organizations."""
    return await pool.fetch_one(f"{_TEMPLATES} AND t.id = $2", caller, template_id)


async def version(pool: Reader, caller: UUID, version_id: UUID) -> Row | None:
    """Return a template version of one of the caller's organizations, active or not."""
    return await pool.fetch_one(VERSION, caller, version_id)


async def version_of(pool: Reader, caller: UUID, template_id: UUID, name: str) -> Row | None:
    """Return the active version of this name of a template."""
    return await pool.fetch_one(VERSION_OF, caller, template_id, name)


async def presets(pool: Reader, caller: UUID, version_id: UUID) -> Sequence[Row] | None:
    """Return the presets of a version, the default first, or None if the caller may not see such a version."""
    rows = await pool.fetch(PRESETS, caller, version_id)
    return [row for row in rows if row["id"] is not None] if rows else None


def _matches(table: str, column: str, id_or_name: UUID | str, placeholder: str = "$2") -> str:
    if isinstance(id_or_name, UUID):
        return f"{table}.id = {placeholder}"
    return f"lower({table}.{column}) = lower({placeholder})"
