"""What the shim does in which order, with processes and signals that a test makes up; the pipes are real."""

from __future__ import annotations

import fcntl
import marshal
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from taskherd.runner import privileges, shim
from taskherd.runner.shim import Shim

AGENT, CHILD, OTHER = 5_000_001, 5_000_002, 5_000_003
"""Processes that do not exist: there are fewer pids."""
SPEC = {
    "protocol": False, "segment_bytes": 64, "max_segments": 4, "cgroup": None, "uid": None, "killer_uid": None,
    "stdin": None, "stdin_pipe_bytes": 4096, "timeout": None, "grace": 5.0, "sandboxed": False, "beside_agent": False,
}  # fmt: skip


class World:
    """A shim, the time, the processes below it, and the signals that they are sent."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.now = 1000.0
        self.pumps: list[float | None] = []
        self.deeds: list[tuple[object, ...]] = []
        self.below: list[set[int]] = [set()]
        """The descendants at each look, and from the last one on."""
        self.made: list[Shim] = []
        self.monkeypatch = monkeypatch
        for name in ("output", "log", "stdin"):
            (folder / name).mkdir()
        os.mkfifo(folder / "input")

    def shim(self, **changed: Any) -> Shim:
        """Return the shim of an agent with this specification."""
        (self.folder / "spec").write_bytes(marshal.dumps({**SPEC, **changed}))
        made = Shim(str(self.folder))
        made._agent = AGENT
        self.made.append(made)
        return made

    def pretend(self, made: Shim) -> None:
        """Let time, processes and signals of a shim be those of this world."""
        patch = self.monkeypatch.setattr
        patch(shim, "time", SimpleNamespace(monotonic=lambda: self.now))
        patch(shim, "descendants", self._descendants)
        patch(shim, "send_signal", lambda pids, number: self.deeds.append(("signal", set(pids), number)))
        patch(os, "killpg", lambda group, number: self.deeds.append(("group", group, number)))
        patch(made, "_pump", self._pump)
        patch(made, "_pump_briefly", lambda: self._pump(0.5))
        patch(made, "_reap", lambda: made._status is not None)

    def _descendants(self, root: int) -> set[int]:
        assert root == os.getpid()
        return self.below.pop(0) if len(self.below) > 1 else self.below[0]

    def _pump(self, timeout: float | None) -> None:
        self.pumps.append(timeout)
        self.now += timeout or 0


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Yield a world without processes."""
    found = World(tmp_path, monkeypatch)
    yield found
    monkeypatch.undo()
    for made in found.made:
        names = ("_wakeup_read", "_wakeup_write", "_output_read", "_log_read", "_poke", "_feeder_write")
        for descriptor in {getattr(made, name) for name in names} - {-1}:
            os.close(descriptor)


@pytest.mark.parametrize(
    ("reason", "sandboxed", "deeds"),
    [
        ("exited", False, [("signal", {CHILD}, signal.SIGTERM)]),
        ("stopped", False, [("group", AGENT, signal.SIGTERM)]),
        ("timeout", True, [("signal", {CHILD}, signal.SIGTERM)]),
    ],
)
def test_what_is_left_is_asked_to_end(
    world: World, reason: str, *, sandboxed: bool, deeds: list[tuple[object, ...]]
) -> None:
    """The group of the agent, without bubblewrap around it; or what an agent has left that has exited."""
    made = world.shim(sandboxed=sandboxed)
    world.pretend(made)
    groups = {AGENT: AGENT, CHILD: AGENT, OTHER: 1}
    table = [(pid, ["S", "1", str(group)]) for pid, group in groups.items()]
    world.monkeypatch.setattr(shim, "processes", lambda: iter(table))
    world.below = [{CHILD}]
    made._reason, made._childless = reason, True
    assert made._end() == 0
    assert (world.deeds, world.pumps) == (deeds, [])


def test_a_group_that_is_gone_is_left_alone(world: World) -> None:
    """A signal to an agent whose processes have all ended is no error."""
    made = world.shim()

    def gone(*_: int) -> None:
        raise ProcessLookupError

    world.monkeypatch.setattr(os, "killpg", gone)
    made._signal_group(signal.SIGINT)
    assert made._status is None


