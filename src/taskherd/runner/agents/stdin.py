"""Writing to an agent's stdin, through the FIFO that its shim keeps open."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from taskherd.runner.agents.context import DeliveryUnknown, NotDelivered

if TYPE_CHECKING:
    from pathlib import Path

    from taskherd.runner.agents.context import Begin

TIMEOUT = 30.0
"""Seconds that an agent may take until it reads so much that an input fits in."""
_POLL = 0.1


async def write(fifo: Path, text: str, begin: Begin) -> None:
    """Write an input and the end of a line; raises `NotDelivered` or `DeliveryUnknown`."""
    try:
        descriptor = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:  # ENXIO: nobody has it open for reading; ENOENT: nobody ever had
        raise NotDelivered("The agent is not running.") from error
    try:
        await begin()
        await _write(descriptor, text.encode() + b"\n")
    finally:
        os.close(descriptor)


async def _write(descriptor: int, content: bytes) -> None:
    left = memoryview(content)
    deadline = asyncio.get_running_loop().time() + TIMEOUT
    while left:
        try:
            left = left[os.write(descriptor, left) :]
        except BlockingIOError:
            if asyncio.get_running_loop().time() > deadline:
                break
            await asyncio.sleep(_POLL)
        except OSError:
            break
    if len(left) == len(content):
        raise NotDelivered("The agent did not read its input.")
    if left:
        raise DeliveryUnknown(
            f"The agent took only a part of the input: {len(content) - len(left)} of {len(content)} bytes."
        )
