"""Write inputs to an agent's stdin, through the FIFO that its shim keeps open.

An input counts as delivered once all of its bytes have left the pipe. Bytes that nobody reads in time are taken back,
so that what the outcome says stays true.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import os
import struct
import termios
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from taskherd.runner import process_table
from taskherd.runner.activity import sandbox_around
from taskherd.runner.agents.context import NOT_RUNNING, DeliveryUnknown, NotDelivered

if TYPE_CHECKING:
    from pathlib import Path

    from taskherd.runner.agents.context import AgentContext, RecordAttempt
    from taskherd.runner.workspaces.folders import RunFolder

READ_TIMEOUT = 60.0
"""Seconds within which the agent must have read an input from its stdin."""
READER_CHECK_INTERVAL = 1.0
"""Seconds between two checks whether any process of the agent still has its stdin open."""
CLOSED = "The agent has closed its stdin, so it takes no inputs."
EXITED = "The agent exited before it read the input."
_POLL_INTERVAL = 0.1
"""Seconds between two attempts to write, or to see whether everything was read."""
_READ_BYTES = 65_536


async def deliver(context: AgentContext, text: str, record_attempt: RecordAttempt) -> None:
    """Deliver an input to the agent's stdin. Raise ``NotDelivered`` or ``DeliveryUnknown``."""
    kind = context.run.stdin_kind
    if kind != "pipe":
        raise NotDelivered(f"The agent takes no inputs: its template has `stdin: {kind}`.")
    await write(context.folder, text, record_attempt)


async def write(
    folder: RunFolder, text: str, record_attempt: RecordAttempt, *, read_timeout: float = READ_TIMEOUT
) -> None:
    """Write an input and a newline, and wait until they are read. Raise ``NotDelivered`` or ``DeliveryUnknown``."""
    with ExitStack() as stack:
        descriptor = _open(folder.input, os.O_WRONLY)
        stack.callback(os.close, descriptor)
        reader = _open(folder.input, os.O_RDONLY)  # now: there may be no descriptor left when it is needed
        stack.callback(os.close, reader)
        if not await _may_have_reader(folder):
            raise NotDelivered(EXITED if folder.exit.exists() else CLOSED)
        await record_attempt()
        await _write(folder, descriptor, reader, text.encode() + b"\n", read_timeout)


def _open(fifo: Path, mode: int) -> int:
    """Open an end of the pipe. Raise ``NotDelivered`` if that fails."""
    try:
        return os.open(fifo, mode | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        is_gone = error.errno in {errno.ENXIO, errno.ENOENT}  # no process has it open for reading; it was never created
        words = NOT_RUNNING if is_gone else f"The runner cannot open the agent's stdin: {error.strerror}."
        raise NotDelivered(words) from error


async def _may_have_reader(folder: RunFolder) -> bool:
    """Return whether a process of the agent has its stdin open; also if no thread can look."""
    try:
        return await asyncio.to_thread(has_reader, folder)
    except (OSError, RuntimeError):
        return True


async def _write(folder: RunFolder, descriptor: int, reader: int, content: bytes, read_timeout: float) -> None:
    loop = asyncio.get_running_loop()
    deadline, check_at = loop.time() + read_timeout, loop.time() + READER_CHECK_INTERVAL
    written, problem = 0, ""
    while not problem:
        with suppress(BlockingIOError):
            written += os.write(descriptor, content[written:]) if written < len(content) else 0
        if written == len(content) and not unread_bytes(descriptor):
            return
        if folder.exit.exists():
            problem = EXITED
        elif loop.time() > deadline:
            problem = f"The agent did not read the input from its stdin within {read_timeout:g} s."
        elif loop.time() > check_at:
            problem = "" if await _may_have_reader(folder) else CLOSED
            check_at = loop.time() + READER_CHECK_INTERVAL
        else:
            await asyncio.sleep(_POLL_INTERVAL)
    read = written - min(written, _take_back(reader))
    if not read:
        raise NotDelivered(problem)
    if read < len(content):
        raise DeliveryUnknown(f"{problem} It received only a part of the input: {read} of {len(content)} bytes.")


def unread_bytes(descriptor: int) -> int:
    """Return the number of bytes in a pipe that nobody has read yet; see FIONREAD in pipe(7)."""
    (count,) = struct.unpack("i", fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)))
    return int(count)


def has_reader(folder: RunFolder) -> bool:
    """Return whether a process of the agent has its stdin open; also if that cannot be found out."""
    try:
        started = json.loads(folder.started.read_text())
        shim_pid = started["pid"]
        fifo = folder.input.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return False
    except OSError:
        return True
    if folder.exit.exists():
        return False
    parents = process_table.parents()
    pids = process_table.descendants_in(parents, shim_pid)
    if started.get("sandboxed"):
        pids -= sandbox_around(parents, started["agent"])  # they keep stdin open and do not read it
    return any(_holds(pid, (fifo.st_dev, fifo.st_ino)) for pid in pids)


def _holds(pid: int, file_id: tuple[int, int]) -> bool:
    try:
        names = os.listdir(f"/proc/{pid}/fd")  # noqa: PTH208 - strings are enough
    except FileNotFoundError:
        return False  # it has exited
    except OSError:
        return True
    for name in names:
        with suppress(OSError):
            status = os.stat(f"/proc/{pid}/fd/{name}")  # noqa: PTH116 - as above
            if (status.st_dev, status.st_ino) == file_id:
                return True
    return False


def _take_back(reader: int) -> int:
    """Remove what nobody has read from the pipe, and return the number of bytes.

    ``reader`` keeps the pipe's content alive, also after the agent has exited. The agent may write to the pipe, so no
    more is removed than is in it now.
    """
    taken, wanted = 0, unread_bytes(reader)
    with suppress(BlockingIOError):
        while taken < wanted:
            size = min(wanted - taken, _READ_BYTES)
            taken += len(data := os.read(reader, size))
            if len(data) < size:  # the agent has read the rest
                break
    return taken