def test_processes_have_their_grace_time_and_are_killed_then(world: World) -> None:
    """Until they are gone; those that a kill does not end within 30 s are counted."""
    made = world.shim(grace=2.0)
    world.pretend(made)
    killed: list[set[int]] = []
    world.monkeypatch.setattr(made, "_kill", killed.append)
    rest: list[tuple[int, bool]] = []
    world.monkeypatch.setattr(made, "_record_output", lambda *, beyond_limit: rest.append((len(killed), beyond_limit)))
    world.below = [{CHILD}, {CHILD, OTHER}]
    assert made._end() == 2
    assert rest == [(len(killed), True)], "what they wrote until then is recorded, for there is no later"
    assert len(world.pumps) == (2.0 + shim.KILL_TIMEOUT) / 0.5
    assert killed == [{CHILD, OTHER}] * int(shim.KILL_TIMEOUT / 0.5)
    world.below = [set()]
    assert made._end() == 1, "somebody is there, although none can be seen"


def test_what_is_killed_is_frozen_first(world: World) -> None:
    """Until nothing new shows up, so that none can fork meanwhile; or it is tried often enough."""
    made = world.shim()
    world.pretend(made)
    others: list[bool] = []
    world.monkeypatch.setattr(made, "_kill_others", lambda: others.append(True))
    world.below = [{AGENT, CHILD}, {AGENT, CHILD}, {OTHER}]
    made._kill({AGENT})
    assert world.deeds == [
        ("signal", {AGENT}, signal.SIGSTOP),
        ("signal", {AGENT, CHILD}, signal.SIGSTOP),
        ("signal", {AGENT, CHILD}, signal.SIGKILL),
    ]
    assert others == [True]
    world.deeds.clear()
    world.below = [{number} for number in range(100)]
    made._spec["beside_agent"] = True
    made._kill(set())
    assert (len(world.deeds), others) == (51, [True])
    assert world.deeds[-1] == ("signal", set(range(50)), signal.SIGKILL)


@pytest.mark.parametrize(("statuses", "tries"), [([0], 1), ([9, 0], 2), ([9] * 9, 5), ([OSError()], 1)])
def test_the_processes_of_the_agents_user_are_killed(world: World, statuses: list[Any], tries: int) -> None:
    """By a process of another user; it is tried again, since another agent's kill may hit it."""
    made = world.shim(uid=1007, killer_uid=1008)
    spawned: list[object] = []

    def wait(pid: int, options: int) -> tuple[int, int]:
        status = statuses.pop(0)
        if isinstance(status, OSError):
            raise status
        assert (pid, options) == (77, 0)
        return pid, status

    def spawn(*given: object) -> int:
        spawned.append(given)
        return 77

    world.monkeypatch.setattr(os, "posix_spawn", spawn)
    world.monkeypatch.setattr(os, "waitpid", wait)
    made._kill_others()
    command = [sys.executable, "-I", "-S", privileges.__file__, "kill", "1007", "1008"]
    assert spawned == [(sys.executable, command, {})] * tries


def test_children_are_reaped_until_none_is_left(world: World) -> None:
    """Only the agent's status counts; whether there are others, is known then."""
    made = world.shim()
    results: list[tuple[int, int] | None] = [(CHILD, 9), (0, 0), (AGENT, 256), (OTHER, 1), None, (0, 0)]

    def wait(pid: int, options: int) -> tuple[int, int]:
        assert (pid, options) == (-1, os.WNOHANG)
        result = results.pop(0)
        if result is None:
            raise ChildProcessError
        return result

    world.monkeypatch.setattr(os, "waitpid", wait)
    found = [(made._reap(), made._status, made._childless) for _ in range(3)]
    assert found == [(False, None, False), (True, 256, True), (True, 256, False)]
    results[:] = [(0, 0)]
    assert not made._is_alone()
    results[:] = [None]
    assert made._is_alone()


