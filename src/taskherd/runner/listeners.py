"""Find out whether those who listen on a port of this machine are an agent's own processes: see proc_pid_net(5).

Ports are shared by all agents of a machine, so an agent could listen on that of another before it does.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from taskherd.runner import process_table

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

_LISTEN: Final = "0A"
_LOOKS: Final = 3
_INTERVAL: Final = 0.1


def _address(packed: bytes) -> str:
    """Return an address as /proc/net/tcp shows it: each four bytes of it as a number of this machine."""
    words = (packed[start : start + 4] for start in range(0, len(packed), 4))
    return "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words)


_REACHED: Final = frozenset(
    {
        *(_address(socket.inet_aton(address)) for address in ("127.0.0.1", "0.0.0.0")),  # noqa: S104 - others listen
        *(_address(socket.inet_pton(socket.AF_INET6, each)) for each in ("::", "::ffff:127.0.0.1", "::ffff:0.0.0.0")),
    }
)
"""The addresses whose listeners a connection to 127.0.0.1 may reach."""


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening socket: the user who opened it, and its inode."""

    uid: int
    inode: int


async def are_foreign(port: int, shim: int | None, uid: int | None) -> bool:
    """Return whether ``is_foreign`` is true for several looks; what an agent that forks shows in between is no answer.

    An agent whose ``shim`` is not known has not started.
    """
    for _ in range(_LOOKS):
        if shim is None or not await asyncio.to_thread(is_foreign, port, shim, uid):
            return False
        await asyncio.sleep(_INTERVAL)
    return True


def is_foreign(port: int, shim: int, uid: int | None) -> bool:
    """Return whether others than the descendants of ``shim``, or the user ``uid`` of its agent alone, listen on a port.

    Where /proc does not show that, such as for a process that hides its files, the listener's user decides; False if
    not even that is shown, or if nobody listens.
    """
    strangers = [listener for listener in _listeners(port) if listener.uid != uid]
    if not strangers:
        return False
    inodes, hides = _sockets(process_table.descendants(shim))
    strangers = [listener for listener in strangers if listener.inode not in inodes]
    if hides:
        strangers = [listener for listener in strangers if uid is not None or listener.uid != os.geteuid()]
    return bool(strangers)


def _listeners(port: int) -> Iterator[Listener]:
    for name in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/self/net/{name}").read_text(encoding="ascii").splitlines()[1:]
        except OSError:  # no IPv6, or a kernel that shows nothing
            continue
        for line in lines:
            fields = line.split()
            address, _, hexadecimal = fields[1].partition(":")
            if fields[3] == _LISTEN and int(hexadecimal, 16) == port and address in _REACHED:
                yield Listener(int(fields[7]), int(fields[9]))


def _sockets(pids: Collection[int]) -> tuple[set[int], bool]:
    """Return the inodes of these processes' sockets, and whether some process does not show its files."""
    inodes, hides = set(), False
    for pid in pids:
        try:
            names = os.listdir(f"/proc/{pid}/fd")  # noqa: PTH208 - as below
        except OSError as error:  # another error than this one: it has exited
            hides = hides or isinstance(error, PermissionError)
            continue
        for name in names:
            with suppress(OSError):  # it was closed meanwhile
                target = os.readlink(f"/proc/{pid}/fd/{name}")  # noqa: PTH115 - there may be thousands
                if target.startswith("socket:["):
                    inodes.add(int(target[8:-1]))
    return inodes, hides
