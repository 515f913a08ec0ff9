"""Lines for an agent's stdin: what is written, and what the names of the files say became of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from taskherd.runner.line_feeder import LineFeeder


@dataclass
class Agent:
    """The reading end of a pipe, and a feeder that writes to the other one."""

    feeder: LineFeeder
    folder: Path
    stdin: int

    def names(self) -> list[str]:
        """Return the names of the lines."""
        return sorted(os.listdir(self.folder))  # noqa: PTH208 - strings are compared

    def read(self, most: int = 2**20) -> bytes:
        """Return what the agent reads now, "" if there is nothing."""
        try:
            return os.read(self.stdin, most)
        except BlockingIOError:
            return b""


@contextmanager
def reading_agent(folder: Path) -> Iterator[Agent]:
    """Yield an agent whose stdin is a pipe that does not block."""
    stdin, descriptor = os.pipe2(os.O_NONBLOCK)
    agent = Agent(LineFeeder(str(folder), descriptor), folder, stdin)
    try:
        yield agent
    finally:
        os.close(descriptor)
        if agent.stdin >= 0:
            os.close(agent.stdin)


def test_lines_are_written_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    """Each is written once, and named as done; other files are none."""
    for name, line in (("10", b"ten\n"), ("9", b"nine\n"), ("2", b"two\n"), ("11.new", b"not yet\n")):
        (tmp_path / name).write_bytes(line)
    with reading_agent(tmp_path) as agent:
        agent.feeder.feed()
        assert agent.read() == b"two\nnine\nten\n"
        assert agent.names() == ["10.done", "11.new", "2.done", "9.done"]
        assert not agent.feeder.is_blocked
        agent.feeder.feed()
        assert agent.read() == b""
        (tmp_path / "11.new").rename(tmp_path / "11")
        agent.feeder.feed()
        assert agent.read() == b"not yet\n"


def test_a_line_that_does_not_fit_is_continued(tmp_path: Path) -> None:
    """Until then it is open, and no other one is begun."""
    long = b"x" * 300_000 + b"\n"
    (tmp_path / "1").write_bytes(long)
    (tmp_path / "2").write_bytes(b"next\n")
    with reading_agent(tmp_path) as agent:
        agent.feeder.feed()
        assert agent.feeder.is_blocked
        assert agent.names() == ["1.open", "2"]
        got = b""
        while chunk := agent.read():
            got += chunk
            agent.feeder.feed()
        assert got == long + b"next\n"
        assert (agent.names(), agent.feeder.is_blocked) == (["1.done", "2.done"], False)


def test_lines_for_a_closed_stdin_fail(tmp_path: Path) -> None:
    """The one that is being written and all later ones; none stays open."""
    (tmp_path / "1").write_bytes(b"y" * 300_000)
    with reading_agent(tmp_path) as agent:
        agent.feeder.feed()
        os.close(agent.stdin)
        agent.stdin = -1
        (tmp_path / "2").write_bytes(b"late\n")
        agent.feeder.feed()
        assert (agent.names(), agent.feeder.is_blocked) == (["1.failed", "2.failed"], False)


def test_a_line_that_is_taken_back_is_left_out(tmp_path: Path) -> None:
    """A runner that deletes it meanwhile has decided; an empty line has nothing that could be written."""
    (tmp_path / "1").symlink_to(tmp_path / "deleted")
    (tmp_path / "2").write_bytes(b"")
    (tmp_path / "3").write_bytes(b"kept\n")
    with reading_agent(tmp_path) as agent:
        agent.feeder.feed()
        assert agent.read() == b"kept\n"
        assert agent.names() == ["1.open", "2.failed", "3.done"]


def test_a_folder_that_was_deleted_has_no_lines(tmp_path: Path) -> None:
    """The shim goes on until its agent has ended."""
    folder = tmp_path / "stdin"
    folder.mkdir()
    with reading_agent(folder) as agent:
        folder.rmdir()
        agent.feeder.feed()
        assert (agent.read(), agent.feeder.is_blocked) == (b"", False)
