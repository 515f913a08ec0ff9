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
    """The acknowledged delivery tags of one channel; a channel numbers its deliveries from 1, without gaps.

    What it remembers is bounded by the prefetch, even if one delivery is never acknowledged: the tags that are not.
    """

    def __init__(self) -> None:
        self._highest = 0
        self._open: set[int] = set()

    def acknowledge(self, tags: Iterable[int]) -> Acks:
        """Record ``tags`` as acknowledged and return the ack frames to send.

        Tags that were acknowledged before are left out, because the broker closes the channel if one is repeated. For
        the same reason ``up_to`` is always one of ``tags``.
        """
        new_tags = {tag for tag in tags if tag > self._highest or tag in self._open}
        highest = max((self._highest, *new_tags))
        self._open.update(range(self._highest + 1, highest + 1))
        self._highest = highest
        self._open -= new_tags
        floor = min(self._open) - 1 if self._open else self._highest
        up_to = max((tag for tag in new_tags if tag <= floor), default=None)
        return Acks(up_to, tuple(sorted(tag for tag in new_tags if tag > floor)))
