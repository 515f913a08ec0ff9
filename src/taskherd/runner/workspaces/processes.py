"""The processes of a run: start a shim, find it again after a restart, wait for its exit, and clean up after it."""

from __future__ import annotations

import asyncio
import fcntl
import json
import marshal
import os
import select
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import structlog
from pydantic import TypeAdapter

from taskherd import open_files
from taskherd.domain.reports import ExitReason
from taskherd.errors import Unavailable
from taskherd.runner import process_table, shim

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from taskherd.runner.workspaces.folders import RunFolder

log = structlog.get_logger(__name__)

MARKER_VARIABLE = "TASKHERD_RUN_FOLDER"
"""Environment variable that marks all processes of a run, so that they can be killed if the shim was killed."""
SEGMENT_BYTES = 1024 * 1024
"""Size of an output file in bytes; the shim starts a new file above it."""
MAX_SEGMENTS = 16
"""Maximum number of output files of a run; the shim deletes the oldest one to make room."""
STDIN_PIPE_BYTES = 1024 * 1024
"""Capacity of the pipe to an agent's stdin, in bytes."""
START_TIMEOUT = 30.0
"""Seconds to wait until a shim has started its agent."""
LOST = (
    "The agent ended and its exit status is lost: its machine or container stopped, or its shim was killed. "
    "Resume the task to start it again."
)
FOLDER_DELETED = (
    "The agent ended and its exit status is lost: the folder of its run was deleted, perhaps by the agent itself. "
    "Resume the task to start it again."
)
KILLED_STATUS = 128 + signal.SIGKILL
"""Exit status of a shell whose command was killed with SIGKILL."""
_POLL_INTERVAL = 0.01
"""Seconds between two checks whether a shim has started its agent."""
KILL_TIMEOUT = 2.0
"""Seconds within which processes that are killed must have ended."""
_KILL_POLL_INTERVAL = 0.005
_IMPORT_PATH = Path(shim.__file__).parents[2]
"""The folder that contains the package ``taskherd``."""


@dataclass(frozen=True, slots=True)
class ExitRecord:
    """How a run of an agent ended, as its shim recorded it.

    ``reason`` is exited, stopped, timeout, not started, or lost (no shim was there to record it). ``leftover`` is the
    number of processes that could not be killed, ``dropped`` the number of output bytes that could not be written.
    ``out_of_memory`` says whether the kernel killed a process of the agent's cgroup because memory ran out.
    """

    reason: str
    code: int | None = None
    signal: int | None = None
    detail: str | None = None
    leftover: int = 0
    dropped: int = 0
    out_of_memory: bool = False
    ended_because: str | None = None
    """Why the exit does not count as the agent's own, in a sentence: its follower ended it, or it was at work."""

    @property
    def succeeded(self) -> bool:
        """True if the agent exited on its own, with exit status 0."""
        return self.reason == "exited" and self.code == 0 and self.ended_because is None

    @property
    def why(self) -> ExitReason:
        """How the agent ended, as it is reported."""
        match self.reason:
            case "not started":
                return ExitReason.NOT_STARTED
            case "exited" if self.out_of_memory and (self.signal == signal.SIGKILL or self.code == KILLED_STATUS):
                return ExitReason.OUT_OF_MEMORY
            case "exited":
                return ExitReason.EXITED if self.signal is None else ExitReason.SIGNALLED
            case reason:
                return ExitReason(reason)

    def describe(self) -> str:
        """Describe the exit in a sentence, for users."""
        return self.ended_because or self._describe()

    def _describe(self) -> str:  # noqa: PLR0911 - one return for each way to end
        match self.reason:
            case "interrupted":
                return "The agent was ended by an interrupt. Resume the task to start it again."
            case "not started":
                return f"The agent could not be started: {self.detail}"
            case "timeout":
                return "The agent was stopped because it exceeded its time limit (`limits.timeout` in the template)."
            case "lost":
                return self.detail or LOST
            case _ if self.why is ExitReason.OUT_OF_MEMORY:
                return "The agent ran out of memory (`limits.memory` in the template) and was killed."
            case _ if self.signal is not None:
                return f"The agent was killed by signal {self.signal} ({signal_name(self.signal)})."
            case _:
                return f"The agent ended with exit status {self.code}."


