"""Whose process listens on the port of an agent."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from taskherd.runner import listeners, process_table
from taskherd.runner.listeners import are_foreign, is_foreign

NOBODY = 4_000_000_000
"""A user who runs nothing."""
LISTEN = """
import socket, sys
listener = socket.create_server((sys.argv[1], 0))
print(listener.getsockname()[1], flush=True)
sys.stdin.read()
"""


@contextmanager
def listening(address: str = "127.0.0.1") -> Iterator[int]:
    """Have a child of this process listen, and yield the port."""
    command = [sys.executable, "-I", "-S", "-c", LISTEN, address]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        yield int(child.stdout.readline())
        child.kill()


@contextmanager
def other_process() -> Iterator[int]:
    """Yield the pid of a process that has no children."""
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE) as child:
        yield child.pid
        child.kill()


def test_only_descendants_of_the_shim_are_the_agents() -> None:
    """Or all of its own user; nobody is foreign on a port where nobody listens."""
    with listening() as port, other_process() as other:
        assert not is_foreign(port, os.getpid(), None)
        assert not is_foreign(port, os.getpid(), NOBODY)
        assert is_foreign(port, other, None)
        assert is_foreign(port, other, NOBODY)
        assert not is_foreign(port, other, os.getuid())
    assert not is_foreign(port, other, None)


def test_only_who_can_be_reached_listens() -> None:
    """At another address of this machine, or with a connection, nobody does."""
    with listening("127.0.0.2") as port, other_process() as other:
        assert not is_foreign(port, other, None)
    with listening("0.0.0.0") as port, other_process() as other:
        assert is_foreign(port, other, None)
        with socket.create_connection(("127.0.0.1", port)) as connection:
            assert not is_foreign(connection.getsockname()[1], other, None)
    if sys.byteorder == "little":
        mapped = "0000000000000000FFFF0000"
        reached = {"0100007F", "00000000", "0" * 32, f"{mapped}0100007F", f"{mapped}00000000"}
        assert reached == listeners._REACHED


def test_of_a_process_that_hides_its_files_the_user_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runner's own user may be the agent's, unless that has its own; one that has exited hides nothing."""
    with listening() as port, other_process() as other:
        for error, foreign in ((PermissionError(), False), (FileNotFoundError(), True)):

            def fail(_: str, error: OSError = error) -> list[str]:
                raise error

            with monkeypatch.context() as patch:
                patch.setattr(process_table, "descendants", lambda _: {1, 2})
                patch.setattr(os, "listdir", fail)
                assert is_foreign(port, other, None) is foreign
                assert is_foreign(port, other, NOBODY)
                patch.setattr(os, "geteuid", lambda: NOBODY)
                assert is_foreign(port, other, None)


@pytest.mark.parametrize(("looks", "foreign"), [([True] * 3, True), ([True, True, False], False), ([False], False)])
async def test_several_looks_must_agree(monkeypatch: pytest.MonkeyPatch, looks: list[bool], *, foreign: bool) -> None:
    """What an agent shows while it forks is no answer; one without a shim has not started."""
    monkeypatch.setattr(listeners, "_INTERVAL", 0)
    monkeypatch.setattr(listeners, "is_foreign", lambda *arguments: looks.pop(0) if arguments == (1, 2, 3) else None)
    assert not await are_foreign(1, None, 3)
    async with asyncio.timeout(30):
        assert await are_foreign(1, 2, 3) is foreign
    assert looks == []
