"""What the directory says of owners and templates, remembered between batches and forgotten when it changes."""

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
"""Pairs of owner and template version that are remembered."""


class DirectoryCache:
    """The names that documents are rendered with, by owner and template version."""

    def __init__(self, engine: AsyncEngine) -> None:
        """Begin empty."""
        self._engine = engine
        self._known: dict[Pair, DirectoryNames] = {}
        self._revision = -1

    async def look_up(self, pairs: Iterable[Pair]) -> Mapping[Pair, DirectoryNames]:
        """The names of these pairs, from memory where they are known. Raises Unavailable."""
        wanted = set(pairs)
        known = {pair: self._known[pair] for pair in wanted if pair in self._known}
        missing = sorted(wanted - known.keys())
        if not missing:
            return known
        revision = self._revision
        async with transaction(self._engine) as connection:
            found = await directory.names(connection, missing)
        if revision == self._revision:  # else what was just read may be what the directory said before
            if len(self._known) + len(found) > MAX_ENTRIES:
                self._known.clear()
            self._known.update(found)
        return known | found

    def refresh(self, revision: int) -> None:
        """Forget everything if the directory's revision is another one."""
        if revision != self._revision:
            self._known.clear()
            self._revision = revision