_EXIT_RECORD: Final = TypeAdapter(ExitRecord)


@dataclass(frozen=True, slots=True)
class RunSpec:
    """The command, environment, stdin, limits and user of a run."""

    argv: Sequence[str]
    cwd: Path
    env: Mapping[str, str]
    grace: float
    timeout: float | None
    memory: int | None
    cpu: float | None
    cgroup: Path | None
    stdin: Path | None
    """The file that is the agent's stdin; None: a FIFO for inputs."""
    uid: int | None = None
    """The agent's own user; None: the runner's."""
    killer_uid: int | None = None
    """The user that sends signals to all processes of the agent's user."""
    sandboxed: bool = False
    """Whether ``argv`` runs bubblewrap, which runs the agent in ``cwd``."""
    protocol: bool = False
    """Whether stdin and stdout carry lines of a protocol: kept until they are read, and apart from stderr."""
    own_env: Mapping[str, str] = field(default_factory=dict)
    """Variables of the program alone: its shim, which may be root, is not given them."""
    beside_agent: bool = False
    """Whether this is a command beside an agent, whose user and cgroup it shares: its end must not end all of them."""
    segment_bytes: int | None = None
    """Size of an output file in bytes; None: ``SEGMENT_BYTES``."""


class ShimHandle:
    """A shim process, referred to by a pidfd, so that no signal can reach another process with its pid."""

    def __init__(self, folder: RunFolder, pid: int) -> None:
        self._folder = folder
        self._pid = pid
        self._descriptor = os.pidfd_open(pid)
        self.agent_started = False
        """Whether the agent is known to have started, whatever is left of its folder."""

    def stop(self) -> None:
        """Request that the shim ends the agent: SIGTERM, grace time, SIGKILL. Another request ends the grace time."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._descriptor, signal.SIGTERM)

    def interrupt(self) -> None:
        """Request that the shim sends SIGINT to the agent's process group."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._descriptor, signal.SIGINT)

    @property
    def has_exited(self) -> bool:
        """True once the shim has recorded the agent's exit, or has exited itself."""
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        return self._folder.exit.exists() or bool(poll.poll(0))

    def collect(self) -> ExitRecord | None:
        """Return how the run ended, or None while its shim runs."""
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        return self._collect_exit() if poll.poll(0) else None

    async def wait(self) -> ExitRecord:
        """Wait until the shim has exited, kill processes that it left, and return how the run ended."""
        loop = asyncio.get_running_loop()
        exited = asyncio.Event()
        loop.add_reader(self._descriptor, exited.set)
        try:
            await exited.wait()
        finally:
            loop.remove_reader(self._descriptor)
        return await asyncio.to_thread(self._collect_exit)

    def _collect_exit(self) -> ExitRecord:
        with suppress(ChildProcessError):  # an adopted shim is not a child of this process, unless it is init
            os.waitpid(self._pid, os.WNOHANG)
        return read_exit(self._folder, agent_started=self.agent_started)

    def close(self) -> None:
        """Close the pidfd; the shim keeps running."""
        os.close(self._descriptor)


