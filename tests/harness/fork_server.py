"""Processes of taskherd that start at once, because they are forked from one that has imported everything.

Importing costs a process more CPU time than most of them use afterwards, and tests start hundreds. A process that is
forked goes on as ``python -m taskherd`` does: with the arguments, environment, folder and files that it is given, and
with Python's own end and exit status. Only ``/proc`` shows the command line and environment of the server instead.
"""

from __future__ import annotations

import asyncio
import atexit
import gc
import json
import os
import pkgutil
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import IO, TypeAlias

import taskherd
from taskherd.runner import privileges

NOT_IMPORTED = ("taskherd.__main__", "taskherd.dev", "taskherd.store.migrations")
"""What a process runs, what only developers run, and what Alembic loads."""
MAX_REQUEST = 128 * 1024
"""Maximum size in bytes of a request: its arguments and environment."""
PR_SET_PDEATHSIG = 1
PROGRAM = (sys.executable, "-m", "taskherd")
_STARTED: set[tuple[str, str]] = set()
"""The files of tests and the commands that they have started."""


class ForkedProcess:
    """A process of taskherd, with what tests need of ``asyncio.subprocess.Process``."""

    def __init__(self, pid: int, exit_status: socket.socket) -> None:
        self.pid = pid
        self._exit_status = exit_status
        self._returncode: int | None = None
        self._exited: asyncio.Task[int] | None = None

    @property
    def returncode(self) -> int | None:
        """The exit status, negative for a signal; None while the process runs."""
        if self._returncode is None:
            with suppress(BlockingIOError):
                self._returncode = int(self._exit_status.recv(16, socket.MSG_DONTWAIT))
                self._exit_status.close()
        return self._returncode

    async def wait(self) -> int:
        """Wait until the process has exited, and return its exit status."""
        if self._exited is None:
            self._exited = asyncio.create_task(self._watch())
        return await asyncio.shield(self._exited)

    def wait_blocking(self, seconds: float) -> int:
        """Wait as ``wait`` does, but without an event loop.

        Raises:
            subprocess.TimeoutExpired: if it takes longer than so many seconds; the process is killed.
        """
        with selectors.DefaultSelector() as selector:
            selector.register(self._exit_status, selectors.EVENT_READ)
            if not selector.select(seconds):
                self.kill()
                raise subprocess.TimeoutExpired("taskherd", seconds)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal to the process; raise ``ProcessLookupError`` if it has exited."""
        if self.returncode is not None:
            raise ProcessLookupError(self.pid)
        os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM to the process."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL to the process."""
        self.send_signal(signal.SIGKILL)

    async def _watch(self) -> int:
        loop, readable = asyncio.get_running_loop(), asyncio.Event()
        while self.returncode is None:
            loop.add_reader(self._exit_status, readable.set)
            try:
                await readable.wait()
            finally:
                loop.remove_reader(self._exit_status)
        return self.returncode


RunningProcess: TypeAlias = asyncio.subprocess.Process | ForkedProcess


