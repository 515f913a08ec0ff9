"""Requests to the broker: their time limit, their errors, and the channels they are made on."""

from __future__ import annotations

import asyncio
import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

from aiormq.exceptions import AMQPError, ChannelInvalidStateError

from taskherd.errors import TaskherdError, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Iterator

    from aiormq.abc import AbstractChannel
    from aiormq.channel import Channel

REQUEST_TIMEOUT = 5.0
"""Maximum duration of one request to the broker, in seconds."""

_CONNECTION_ERRORS = (AMQPError, ChannelInvalidStateError, OSError, TimeoutError)
_BARE_ERRORS = (Exception, RuntimeError)

_background: Final[set[asyncio.Task[Any]]] = set()
"""The tasks that open and close channels: asyncio keeps only weak references to them."""

T = TypeVar("T")


@contextmanager
def map_errors(action: str = "", timeout: type[Unavailable] = Unavailable) -> Iterator[None]:
    """Map every error that aio-pika raises while the broker is unreachable to ``Unavailable``, after the action.

    A missing answer becomes a ``timeout``, if that is a class of its own.

    Two of them are peculiar to aiormq: a bare ``Exception`` or ``RuntimeError`` for a request that was pending when
    the connection ended, and a ``CancelledError`` from a future although the task was not cancelled (``cancelling()``
    is 0). The other way round, aiormq may raise any of them, or nothing, where the task was cancelled: it ends here.
    """
    task = asyncio.current_task()
    prefix = f"{action}: " if action else ""
    try:
        yield
    except asyncio.CancelledError as error:
        if task is None or task.cancelling():
            raise
        raise Unavailable(f"{prefix}the connection was lost") from error
    except Exception as error:
        if not isinstance(error, _CONNECTION_ERRORS) and type(error) not in _BARE_ERRORS:
            raise
        if task is not None and task.cancelling():
            raise asyncio.CancelledError from error
        if isinstance(error, TimeoutError):
            raise timeout(f"{prefix}no answer in time") from error
        raise Unavailable(f"{prefix}{_reason(error)}") from error
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _reason(error: Exception) -> str:
    """Return why a request failed, without the number that aiormq's errors have first: errno, or AMQP's reply code."""
    if isinstance(error, ConnectionError) and error.errno is not None and error.strerror:
        names_function = error.strerror.startswith("Connect call failed")  # asyncio's text, which has only the address
        return os.strerror(error.errno) if names_function else error.strerror
    return str(error) or type(error).__name__


async def close_channel(channel: AbstractChannel) -> None:
    """Close a channel, also if the caller is cancelled meanwhile: a channel that stays open would keep its deliveries.

    If that fails, the connection is lost or hangs, and with it the channel.
    """
    await close_channels([channel])


async def close_channels(channels: Iterable[AbstractChannel]) -> None:
    """Close channels at the same time, each as ``close_channel`` does one."""
    if closing := {in_background(_close(each)) for each in channels}:
        await asyncio.wait(closing)


async def _close(channel: AbstractChannel) -> None:
    with suppress(Unavailable), map_errors("closing a channel"):
        async with asyncio.timeout(REQUEST_TIMEOUT):
            await channel.close()


async def close_opened(opening: asyncio.Task[Channel]) -> None:
    """Close a channel once it has opened: its caller was cancelled while it waited."""
    with suppress(Unavailable):
        await _close(await opening)


def in_background(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Run what takes ``REQUEST_TIMEOUT`` at most in a task of its own, which goes on when its caller is cancelled."""
    task = asyncio.create_task(work)
    _background.add(task)
    task.add_done_callback(_background.discard)
    return task


async def share_out(items: Iterable[T], workers: Iterable[Callable[[Iterator[T]], Coroutine[Any, Any, None]]]) -> None:
    """Run workers at the same time, each of which takes one of the items after the other.

    Raises:
        TaskherdError: the first one that a worker raised; the others were cancelled.
    """
    remaining = iter(items)
    try:
        async with asyncio.TaskGroup() as group:
            for worker in workers:
                group.create_task(worker(remaining))
    except* TaskherdError as errors:
        first: BaseException = errors
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        problem = first
    else:
        return
    raise problem
