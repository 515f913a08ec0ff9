"""Track the acknowledged deliveries of a channel, and compute the fewest ack frames for a set of deliveries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class Acks:
    """The ack frames to send: one for all tags ``up_to`` a tag, if any, and one for each ``single`` tag."""

    up_to: int | None
    single: tuple[int, ...]


class AckTracker:
    """The acknowledged delivery tags of one channel; a channel numbers its deliveries from 1, without gaps."""

    def __init__(self) -> None:
        self._floor = 0
        self._above: set[int] = set()

    def acknowledge(self, tags: Iterable[int]) -> Acks:
        """Record ``tags`` as acknowledged and return the ack frames to send.

        Tags that were acknowledged before are left out, because the broker closes the channel if one is repeated. For
        the same reason ``up_to`` is always one of ``tags``.
        """
        new_tags = {tag for tag in tags if tag > self._floor and tag not in self._above}
        self._above |= new_tags
        while self._floor + 1 in self._above:
            self._floor += 1
            self._above.remove(self._floor)
        up_to = max((tag for tag in new_tags if tag <= self._floor), default=None)
        return Acks(up_to, tuple(sorted(tag for tag in new_tags if tag > self._floor)))
