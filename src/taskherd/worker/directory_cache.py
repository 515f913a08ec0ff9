"""A cache of what the worker needs of the directory, cleared when the directory changes.

Names and policies may lag behind the directory by a moment. What decides whether a create is accepted does not: its
entries are those of the revision that the create's own transaction has read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from taskherd.domain.directory import OTHER
from taskherd.messages.run_policy import recovery_policy
from taskherd.store import directory
from taskherd.store.engine import transaction

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from collections.abc import Set as AbstractSet
    from uuid import UUID

    from taskherd.domain.directory import DirectoryNames, TemplatePool
    from taskherd.domain.recovery import RecoveryPolicy
    from taskherd.store import AsyncConnection, AsyncEngine

    Pair = tuple[UUID, UUID]

MAX_ENTRIES = 50_000
"""Maximum number of cached pairs of owner and template version, of recovery policies, and of other entries."""

MAX_TEMPLATE_POOLS = 50
"""Maximum number of pairs of template and pool that metrics name, and so of either; all others are ``OTHER``.

Each pair has about 45 series, so a worker exposes at most 2,250 of them, whatever the directory contains, and one more
for each further currency in which its agents report costs.
"""


class DirectoryEntries(NamedTuple):
    """The users and template versions that the creates of a batch refer to, by id."""

    owners: Mapping[UUID, directory.Owner]
    versions: Mapping[UUID, directory.TemplateVersion]


NO_ENTRIES: Final = DirectoryEntries({}, {})


class VersionRuns(NamedTuple):
    """The recovery policies of template versions, and their templates and pools, by id."""

    policies: dict[UUID, RecoveryPolicy]
    template_pools: dict[UUID, TemplatePool]


class DirectoryCache:
    """The names that are rendered into documents, by owner and template version, and the versions' recovery policies.

    ``default_policy`` is the policy of a version whose ``run`` asks for nothing else. ``template_pools`` are the pairs
    of template and pool that metrics name.
    """

    def __init__(self, engine: AsyncEngine, default_policy: RecoveryPolicy) -> None:
        """Create an empty cache."""
        self.default_policy = default_policy
        self._engine = engine
        self.template_pools: frozenset[TemplatePool] = frozenset()
        self._runs = VersionRuns({}, {})
        self._names: dict[Pair, DirectoryNames] = {}
        self._owners: dict[UUID, directory.Owner] = {}
        self._versions: dict[UUID, directory.TemplateVersion] = {}
        self._entries_revision: int | None = None
        self.revision: int | None = None

    async def look_up(
        self, pairs: Iterable[Pair], connection: AsyncConnection | None = None
    ) -> Mapping[Pair, DirectoryNames]:
        """Return the names of these pairs; missing ones are read with ``connection``, or with one from the pool.

        Raises ``Unavailable`` if they cannot be read.
        """
        requested = set(pairs)
        cached = {pair: self._names[pair] for pair in requested if pair in self._names}
        missing = sorted(requested - cached.keys())
        if not missing:
            return cached
        revision = self.revision
        if connection is not None:
            read = await directory.names(connection, missing)
        else:
            async with transaction(self._engine) as own_connection:
                read = await directory.names(own_connection, missing)
        if revision == self.revision:  # otherwise the names may have been read before the directory changed
            if len(self._names) + len(read) > MAX_ENTRIES:
                self._names.clear()
            self._names.update(read)
        return cached | read

    async def entries(
        self, connection: AsyncConnection, revision: int, owners: AbstractSet[UUID], versions: AbstractSet[UUID]
    ) -> DirectoryEntries:
        """Return those of these users and template versions that exist.

        They are those of ``revision``, which the caller has read in its transaction; missing ones are read with
        ``connection``.
        """
        if revision != self._entries_revision or len(self._owners) + len(self._versions) > MAX_ENTRIES:
            self._owners, self._versions, self._entries_revision = {}, {}, revision
        known_owners, known_versions = self._owners, self._versions
        if not owners <= known_owners.keys():
            known_owners.update(await directory.owners(connection, sorted(owners - known_owners.keys())))
        if not versions <= known_versions.keys():
            known_versions.update(
                await directory.template_versions(connection, sorted(versions - known_versions.keys()))
            )
        return DirectoryEntries(
            {each: known_owners[each] for each in owners if each in known_owners},
            {each: known_versions[each] for each in versions if each in known_versions},
        )

    async def version_runs(self, connection: AsyncConnection, versions: Iterable[UUID]) -> VersionRuns:
        """Return the policies and pools of at least these template versions; missing ones are read with ``connection``.

        A clearing of the cache, also while they are read, takes nothing away from what is returned.
        """
        known = self._runs
        missing = sorted(set(versions) - known.policies.keys())
        if not missing:
            return known
        read = await directory.runs(connection, missing)
        if self._runs is known and len(known.policies) + len(read) > MAX_ENTRIES:
            self._runs = VersionRuns({}, {})
        known.policies.update(
            (version, recovery_policy(each.run, self.default_policy)) for version, each in read.items()
        )
        known.template_pools.update((version, each.template_pool) for version, each in read.items())
        return known

    def metric_label(self, template_pool: TemplatePool) -> TemplatePool:
        """Return the pair that metrics name for this one: itself or ``OTHER``."""
        return template_pool if template_pool in self.template_pools else OTHER

    def replace(self, revision: int, template_pools: frozenset[TemplatePool]) -> None:
        """Clear the cache for another revision of the directory, in which metrics name these templates and pools."""
        self._names.clear()
        self._runs = VersionRuns({}, {})
        self.template_pools = template_pools
        self.revision = revision
