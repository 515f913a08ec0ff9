"""Write to an agent's stdin, through the FIFO that its shim keeps open."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from taskherd.runner.agents.context import NOT_RUNNING, DeliveryUnknown, NotDelivered

if TYPE_CHECKING:
    from pathlib import Path

    from taskherd.runner.agents.context import RecordAttempt

WRITE_TIMEOUT = 30.0
"""Seconds to wait for space in the agent's stdin pipe."""
_POLL_INTERVAL = 0.1
"""Seconds between two attempts to write while the pipe is full."""


async def write(fifo: Path, text: str, record_attempt: RecordAttempt) -> None:
    """Write an input and a newline. Raise ``NotDelivered`` or ``DeliveryUnknown``."""
    try:
        descriptor = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:  # ENXIO: no process has it open for reading; ENOENT: it was never created
        raise NotDelivered(NOT_RUNNING) from error
    try:
        await record_attempt()
        await _write(descriptor, text.encode() + b"\n")
    finally:
        os.close(descriptor)


async def _write(descriptor: int, content: bytes) -> None:
    remaining = memoryview(content)
    deadline = asyncio.get_running_loop().time() + WRITE_TIMEOUT
    while remaining:
        try:
            remaining = remaining[os.write(descriptor, remaining) :]
        except BlockingIOError:
            if asyncio.get_running_loop().time() > deadline:
                break
            await asyncio.sleep(_POLL_INTERVAL)
        except OSError:
            break
    if len(remaining) == len(content):
        raise NotDelivered("The agent did not read the input from its stdin.")
    if remaining:
        raise DeliveryUnknown(
            f"The agent received only a part of the input: {len(content) - len(remaining)} of {len(content)} bytes."
        )
