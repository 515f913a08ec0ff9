"""The shim: run one agent, record its output and exit status on disk, and survive the runner.

It runs as a file (``python -I -S shim.py RUN_FOLDER``) and imports only the standard library and two modules beside it,
because one shim process stays in memory for each agent. Its environment is the agent's, except the variables that the
dynamic linker reads. ``workspaces/folders.py`` lists the files that it uses.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import resource
import selectors
import signal
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # it runs as a file, and without site-packages only the standard library is found
    sys.path.append(__file__.removesuffix("taskherd/runner/shim.py"))
from taskherd.runner import privileges
from taskherd.runner.privileges import prctl
from taskherd.runner.segments import SegmentWriter

if TYPE_CHECKING:
    from collections.abc import Iterator

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # see prctl(2)
READ_BYTES = 65_536
"""Maximum number of bytes of output that one read returns."""
EXIT_RECORD_BYTES = 4_096
"""Bytes of disk space reserved for the exit record at start, so that it can be written even if the disk is full."""
KILL_TIMEOUT = 30.0
"""Seconds after which processes that survive SIGKILL (in uninterruptible sleep) are left and counted as leftover."""
AGENT_OOM_SCORE = "500"
_POLL_INTERVAL = 0.02
"""Seconds between two checks whether all processes have exited."""
_FREEZE_ROUNDS = 50


def parents() -> dict[int, int]:
    """Return the parent of every process that /proc shows, except zombies."""
    return {pid: int(fields[1]) for pid, fields in processes()}


def processes() -> Iterator[tuple[int, list[str]]]:
    """Yield the pid of every process that /proc shows, except zombies, and the fields of its stat from the third."""
    for entry in os.listdir("/proc"):  # noqa: PTH208 - as below
        if entry.isdigit():
            with suppress(OSError):
                fields = _stat(int(entry))
                if fields[0] != "Z":
                    yield int(entry), fields


def start_ticks(pid: int) -> int:
    """Return the start time of a process, in clock ticks since boot; pid and start time identify a process."""
    return int(_stat(pid)[19])


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the third on, after the last ``)``: the second may contain anything."""
    with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - hundreds of times a second while killing
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
        with suppress(OSError):
            os.kill(pid, number)


