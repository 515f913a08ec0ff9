"""Which RabbitMQ users may report and claim, and about the tasks of which pools (``TASKHERD_REPORT_SENDERS``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

    from taskherd.broker.delivery import Delivery

Pools: TypeAlias = "frozenset[str] | None"
"""Names of pools; None for all."""
NO_POOL: Final[frozenset[str]] = frozenset()


class SenderPools:
    """The users that may report and claim, each with its pools; without any user, nothing is checked."""

    def __init__(self, pools: Mapping[str, Pools]) -> None:
        self._pools = pools

    @property
    def restricted(self) -> bool:
        """True if senders are checked."""
        return bool(self._pools)

    def pools_of(self, delivery: Delivery) -> Pools:
        """Return the pools of whose tasks the delivery may speak; none for an unknown or unnamed sender."""
        return self._pools.get(delivery.sender or "", NO_POOL) if self._pools else None
