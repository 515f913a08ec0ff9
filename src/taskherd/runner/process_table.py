"""Read /proc: which processes there are, their parents and start times; and send signals to them.

The shim imports this module, so it uses only parts of the standard library that need little memory.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


def parents() -> dict[int, int]:
    """Return the parent of every process that /proc shows, except zombies."""
    return {pid: int(fields[1]) for pid, fields in processes()}


def processes() -> Iterator[tuple[int, list[str]]]:
    """Yield the pid of every process that /proc shows, except zombies, and the fields of its stat from the third."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = _stat(int(entry))
            except (FileNotFoundError, ProcessLookupError, PermissionError):  # it has exited, or is hidden
                continue
            if fields[0] != "Z":
                yield int(entry), fields


def start_ticks(pid: int) -> int:
    """Return the start time of a process, in clock ticks since boot; pid and start time identify a process."""
    return int(_stat(pid)[19])


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the third on, after the last ``)``: the second may contain anything."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].decode().split()


def descendants(root: int) -> set[int]:
    """Return the living descendants of ``root``, a subreaper, so that orphaned descendants remain below it."""
    return descendants_in(parents(), root)


def descendants_in(parent_of: dict[int, int], root: int) -> set[int]:
    """Return the descendants of ``root`` among processes with these parents."""
    children: dict[int, list[int]] = {}
    for pid, parent in parent_of.items():
        children.setdefault(parent, []).append(pid)
    found: set[int] = set()
    unvisited = [root]
    while unvisited:
        below = [pid for pid in children.get(unvisited.pop(), ()) if pid not in found]
        found.update(below)
        unvisited += below
    return found


def send_signal(pids: set[int], number: int) -> None:
    """Send a signal to those of the processes that still exist."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except OSError:
            continue
