"""Which entries of a conversation are final: an agent replaces an entry while it writes, under the same id."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeAlias

Entry: TypeAlias = Mapping[str, Any]
"""An entry of a log, as the API returns it."""

QUIET: Final = 3.0
"""Seconds without a change after which an entry counts as final the first time; one that is written changes often."""
MAX_REMEMBERED: Final = 10_000
"""Maximum number of entries whose last version is remembered, as many as an answer of the API has."""
_ENDED: Final = frozenset({"completed", "failed"})
_OPEN: Final = frozenset({"pending", "in_progress"})


class Conversation:
    """A conversation that goes on: the entries that are still written, and the versions of those that were taken."""

    def __init__(self) -> None:
        self._open: dict[int, tuple[Entry, float]] = {}
        """By id, each with the time since when it is as it is."""
        self._taken: dict[int, int] = {}
        """By id, the hash of the version."""
        self._last: dict[int, list[int]] = {}
        """The greatest place so far, by its first number: entries of one kind come all after those of the other."""
        self._last_input: dict[int, list[int]] = {}
        """The same of what people sent."""
        self._greatest = -1

    @property
    def after(self) -> int:
        """The id after which are all entries that are new or may have changed, -1 at the beginning."""
        return min(self._open, default=self._greatest + 1) - 1

    def receive(self, entries: Iterable[Entry], now: float) -> None:
        """Add entries, in any order; those that are known already replace their earlier versions."""
        for entry in entries:
            number, place = entry["id"], entry["place"]
            self._greatest = max(self._greatest, number)
            for last in (self._last, self._last_input) if entry["type"] == "input" else (self._last,):
                last[place[0]] = max(last.get(place[0], []), place)
            version = _version(entry)
            if self._taken.get(number) == version:
                self._open.pop(number, None)
            elif number not in self._open or _version(self._open[number][0]) != version:
                self._open[number] = (entry, now)

    def take(self, now: float, *, everything: bool = False) -> list[Entry]:
        """Return the entries that are final now, or all, in their order; each version is returned once."""
        found = [entry for entry, since in self._open.values() if everything or self._is_final(entry, now - since)]
        for entry in found:
            del self._open[entry["id"]]
            self._taken.pop(entry["id"], None)
            self._taken[entry["id"]] = _version(entry)
        while len(self._taken) > MAX_REMEMBERED:
            del self._taken[next(iter(self._taken))]
        return sorted(found, key=lambda entry: list(entry["place"]))

    def _is_final(self, entry: Entry, unchanged: float) -> bool:
        place, status = entry["place"], entry.get("status")
        if place < self._last_input.get(place[0], []):  # what belongs to an earlier turn has ended with it
            return True
        if status in _OPEN:
            return False
        is_whole = status in _ENDED or entry["type"] == "input" or entry.get("kind") == "notice"
        is_first = entry["id"] not in self._taken
        return is_whole or place < self._last[place[0]] or (is_first and unchanged >= QUIET)


def _version(entry: Entry) -> int:
    return hash((entry["content"], entry.get("status"), json.dumps(entry.get("data"), sort_keys=True)))
