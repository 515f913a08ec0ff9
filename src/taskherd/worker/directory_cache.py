"""A cache of the names of owners and templates, and of recovery policies, cleared when the directory changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskherd.messages.run_policy import recovery_policy
from taskherd.store import directory
from taskherd.store.engine import transaction

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from uuid import UUID

    from taskherd.domain.directory import DirectoryNames
    from taskherd.domain.recovery import RecoveryPolicy
    from taskherd.store import AsyncConnection, AsyncEngine

    Pair = tuple[UUID, UUID]

MAX_ENTRIES = 50_000
"""Maximum number of cached pairs of owner and template version, and of recovery policies."""


class DirectoryCache:
    """The names that are rendered into documents, by owner and template version, and the versions' recovery policies.

    ``default_policy`` is the policy of a version whose ``run`` asks for nothing else.
    """

    def __init__(self, engine: AsyncEngine, default_policy: RecoveryPolicy) -> None:
        """Create an empty cache."""
        self.default_policy = default_policy
        self._engine = engine
        self._policies: dict[UUID, RecoveryPolicy] = {}
        self._names: dict[Pair, DirectoryNames] = {}
        self._revision = -1

    async def look_up(self, pairs: Iterable[Pair]) -> Mapping[Pair, DirectoryNames]:
        """Return the names of these pairs. Raises ``Unavailable`` if missing ones cannot be read."""
        requested = set(pairs)
        cached = {pair: self._names[pair] for pair in requested if pair in self._names}
        missing = sorted(requested - cached.keys())
        if not missing:
            return cached
        revision = self._revision
        async with transaction(self._engine) as connection:
            read = await directory.names(connection, missing)
        if revision == self._revision:  # otherwise the names may have been read before the directory changed
            if len(self._names) + len(read) > MAX_ENTRIES:
                self._names.clear()
            self._names.update(read)
        return cached | read

    async def recovery_policies(
        self, connection: AsyncConnection, versions: Iterable[UUID]
    ) -> Mapping[UUID, RecoveryPolicy]:
        """Return the recovery policies of at least these template versions, missing ones read with ``connection``."""
        missing = sorted(set(versions) - self._policies.keys())
        if not missing:
            return self._policies
        runs = await directory.runs(connection, missing)
        if len(self._policies) + len(runs) > MAX_ENTRIES:
            self._policies = {}
        self._policies |= {version: recovery_policy(run, self.default_policy) for version, run in runs.items()}
        return self._policies

    def refresh(self, revision: int) -> None:
        """Clear the cache if the directory has another revision."""
        if revision != self._revision:
            self._names.clear()
            self._policies = {}
            self._revision = revision
