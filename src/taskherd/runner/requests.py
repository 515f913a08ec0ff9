"""A work request that waits to be executed, and how it is acknowledged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from taskherd.messages.work import WorkRequest

OnAccepted: TypeAlias = Callable[[], None]
"""Called when a request may be acknowledged."""


@dataclass(frozen=True, slots=True)
class PendingRequest:
    """A request to be executed; ``only_copy`` is True if it certainly has no other copy in a queue."""

    request: WorkRequest
    on_accepted: OnAccepted
    only_copy: bool = False
