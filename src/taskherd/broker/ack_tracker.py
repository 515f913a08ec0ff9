"""Which deliveries of a channel are not acknowledged yet, and the fewest frames that acknowledge some of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class Acks:
    """What to send: one ack of everything `up_to` a tag, and one for each of the tags that are `single`."""

    up_to: int | None
    single: tuple[int, ...]


class AckTracker:
    """The tags of one channel that have been acknowledged. A channel's tags run from 1, without a gap."""

    def __init__(self) -> None:
        self._floor = 0
        self._above: set[int] = set()

    def settle(self, tags: Iterable[int]) -> Acks:
        """Take `tags` as acknowledged and return what to send for that.

        A tag that was acknowledged before is left out, since the broker closes the channel over it. For the same
        reason `up_to` is always one of `tags`.
        """
        fresh = {tag for tag in tags if tag > self._floor and tag not in self._above}
        self._above |= fresh
        while self._floor + 1 in self._above:
            self._floor += 1
            self._above.remove(self._floor)
        up_to = max((tag for tag in fresh if tag <= self._floor), default=None)
        return Acks(up_to, tuple(sorted(tag for tag in fresh if tag > self._floor)))
