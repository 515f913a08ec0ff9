"""Start the processes of a private node, find those that a crash left behind, and end them.

Every process is started in its node's folder, with ``PRIVATE_NODE_OF_TASKHERD`` set to that folder. A process that
still has this variable when the node is started again is a leftover and is ended; no process is killed by its pid
alone.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil
from psutil import Process

from taskherd.errors import Unavailable

__all__ = [
    "Process",
    "await_ready",
    "belonging_to",
    "end",
    "is_named",
    "kill",
    "listens",
    "marked",
    "send",
    "spawn",
    "stop",
    "tree",
    "with_variable",
]

MARKER_VARIABLE: Final = "PRIVATE_NODE_OF_TASKHERD"
_POLL_INTERVAL: Final = 0.05
"""Seconds between two checks whether a process is ready."""
_GONE: Final = (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied)


def spawn(argv: Sequence[str | Path], *, home: Path, env: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start a process of the node in ``home`` in a session of its own, with its output appended to ``log``.

    The terminal's Ctrl-C does not reach it.
    """
    with log.open("ab") as output:
        return subprocess.Popen(
            [str(word) for word in argv],
            cwd=home,
            env=marked(env, home),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def marked(env: Mapping[str, str], home: Path) -> dict[str, str]:
    """Return the environment for a process that belongs to the node in ``home``."""
    return {**env, MARKER_VARIABLE: str(home)}


def belonging_to(home: Path) -> list[Process]:
    """Return all running processes of the node in ``home`` and their descendants, except this process."""
    roots = [process for process in psutil.process_iter() if process.pid != os.getpid() and _belongs(process, home)]
    return list({process.pid: process for root in roots for process in (root, *tree(root.pid)[1:])}.values())


def with_variable(name: str, prefix: str) -> list[Process]:
    """Return all running processes whose environment variable ``name`` starts with ``prefix``."""
    found = []
    for process in psutil.process_iter():
        with suppress(*_GONE):
            if process.environ().get(name, "").startswith(prefix):
                found.append(process)
    return found


def tree(pid: int) -> list[Process]:
    """Return a process and all its descendants, parents first; an empty list if it has exited."""
    with suppress(*_GONE):
        root = Process(pid)
        return [root, *root.children(recursive=True)]
    return []


def listens(pid: int, port: int) -> bool:
    """Return whether this process or a descendant accepts TCP connections on a port; only root sees other users'."""
    for process in tree(pid):
        with suppress(*_GONE):
            if any(
                each.status == psutil.CONN_LISTEN and each.laddr.port == port for each in process.net_connections("tcp")
            ):
                return True
    return False


def is_named(pid: int, name: str) -> bool:
    """Return whether a process with this pid is running and its name starts with ``name``."""
    with suppress(*_GONE):
        return Process(pid).name().startswith(name)
    return False


def send(processes: Sequence[Process], number: signal.Signals) -> None:
    """Send a signal to those of the processes that are still running."""
    for process in processes:
        with suppress(*_GONE):
            process.send_signal(number)


def end(processes: Sequence[Process], *, gently: signal.Signals, within: float) -> None:
    """End processes: resume them, send the signal ``gently``, and kill those left after ``within`` seconds."""
    send(processes, signal.SIGCONT)
    send(processes, gently)
    _, left = psutil.wait_procs(processes, timeout=within)
    send(left, signal.SIGKILL)
    psutil.wait_procs(left, timeout=10)


def stop(process: subprocess.Popen[bytes], *, gently: signal.Signals, within: float) -> None:
    """End and reap a child process; descendants that outlive it are killed."""
    family = tree(process.pid)
    if process.poll() is None:
        send(family, signal.SIGCONT)
        process.send_signal(gently)
        with suppress(subprocess.TimeoutExpired):
            process.wait(within)
    end(family[1:], gently=signal.SIGKILL, within=5)
    kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a child process and all its descendants with SIGKILL, and reap it."""
    family = tree(process.pid)
    send(family, signal.SIGKILL)
    process.wait(30)
    psutil.wait_procs(family[1:], timeout=10)


def await_ready(
    process: subprocess.Popen[bytes], ready: Callable[[], bool], *, what: str, log: Path, within: float
) -> None:
    """Wait until ``ready()`` returns true.

    Raises:
        Unavailable: if the process exits first or ``within`` seconds pass; the message has the last lines of its log.
    """
    deadline = time.monotonic() + within
    while not ready():
        code = process.poll()
        if code is not None:
            raise Unavailable(f"{what} exited with code {code} while starting; {log} ends with:\n{_tail(log)}")
        if time.monotonic() > deadline:
            raise Unavailable(f"{what} was not ready within {within:.0f} s; {log} ends with:\n{_tail(log)}")
        time.sleep(_POLL_INTERVAL)


def _belongs(process: Process, home: Path) -> bool:
    with suppress(*_GONE):
        if process.environ().get(MARKER_VARIABLE) == str(home):
            return True
    with suppress(*_GONE):
        if not process.name().startswith("postgres"):
            return False
        # PostgreSQL's children overwrite their environment with their title. In a container, the environment and the
        # folder of another user's process cannot be read, not even by root, but the command line can.
        if any(word.startswith(f"{home}/") for word in process.cmdline()):
            return True
        return Path(process.cwd()).is_relative_to(home)
    return False


def _tail(log: Path, lines: int = 15) -> str:
    with suppress(OSError):
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    return "(no output)"