def test_an_agent_reads_inputs_from_a_pipe_that_never_ends(world: World) -> None:
    """It has room for a whole input; a file is read to its end instead."""
    made = world.shim(stdin_pipe_bytes=8192)
    descriptor = made._open_stdin()
    assert fcntl.fcntl(descriptor, fcntl.F_GETPIPE_SZ) == 8192
    assert fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
    assert (os.get_blocking(descriptor), os.get_inheritable(descriptor)) == (True, False)
    assert (made._poke, made._feeder) == (-1, None)
    os.close(descriptor)
    (world.folder / "prompt").write_text("Do it")
    descriptor = world.shim(stdin=str(world.folder / "prompt"))._open_stdin()
    assert os.read(descriptor, 99) == b"Do it"
    assert not os.get_inheritable(descriptor)
    os.close(descriptor)
    too_much = world.shim(stdin_pipe_bytes=2**40)._open_stdin()
    os.close(too_much)


def test_an_agent_that_speaks_a_protocol_is_fed_lines(world: World) -> None:
    """They are in files, and the FIFO only says that there are some."""
    made = world.shim(protocol=True)
    descriptor = made._open_stdin()
    assert made._feeder is not None
    assert not os.get_blocking(made._poke)
    assert not os.get_blocking(made._feeder_write)
    assert os.get_blocking(descriptor)
    (world.folder / "stdin" / "1").write_bytes(b"line\n")
    os.write(made._poke, b"\n")
    made._pump(0)
    assert os.read(descriptor, 99) == b"line\n"
    with pytest.raises(BlockingIOError):
        os.read(made._poke, 1)
    os.close(descriptor)


def test_output_without_room_is_not_waited_for(world: World) -> None:
    """It would be there at once, again and again; the shim looks for room regularly instead."""
    made = world.shim(protocol=True)
    made._output_read, output = os.pipe2(os.O_NONBLOCK)
    os.write(output, b"x" * 1000)
    made._pump(None)
    os.write(output, b"more")
    begun = time.monotonic()
    with world.monkeypatch.context() as patch:
        patch.setattr(shim, "_FULL_INTERVAL", 30.0)
        made._pump(0.05)
    assert 0.04 <= time.monotonic() - begun < 29, "no longer than the caller waits"
    assert (len(made._unwritten), made._output.total) == (1000 - 256, 256)
    for path in (world.folder / "output").iterdir():
        path.unlink()
    made._pump(None)
    assert made._output.total == 512
    os.close(output)


def test_a_log_is_recorded_while_the_output_has_no_room(world: World) -> None:
    """Otherwise what waits there would end each wait at once: the shim would use a whole core."""
    made = world.shim(protocol=True)
    made._output_read, output = os.pipe2(os.O_NONBLOCK)
    made._log_read, log = os.pipe2(os.O_NONBLOCK)
    os.write(output, b"x" * 1000)
    os.write(log, b"why")
    made._pump(None)
    os.write(log, b" it hangs")
    made._pump(None)
    assert made._unwritten
    assert b"".join(path.read_bytes() for path in sorted((world.folder / "log").iterdir())) == b"why it hangs"
    with pytest.raises(BlockingIOError):
        os.read(made._log_read, 1)
    os.close(output)
    os.close(log)


def test_pipes_that_have_ended_are_closed(world: World) -> None:
    """So that waiting for them does not end at once for ever; what they held is recorded."""
    made = world.shim(max_segments=100)
    made._output_read, output = os.pipe2(os.O_NONBLOCK)
    made._log_read, log = os.pipe2(os.O_NONBLOCK)
    os.write(output, b"out")
    os.write(log, b"log")
    os.close(log)
    made._record_output()
    assert made._log_read == -1
    assert made._output_read >= 0
    os.close(output)
    made._record_output()
    assert made._output_read == -1
    contents = [[path.read_bytes() for path in (world.folder / name).iterdir()] for name in ("output", "log")]
    assert contents == [[b"out"], [b"log"]]


def test_much_output_does_not_keep_signals_waiting(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most 16 chunks are read at a time."""
    made = world.shim(max_segments=10**6)
    made._output_read, output = os.pipe2(os.O_NONBLOCK)
    reads: list[int] = []

    def read(descriptor: int, size: int) -> bytes:
        assert size == shim.READ_BYTES
        reads.append(descriptor)
        return b"x"

    with monkeypatch.context() as patch:
        patch.setattr(os, "read", read)
        made._record_output()
    assert reads == [made._output_read] * 16
    os.close(output)
