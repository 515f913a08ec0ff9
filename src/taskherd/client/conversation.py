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
"""Maximum number of entries whose last version is remembered, as many as an answer of the API has, and of versions
that were replaced."""
_ENDED: Final = frozenset({"completed", "failed"})
_OPEN: Final = frozenset({"pending", "in_progress"})


class FollowedConversation:
    """A conversation that goes on: the entries that are still written, and the versions of those that were taken."""

    def __init__(self) -> None:
        self._open: dict[int, tuple[Entry, float]] = {}
        """By id, each with the time since when it is as it is."""
        self._taken: dict[int, int] = {}
        """By id, the hash of the version."""
        self._unsettled: dict[int, Entry] = {}
        """By id, those that were taken although they may change."""
        self._replaced: dict[tuple[int, int], None] = {}
        """The ids and hashes of versions that were replaced."""
        self._last: dict[int, list[int]] = {}
        """The greatest place so far, by its first number: entries of one kind come all after those of the other."""
        self._last_input: dict[int, list[int]] = {}
        """The same of what people sent."""
        self._greatest = -1

    @property
    def after(self) -> int:
        """The id after which are all entries that are new or may have changed, -1 at the beginning."""
        return min((*self._open, *self._unsettled), default=self._greatest + 1) - 1

    def receive(self, entries: Iterable[Entry], now: float, *, may_be_older: bool = False) -> None:
        """Add entries, in any order; those that are known already replace their earlier versions.

        Args:
            entries: the entries.
            now: the time, in seconds.
            may_be_older: whether they may be older than what is known: versions that were replaced are then ignored.
        """
        for entry in entries:
            number, place = entry["id"], entry["place"]
            self._greatest = max(self._greatest, number)
            for last in (self._last, self._last_input) if entry["type"] == "input" else (self._last,):
                last[place[0]] = max(last.get(place[0], []), place)
            version = _version(entry)
            known = _version(self._open[number][0]) if number in self._open else self._taken.get(number)
            if version == known or (may_be_older and (number, version) in self._replaced):
                continue
            if known is not None:
                self._replaced[number, known] = None
                self._replaced.pop((number, version), None)
            if self._taken.get(number) == version:
                del self._open[number]
            else:
                self._open[number] = (entry, now)
        _forget_oldest(self._replaced)

    def take(self, now: float, *, everything: bool = False) -> list[Entry]:
        """Return the entries that are final now, or all, in their order; each version is returned once."""
        found = [entry for entry, since in self._open.values() if everything or self._is_final(entry, now - since)]
        for entry in found:
            del self._open[entry["id"]]
            self._taken.pop(entry["id"], None)
            self._taken[entry["id"]] = _version(entry)
            self._unsettled[entry["id"]] = entry
        _forget_oldest(self._taken)
        self._unsettled = {number: entry for number, entry in self._unsettled.items() if not self._is_settled(entry)}
        return sorted(found, key=lambda entry: list(entry["place"]))

    def _is_final(self, entry: Entry, unchanged: float) -> bool:
        is_first = entry["id"] not in self._taken
        return (is_first and unchanged >= QUIET) or self._is_settled(entry)

    def _is_settled(self, entry: Entry) -> bool:
        place, status = entry["place"], entry.get("status")
        if place < self._last_input.get(place[0], []):  # what belongs to an earlier turn has ended with it
            return True
        if status in _OPEN:
            return False
        is_whole = status in _ENDED or entry["type"] == "input" or entry.get("kind") == "notice"
        return is_whole or place < self._last[place[0]]


def _forget_oldest(remembered: dict[Any, Any]) -> None:
    while len(remembered) > MAX_REMEMBERED:
        del remembered[next(iter(remembered))]


def _version(entry: Entry) -> int:
    return hash((entry["content"], entry.get("status"), json.dumps(entry.get("data"), sort_keys=True)))
