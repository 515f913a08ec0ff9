"""Find out who has the other end of a connection to a port of this machine: see proc_pid_net(5), proc_pid_fd(5).

Ports are shared by all agents of a machine, so an agent could listen on that of another before it does. It could also
stop listening once the runner has connected, so it is the connection that is looked at, and not the port.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Final

from taskherd.runner import process_table

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

_ESTABLISHED: Final = "01"
_SYN_RECEIVED: Final = "03"
_LISTEN: Final = "0A"
_LOOKS: Final = 3
_INTERVAL: Final = 0.1


class Peer(Enum):
    """Who has the other end of a connection."""

    AGENT = "agent"
    STRANGER = "stranger"
    """Another process than the agent's, or one that listens where the agent should."""
    UNKNOWN = "unknown"
    """Nobody, such as after it was closed, or it cannot be found out now."""


def _address(packed: bytes) -> str:
    """Return an address as /proc/net/tcp shows it: each four bytes of it as a number of this machine."""
    words = (packed[start : start + 4] for start in range(0, len(packed), 4))
    return "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words)


_OWN: Final = frozenset(
    {_address(socket.inet_aton("127.0.0.1")), _address(socket.inet_pton(socket.AF_INET6, "::ffff:127.0.0.1"))}
)
"""The addresses of both ends of a connection to 127.0.0.1."""
_REACHED: Final = _OWN | {
    _address(socket.inet_aton("0.0.0.0")),  # noqa: S104 - others listen
    *(_address(socket.inet_pton(socket.AF_INET6, each)) for each in ("::", "::ffff:0.0.0.0")),
}
"""The addresses whose listeners a connection to 127.0.0.1 may reach."""


@dataclass(frozen=True, slots=True)
class TcpSocket:
    """A TCP socket: the user who opened it, its inode (0 until it is accepted), and whether it listens."""

    uid: int
    inode: int
    listens: bool


async def identify_peer(own_port: int, port: int, shim: int | None, uid: int | None) -> Peer:
    """Return who has the other end of this process's connection from ``own_port`` to ``port``, both of 127.0.0.1.

    The agent is the descendants of ``shim``, and the user ``uid`` if it is the agent's alone. One look that shows it is
    enough; several must agree on a stranger, because an agent that forks may hide in between. An agent whose ``shim``
    is not known has not started.
    """
    looks = set()
    for _ in range(_LOOKS):
        peer = Peer.UNKNOWN
        if shim is not None:
            with suppress(OSError):  # without a free descriptor nothing can be found out
                peer = await asyncio.to_thread(look, own_port, port, shim, uid)
        if peer is Peer.AGENT:
            return peer
        looks.add(peer)
        await asyncio.sleep(_INTERVAL)
    return Peer.STRANGER if looks == {Peer.STRANGER} else Peer.UNKNOWN


def look(own_port: int, port: int, shim: int, uid: int | None) -> Peer:
    """Return whose process has the other end of a connection, as far as one look at /proc shows it.

    Until the connection is accepted, it belongs to whoever listens. Where /proc does not show a process's
    files, the user decides; a kernel that shows no sockets shows no strangers. Raise ``OSError`` if it cannot be read.
    """
    found = _sockets(own_port, port)
    if found is None:
        return Peer.AGENT
    ends = [] if own_port == port else [each for each in found if not each.listens]  # a port may connect to itself
    accepted = [each for each in ends if each.inode]
    owners = accepted or [each for each in found if each.listens]
    if _strangers(owners, shim, uid):
        return Peer.STRANGER
    return Peer.AGENT if ends and owners else Peer.UNKNOWN


def _strangers(owners: Collection[TcpSocket], shim: int, uid: int | None) -> list[TcpSocket]:
    """Return those of the sockets that neither the descendants of ``shim`` nor the user ``uid`` have."""
    strangers = [each for each in owners if each.uid != uid]
    if not strangers:
        return []
    inodes, hides = _inodes(process_table.descendants(shim))
    strangers = [each for each in strangers if each.inode not in inodes]
    if hides:
        strangers = [each for each in strangers if uid is not None or each.uid != os.geteuid()]
    return strangers


def _sockets(own_port: int, port: int) -> list[TcpSocket] | None:
    """Return the listeners on ``port``, and the other end of the connection from ``own_port``; None if none are shown.

    Each table shows listeners first. So a connection that is shown as not accepted yet is that of a listener here.
    """
    tables = [table for table in map(_table, ("tcp", "tcp6")) if table is not None]
    return [each for table in tables for each in _sockets_in(table, own_port, port)] if tables else None


def _table(name: str) -> list[str] | None:
    try:
        return Path(f"/proc/self/net/{name}").read_text(encoding="ascii").splitlines()[1:]
    except (FileNotFoundError, PermissionError):  # no IPv6, or a kernel that shows nothing
        return None


def _sockets_in(table: list[str], own_port: int, port: int) -> Iterator[TcpSocket]:
    for line in table:
        fields = line.split()
        (address, local), (remote_address, remote) = (field.split(":") for field in fields[1:3])
        if int(local, 16) != port:
            continue
        state, uid, inode = fields[3], int(fields[7]), int(fields[9])
        listens, is_closed = state == _LISTEN, not inode and state not in {_ESTABLISHED, _SYN_RECEIVED}
        if listens and address in _REACHED:
            yield TcpSocket(uid, inode, listens=True)
        elif int(remote, 16) == own_port and {address, remote_address} <= _OWN and not is_closed:
            yield TcpSocket(uid, inode, listens=False)


def _inodes(pids: Collection[int]) -> tuple[set[int], bool]:
    """Return the inodes of these processes' sockets, and whether some process does not show its files."""
    inodes, hides = set(), False
    for pid in pids:
        try:
            names = os.listdir(f"/proc/{pid}/fd")  # noqa: PTH208 - as below
        except PermissionError:
            hides = True
            continue
        except (FileNotFoundError, ProcessLookupError):  # it has exited
            continue
        for name in names:
            with suppress(OSError):  # it was closed meanwhile
                target = os.readlink(f"/proc/{pid}/fd/{name}")  # noqa: PTH115 - there may be thousands
                if target.startswith("socket:["):
                    inodes.add(int(target[8:-1]))
    return inodes, hides