async def start(folder: RunFolder, spec: RunSpec) -> ShimHandle:
    """Start a shim in a new run folder, and return when its agent is running.

    Raises:
        OSError: a file could not be written or the shim could not be spawned.
        Unavailable: the agent could not be started, or the shim did not start it in time.
    """
    handle = spawn(folder, spec)
    exit_wait = asyncio.create_task(handle.wait())
    try:
        async with asyncio.timeout(START_TIMEOUT):
            while not (folder.started.exists() or _is_deleted(folder)):
                if exit_wait.done():
                    if exit_wait.result().reason != "not started":
                        break
                    handle.close()
                    raise Unavailable(str(exit_wait.result().detail))
                await asyncio.sleep(_POLL_INTERVAL)
    except TimeoutError:
        handle.stop()
        handle.close()
        raise Unavailable(
            f"its shim did not start it within {START_TIMEOUT:g} s; the machine may be overloaded"
        ) from None
    finally:
        exit_wait.cancel()
        await asyncio.wait({exit_wait})
    handle.agent_started = True
    return handle


def _is_deleted(folder: RunFolder) -> bool:
    """Return whether the agent has deleted the folder of its run: what the shim was given is there before it runs."""
    return not folder.spec.exists()


def spawn(folder: RunFolder, spec: RunSpec) -> ShimHandle:
    """Start a shim in a new run folder; it has not started its agent yet. Raise ``OSError`` if that fails."""
    folder.recreate()
    folder.spec.write_bytes(marshal.dumps(_spec_record(spec)))
    pid = _spawn(folder, spec.env)
    try:
        return ShimHandle(folder, pid)
    except OSError:  # with too many open files, for example
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        kill_marked(folder)  # it may have started its agent
        raise


def _spawn(folder: RunFolder, env: Mapping[str, str]) -> int:
    """Start the shim in its own session, so that signals to the runner's session do not reach it. Return its pid."""
    argv = [sys.executable, "-I", "-S", "-c", shim.BOOT, str(_IMPORT_PATH), str(folder.path)]
    log = os.open(folder.shim_log, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, log, 1),
            (os.POSIX_SPAWN_DUP2, log, 2),
        ]
        variables = {name: value for name, value in env.items() if not _is_for_linker(name)}
        variables[MARKER_VARIABLE] = str(folder.path)
        return os.posix_spawn(sys.executable, argv, variables, file_actions=actions, setsid=True)
    finally:
        os.close(log)


def _is_for_linker(name: str) -> bool:
    """Return whether the variable changes which code a program loads; the shim may be root, so it must not."""
    return name.startswith(("LD_", "GLIBC_"))


def _spec_record(spec: RunSpec) -> dict[str, Any]:
    return {
        "argv": list(spec.argv),
        "cwd": "/" if spec.sandboxed else str(spec.cwd),
        "own_env": {**{name: value for name, value in spec.env.items() if _is_for_linker(name)}, **spec.own_env},
        "uid": spec.uid,
        "beside_agent": spec.beside_agent,
        "killer_uid": spec.killer_uid,
        "sandboxed": spec.sandboxed,
        "protocol": spec.protocol,
        "grace": spec.grace,
        "timeout": spec.timeout,
        "memory": spec.memory,
        "cpu": spec.cpu,
        "open_files": open_files.INHERITED,
        "cgroup": str(spec.cgroup) if spec.cgroup else None,
        "stdin": str(spec.stdin) if spec.stdin else None,
        "segment_bytes": spec.segment_bytes or SEGMENT_BYTES,
        "max_segments": MAX_SEGMENTS,
        "stdin_pipe_bytes": STDIN_PIPE_BYTES,
    }


