"""The shim: starts one agent, keeps its output and its exit status on disk, and outlives the runner.

Run as a file (`python -I -S shim.py RUN_FOLDER`), so that it imports nothing but the standard library: one of these
stays beside every agent. Its environment is the agent's. What it keeps in the run folder is described in `folders.py`.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import math
import os
import resource
import selectors
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # see prctl(2)
CHUNK = 65_536
RESERVED = 4_096
"""Bytes that the exit record is given at the start, so that a full disk can't keep it from being written."""
MAX_KILLING = 30.0
"""Seconds after which processes that survive SIGKILL (in uninterruptible sleep) are left, and that is said."""
AGENT_OOM_SCORE = "500"
_POLL = 0.02
_FREEZE_ROUNDS = 50


def prctl(option: int, value: int) -> None:
    """Set a property of this process, as the manual has it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def parents() -> dict[int, int]:
    """Every process of this machine, as far as /proc shows it, with its parent; zombies are left out."""
    found = {}
    for entry in os.listdir("/proc"):  # noqa: PTH208 - as below
        if entry.isdigit():
            with suppress(OSError):
                state, parent = _stat(int(entry))[:2]
                if state != "Z":
                    found[int(entry)] = int(parent)
    return found


def started(pid: int) -> int:
    """When a process began, in clock ticks since boot; with the pid this tells it from every other process."""
    return int(_stat(pid)[19])


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on: the second may hold anything, so it is cut at its last ``)``."""
    with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - hundreds of times a second while killing
        return file.read().rpartition(b")")[2].decode().split()


def descendants(root: int) -> set[int]:
    """The living processes below `root`: as it is a subreaper, none of them can leave."""
    children: dict[int, list[int]] = {}
    for pid, parent in parents().items():
        children.setdefault(parent, []).append(pid)
    found: set[int] = set()
    waiting = [root]
    while waiting:
        below = [pid for pid in children.get(waiting.pop(), ()) if pid not in found]
        found.update(below)
        waiting += below
    return found


def send(pids: set[int], what: int) -> None:
    """Send a signal to those that still live."""
    for pid in pids:
        with suppress(OSError):
            os.kill(pid, what)


def write_whole(path: Path, said: dict[str, Any]) -> None:
    """Put a record in place at once: written beside it, synced, renamed."""
    beside = path.with_suffix(".new")
    with beside.open("w") as file:
        json.dump(said, file)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


class Output:
    """What the agent writes, in segments named by the offset at which they begin; the oldest make room for new ones.

    What can't be written (the disk is full) is dropped, and shows as a gap between two segments.
    """

    def __init__(self, folder: Path, segment: int, keep: int) -> None:
        self._folder = folder
        self._segment = segment
        self._keep = keep
        self._names: list[Path] = []
        self._file: int | None = None
        self._size = 0
        self.total = 0
        self.dropped = 0

    def write(self, chunk: bytes) -> None:
        """Keep a chunk."""
        left = memoryview(chunk)
        try:
            while left:
                if self._file is None or self._size >= self._segment:
                    self._next()
                assert self._file is not None
                written = os.write(self._file, left)
                self._size += written
                self.total += written
                left = left[written:]
        except OSError:
            self.total += len(left)
            self.dropped += len(left)
            self._close()

    def _next(self) -> None:
        self._close()
        while len(self._names) >= self._keep:
            self._names.pop(0).unlink(missing_ok=True)
        path = self._folder / f"{self.total:020d}"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._names.append(path)
        self._size = 0

    def _close(self) -> None:
        if self._file is not None:
            with suppress(OSError):
                os.close(self._file)
            self._file = None


