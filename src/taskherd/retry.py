"""Repeating work that fails because something outside is down, until it succeeds or the process stops."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, TypeVar

from taskherd.backoff import Backoff
from taskherd.errors import Retry, Unavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")

OUTAGE: Final = Backoff(first=0.1, maximum=5.0)
"""For what a process waits out without end: the broker, the database or an agent does not answer."""
MAX_RACES: Final = 50
"""Races lost in a row after which ``until_stopped`` gives up."""


def delay(failures: int) -> float:
    """Return the wait in seconds after ``failures`` in a row of something that is waited out without end."""
    return OUTAGE.delay(failures)


async def until_stopped(
    work: Callable[[], Awaitable[T]], stopping: asyncio.Event, on_error: Callable[[str], None]
) -> T:
    """Return the result of ``work``, repeated until it succeeds; each outage is reported to ``on_error``.

    Raises:
        Unavailable: ``work`` failed while ``stopping`` was set.
        Retry: it lost more than ``MAX_RACES`` races.
    """
    failures = races = 0
    while True:
        try:
            return await work()
        except Retry:
            races += 1
            if races > MAX_RACES:
                raise
            await asyncio.sleep(delay(min(races, 3)))
        except Unavailable as error:
            if stopping.is_set():
                raise
            failures += 1
            on_error(str(error))
            await _wait(stopping, delay(failures))


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
