"""Decide how many deliveries a consumer may have unacknowledged, so that their bytes are bounded.

RabbitMQ limits only the number of messages that it sends in advance, and sends all of them at once. Therefore a
consumer begins with one message, continues with as many as fit whatever their size, and then with as many as fit by
their average size. A consumer that is full has nothing in flight, so it can be replaced by one with a larger prefetch
without any message being redelivered. Messages that do not fit, because they are larger than those before, are refused:
their consumer is canceled, they return to the queue, and a consumer with a smaller prefetch follows when there is room.

When possible poison comes, the consumer gets one message at a time, until enough others in a row were acknowledged:
what kills the process then counts as a failed delivery of no other message.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING, Final

from taskherd.broker.delivery import MAX_BODY_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from taskherd.broker.delivery import Delivery


CLEAN_ACKS: Final = 10
"""Number of other messages in a row that must be acknowledged after possible poison before several are delivered."""


class Step(Enum):
    """What is to be done with the consumer of a queue."""

    NOTHING = auto()
    STOP = auto()
    RESUME = auto()
    WIDEN = auto()


class PrefetchWindow:
    """The unacknowledged deliveries of one channel, and the prefetch of its consumer, ``size``.

    ``full`` is True if the consumer has all that its prefetch allows, so that nothing is in flight, or too much.
    ``stopped`` is True while there is no consumer, because it had too much.
    """

    def __init__(self, max_deliveries: int, max_bytes: int | None = None) -> None:
        """Create it; without ``max_bytes`` its size is always ``max_deliveries``."""
        self._max_deliveries = max_deliveries
        self._max_bytes = max_bytes
        self._held = 0
        self._bytes = 0
        self._refused: list[int] = []
        self._refused_bytes = 0
        self._last_tag = 0
        self._first_tag = 1
        self._unacked = 0
        self._clean_acks_missing = 0
        self.full = False
        self.stopped = False
        self.size = max_deliveries if max_bytes is None else 1

    @property
    def exhausted(self) -> bool:
        """True if the consumer is full because of bytes or of poison: to wait for more deliveries is in vain."""
        if self._max_bytes is None or not self.full:
            return False
        return self._clean_acks_missing > 0 or self._bytes >= self._max_bytes // 4

    @property
    def refusing_more(self) -> bool:
        """True if deliveries were refused, and others that the prefetch allows may be on their way."""
        return bool(self._refused) and self._unacked + len(self._refused) < self.size

    def admit(self, delivery: Delivery) -> bool:
        """Note a delivery. Return False if it is refused: it does not fit, or another one before it did not."""
        if self._max_bytes is None:
            return True
        self._last_tag = delivery.delivery_tag
        total = self._bytes + delivery.size
        if self._refused or (total > self._max_bytes and self._bytes):
            self._refused.append(delivery.delivery_tag)
            self._refused_bytes += delivery.size
            self.full = True
            return False
        self._bytes = total
        self._held += 1
        self._unacked += 1
        if delivery.possible_poison:
            self._clean_acks_missing = CLEAN_ACKS
            self.full = True
        elif self._unacked >= self.size:
            self.full = True
        return True

    def settle(self, deliveries: Iterable[Delivery]) -> None:
        """Note that deliveries are acknowledged; those noted before are ignored."""
        for delivery in deliveries:
            if not delivery.settled:
                delivery.settled = True
                self._bytes -= delivery.size
                self._held -= 1
                self._unacked -= delivery.delivery_tag >= self._first_tag
                if self._clean_acks_missing:
                    self._clean_acks_missing = CLEAN_ACKS if delivery.possible_poison else self._clean_acks_missing - 1
        self.full = self._unacked >= self.size or self._has_too_much

    def next_step(self) -> Step:
        """Return what is to be done now."""
        if self._max_bytes is None:
            return Step.NOTHING
        if self.stopped:
            limit = 0 if self._clean_acks_missing else self._max_bytes // 2
            return Step.RESUME if self._bytes <= limit else Step.NOTHING
        if self._has_too_much:
            return Step.STOP
        if self._clean_acks_missing or self._unacked < self.size:
            return Step.NOTHING
        return Step.WIDEN if self._fitting() >= 2 * self.size else Step.NOTHING

    def stop(self) -> list[int]:
        """Note that the consumer is canceled, and return the refused deliveries. The next consumer gets what fits."""
        self.size = 1 if self._clean_acks_missing else max(1, min(self.size, self._fitting()))
        refused, self._refused, self._refused_bytes = self._refused, [], 0
        self.full, self.stopped = False, True
        return refused

    def resume(self) -> None:
        """Note that a new consumer of ``size`` begins, after the last one was canceled."""
        self.size = 1 if self._clean_acks_missing else self.size
        self.full = self.stopped = False
        self._first_tag = self._last_tag + 1
        self._unacked = 0

    def widen(self) -> None:
        """Note that a larger consumer begins, although the last one, which is full, is not canceled yet."""
        self.size = self._fitting()
        self.resume()

    @property
    def _has_too_much(self) -> bool:
        """True if deliveries were refused, or if more may come although one is possible poison."""
        return bool(self._refused) or (self._clean_acks_missing > 0 and self.size > 1)

    def _fitting(self) -> int:
        """Return how many deliveries half of the bytes have room for; the other half is for those that are there.

        That is, as many as fit whatever their size, or, if more are known, by the average size of the latest.
        """
        assert self._max_bytes is not None
        half = self._max_bytes // 2
        room = self._max_deliveries - self._held
        of_any_size = half // MAX_BODY_BYTES
        if self.size < of_any_size:
            return min(room, of_any_size)
        average = self._refused_bytes // len(self._refused) if self._refused else self._bytes // max(1, self._held)
        return min(room, max(of_any_size, half // max(1, average)))
