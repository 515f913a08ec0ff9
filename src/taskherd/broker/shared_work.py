"""Work that several callers need at the same time: it is done once, and all of them get its result."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from taskherd.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")


class SharedWork(Generic[T]):
    """Work that is in progress at most once, in a task of its own, which ends with its last caller."""

    def __init__(self, name: str, work: Callable[[], Coroutine[Any, Any, T]]) -> None:
        """Create it; ``name`` becomes part of an error."""
        self._name = name
        self._work = work
        self._task: asyncio.Task[T] | None = None
        self._callers = 0
        """Number of callers that wait for the task."""

    async def result(self) -> T:
        """Return the result of the work that is in progress, or else of a new attempt.

        A caller that is cancelled leaves the work to the others; the last one ends it.

        Raises:
            Unavailable: ``cancel`` was called meanwhile.
            Exception: what the work raised, for each caller.
        """
        task = self._task
        if task is None or task.done():
            task = self._task = asyncio.create_task(self._work(), name=self._name)
            task.add_done_callback(_retrieve)
            self._callers = 0
        self._callers += 1
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            await self._leave(task)
            raise
        if task.cancelled():
            raise Unavailable(f"{self._name}: cancelled")
        return task.result()

    async def cancel(self) -> None:
        """Cancel the work that is in progress, and wait until it has ended."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    async def _leave(self, task: asyncio.Task[T]) -> None:
        if task is self._task:
            self._callers -= 1
            if not self._callers:
                await self.cancel()


def _retrieve(task: asyncio.Task[T]) -> None:
    """Retrieve the exception of a task, or asyncio warns if all callers have left before."""
    if not task.cancelled():
        task.exception()
