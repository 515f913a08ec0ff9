"""Waiting out an outage: the same work again and again, with backoff, until it is done or we are told to stop."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, TypeVar

from taskherd.errors import Unavailable
from taskherd.store.engine import DataError, Retry

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")

FIRST, MOST = 0.05, 5.0
POISON = (DataError, ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)
"""What one message can do to its batch: a value that PostgreSQL refuses, or a mistake of ours that it lays bare."""

RETRIES_MOST = 50
"""Races lost in a row before a Retry is treated as an outage."""


def pause(failures: int) -> float:
    """Seconds to wait after so many failures in a row: exponential, capped, with full jitter."""
    return random.uniform(0, min(MOST, FIRST * 2 ** min(failures, 10)))  # noqa: S311 - no secret


async def persist(work: Callable[[], Awaitable[T]], stopping: asyncio.Event, on_trouble: Callable[[str], None]) -> T:
    """The result of ``work``, tried until it succeeds. When stopping, the first Unavailable is raised instead."""
    failures = races = 0
    while True:
        try:
            return await work()
        except Retry:
            races += 1
            if races > RETRIES_MOST:
                raise
            await asyncio.sleep(pause(min(races, 3)))
        except Unavailable as error:
            if stopping.is_set():
                raise
            failures += 1
            on_trouble(str(error))
            await _wait(stopping, pause(failures))


async def _wait(stopping: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await stopping.wait()
    except TimeoutError:
        return