class Shim:
    """The life of one agent."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._spec: dict[str, Any] = json.loads((folder / "spec.json").read_text())
        self._output = Output(folder / "output", self._spec["segment_bytes"], self._spec["segments"])
        self._stop = False
        self._why = "exited"
        self._status: int | None = None
        self._childless = False
        self._agent = self._agent_start = 0
        self._wake, self._waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._out, self._agent_out = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._out, False)

    def run(self) -> None:
        """Start the agent, keep what it says, end whatever it leaves, and say how it went."""
        exit_record = os.open(self._folder / "exit.new", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.pwrite(exit_record, b" " * RESERVED, 0)
        (self._folder / "output").mkdir(mode=0o700)
        os.mkfifo(self._folder / "input", 0o600)
        self._listen()
        failure = self._start()
        left = 0
        if not failure:
            own = {"pid": os.getpid(), "start": started(os.getpid()), "at": time.time()}
            write_whole(self._folder / "started.json", {**own, "agent": self._agent, "agent_start": self._agent_start})
            self._follow()
            left = self._end()
        self._say(exit_record, failure, left)

    def _listen(self) -> None:
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._on_stop_signal)
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)

    def _on_stop_signal(self, *_: object) -> None:
        self._stop = True

    def _start(self) -> str | None:
        """Start the agent; what went wrong, in words, where that failed."""
        # Opened for reading and writing, a FIFO has no end: whoever writes to it may come and go.
        stdin = os.open(self._folder / "input", os.O_RDWR | os.O_CLOEXEC)
        with suppress(OSError):  # so that one whole input fits, whenever the agent comes to read it
            fcntl.fcntl(stdin, fcntl.F_SETPIPE_SZ, self._spec["input_bytes"])
        try:
            # This process has one thread, so running Python between fork and exec is safe.
            agent = subprocess.Popen(  # noqa: S603 - running the template's command is what this is for
                self._spec["argv"],
                cwd=self._spec["cwd"],
                stdin=stdin,
                stdout=self._agent_out,
                stderr=self._agent_out,
                start_new_session=True,
                preexec_fn=self._limit,  # noqa: PLW1509
            )
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            return str(error)
        finally:
            os.close(self._agent_out)
        self._agent = agent.pid
        with suppress(OSError, IndexError):  # it may have ended already
            self._agent_start = started(agent.pid)
        agent.returncode = 0  # it is reaped here, with everybody else who comes back to us
        return None

    def _limit(self) -> None:
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        with suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(AGENT_OOM_SCORE)
        if cgroup := self._spec.get("cgroup"):
            (Path(cgroup) / "cgroup.procs").write_text("0")
            return
        if memory := self._spec.get("memory"):
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        if cpu := self._spec.get("cpu"):
            usable = sorted(os.sched_getaffinity(0))
            first = os.getpid() % len(usable)  # so that not all agents share the first ones
            os.sched_setaffinity(0, (usable[first:] + usable[:first])[: math.ceil(cpu)])

    def _follow(self) -> None:
        """Keep the output until the agent has ended, is to be stopped, or has had its time."""
        timeout = self._spec.get("timeout")
        deadline = time.monotonic() + timeout if timeout else None
        with selectors.DefaultSelector() as waiting:
            waiting.register(self._wake, selectors.EVENT_READ)
            waiting.register(self._out, selectors.EVENT_READ)
            while not self._reap():
                if self._stop:
                    self._why = "stopped"
                    return
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    self._why = "timeout"
                    return
                for key, _ in waiting.select(left):
                    if key.fd == self._wake:
                        self._drain_wake()
                    elif not self._read_chunk():
                        waiting.unregister(self._out)

    def _end(self) -> int:
        """End what is left: SIGTERM, grace, SIGKILL for all that ever came from the agent. How many survived it."""
        if self._why != "exited":
            with suppress(OSError):
                os.killpg(self._agent, signal.SIGTERM)
        else:
            send(descendants(os.getpid()), signal.SIGTERM)
        deadline = time.monotonic() + self._spec["grace"]
        while not self._alone() and time.monotonic() < deadline:
            self._pause()
        give_up = time.monotonic() + MAX_KILLING
        while not self._alone() and time.monotonic() < give_up:
            self._kill(descendants(os.getpid()))
            self._pause()
        while self._read_chunk():
            pass
        return 0 if self._alone() else max(1, len(descendants(os.getpid())))

    def _alone(self) -> bool:
        """Whether nobody is left below us. Only wait(2) knows: a look at /proc may miss one who forks meanwhile."""
        self._reap()
        return self._childless

    def _kill(self, family: set[int]) -> None:
        """Kill all at once: frozen first, else those not seen yet go on making new ones."""
        for _ in range(_FREEZE_ROUNDS):
            send(family, signal.SIGSTOP)
            now = descendants(os.getpid())
            if now <= family:
                break
            family = family | now
        send(family, signal.SIGKILL)

    def _pause(self) -> None:
        """Wait a moment for somebody to end, and go on keeping what is said."""
        with selectors.DefaultSelector() as waiting:
            waiting.register(self._wake, selectors.EVENT_READ)
            waiting.select(_POLL)
        self._drain_wake()
        while self._read_chunk():
            pass
        self._reap()

    def _read_chunk(self) -> bool:
        """Keep one chunk; whether there was one."""
        try:
            chunk = os.read(self._out, CHUNK)
        except BlockingIOError:
            return False
        self._output.write(chunk)
        return bool(chunk)

    def _drain_wake(self) -> None:
        with suppress(BlockingIOError):
            while os.read(self._wake, CHUNK):
                pass

    def _reap(self) -> bool:
        """Take note of everybody who ended; whether the agent has."""
        self._childless = False
        try:
            while (ended := os.waitpid(-1, os.WNOHANG))[0] != 0:
                if ended[0] == self._agent:
                    self._status = ended[1]
        except ChildProcessError:
            self._childless = True
        return self._status is not None

    def _say(self, exit_record: int, failure: str | None, left: int) -> None:
        status = self._status
        code = os.waitstatus_to_exitcode(status) if status is not None else None
        said = {
            "why": "not started" if failure else self._why,
            "code": code if code is not None and code >= 0 else None,
            "signal": -code if code is not None and code < 0 else None,
            "detail": failure[:1_000] if failure else None,
            "left": left,
            "output": self._output.total,
            "dropped": self._output.dropped,
            "at": time.time(),
        }
        os.pwrite(exit_record, json.dumps(said).encode()[:RESERVED], 0)  # what was reserved around it is white space
        os.fsync(exit_record)
        (self._folder / "exit.new").replace(self._folder / "exit.json")


def main() -> None:
    """Be the shim of the run folder that the first argument names; do nothing if it has one or had one."""
    folder = Path(sys.argv[1])
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    if (folder / "started.json").exists() or (folder / "exit.json").exists():
        return
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    Shim(folder).run()


if __name__ == "__main__":
    main()
