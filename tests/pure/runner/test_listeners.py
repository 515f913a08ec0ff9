"""Whose process has the other end of a connection to the port of an agent."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from taskherd.runner import listeners, process_table
from taskherd.runner.listeners import Peer, identify_peer, look

NOBODY = 4_000_000_000
"""A user who runs nothing."""
LISTEN = """
import socket, sys
address = sys.argv[1]
family = socket.AF_INET6 if ":" in address else socket.AF_INET
listener = socket.create_server((address, 0), family=family, dualstack_ipv6=":" in address)
print(listener.getsockname()[1], flush=True)
for line in sys.stdin:
    if line == "accept\\n":
        connection, _ = listener.accept()
    elif line == "close\\n":
        connection.close()
    elif line == "shut down\\n":
        connection.shutdown(socket.SHUT_WR)
    else:
        listener.close()
    print("done", flush=True)
"""


class Server:
    """A child of this process that listens, and does what it is told."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self._child = child
        self.port = int(self._answer())

    def _answer(self) -> bytes:
        assert self._child.stdout is not None
        return self._child.stdout.readline()

    def do(self, *deeds: str) -> None:
        """Have it accept a connection, close it, shut it down, or stop listening."""
        assert self._child.stdin is not None
        for deed in deeds:
            self._child.stdin.write(f"{deed}\n".encode())
            self._child.stdin.flush()
            assert self._answer() == b"done\n"

    @contextmanager
    def connected(self) -> Iterator[int]:
        """Connect to it, and yield the port of this end."""
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            yield connection.getsockname()[1]


@contextmanager
def serving(address: str = "127.0.0.1") -> Iterator[Server]:
    """Have a child of this process listen."""
    command = [sys.executable, "-I", "-S", "-c", LISTEN, address]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        yield Server(child)
        child.kill()


@pytest.fixture
def other() -> Iterator[int]:
    """Yield the pid of a process that has no children."""
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE) as child:
        yield child.pid
        child.kill()


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::", "::ffff:127.0.0.1"])
def test_only_descendants_of_the_shim_are_the_agent(other: int, address: str) -> None:
    """Or all of its own user: who listens until somebody has accepted the connection, then who has done that."""
    with serving(address) as server, server.connected() as own:
        for deeds in ([], ["accept"], ["stop listening"], ["shut down"]):
            server.do(*deeds)
            assert look(own, server.port, os.getpid(), None) is Peer.AGENT
            assert look(own, server.port, os.getpid(), NOBODY) is Peer.AGENT
            assert look(own, server.port, other, os.getuid()) is Peer.AGENT
            assert look(own, server.port, other, None) is Peer.STRANGER
            assert look(own, server.port, other, NOBODY) is Peer.STRANGER
        server.do("close")
        for shim in (os.getpid(), other):
            assert look(own, server.port, shim, None) is Peer.UNKNOWN


def test_a_connection_that_was_closed_is_nobodys(other: int) -> None:
    """Neither the agent's although that listens; a stranger who listens is one."""
    with serving() as server, server.connected() as own:
        server.do("accept", "close")
        assert look(own, server.port, os.getpid(), None) is Peer.UNKNOWN
        assert look(own, server.port, other, None) is Peer.STRANGER


