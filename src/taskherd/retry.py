"""Retry work with backoff until it succeeds or the process stops."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, TypeVar

from taskherd.backoff import Backoff
from taskherd.errors import Retry, Unavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")

OUTAGE: Final = Backoff(first=0.1, maximum=5.0)
"""The backoff for outages that a process waits out for any length of time: of the broker, database or an agent."""
MAX_CONFLICTS: Final = 50
"""Number of transaction conflicts that ``until_stopped`` retries; the next one is raised."""


def delay(failures: int) -> float:
    """Return the wait in seconds after ``failures`` in a row during an outage."""
    return OUTAGE.delay(failures)


async def until_stopped(
    work: Callable[[], Awaitable[T]], stopping: asyncio.Event, on_error: Callable[[str], None]
) -> T:
    """Retry ``work`` until it succeeds and return its result; call ``on_error`` with the reason of each outage.

    Raises:
        Unavailable: ``work`` failed while ``stopping`` was set.
        Retry: it conflicted with other transactions more than ``MAX_CONFLICTS`` times.
    """
    failures = conflicts = 0
    while True:
        try:
            return await work()
        except Retry:
            conflicts += 1
            if conflicts > MAX_CONFLICTS:
                raise
            if conflicts > 1:  # the other transaction has mostly ended, and is not met again
                await asyncio.sleep(delay(min(conflicts - 1, 3)))
        except Unavailable as error:
            if stopping.is_set():
                raise
            failures += 1
            on_error(str(error))
            await wait(stopping, delay(failures))


async def wait(event: asyncio.Event, seconds: float) -> None:
    """Wait for so many seconds, or until the event is set."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
