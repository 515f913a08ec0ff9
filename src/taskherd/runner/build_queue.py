"""What a supervisor executes one after the other: build requests, and decisions of the runner's own."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from taskherd.messages.work import WorkspaceDelete, WorkspaceStop
from taskherd.runner.requests import PendingRequest

if TYPE_CHECKING:
    from taskherd.runner.journal import Journal


@dataclass(frozen=True, slots=True)
class DrainTask:
    """A decision of the runner to stop the agent and have it started again."""


@dataclass(frozen=True, slots=True)
class DiscardTask:
    """A request to delete the workspace of a task that was deleted, as the build ``build_number``."""

    build_number: int


@dataclass(frozen=True, slots=True)
class TakenOver:
    """A finding that another runner has taken the task over, made when ``build_number`` was the latest one here."""

    build_number: int


@dataclass(frozen=True, slots=True)
class LoopFailure:
    """The unexpected error of a background loop of the supervisor."""

    error: BaseException


BuildItem: TypeAlias = "PendingRequest | DiscardTask | DrainTask | TakenOver | LoopFailure"


class BuildQueue:
    """The items that wait for the supervisor, the oldest first; one reader takes them."""

    def __init__(self) -> None:
        self._items: deque[BuildItem] = deque()
        self._arrival = asyncio.Event()

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: BuildItem) -> None:
        """Add an item."""
        self._items.append(item)
        self._arrival.set()

    async def take(self) -> BuildItem:
        """Wait for an item; remove and return it."""
        while not self._items:
            self._arrival.clear()
            await self._arrival.wait()
        return self._items.popleft()

    def take_requests(self) -> list[PendingRequest]:
        """Remove all items, and return the requests among them."""
        requests = [each for each in self._items if isinstance(each, PendingRequest)]
        self._items.clear()
        return requests

    def has_ending(self, journal: Journal) -> bool:
        """Return whether something waits that ends the agent of the latest start, whatever becomes of that start."""
        return any(_is_ending(item, journal) for item in self._items)


def _is_ending(item: BuildItem, journal: Journal) -> bool:
    match item:
        case PendingRequest(request=WorkspaceStop() | WorkspaceDelete() as request):
            return not journal.is_superseded(request)
        case DiscardTask():
            return item.build_number > journal.build_number
        case TakenOver():
            return item.build_number == journal.build_number
        case _:
            return isinstance(item, DrainTask)
