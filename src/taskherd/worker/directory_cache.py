"""A cache of the names of owners and templates, cleared when the directory changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskherd.store import directory
from taskherd.store.engine import transaction

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from uuid import UUID

    from taskherd.domain.directory import DirectoryNames
    from taskherd.store import AsyncEngine

    Pair = tuple[UUID, UUID]

MAX_ENTRIES = 50_000
"""Maximum number of cached pairs of owner and template version."""


class DirectoryCache:
    """The names that are rendered into documents, by owner and template version."""

    def __init__(self, engine: AsyncEngine) -> None:
        """Create an empty cache."""
        self._engine = engine
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

    def refresh(self, revision: int) -> None:
        """Clear the cache if the directory has another revision."""
        if revision != self._revision:
            self._names.clear()
            self._revision = revision
