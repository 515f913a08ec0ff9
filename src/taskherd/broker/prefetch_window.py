"""Decide how many deliveries a consumer may have unacknowledged, so that their bytes are bounded.

RabbitMQ limits only the number of messages that it sends in advance, and sends all of them at once. Therefore a
consumer begins with one message, continues with as many as fit whatever their size, and then with as many as fit by
their average size. A consumer that is full has nothing in flight, so it can be replaced by one with a larger prefetch
without any message being redelivered. Messages that do not fit, because they are larger than those before, are refused:
their consumer is canceled, they return to the queue, and a consumer with a smaller prefetch follows when there is room.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING

from taskherd.broker.delivery import MAX_BODY_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from taskherd.broker.delivery import Delivery


class Step(Enum):
    """What is to be done with the consumer of a queue."""

    NOTHING = auto()
    STOP = auto()
    RESUME = auto()
    WIDEN = auto()


class PrefetchWindow:
    """The unacknowledged deliveries of one channel, and the prefetch of its consumer, ``size``.

    ``full`` is True if the consumer has all that its prefetch allows, so that nothing is in flight, or more than fits.
    ``stopped`` is True while there is no consumer, because deliveries were refused.
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
        self.full = False
        self.stopped = False
        self.size = max_deliveries if max_bytes is None else 1

    @property
    def exhausted(self) -> bool:
        """True if the consumer is full because of bytes: to wait for more deliveries is in vain."""
        return self._max_bytes is not None and self.full and self._bytes >= self._max_bytes // 4

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
        if self._unacked >= self.size:
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
        self.full = self._unacked >= self.size or bool(self._refused)

    def next_step(self) -> Step:
        """Return what is to be done now."""
        if self._max_bytes is None:
            return Step.NOTHING
        if self.stopped:
            return Step.RESUME if self._bytes <= self._max_bytes // 2 else Step.NOTHING
        if self._refused:
            return Step.STOP
        return Step.WIDEN if self.full and self._fitting() >= 2 * self.size else Step.NOTHING

    def stop(self) -> list[int]:
        """Note that the consumer is canceled, and return the refused deliveries. The next consumer gets what fits."""
        self.size = max(1, min(self.size, self._fitting()))
        refused, self._refused, self._refused_bytes = self._refused, [], 0
        self.full, self.stopped = False, True
        return refused

    def resume(self) -> None:
        """Note that a new consumer of ``size`` begins, after the last one was canceled."""
        self.full = self.stopped = False
        self._first_tag = self._last_tag + 1
        self._unacked = 0

    def widen(self) -> None:
        """Note that a larger consumer begins, although the last one, which is full, is not canceled yet."""
        self.size = self._fitting()
        self.resume()

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
