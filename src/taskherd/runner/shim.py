"""The shim: run one agent, record its output and exit status on disk, and survive the runner.

It runs as ``python -I -S -c BOOT RUN_FOLDER`` and stays in memory for each agent. So it imports only what it cannot do
without, no ``json``, ``pathlib``, ``subprocess`` or ``ctypes``, and nothing while the agent runs: the files of this
installation may be replaced meanwhile. Its environment is the agent's, except the variables that the dynamic linker
reads. ``workspaces/folders.py`` lists the files that it uses.
"""

from __future__ import annotations

import fcntl
import marshal
import os
import select
import sys
import time

from taskherd.runner.line_feeder import LineFeeder
from taskherd.runner.process_table import descendants, processes, send_signal, start_ticks
from taskherd.runner.segments import SegmentWriter

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from typing import Any
else:
    import _signal as signal  # the module ``signal`` wraps this one in enums, which take 0.6 MiB

BOOT = """
import sys
sys.path.append(sys.argv[1])
from taskherd.runner.shim import main
main(*sys.argv[2:])
"""
"""The program that runs the shim, so that it comes from its compiled file; without site-packages, its path is given."""
PR_SET_CHILD_SUBREAPER = 36  # see prctl(2)
READ_BYTES = 65_536
"""Maximum number of bytes of output that one read returns."""
EXIT_RECORD_BYTES = 4_096
"""Bytes of disk space reserved for the exit record at start, so that it can be written even if the disk is full."""
KILL_TIMEOUT = 30.0
"""Seconds after which processes that survive SIGKILL (in uninterruptible sleep) are left and counted as leftover."""
LOG_SEGMENTS = 4
"""Maximum number of files of what an agent writes to its stderr, if that is kept apart from its stdout."""
_POLL_INTERVAL = 0.02
"""Seconds between two checks whether all processes have exited."""
_FULL_INTERVAL = 0.1
"""Seconds between two attempts to write output that the segments have no room for."""
_CHUNKS_AT_ONCE = 16
"""Maximum number of chunks that are read before signals are looked at again."""
_FREEZE_ROUNDS = 50
_KILL_ATTEMPTS = 5
_MAX_BMP = 0xFFFF


def write_atomically(path: str, content: str) -> None:
    """Write a temporary file, sync it, and rename it to ``path``. Raise ``OSError`` if that fails."""
    with open(f"{path}.new", "w", encoding="ascii") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.rename(f"{path}.new", path)


def encode(record: dict[str, Any]) -> str:
    """Return a flat record of numbers, booleans, texts and None as JSON."""
    return "{" + ", ".join(f'"{name}": {_encoded(value)}' for name, value in record.items()) + "}"


