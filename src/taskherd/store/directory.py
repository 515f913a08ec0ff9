"""The directory as the worker reads it: names for task documents, and the entities that a create refers to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from taskherd.domain.directory import DirectoryNames, TemplatePool
from taskherd.store.directory_apply import AppliedChanges, apply, plan
from taskherd.store.directory_changes import DirectoryChanges, TooManyDeactivated

__all__ = [
    "AppliedChanges",
    "DirectoryChanges",
    "DirectoryNames",
    "Owner",
    "Preset",
    "TemplateVersion",
    "TooManyDeactivated",
    "VersionRun",
    "apply",
    "names",
    "owners",
    "plan",
    "revision",
    "runs",
    "template_pools",
    "template_versions",
]

Pair: TypeAlias = tuple[UUID, UUID]
"""An owner's id and a template version's id."""


@dataclass(frozen=True, slots=True)
class Owner:
    """A user; ``organizations`` are the active ones in which the user is an active member."""

    id: UUID
    username: str
    active: bool
    organizations: frozenset[UUID]


class Preset(NamedTuple):
    """A named set of parameters."""

    name: str
    parameters: dict[str, Any]


@dataclass(frozen=True, slots=True)
class TemplateVersion:
    """A template version.

    ``usable``: the version, its template and its organization are active. ``presets``: its active presets, by id.
    """

    id: UUID
    template_id: UUID
    organization_id: UUID
    name: str
    run: Mapping[str, Any]
    usable: bool
    presets: Mapping[UUID, Preset]


@dataclass(frozen=True, slots=True)
class VersionRun:
    """The ``run`` of a template version, with the names of its template and pool."""

    run: Mapping[str, Any]
    template_pool: TemplatePool


NAMES: Final = text("""
SELECT u.id, v.id, u.username, u.avatar_url, t.organization_id, t.id, t.name, t.display_name, t.icon
FROM unnest(CAST(:owners AS uuid[]), CAST(:versions AS uuid[])) AS pairs(owner_id, version_id)
JOIN users AS u ON u.id = pairs.owner_id
JOIN template_versions AS v ON v.id = pairs.version_id
JOIN templates AS t ON t.id = v.template_id
""")

OWNERS: Final = text("""
SELECT u.id, u.username, u.active,
       array_agg(m.organization_id) FILTER (WHERE m.active AND o.active) AS organizations
FROM users AS u
LEFT JOIN memberships AS m ON m.user_id = u.id
LEFT JOIN organizations AS o ON o.id = m.organization_id
WHERE u.id = ANY(CAST(:ids AS uuid[]))
GROUP BY u.id
""")

TEMPLATE_VERSIONS: Final = text("""
SELECT v.id, v.template_id, t.organization_id, v.name, v.run, v.active AND t.active AND o.active,
       (SELECT json_agg(json_build_array(p.id, p.name, p.parameters))
        FROM presets AS p WHERE p.template_version_id = v.id AND p.active)
FROM template_versions AS v
JOIN templates AS t ON t.id = v.template_id
JOIN organizations AS o ON o.id = t.organization_id
WHERE v.id = ANY(CAST(:ids AS uuid[]))
""")

POOL: Final = "COALESCE(NULLIF(v.run->>'pool', ''), 'default')"
"""The pool of the template version ``v``."""

RUNS: Final = text(f"""
SELECT v.id, v.run, t.name, {POOL}
FROM template_versions AS v
JOIN templates AS t ON t.id = v.template_id
WHERE v.id = ANY(CAST(:ids AS uuid[]))
""")

TEMPLATE_POOLS: Final = text(f"""
SELECT DISTINCT t.name, {POOL}
FROM template_versions AS v
JOIN templates AS t ON t.id = v.template_id
JOIN organizations AS o ON o.id = t.organization_id
WHERE v.active AND t.active AND o.active
ORDER BY 1, 2
LIMIT :most
""")

INHERITED_VARIABLES: Final = text("""
SELECT DISTINCT jsonb_array_elements_text(run #> '{env,inherit}')
FROM template_versions
WHERE jsonb_typeof(run #> '{env,inherit}') = 'array'
""")

REVISION: Final = text("SELECT revision FROM directory_revision")


async def inherited_variables(connection: AsyncConnection) -> frozenset[str]:
    """Return the names of the variables that any template version inherits from its runner, active or not."""
    return frozenset((await connection.execute(INHERITED_VARIABLES)).scalars())


async def names(connection: AsyncConnection, pairs: Sequence[Pair]) -> dict[Pair, DirectoryNames]:
    """Return the names of these pairs, active or not; pairs that the directory never contained are missing."""
    values = {"owners": [owner_id for owner_id, _ in pairs], "versions": [version_id for _, version_id in pairs]}
    rows = await connection.execute(NAMES, values)
    return {(owner_id, version_id): DirectoryNames(*texts) for owner_id, version_id, *texts in rows}


async def owners(connection: AsyncConnection, ids: Sequence[UUID]) -> dict[UUID, Owner]:
    """Return the users that exist among ``ids``."""
    return {
        row[0]: Owner(row[0], row[1], row[2], frozenset(row[3] or ()))
        for row in await connection.execute(OWNERS, {"ids": ids})
    }


async def template_versions(connection: AsyncConnection, ids: Sequence[UUID]) -> dict[UUID, TemplateVersion]:
    """Return the template versions that exist among ``ids``."""
    rows = await connection.execute(TEMPLATE_VERSIONS, {"ids": ids})
    return {
        version_id: TemplateVersion(
            version_id,
            template_id,
            organization_id,
            name,
            run,
            usable,
            {UUID(preset_id): Preset(*preset) for preset_id, *preset in presets or ()},
        )
        for version_id, template_id, organization_id, name, run, usable, presets in rows
    }


async def runs(connection: AsyncConnection, versions: Sequence[UUID]) -> dict[UUID, VersionRun]:
    """Return the ``run`` of the template versions that exist among ``versions``."""
    rows = await connection.execute(RUNS, {"ids": versions})
    return {version: VersionRun(run, TemplatePool(template, pool)) for version, run, template, pool in rows}


async def template_pools(connection: AsyncConnection, most: int) -> frozenset[TemplatePool]:
    """Return the first ``most`` pairs of the names of an active template and the pool of one of its active versions.

    The order is that of the names, so all workers name the same ones, whenever they started.
    """
    return frozenset(TemplatePool(*row) for row in await connection.execute(TEMPLATE_POOLS, {"most": most}))


async def revision(connection: AsyncConnection) -> int:
    """Return the revision of the directory, which rises with every change."""
    return int((await connection.execute(REVISION)).scalar_one())
