"""Run work on many files in a thread that ends soon after its caller is cancelled, as when the runner stops.

A thread cannot be cancelled, and a process waits for the threads of its executors before it exits.
"""

from __future__ import annotations

import asyncio
import threading
from contextvars import ContextVar, copy_context
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor

_CANCELLED: Final[ContextVar[threading.Event]] = ContextVar("cancelled")
"""Set in the thread's context; the event is set once the caller is cancelled."""


class CallerCancelled(Exception):  # noqa: N818 - not an error: nobody waits for the result
    """The caller was cancelled, so the work is given up."""


async def run_in_thread(executor: Executor, function: Callable[[], None]) -> None:
    """Call a function in a thread of this executor; raise what it raises.

    If the caller is cancelled, the function ends with its next ``raise_if_cancelled``, and this waits for that.
    """
    is_cancelled, context = threading.Event(), copy_context()
    context.run(_CANCELLED.set, is_cancelled)
    job = executor.submit(context.run, function)
    done = asyncio.wrap_future(job)
    done.add_done_callback(_retrieve)
    try:
        await asyncio.wait({done})
    except asyncio.CancelledError:
        is_cancelled.set()
        if not job.cancel():  # it has begun
            await asyncio.wait({done})
        raise
    done.result()


def raise_if_cancelled() -> None:
    """Raise ``CallerCancelled`` in a thread of ``run_in_thread`` whose caller was cancelled."""
    event = _CANCELLED.get(None)
    if event is not None and event.is_set():
        raise CallerCancelled


def _retrieve(done: asyncio.Future[None]) -> None:
    """Retrieve the error, or asyncio warns of it if the caller was cancelled."""
    if not done.cancelled():
        done.exception()