def _encoded(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return '"' + "".join(map(_escaped, value)) + '"'
    return repr(value)


def _escaped(character: str) -> str:
    if " " <= character <= "~" and character not in '"\\':
        return character
    return f"\\u{ord(character):04x}" if ord(character) <= _MAX_BMP else "?"


class Shim:
    """One run of an agent, from its start to its exit record."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        with open(f"{folder}/spec", "rb") as file:
            self._spec: dict[str, Any] = marshal.load(file)  # noqa: S302 - the runner wrote it, agents cannot
        self._speaks: bool = self._spec["protocol"]
        """Whether stdin and stdout carry lines of a protocol, of which none may be lost."""
        limits = self._spec["segment_bytes"], self._spec["max_segments"]
        self._output = SegmentWriter(f"{folder}/output", *limits, keeps_unread=self._speaks)
        self._log = SegmentWriter(f"{folder}/log", limits[0], LOG_SEGMENTS)
        self._unwritten = b""
        """Output that waits until the runner has read enough of what is before it."""
        self._stop = False
        self._kill_now = False
        self._interrupt = False
        self._reason = "exited"
        self._status: int | None = None
        self._childless = False
        self._agent = self._agent_start = 0
        self._wakeup_read, self._wakeup_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._output_read = self._log_read = self._poke = self._feeder_write = -1
        self._feeder: LineFeeder | None = None

    def run(self) -> None:
        """Start the agent, record its output, end all of its processes, and record how it ended."""
        exit_record = os.open(f"{self._folder}/exit.new", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.pwrite(exit_record, b" " * EXIT_RECORD_BYTES, 0)
        for name in ("output", "log", "stdin"):
            os.mkdir(f"{self._folder}/{name}", 0o700)
        os.mkfifo(f"{self._folder}/input", 0o600)
        self._handle_signals()
        error = self._start()
        leftover = 0
        if not error:
            shim = {"pid": os.getpid(), "start": start_ticks(os.getpid()), "at": time.time()}
            agent = {"agent": self._agent, "agent_start": self._agent_start, "sandboxed": self._spec["sandboxed"]}
            try:
                write_atomically(f"{self._folder}/started.json", encode({**shim, **agent}))
            except FileNotFoundError:  # the agent has deleted the folder already
                pass
            self._follow()
            leftover = self._end()
        self._record_exit(exit_record, error, leftover)

    def _handle_signals(self) -> None:
        signal.set_wakeup_fd(self._wakeup_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._on_stop_signal)
        signal.signal(signal.SIGINT, self._on_interrupt_signal)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def _on_stop_signal(self, *_: object) -> None:
        self._kill_now = self._stop
        self._stop = True

    def _on_interrupt_signal(self, *_: object) -> None:
        self._interrupt = True

    def _start(self) -> str | None:
        """Start the agent. Return an error message, or None on success."""
        try:
            stdin = self._open_stdin()
        except OSError as error:
            return str(error)
        self._output_read, stdout = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._output_read, False)
        stderr = stdout
        if self._speaks:
            self._log_read, stderr = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(self._log_read, False)
        problem_read, problem_write = os.pipe2(os.O_CLOEXEC)
        agent = os.fork()  # this process has one thread, so running Python in the child is safe
        if not agent:
            from taskherd.runner.agent_process import become_agent  # noqa: PLC0415 - needed in that process only

            become_agent(self._spec, (stdin, stdout, stderr), problem_write)
        for descriptor in {stdout, stderr, problem_write}:
            os.close(descriptor)
        if self._speaks:
            os.close(stdin)
        problem = os.read(problem_read, READ_BYTES).decode(errors="replace")  # empty once the agent's program runs
        os.close(problem_read)
        if problem:
            os.waitpid(agent, 0)
            return problem
        self._agent = agent
        try:
            self._agent_start = start_ticks(agent)
        except (OSError, IndexError):  # it may have exited already
            self._agent_start = 0
        return None

    def _open_stdin(self) -> int:
        """Open what the agent reads: a file until its end, the FIFO for inputs, or a pipe for the protocol's lines."""
        if file := self._spec["stdin"]:
            return os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        # Opened for reading and writing, a FIFO never reaches end-of-file, however often its writers come and go.
        fifo = os.open(f"{self._folder}/input", os.O_RDWR | os.O_CLOEXEC)
        if self._speaks:  # through the FIFO the runner only says that there is a new line
            self._poke = fifo
            os.set_blocking(fifo, False)
            stdin, self._feeder_write = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(self._feeder_write, False)
            self._feeder = LineFeeder(f"{self._folder}/stdin", self._feeder_write)
            return stdin
        try:  # so that a complete input fits, even before the agent reads any of it
            fcntl.fcntl(fifo, fcntl.F_SETPIPE_SZ, self._spec["stdin_pipe_bytes"])
        except OSError:
            pass
        return fifo

    def _follow(self) -> None:
        """Record output until the agent exits, is to be stopped, or exceeds its time limit."""
        timeout = self._spec["timeout"]
        deadline = time.monotonic() + timeout if timeout else None
        while not self._reap():
            if self._stop:
                self._reason = "stopped"
                return
            if self._interrupt:
                self._interrupt = False
                self._signal_group(signal.SIGINT)
            remaining = None if deadline is None else deadline - time.monotonic()
            if remaining is not None and remaining <= 0:
                self._reason = "timeout"
                return
            self._pump(remaining)

    def _pump(self, timeout: float | None) -> None:
        """Record output and feed lines; return once something has happened, or after ``timeout`` seconds."""
        poll = select.poll()
        poll.register(self._wakeup_read, select.POLLIN)
        if self._unwritten:
            timeout = _FULL_INTERVAL if timeout is None else min(timeout, _FULL_INTERVAL)
        elif self._output_read >= 0:
            poll.register(self._output_read, select.POLLIN)
        if self._log_read >= 0:
            poll.register(self._log_read, select.POLLIN)
        if self._feeder is not None:
            poll.register(self._poke, select.POLLIN)
            if self._feeder.is_blocked:
                poll.register(self._feeder_write, select.POLLOUT)
        poll.poll(None if timeout is None else max(0.0, timeout) * 1_000)
        self._drain(self._wakeup_read)
        self._record_output()
        if self._feeder is not None:
            self._drain(self._poke)
            self._feeder.feed()

    def _end(self) -> int:
        """End all descendants: SIGTERM, grace time, SIGKILL. Return the number of processes that survived it.

        A second stop signal ends the grace time.
        """
        self._terminate()
        deadline = time.monotonic() + self._spec["grace"]
        while not self._is_alone() and not self._kill_now and time.monotonic() < deadline:
            self._pump_briefly()
        give_up = time.monotonic() + KILL_TIMEOUT
        while not self._is_alone() and time.monotonic() < give_up:
            self._kill(descendants(os.getpid()))
            self._pump_briefly()
        self._record_output(beyond_limit=True)
        return 0 if self._is_alone() else max(1, len(descendants(os.getpid())))

    def _terminate(self) -> None:
        """Send SIGTERM to the agent's process group, or to what an agent that has exited has left."""
        if self._reason == "exited":
            send_signal(descendants(os.getpid()), signal.SIGTERM)
        else:
            self._signal_group(signal.SIGTERM)

    def _signal_group(self, number: int) -> None:
        """Send a signal to the agent's process group."""
        if self._spec["sandboxed"]:  # bubblewrap itself must live on: when it ends, so does the agent, at once
            group = {pid for pid, fields in processes() if int(fields[2]) == self._agent}
            send_signal(group - {self._agent}, number)
            return
        try:
            os.killpg(self._agent, number)
        except OSError:
            pass

    def _is_alone(self) -> bool:
        """Return whether no descendant is left.

        Only wait(2) can tell: a scan of /proc may miss a process that forks during the scan.
        """
        self._reap()
        return self._childless

    def _kill(self, pids: set[int]) -> None:
        """Kill all of the agent's cgroup, of its user, and all descendants: frozen first, so that none can fork.

        Of a command beside an agent only the descendants are killed.
        """
        if not self._spec["beside_agent"]:
            self._kill_others()
        for _ in range(_FREEZE_ROUNDS):
            send_signal(pids, signal.SIGSTOP)
            now = descendants(os.getpid())
            if now <= pids:
                break
            pids = pids | now
        send_signal(pids, signal.SIGKILL)

    def _kill_others(self) -> None:
        """Kill all processes of the agent's cgroup, and of its own user, as ``privileges.kill_all`` does."""
        if cgroup := self._spec["cgroup"]:
            try:
                with open(f"{cgroup}/cgroup.kill", "w", encoding="ascii") as file:
                    file.write("1")
            except OSError:
                pass
        if not self._spec["uid"]:
            return
        program = f"{os.path.dirname(os.path.abspath(__file__))}/privileges.py"
        users = str(self._spec["uid"]), str(self._spec["killer_uid"])
        for _ in range(_KILL_ATTEMPTS):
            try:
                command = [sys.executable, "-I", "-S", program, "kill", *users]
                _, status = os.waitpid(os.posix_spawn(sys.executable, command, {}), 0)
            except OSError:
                return
            if status == 0:
                return

    def _pump_briefly(self) -> None:
        """Wait briefly for processes to exit, and keep recording output."""
        poll = select.poll()
        poll.register(self._wakeup_read, select.POLLIN)
        poll.poll(_POLL_INTERVAL * 1_000)
        self._pump(0)
        self._reap()

    def _record_output(self, *, beyond_limit: bool = False) -> None:
        """Record the output that there is, until the segments are full or it is much.

        ``beyond_limit``: all that the pipes hold, but no more; who has them open may write without end.
        """
        self._unwritten = self._output.write(self._unwritten, beyond_limit=beyond_limit)
        chunks, most = 0, self._chunks_in_pipes() if beyond_limit else _CHUNKS_AT_ONCE
        while chunks < most:
            chunk = b"" if self._unwritten else self._read("_output_read")
            self._unwritten = self._unwritten or self._output.write(chunk, beyond_limit=beyond_limit)
            log = self._read("_log_read")  # also while the output has no room: it is polled, and has room of its own
            self._log.write(log)
            if not chunk and not log:
                return
            chunks += 1

    def _chunks_in_pipes(self) -> int:
        """Return how many chunks have room in a pipe of output."""
        pipes = [each for each in (self._output_read, self._log_read) if each >= 0]
        return max([fcntl.fcntl(each, fcntl.F_GETPIPE_SZ) // READ_BYTES + 1 for each in pipes], default=0)

    def _read(self, name: str) -> bytes:
        """Read a chunk from a pipe; close it if it has ended, so that polling does not report it for ever."""
        descriptor: int = getattr(self, name)
        if descriptor < 0:
            return b""
        try:
            chunk = os.read(descriptor, READ_BYTES)
        except BlockingIOError:
            return b""
        if not chunk:
            os.close(descriptor)
            setattr(self, name, -1)
        return chunk

    def _drain(self, descriptor: int) -> None:
        try:
            while os.read(descriptor, READ_BYTES):
                pass
        except BlockingIOError:
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
        if cgroup := self._spec["cgroup"]:
            try:
                with open(f"{cgroup}/memory.events", encoding="ascii") as file:
                    return any(int(line.split()[1]) > 0 for line in file if line.startswith("oom_kill "))
            except (OSError, ValueError):
                return False
        return False

    def _record_exit(self, exit_record: int, error: str | None, leftover: int) -> None:
        status = self._status
        code = os.waitstatus_to_exitcode(status) if status is not None else None
        record = {
            "reason": "not started" if error else self._reason,
            "code": code if code is not None and code >= 0 else None,
            "signal": -code if code is not None and code < 0 else None,
            "detail": error[:500] if error else None,
            "out_of_memory": self._was_out_of_memory(),
            "leftover": leftover,
            "output": self._output.total,
            "dropped": self._output.dropped,
            "at": time.time(),
        }
        os.pwrite(exit_record, encode(record).encode(), 0)  # the reserved spaces after it are valid JSON
        os.fsync(exit_record)
        os.rename(f"{self._folder}/exit.new", f"{self._folder}/exit.json")


def main(folder: str, *prepared: str) -> None:
    """Run the shim of a run folder; do nothing if the folder has or had one already.

    The process first becomes a subreaper, for which it needs ctypes, and then executes itself again without: the
    kernel keeps that attribute, see PR_SET_CHILD_SUBREAPER(2const).
    """
    if not prepared:
        from taskherd.runner import privileges  # noqa: PLC0415

        privileges.prctl(PR_SET_CHILD_SUBREAPER, 1)
        argv = [sys.executable, "-I", "-S", "-c", BOOT, sys.argv[1], folder, "prepared"]
        os.execv(sys.executable, argv)  # noqa: S606 - this very program
    lock = os.open(f"{folder}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    if not os.path.exists(f"{folder}/started.json") and not os.path.exists(f"{folder}/exit.json"):
        Shim(folder).run()