def has_shim(folder: RunFolder) -> bool:
    """Return whether the shim of this run is running: it holds the lock until it exits.

    Raise ``OSError`` if this process has no file descriptor left to look.
    """
    try:
        descriptor = os.open(folder.lock, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        open_files.raise_if_exhausted(error)
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


async def adopt(folder: RunFolder) -> ShimHandle | None:
    """Return the running shim of a run that an earlier runner started, or None if it has exited."""
    with suppress(TimeoutError):
        async with asyncio.timeout(START_TIMEOUT):
            while has_shim(folder):
                handle = open_running(folder)
                if handle is not None:
                    return handle
                await asyncio.sleep(_POLL_INTERVAL)  # it was just started, and has not written ``started.json`` yet
    return None


def open_running(folder: RunFolder) -> ShimHandle | None:
    """Return a handle of the recorded shim if the process with its pid has the recorded start time, else None.

    Raise ``OSError`` if this process has no file descriptor left to look.
    """
    try:
        record = json.loads(folder.started.read_text())
        pid, start = record["pid"], record["start"]
        handle = ShimHandle(folder, pid)
    except (OSError, ValueError, KeyError, TypeError) as error:
        open_files.raise_if_exhausted(error)
        return None
    try:
        if process_table.start_ticks(pid) == start:
            handle.agent_started = True
            return handle
    except (OSError, IndexError) as error:  # it may have exited
        handle.close()
        open_files.raise_if_exhausted(error)
    else:
        handle.close()
    return None


def recorded_shim(folder: RunFolder) -> int | None:
    """Return the pid of the shim of a run whose agent was started, or None; it may have exited."""
    try:
        return int(json.loads(folder.started.read_text())["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read_exit(folder: RunFolder, *, agent_started: bool = False) -> ExitRecord:
    """Return how a finished run ended. If its shim was killed, kill the processes that it left.

    A record that is no shim's counts as none. ``agent_started``: it is known to have started; otherwise the folder says
    whether. Raise ``OSError`` if this process has no file descriptor left to look.
    """
    try:
        return _recorded_exit(folder)
    except ValueError as error:
        log.warning("exit record of an agent is invalid, ignored", folder=str(folder.path), reason=str(error))
    except OSError as error:
        open_files.raise_if_exhausted(error)  # what cannot be read now is not lost
    leftover, is_there = kill_marked(folder), folder.started.exists()
    if not (is_there or agent_started):
        return ExitRecord("not started", detail=_startup_error(folder))
    return ExitRecord("lost", detail=None if is_there else FOLDER_DELETED, leftover=leftover)


def _recorded_exit(folder: RunFolder) -> ExitRecord:
    """Return how a run ended, as its shim recorded it. Raise ``OSError``, or ``ValueError`` if no shim wrote that."""
    record = _EXIT_RECORD.validate_json(folder.exit.read_bytes())
    if record.reason not in {"exited", "stopped", "timeout", "not started"}:
        raise ValueError(f"unknown reason {record.reason!r:.100}")
    return record


def has_succeeded(folder: RunFolder) -> bool:
    """Return whether a run is recorded to have exited on its own, with exit status 0."""
    with suppress(OSError, ValueError):
        return _recorded_exit(folder).succeeded
    return False


def kill_marked(folder: RunFolder) -> int:
    """Kill every process that carries the marker of this run, and return the number of those that survived.

    Wait for their end for ``KILL_TIMEOUT`` at most: on a busy machine a killed process exists for a while.
    """
    deadline = time.monotonic() + KILL_TIMEOUT
    while pids := set(_marked(folder)):
        process_table.send_signal(pids, signal.SIGSTOP)
        marked = set(_marked(folder))
        process_table.send_signal(marked, signal.SIGKILL)
        if time.monotonic() > deadline:
            break
        if marked <= pids:  # none was started meanwhile
            time.sleep(_KILL_POLL_INTERVAL)
    return len(pids)


def _marked(folder: RunFolder) -> list[int]:
    marker = f"{MARKER_VARIABLE}={folder.path}".encode()
    marked = []
    for pid in process_table.parents():
        with suppress(OSError):
            if marker in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                marked.append(pid)
    return marked


def _startup_error(folder: RunFolder) -> str:
    """Return the last line of the log of a shim that exited before it started the agent."""
    with suppress(OSError):
        lines = folder.shim_log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "its shim exited without an error message; it may have been killed"
    return "its shim was never started"


def signal_name(number: int) -> str:
    """Return the name of a signal, such as SIGTERM."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"