def write_atomically(path: Path, record: dict[str, Any]) -> None:
    """Write a JSON record to a temporary file, sync it, and rename it to ``path``."""
    temporary = path.with_suffix(".new")
    with temporary.open("w") as file:
        json.dump(record, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


class Shim:
    """One run of an agent, from its start to its exit record."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._spec: dict[str, Any] = json.loads((folder / "spec.json").read_text())
        self._output = SegmentWriter(folder / "output", self._spec["segment_bytes"], self._spec["max_segments"])
        self._stop = False
        self._kill_now = False
        self._reason = "exited"
        self._status: int | None = None
        self._childless = False
        self._agent = self._agent_start = 0
        self._wakeup_read, self._wakeup_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._output_read, self._output_write = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._output_read, False)

    def run(self) -> None:
        """Start the agent, record its output, end all of its processes, and record how it ended."""
        exit_record = os.open(self._folder / "exit.new", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.pwrite(exit_record, b" " * EXIT_RECORD_BYTES, 0)
        (self._folder / "output").mkdir(mode=0o700)
        os.mkfifo(self._folder / "input", 0o600)
        self._handle_signals()
        error = self._start()
        leftover = 0
        if not error:
            shim = {"pid": os.getpid(), "start": start_ticks(os.getpid()), "at": time.time()}
            agent = {"agent": self._agent, "agent_start": self._agent_start, "sandboxed": self._spec["sandboxed"]}
            write_atomically(self._folder / "started.json", {**shim, **agent})
            self._follow()
            leftover = self._end()
        self._record_exit(exit_record, error, leftover)

    def _handle_signals(self) -> None:
        signal.set_wakeup_fd(self._wakeup_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._on_stop_signal)
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)

    def _on_stop_signal(self, *_: object) -> None:
        self._kill_now = self._stop
        self._stop = True

    def _start(self) -> str | None:
        """Start the agent. Return an error message, or None on success."""
        problem_read, problem_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            stdin = self._open_stdin()
            # This process has one thread, so running Python between fork and exec is safe.
            agent = subprocess.Popen(  # noqa: S603 - running the template's command is what this is for
                self._spec["argv"],
                env={**os.environ, **self._spec["linker_env"]},
                stdin=stdin,
                stdout=self._output_write,
                stderr=self._output_write,
                start_new_session=True,
                preexec_fn=lambda: self._prepare(problem_write),  # noqa: PLW1509
            )
        except subprocess.SubprocessError:
            return os.read(problem_read, READ_BYTES).decode()
        except (OSError, ValueError) as error:
            return str(error)
        finally:
            for descriptor in (self._output_write, problem_read, problem_write):
                os.close(descriptor)
        self._agent = agent.pid
        with suppress(OSError, IndexError):  # it may have exited already
            self._agent_start = start_ticks(agent.pid)
        agent.returncode = 0  # Popen must not wait for it: ``_reap`` does, for all children and adopted orphans
        return None

    def _open_stdin(self) -> int:
        """Open the file that the agent reads until its end, or the FIFO for inputs."""
        if file := self._spec.get("stdin"):
            return os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        # Opened for reading and writing, a FIFO never reaches end-of-file, however often its writers come and go.
        stdin = os.open(self._folder / "input", os.O_RDWR | os.O_CLOEXEC)
        with suppress(OSError):  # so that a complete input fits, even before the agent reads any of it
            fcntl.fcntl(stdin, fcntl.F_SETPIPE_SZ, self._spec["stdin_pipe_bytes"])
        return stdin

    def _prepare(self, problem: int) -> None:
        """Prepare the agent's process between fork and exec: limits, user, folder. Write why not to ``problem``."""
        try:
            for number in (signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            self._apply_limits()
            if uid := self._spec["uid"]:
                for descriptor in (0, 1):  # so that the agent can open /dev/stdin, /dev/stdout and /dev/stderr
                    if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
                        os.fchown(descriptor, uid, uid)
                privileges.drop(uid)
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # after ``drop``, which resets it
            os.chdir(self._spec["cwd"])
        except OSError as error:
            os.write(problem, str(error).encode())
            raise

    def _apply_limits(self) -> None:
        """Set OOM score, cgroup and rlimits."""
        with suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(AGENT_OOM_SCORE)
        if cgroup := self._spec.get("cgroup"):
            (Path(cgroup) / "cgroup.procs").write_text("0")
        if memory := self._spec.get("memory"):
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        if cpu := self._spec.get("cpu"):
            usable = sorted(os.sched_getaffinity(0))
            first = os.getpid() % len(usable)  # so that not all agents share the first cores
            os.sched_setaffinity(0, (usable[first:] + usable[:first])[: math.ceil(cpu)])

    def _follow(self) -> None:
        """Record output until the agent exits, is to be stopped, or exceeds its time limit."""
        timeout = self._spec.get("timeout")
        deadline = time.monotonic() + timeout if timeout else None
        with selectors.DefaultSelector() as selector:
            selector.register(self._wakeup_read, selectors.EVENT_READ)
            selector.register(self._output_read, selectors.EVENT_READ)
            while not self._reap():
                if self._stop:
                    self._reason = "stopped"
                    return
                remaining = None if deadline is None else deadline - time.monotonic()
                if remaining is not None and remaining <= 0:
                    self._reason = "timeout"
                    return
                for key, _ in selector.select(remaining):
                    if key.fd == self._wakeup_read:
                        self._drain_wakeups()
                    elif not self._read_chunk():
                        selector.unregister(self._output_read)

    def _end(self) -> int:
        """End all descendants: SIGTERM, grace time, SIGKILL. Return the number of processes that survived it.

        A second stop signal ends the grace time.
        """
        self._terminate()
        deadline = time.monotonic() + self._spec["grace"]
        while not self._is_alone() and not self._kill_now and time.monotonic() < deadline:
            self._pause()
        give_up = time.monotonic() + KILL_TIMEOUT
        while not self._is_alone() and time.monotonic() < give_up:
            self._kill(descendants(os.getpid()))
            self._pause()
        while self._read_chunk():
            pass
        return 0 if self._is_alone() else max(1, len(descendants(os.getpid())))

    def _terminate(self) -> None:
        """Send SIGTERM to the agent's process group, or to what an agent that has exited has left."""
        if self._reason == "exited":
            send_signal(descendants(os.getpid()), signal.SIGTERM)
        elif self._spec["sandboxed"]:  # bubblewrap itself must live on: when it ends, so does the agent, at once
            group = {pid for pid, fields in processes() if int(fields[2]) == self._agent}
            send_signal(group - {self._agent}, signal.SIGTERM)
        else:
            with suppress(OSError):
                os.killpg(self._agent, signal.SIGTERM)

    def _is_alone(self) -> bool:
        """Return whether no descendant is left.

        Only wait(2) can tell: a scan of /proc may miss a process that forks during the scan.
        """
        self._reap()
        return self._childless

    def _kill(self, pids: set[int]) -> None:
        """Kill all of the agent's cgroup, of its user, and all descendants: frozen first, so that none can fork."""
        if cgroup := self._spec.get("cgroup"):
            with suppress(OSError):
                (Path(cgroup) / "cgroup.kill").write_text("1")
        if uid := self._spec["uid"]:
            with suppress(OSError):
                privileges.kill_all(uid, self._spec["killer_uid"])
        for _ in range(_FREEZE_ROUNDS):
            send_signal(pids, signal.SIGSTOP)
            now = descendants(os.getpid())
            if now <= pids:
                break
            pids = pids | now
        send_signal(pids, signal.SIGKILL)

    def _pause(self) -> None:
        """Wait briefly for processes to exit, and keep recording output."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._wakeup_read, selectors.EVENT_READ)
            selector.select(_POLL_INTERVAL)
        self._drain_wakeups()
        while self._read_chunk():
            pass
        self._reap()

    def _read_chunk(self) -> bool:
        """Record one chunk of output and return whether there was one."""
        try:
            chunk = os.read(self._output_read, READ_BYTES)
        except BlockingIOError:
            return False
        self._output.write(chunk)
        return bool(chunk)

    def _drain_wakeups(self) -> None:
        with suppress(BlockingIOError):
            while os.read(self._wakeup_read, READ_BYTES):
                pass

    def _reap(self) -> bool:
        """Reap all children that have exited and return whether the agent is among those reaped so far."""
        self._childless = False
        try:
            while (reaped := os.waitpid(-1, os.WNOHANG))[0] != 0:
                if reaped[0] == self._agent:
                    self._status = reaped[1]
        except ChildProcessError:
            self._childless = True
        return self._status is not None

    def _was_out_of_memory(self) -> bool:
        """Return whether the kernel's OOM killer ended a process of the agent's cgroup (``memory.events``)."""
        if cgroup := self._spec.get("cgroup"):
            with suppress(OSError, ValueError):
                lines = (Path(cgroup) / "memory.events").read_text().splitlines()
                return any(int(line.split()[1]) > 0 for line in lines if line.startswith("oom_kill "))
        return False

    def _record_exit(self, exit_record: int, error: str | None, leftover: int) -> None:
        status = self._status
        code = os.waitstatus_to_exitcode(status) if status is not None else None
        record = {
            "reason": "not started" if error else self._reason,
            "code": code if code is not None and code >= 0 else None,
            "signal": -code if code is not None and code < 0 else None,
            "detail": error[:1_000] if error else None,
            "out_of_memory": self._was_out_of_memory(),
            "leftover": leftover,
            "output": self._output.total,
            "dropped": self._output.dropped,
            "at": time.time(),
        }
        os.pwrite(
            exit_record, json.dumps(record).encode()[:EXIT_RECORD_BYTES], 0
        )  # the reserved spaces after it are valid JSON
        os.fsync(exit_record)
        (self._folder / "exit.new").replace(self._folder / "exit.json")


def main() -> None:
    """Run the shim of the run folder in ``argv[1]``; do nothing if the folder has or had one already."""
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