def test_who_listens_has_no_connection_of_another(other: int) -> None:
    """Who accepted it counts, whoever listens now; so does no connection from another port or to another address."""
    with serving() as server, server.connected() as own, server.connected() as another:
        server.do("accept", "stop listening")
        with socket.create_server(("127.0.0.1", server.port)):
            assert look(own, server.port, other, None) is Peer.STRANGER
            assert look(own, server.port, os.getpid(), None) is Peer.AGENT
        assert look(another, server.port, os.getpid(), None) is Peer.UNKNOWN
    with socket.create_server(("127.0.0.2", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.2", port), source_address=("127.0.0.1", 0)) as connection:
            assert look(connection.getsockname()[1], port, other, None) is Peer.UNKNOWN


def test_a_port_that_is_connected_to_itself_is_nobodys(other: int) -> None:
    """The kernel does so if the port that it chooses for a connection is the one to connect to."""
    with socket.socket() as connection:
        connection.bind(("127.0.0.1", 0))
        port = connection.getsockname()[1]
        connection.connect(("127.0.0.1", port))
        assert look(port, port, other, None) is Peer.UNKNOWN


def test_the_addresses_are_those_of_the_kernel() -> None:
    """A number for each four bytes, of this machine's byte order."""
    loopback, mapped = {"little": ("0100007F", "FFFF0000"), "big": ("7F000001", "0000FFFF")}[sys.byteorder]
    own = {loopback, f"{'0' * 16}{mapped}{loopback}"}
    assert own == listeners._OWN
    assert own | {"0" * 8, "0" * 32, f"{'0' * 16}{mapped}{'0' * 8}"} == listeners._REACHED


def test_of_a_process_that_hides_its_files_the_user_decides(monkeypatch: pytest.MonkeyPatch, other: int) -> None:
    """The runner's own user may be the agent's, unless that has its own; one that has exited hides nothing."""
    with serving() as server, server.connected() as own:
        server.do("accept")
        for error, peer in ((PermissionError(), Peer.AGENT), (FileNotFoundError(), Peer.STRANGER)):

            def fail(_: str, error: OSError = error) -> list[str]:
                raise error

            with monkeypatch.context() as patch:
                patch.setattr(process_table, "descendants", lambda _: {1, 2})
                patch.setattr(os, "listdir", fail)
                assert look(own, server.port, other, None) is peer
                assert look(own, server.port, other, NOBODY) is Peer.STRANGER
                patch.setattr(os, "geteuid", lambda: NOBODY)
                assert look(own, server.port, other, None) is Peer.STRANGER


def test_a_kernel_that_shows_no_sockets_shows_no_strangers(monkeypatch: pytest.MonkeyPatch, other: int) -> None:
    """One without IPv6 shows the others."""

    def fail(path: Path, **_: Any) -> str:
        raise FileNotFoundError(path)

    with serving() as server, server.connected() as own:
        read = Path.read_text
        monkeypatch.setattr(
            Path, "read_text", lambda path, **more: (fail if path.name == "tcp6" else read)(path, **more)
        )
        assert look(own, server.port, other, None) is Peer.STRANGER
        monkeypatch.setattr(Path, "read_text", fail)
        assert look(own, server.port, other, None) is Peer.AGENT


@pytest.mark.parametrize("fails", ["the sockets", "the processes", "their files"])
async def test_without_a_free_descriptor_nobody_is_known(
    monkeypatch: pytest.MonkeyPatch, other: int, fails: str
) -> None:
    """Neither the agent nor a stranger: it is tried again."""

    def fail(*_: object, **__: object) -> Any:
        raise OSError(24, "Too many open files")

    with serving() as server, server.connected() as own:
        match fails:
            case "the sockets":
                monkeypatch.setattr(Path, "read_text", fail)
            case "the processes":
                monkeypatch.setattr(process_table, "_stat", fail)
            case _:
                monkeypatch.setattr(listeners, "_inodes", fail)
        assert await identify_peer(own, server.port, other, None) is Peer.UNKNOWN


A, S, U = Peer.AGENT, Peer.STRANGER, Peer.UNKNOWN


@pytest.mark.parametrize(("looks", "peer"), [([S] * 3, S), ([S, U, A], A), ([A], A), ([S, S, U], U), ([U] * 3, U)])
async def test_several_looks_must_agree_on_a_stranger(
    monkeypatch: pytest.MonkeyPatch, looks: list[Peer], peer: Peer
) -> None:
    """What an agent shows while it forks is no answer; one without a shim has not started."""
    monkeypatch.setattr(listeners, "_INTERVAL", 0)
    monkeypatch.setattr(listeners, "look", lambda *arguments: looks.pop(0) if arguments == (9, 1, 2, 3) else None)
    assert await identify_peer(9, 1, None, 3) is Peer.UNKNOWN
    async with asyncio.timeout(30):
        assert await identify_peer(9, 1, 2, 3) is peer
    assert looks == []
