"""The processes of a run: started under a shim, found again by the next runner, waited for, cleaned up after."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskherd.errors import Unavailable
from taskherd.runner import shim

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from taskherd.runner.workspaces.folders import RunFolder

MARKER_VARIABLE = "TASKHERD_RUN_FOLDER"
"""The variable that marks every process of a run, so that none outlives it whose shim was killed."""
SEGMENT_BYTES, SEGMENTS = 1024 * 1024, 16
INPUT_PIPE_BYTES = 1024 * 1024
START_TIMEOUT = 30.0
LOST = "The agent and its exit status are lost: it ended with the machine or container it ran in, or with its shim."
_POLL = 0.01
_SWEEPS = 20


@dataclass(frozen=True, slots=True)
class AgentExit:
    """How a run ended: `why` is exited, stopped, timeout, not started, or lost (nobody was there to see it)."""

    why: str
    code: int | None = None
    signal: int | None = None
    detail: str | None = None
    leftover: int = 0
    dropped: int = 0

    @property
    def succeeded(self) -> bool:
        """Whether the agent ended by itself, with success."""
        return self.why == "exited" and self.code == 0

    def describe(self) -> str:
        """In words, for people."""
        match self.why:
            case "not started":
                return f"The agent could not be started: {self.detail}"
            case "timeout":
                return "The agent was stopped: it had used up its time."
            case "lost":
                return LOST
            case _ if self.signal is not None:
                return f"The agent was ended by signal {self.signal} ({_name(self.signal)})."
            case _:
                return f"The agent ended with exit status {self.code}."


@dataclass(frozen=True, slots=True)
class RunSpec:
    """What a shim is to run."""

    argv: Sequence[str]
    cwd: Path
    env: Mapping[str, str]
    grace: float
    timeout: float | None
    memory: int | None
    cpu: float | None
    cgroup: Path | None


class ShimHandle:
    """A shim that lives, or did when it was found; `pid` is known to be its own."""

    def __init__(self, folder: RunFolder, pid: int) -> None:
        self._folder = folder
        self._pid = pid
        self._descriptor = os.pidfd_open(pid)

    def stop(self) -> None:
        """Ask it to end the agent: SIGTERM, grace, SIGKILL."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._descriptor, signal.SIGTERM)

    async def ended(self) -> AgentExit:
        """Wait until the run is over, and see to it that nothing of it is left."""
        loop = asyncio.get_running_loop()
        over = asyncio.Event()
        loop.add_reader(self._descriptor, over.set)
        try:
            await over.wait()
        finally:
            loop.remove_reader(self._descriptor)
        return await asyncio.to_thread(self._reap)

    def _reap(self) -> AgentExit:
        with suppress(ChildProcessError):  # an adopted one is no child of ours, unless we are its container's init
            os.waitpid(self._pid, os.WNOHANG)
        return read_exit(self._folder)

    def close(self) -> None:
        """Let go of it; it lives on."""
        os.close(self._descriptor)


async def start(folder: RunFolder, spec: RunSpec) -> ShimHandle:
    """Start a shim in a cleared folder, and return when its agent runs.

    Raises OSError, and Unavailable when the agent can't be started, or the shim does not begin in time.
    """
    folder.clear()
    folder.spec.write_text(json.dumps(_spec(spec)))
    begun = ShimHandle(folder, _spawn(folder, spec.env))
    over = asyncio.create_task(begun.ended())
    try:
        async with asyncio.timeout(START_TIMEOUT):
            while not folder.started.exists():
                if over.done():
                    begun.close()
                    raise Unavailable(str(over.result().detail))
                await asyncio.sleep(_POLL)
    except TimeoutError:
        begun.stop()
        begun.close()
        raise Unavailable(f"the shim did not begin within {START_TIMEOUT:g} s") from None
    finally:
        over.cancel()
        await asyncio.wait({over})
    return begun


def _spawn(folder: RunFolder, env: Mapping[str, str]) -> int:
    """Start the shim in a session of its own, out of reach of our terminal and of what ends us; its pid."""
    argv = [sys.executable, "-I", "-S", shim.__file__, str(folder.path)]
    log = os.open(folder.path / "shim.log", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, log, 1),
            (os.POSIX_SPAWN_DUP2, log, 2),
        ]
        return os.posix_spawn(
            sys.executable, argv, {**env, MARKER_VARIABLE: str(folder.path)}, file_actions=actions, setsid=True
        )
    finally:
        os.close(log)


def _spec(spec: RunSpec) -> dict[str, Any]:
    return {
        "argv": list(spec.argv),
        "cwd": str(spec.cwd),
        "grace": spec.grace,
        "timeout": spec.timeout,
        "memory": spec.memory,
        "cpu": spec.cpu,
        "cgroup": str(spec.cgroup) if spec.cgroup else None,
        "segment_bytes": SEGMENT_BYTES,
        "segments": SEGMENTS,
        "input_bytes": INPUT_PIPE_BYTES,
    }


def alive(folder: RunFolder) -> bool:
    """Whether the shim of this run lives: it holds the lock as long as it does."""
    try:
        descriptor = os.open(folder.lock, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


async def adopt(folder: RunFolder) -> ShimHandle | None:
    """The living shim of a run that an earlier runner started; None where it is over."""
    with suppress(TimeoutError):
        async with asyncio.timeout(START_TIMEOUT):
            while alive(folder):
                shim_of = _verified_shim(folder)
                if shim_of is not None:
                    return shim_of
                await asyncio.sleep(_POLL)  # it was just born, and has not said yet who it is
    return None


def _verified_shim(folder: RunFolder) -> ShimHandle | None:
    """The shim that says it is of this run, if the process of that pid began when it says."""
    try:
        said = json.loads(folder.started.read_text())
        found = ShimHandle(folder, said["pid"])
        if shim.started(said["pid"]) == said["start"]:
            return found
        found.close()
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None


def read_exit(folder: RunFolder) -> AgentExit:
    """How a run that is over ended; what its shim left behind, because it was killed itself, is killed."""
    try:
        said = json.loads(folder.exit.read_text())
    except (OSError, ValueError):
        said = {"why": "lost", "left": clean_up(folder)}
        if not folder.started.exists():
            said = {"why": "not started", "detail": _startup_error(folder)}
    return AgentExit(
        said["why"],
        said.get("code"),
        said.get("signal"),
        said.get("detail"),
        said.get("left", 0),
        said.get("dropped", 0),
    )


def clean_up(folder: RunFolder) -> int:
    """Kill every process that carries the mark of this run; how many are left that could not be killed."""
    left: list[int] = []
    for _ in range(_SWEEPS):
        left = _marked(folder)
        if not left:
            break
        shim.send(set(left), signal.SIGSTOP)
        shim.send(set(_marked(folder)), signal.SIGKILL)
    return len(left)


def _marked(folder: RunFolder) -> list[int]:
    wanted = f"{MARKER_VARIABLE}={folder.path}".encode()
    found = []
    for pid in shim.parents():
        with suppress(OSError):
            if wanted in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found.append(pid)
    return found


def _startup_error(folder: RunFolder) -> str:
    """What a shim said that failed before it began, or that it said nothing."""
    with suppress(OSError):
        lines = (folder.path / "shim.log").read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "the shim ended without a word"
    return "nothing was begun"


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"