class ForkServer:
    """The process that others are forked from."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = (sys.executable, "-m", __name__, str(theirs.fileno()))
            self._process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
            )

    def start(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        *,
        stdin: IO[bytes] | None = None,
        output: IO[bytes] | None = None,
        errors: IO[bytes] | None = None,
        folder: Path | None = None,
    ) -> ForkedProcess:
        """Start ``python -m taskherd`` with these arguments; a file that is not given is ``/dev/null``."""
        request = json.dumps([list(arguments), dict(environment), str(folder or Path.cwd())]).encode()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, open(os.devnull, "r+b") as nothing:  # noqa: PTH123 - as the files that are given
            files = [file or nothing for file in (stdin, output, errors)]
            socket.send_fds(self._control, [request], [*(file.fileno() for file in files), theirs.fileno()])
        answer = ours.recv(16)
        assert answer, "the process that others are forked from has died"
        return ForkedProcess(int(answer), ours)

    def stop(self) -> None:
        """Stop the server, and with it the processes that it has forked."""
        self._control.close()
        self._process.wait()


@cache
def fork_server() -> ForkServer:
    """Return the one of this process, which ends with it."""
    server = ForkServer()
    atexit.register(server.stop)
    return server


async def start(
    command: str,
    environment: Mapping[str, str],
    *,
    output: IO[bytes] | None = None,
    errors: IO[bytes] | None = None,
) -> RunningProcess:
    """Start ``taskherd worker``, ``api`` or ``runner``; the first one of a file of tests is not forked.

    Neither is one for which the dynamic linker loads another library first, such as libfaketime.
    """
    if not _is_first(command) and "LD_PRELOAD" not in environment:
        return fork_server().start([command], environment, output=output, errors=errors)
    nothing = asyncio.subprocess.DEVNULL
    return await asyncio.create_subprocess_exec(
        *PROGRAM, command, env=environment, stdin=nothing, stdout=output or nothing, stderr=errors or nothing
    )


@asynccontextmanager
async def running(command: str, environment: Mapping[str, str]) -> AsyncIterator[RunningProcess]:
    """Start a process as ``start`` does, and kill it if it is still running at the end of the block."""
    process = await start(command, environment)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def run(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    *,
    content: bytes = b"",
    folder: Path | None = None,
    seconds: float = 60,
) -> subprocess.CompletedProcess[bytes]:
    """Run a command of ``taskherd`` as ``subprocess.run`` does; the first one of its name in a file is not forked."""
    if _is_first(arguments[0]):
        return subprocess.run(
            [*PROGRAM, *arguments], input=content, env=environment, cwd=folder, capture_output=True, timeout=seconds,
            check=False,
        )  # fmt: skip
    with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        stdin.write(content)
        stdin.seek(0)
        process = fork_server().start(arguments, environment, stdin=stdin, output=output, errors=errors, folder=folder)
        code = process.wait_blocking(seconds)
        printed = [os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0) for file in (output, errors)]
    return subprocess.CompletedProcess(arguments, code, *printed)


def _is_first(command: str) -> bool:
    """Return whether the file of tests that runs has not asked before: what is forked must also start by itself."""
    test = os.environ["PYTEST_CURRENT_TEST"].partition("::")[0], command
    is_first = test not in _STARTED
    _STARTED.add(test)
    return is_first


def serve(control: socket.socket) -> tuple[tuple[list[str], dict[str, str], str], list[int]] | None:
    """Fork a process for each request; return in each of them with its request and files, in the server with None."""
    running: dict[int, tuple[int, socket.socket]] = {}
    with control, selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fd in running:
                    selector.unregister(key.fd)
                    os.close(key.fd)
                    pid, exit_status = running.pop(key.fd)
                    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                    _tell(exit_status, code)
                    exit_status.close()
                    continue
                request, files, _, _ = socket.recv_fds(control, MAX_REQUEST, 4)
                if not request:
                    return None
                exit_status = socket.socket(fileno=files.pop())
                pid = os.fork()
                if not pid:
                    for pidfd, (_, other) in running.items():
                        os.close(pidfd)
                        other.close()
                    exit_status.close()
                    arguments, environment, folder = json.loads(request)
                    return (arguments, environment, folder), files
                for file in files:
                    os.close(file)
                _tell(exit_status, pid)
                pidfd = os.pidfd_open(pid)
                running[pidfd] = pid, exit_status
                selector.register(pidfd, selectors.EVENT_READ)


def _tell(other: socket.socket, number: int) -> None:
    with suppress(BrokenPipeError):  # nobody waits for it
        other.send(str(number).encode())


def become(arguments: list[str], environment: dict[str, str], folder: str, files: list[int]) -> None:
    """Make this process, which has just been forked, the one that was asked for."""
    privileges.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    sys.argv = ["taskherd", *arguments]


def import_everything() -> None:
    """Import each module of taskherd that a process may import, and exclude it from the garbage collector."""
    for module in pkgutil.walk_packages(taskherd.__path__, "taskherd."):
        if not module.name.startswith(NOT_IMPORTED):
            import_module(module.name)
    gc.collect()
    gc.freeze()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for pytest, which then stops the server
    import_everything()
    if wanted := serve(socket.socket(fileno=int(sys.argv[1]))):
        become(*wanted[0], wanted[1])
        runpy.run_module("taskherd", run_name="__main__", alter_sys=True)
