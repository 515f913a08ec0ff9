"""An interrupt: where KeyboardInterrupt is raised."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import pytest

from taskherd.dev import dev, services

ON_TERMINAL = """
import fcntl, signal, sys, termios
from pathlib import Path
from taskherd.dev import dev

signal.signal(signal.SIGHUP, signal.SIG_DFL)
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
folder = Path(sys.argv[1])
code = dev.run(services_only=True, data=folder)
(folder / "code").write_text(str(code))
"""
"""Runs ``taskherd dev`` on the terminal that is its stdin, and writes its exit code into its folder."""
ON_PIPE = """
import sys
from pathlib import Path
from taskherd.dev import dev

sys.exit(dev.run(services_only=True, data=Path(sys.argv[1])))
"""
"""Runs ``taskherd dev``, whose first line a thread prints."""
EXTERNAL = {services.AMQP_URL: "amqp://somewhere/", services.DATABASE_URL: "postgresql://somewhere/x"}
"""The environment in which it starts no services."""


class _InterruptedFile(io.RawIOBase):
    """A file in which the first write is interrupted."""

    interrupted = False

    def writable(self) -> bool:
        return True

    def write(self, data: object, /) -> int:
        if not self.interrupted:
            self.interrupted = True
            os.kill(os.getpid(), signal.SIGINT)
        return len(memoryview(data))  # type: ignore[arg-type]


class _GoneTerminal(io.TextIOBase):
    """A terminal that was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.refused: list[str] = []

    def write(self, text: str, /) -> int:
        self.refused.append(text)
        raise OSError(errno.EIO, os.strerror(errno.EIO))


@contextmanager
def hangup_handled_by(handler: Callable[..., None] | signal.Handlers) -> Iterator[None]:
    """Set what SIGHUP does during the block: it may be anything where the tests run, as with nohup."""
    previous = signal.signal(signal.SIGHUP, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, previous)


def fail(*_: object) -> None:
    """Handle a signal that was to be handled by another one."""
    raise AssertionError


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_without_an_event_loop_it_is_raised_at_once(number: signal.Signals) -> None:
    """Synchronous code is interrupted where it is; the cleanup is not, whatever comes, and the handlers come back."""
    announced: list[str] = []

    @contextmanager
    def cleanup() -> Iterator[None]:
        try:
            yield
        finally:
            for again in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
                os.kill(os.getpid(), again)
            announced.append("stopped")

    with hangup_handled_by(fail):
        with pytest.raises(KeyboardInterrupt), dev.interruptible(announced.append), cleanup():
            os.kill(os.getpid(), number)
        assert signal.getsignal(signal.SIGHUP) is fail
    assert announced == ["stopping", "stopped"]


def test_a_hangup_stays_ignored_where_it_was() -> None:
    """As with nohup, which is there for that."""
    with hangup_handled_by(signal.SIG_IGN):
        with dev.interruptible(pytest.fail):
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_an_interrupt_that_cannot_be_announced_is_one_too() -> None:
    """The terminal is gone."""
    terminal = _GoneTerminal()
    with pytest.raises(KeyboardInterrupt), dev.interruptible(lambda line: print(line, file=terminal)):
        os.kill(os.getpid(), signal.SIGTERM)


def test_closing_the_terminal_ends_everything_in_order(tmp_path: Path) -> None:
    """It is like Ctrl-C, although nothing can be written any more."""
    terminal, inner = os.openpty()
    command = [sys.executable, "-c", ON_TERMINAL, str(tmp_path)]
    env = {**os.environ, **EXTERNAL}
    process = subprocess.Popen(command, env=env, stdin=inner, stdout=inner, stderr=inner, start_new_session=True)
    os.close(inner)
    try:
        with open(terminal, "rb", buffering=0) as screen:  # noqa: PTH123 - it is a file descriptor
            seen = b""
            while b"Ctrl-C stops both" not in seen:
                seen += screen.read(4096)
        process.wait(60)
    finally:
        process.kill()
        process.wait(30)
    assert (tmp_path / "code").read_text() == "0"


@pytest.fixture
def closed_pipe() -> Iterator[TextIO]:
    """Yield a pipe that nobody reads any more; closing it writes what is left in its buffer."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stream:  # noqa: PTH123 - it is a file descriptor
        yield stream


def test_closing_the_pipe_ends_everything_in_order(tmp_path: Path, closed_pipe: TextIO) -> None:
    """``taskherd dev | head -1`` has seen enough; which line, and which thread, finds that out makes no difference."""
    command = [sys.executable, "-c", ON_PIPE, str(tmp_path)]
    env = {**os.environ, **EXTERNAL}
    process = subprocess.Popen(command, env=env, stdout=closed_pipe, stderr=subprocess.PIPE, start_new_session=True)
    try:
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait(30)
    assert (process.returncode, stderr) == (0, b"")


@pytest.mark.parametrize("first", [lambda: dev._say("running"), lambda: os.kill(os.getpid(), signal.SIGINT)])
def test_a_closed_pipe_interrupts_once(
    monkeypatch: pytest.MonkeyPatch, closed_pipe: TextIO, first: Callable[[], None]
) -> None:
    """A line of the cleanup does not interrupt it, also when Ctrl-C has ended the reader, too."""
    cleaned: list[str] = []

    @contextmanager
    def cleanup() -> Iterator[None]:
        try:
            yield
        finally:
            dev._say("stopping the broker")
            cleaned.append("broker")

    monkeypatch.setattr(sys, "stdout", closed_pipe)
    with pytest.raises(KeyboardInterrupt), dev.interruptible(dev._say), cleanup():
        first()
    assert cleaned == ["broker"]


def test_a_line_that_nobody_can_read_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The terminal may be gone before its signal arrives, and an error would begin a cleanup that this interrupts."""
    terminal = _GoneTerminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    with dev.interruptible(pytest.fail):
        dev._say("running")
    assert terminal.refused == ["taskherd dev: running"]


def test_an_interrupt_in_the_middle_of_a_line_is_one_too() -> None:
    """A line that the stream refuses then does not take the place of the interrupt."""
    stream = io.TextIOWrapper(io.BufferedWriter(_InterruptedFile()))
    with pytest.raises(KeyboardInterrupt), dev.interruptible(lambda line: print(line, file=stream, flush=True)):
        print("running", file=stream, flush=True)


def test_in_an_event_loop_it_ends_no_task_at_an_arbitrary_point() -> None:
    """The task that runs when the signal arrives goes on to its next await, where it is cancelled like all others.

    Raised at once, the exception would end that task, perhaps a library's own, for which another one waits for ever.
    """
    steps: list[str] = []

    async def main() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        steps.append("continued")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            steps.append("cancelled")
            raise

    with pytest.raises(KeyboardInterrupt), dev.interruptible(lambda _: None):
        asyncio.run(main())
    assert steps == ["continued", "cancelled"]
