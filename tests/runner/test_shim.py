from __future__ import annotations

import asyncio
import errno
import json
import os
import resource
import signal
import stat
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

from taskherd import open_files
from taskherd.errors import Unavailable
from taskherd.runner.agents import output
from taskherd.runner.workspaces import processes
from taskherd.runner.workspaces.folders import RunFolder
from tests.harness.runner import eventually, is_alive, marked_by

SEGMENT = 64 * 1024
COUNT_AFTER_GO = """
import os, sys, time
while not os.path.exists('go'): time.sleep(0.01)
for line in sys.stdin: print(len(line))
"""
COUNT_WRITTEN = """
import os
written = os.open('written', os.O_WRONLY | os.O_CREAT)
while True:
    os.write(1, b'x' * 99 + b'\\n')
    os.write(written, b'.')
"""
pytestmark = pytest.mark.timeout(120)


class ShimRun:
    """A shim with an agent that is a Python program, whose stdin and stdout carry lines of a protocol."""

    def __init__(self, path: Path) -> None:
        self.folder = RunFolder(path)
        self.handles: list[processes.ShimHandle] = []

    async def start(self, program: str, **changed: object) -> processes.ShimHandle:
        """Start the program."""
        spec = processes.RunSpec(
            argv=[sys.executable, "-u", "-c", program], cwd=self.folder.path.parent, env={"PATH": os.environ["PATH"]},
            grace=1, timeout=None, memory=None, cpu=None, cgroup=None, stdin=None, protocol=True,
        )  # fmt: skip
        handle = await processes.start(self.folder, replace(spec, **changed))  # type: ignore[arg-type]
        self.handles.append(handle)
        return handle

    def write(self, number: int, line: bytes) -> None:
        """Submit a line, and tell the shim."""
        (self.folder.stdin / "new").write_bytes(line)
        (self.folder.stdin / "new").rename(self.folder.stdin / str(number))
        descriptor = os.open(self.folder.input, os.O_WRONLY | os.O_NONBLOCK)
        os.write(descriptor, b"\n")
        os.close(descriptor)

    async def until_up(self) -> None:
        """Wait until the program has printed that it is up, and nothing else."""
        await eventually(lambda: output.tail(self.folder.output, 100) == "up\n")

    @property
    def shim(self) -> int:
        """The pid of the shim."""
        return int(self.started["pid"])

    @property
    def started(self) -> dict[str, Any]:
        """The record of the start."""
        return dict(json.loads(self.folder.started.read_text()))

    @property
    def exit(self) -> dict[str, Any]:
        """The record of the exit."""
        return dict(json.loads(self.folder.exit.read_text()))

    def lines(self) -> list[str]:
        """Return the names of the files of submitted lines."""
        return sorted(path.name for path in self.folder.stdin.iterdir())


@pytest.fixture
async def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ShimRun]:
    """Yield a run whose segments are small; on exit, end its agents."""
    monkeypatch.setattr(processes, "SEGMENT_BYTES", SEGMENT)
    monkeypatch.setattr(processes, "MAX_SEGMENTS", 2)
    shim_run = ShimRun(tmp_path / "run-1")
    yield shim_run
    for handle in shim_run.handles:
        handle.stop()
        handle.stop()
        await handle.wait()
        handle.close()


async def test_unread_output_of_a_protocol_blocks_the_agent_and_is_never_dropped(run: ShimRun) -> None:
    """At the limit the agent blocks; when the runner has deleted what it has read, all of the rest follows."""
    program = "import sys\nfor n in range(400_000): print(n)\nprint('end', file=sys.stderr)"
    handle = await run.start(program)
    await eventually(lambda: output.size(run.folder.output) >= 2 * SEGMENT)
    assert not run.folder.exit.exists()
    assert output.tail(run.folder.log, 100) == ""
    read = b""
    while not read.endswith(b"\n399999\n"):
        chunk = output.read(run.folder.output, len(read), SEGMENT)
        assert chunk.missing == 0
        read += chunk.data
        output.discard(run.folder.output, len(read))
    assert read == b"".join(b"%d\n" % number for number in range(400_000))
    agent_exit = await handle.wait()
    assert (agent_exit.code, agent_exit.dropped) == (0, 0)
    assert output.tail(run.folder.log, 100) == "end\n"


async def test_an_agent_that_blocks_can_be_stopped(run: ShimRun) -> None:
    """An agent whose output nobody reads is ended like any other, and what its pipe held is kept."""
    handle = await run.start(COUNT_WRITTEN)
    written = run.folder.path.parent / "written"
    await eventually(lambda: written.exists() and written.stat().st_size * 100 >= 2 * SEGMENT + 4096)
    handle.stop()
    assert (await handle.wait()).reason == "stopped"
    assert output.size(run.folder.output) >= 2 * SEGMENT + 4096


async def test_a_line_is_acknowledged_once_the_agent_was_given_all_of_it(run: ShimRun) -> None:
    """A line that the pipe cannot hold is open until the agent has read enough of it; later lines wait."""
    await run.start(COUNT_AFTER_GO)
    run.write(9, b"x" * 300_000 + b"\n")
    run.write(10, b"second\n")
    await eventually(lambda: run.lines() == ["10", "9.open"])
    (run.folder.path.parent / "go").touch()
    await eventually(lambda: run.lines() == ["10.done", "9.done"])
    await eventually(lambda: output.tail(run.folder.output, 100) == "300001\n7\n")


async def test_a_line_that_waits_can_be_taken_back(run: ShimRun) -> None:
    """What the runner deletes before its turn is never written."""
    await run.start(COUNT_AFTER_GO)
    run.write(1, b"x" * 300_000 + b"\n")
    run.write(2, b"taken back\n")
    run.write(3, b"third\n")
    await eventually(lambda: "1.open" in run.lines())
    (run.folder.stdin / "2").unlink()
    (run.folder.path.parent / "go").touch()
    await eventually(lambda: run.lines() == ["1.done", "3.done"])
    await eventually(lambda: output.tail(run.folder.output, 100) == "300001\n6\n")


async def test_a_line_for_a_closed_stdin_has_failed(run: ShimRun) -> None:
    """Once no process reads the agent's stdin, every line fails, and the shim goes on."""
    await run.start("import os, signal\nos.close(0)\nprint('up')\nsignal.pause()")
    await eventually(lambda: output.tail(run.folder.output, 100) == "up\n")
    run.write(1, b"first\n")
    run.write(2, b"second\n")
    await eventually(lambda: run.lines() == ["1.failed", "2.failed"])


async def test_an_interrupt_reaches_the_process_group(run: ShimRun) -> None:
    """SIGINT to the shim reaches the agent's process group, and the agent lives on if it handles it."""
    program = (
        "import signal, time\ndef on_interrupt(*_): print('interrupted')\n"
        "signal.signal(signal.SIGINT, on_interrupt)\nprint('up')\nwhile True: time.sleep(1)"
    )
    handle = await run.start(program)
    await eventually(lambda: output.tail(run.folder.output, 100) == "up\n")
    handle.interrupt()
    await eventually(lambda: output.tail(run.folder.output, 100) == "up\ninterrupted\n")
    assert is_alive(json.loads(run.folder.started.read_text())["agent"])


@pytest.mark.parametrize(
    ("argv", "stdin", "message"),
    [
        (["no-such-program"], None, "No such file or directory: 'no-such-program'"),
        (["\0"], None, "embedded null"),
        (["true"], Path("/no/such/prompt"), "No such file or directory: '/no/such/prompt'"),
    ],
)
async def test_a_program_that_cannot_be_started_is_named(
    tmp_path: Path, argv: list[str], stdin: Path | None, message: str
) -> None:
    """The error says which program, and why; or which file that it was to read. It leaves nothing."""
    spec = processes.RunSpec(
        argv=argv, cwd=tmp_path, env={}, grace=1, timeout=None, memory=None, cpu=None, cgroup=None, stdin=stdin
    )
    folder = RunFolder(tmp_path / "run-1")
    with pytest.raises(Unavailable, match=message):
        await processes.start(folder, spec)
    record = json.loads(folder.exit.read_text())
    assert (record["reason"], record["leftover"], record["output"]) == ("not started", 0, 0)


@pytest.mark.parametrize("then", ["exit 3", "exec sleep 1000"])
@pytest.mark.parametrize("waits", ["", 'until [ -e "$F/started.json" ]; do :; done; '], ids=["first", "then"])
async def test_an_agent_that_deletes_its_folder_at_once_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: str, then: str
) -> None:
    """Whether its shim could record that, and whether the runner saw it: how it ended is lost with the folder."""
    monkeypatch.setattr(processes, "_POLL_INTERVAL", 0.5)
    folder = RunFolder(tmp_path / "run-1")
    script = f'{waits}until rm -rf "$F"; do :; done; {then}'
    handle = await processes.start(folder, shell_spec(tmp_path, script))
    await eventually(lambda: not folder.path.exists())
    handle.stop()
    assert await handle.wait() == processes.ExitRecord("lost", detail=processes.FOLDER_DELETED)
    handle.close()
    assert marked_by(str(folder.path)) == set()


async def test_an_agent_that_deletes_the_record_of_its_start_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its exit is recorded."""
    monkeypatch.setattr(processes, "_POLL_INTERVAL", 0.5)
    deletes = 'until [ -e "$F/started.json" ]; do :; done; rm "$F/started.json"'
    handle = await processes.start(RunFolder(tmp_path / "run-1"), shell_spec(tmp_path, f"{deletes}; exit 3"))
    assert await handle.wait() == processes.ExitRecord("exited", 3)
    handle.close()


def shell_spec(folder: Path, script: str) -> processes.RunSpec:
    """Return how a shell script is run whose ``F`` is the folder of its run."""
    return processes.RunSpec(
        argv=["sh", "-c", f"F=$TASKHERD_RUN_FOLDER; {script}"], cwd=folder, env={"PATH": os.environ["PATH"]},
        grace=1, timeout=None, memory=None, cpu=None, cgroup=None, stdin=None,
    )  # fmt: skip


@pytest.mark.parametrize(
    "content",
    ["", "{}", "[]", "7", '{"reason": "no such reason"}', '{"reason": "exited", "code": "none"}', '{"reason": "lost"}'],
)
def test_an_exit_record_that_no_shim_has_written_counts_as_none(tmp_path: Path, content: str) -> None:
    """A record that is torn or garbled is as good as a missing one: how the agent ended is lost."""
    folder = RunFolder(tmp_path / "run-1")
    folder.recreate()
    folder.started.touch()
    folder.exit.write_text(content)
    assert processes.read_exit(folder) == processes.ExitRecord("lost")
    assert not processes.has_succeeded(folder)


def test_an_exit_record_that_cannot_be_read_now_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a file descriptor nothing is known, and the agent's exit status can still be read later."""
    folder = RunFolder(tmp_path / "run-1")
    folder.recreate()
    folder.started.touch()
    folder.exit.write_text('{"reason": "exited", "code": 3}')

    def fail(_: Path) -> NoReturn:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail)
        with pytest.raises(OSError, match="Too many"):
            processes.read_exit(folder)
    assert processes.read_exit(folder) == processes.ExitRecord("exited", 3)


def own_memory(pid: int) -> int:
    """Return the memory of a process that it shares with no other, in KiB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))


PAUSE = "import signal\nprint('up')\nsignal.pause()"


async def test_an_agent_that_has_not_read_a_line_can_be_stopped(run: ShimRun) -> None:
    """The shim does not wait for it meanwhile, and an agent that ends at once needs none of its grace time."""
    handle = await run.start(PAUSE, grace=600)
    await run.until_up()
    run.write(1, b"x" * 300_000 + b"\n")
    await eventually(lambda: run.lines() == ["1.open"])
    handle.stop()
    async with asyncio.timeout(25):
        agent_exit = await handle.wait()
    assert (agent_exit.reason, agent_exit.signal, agent_exit.leftover) == ("stopped", signal.SIGTERM, 0)


async def test_what_an_agent_leaves_has_the_grace_time_to_end(run: ShimRun) -> None:
    """SIGTERM is sent also to processes in a session of their own, and SIGKILL to none that ends in time."""
    left = (
        "import signal, sys, time\n"
        "def end(*_):\n    time.sleep(0.5)\n    open('ended', 'w').close()\n    sys.exit()\n"
        "signal.signal(signal.SIGTERM, end)\nprint('up', flush=True)\nsignal.pause()"
    )
    program = (
        "import subprocess, sys\n"
        f"left = subprocess.Popen([sys.executable, '-c', {left!r}], start_new_session=True, stdout=subprocess.PIPE)\n"
        "left.stdout.readline()\n"
    )
    handle = await run.start(program, grace=600)
    async with asyncio.timeout(60):
        agent_exit = await handle.wait()
    assert (agent_exit.reason, agent_exit.code, agent_exit.leftover) == ("exited", 0, 0)
    assert (run.folder.path.parent / "ended").exists()


async def test_a_second_request_to_stop_ends_the_grace_time(run: ShimRun) -> None:
    """The first one alone kills nothing."""
    program = f"import signal\nsignal.signal(signal.SIGTERM, lambda *_: print('no'))\n{PAUSE}\nsignal.pause()"
    handle = await run.start(program, grace=600)
    await run.until_up()
    handle.stop()
    await eventually(lambda: output.tail(run.folder.output, 100) == "up\nno\n")
    assert not handle.has_exited
    handle.stop()
    async with asyncio.timeout(25):
        assert (await handle.wait()).signal == signal.SIGKILL


async def test_a_hangup_ends_neither_shim_nor_agent(run: ShimRun) -> None:
    """As when the terminal of the runner is closed."""
    await run.start(COUNT_AFTER_GO)
    os.kill(run.shim, signal.SIGHUP)
    (run.folder.path.parent / "go").touch()
    run.write(1, b"still here\n")
    await eventually(lambda: run.lines() == ["1.done"])


async def test_what_an_agent_writes_to_its_stderr_is_kept_apart(run: ShimRun) -> None:
    """It is recorded at once, also if nothing else happens."""
    await run.start("import signal, sys\nprint('an error', file=sys.stderr)\nsignal.pause()")
    await eventually(lambda: output.tail(run.folder.log, 100) == "an error\n", 30)
    assert output.size(run.folder.output) == 0


async def test_a_time_limit_is_not_cut_short(run: ShimRun) -> None:
    """An agent has all of it, and after that as long as its grace time to end."""
    handle = await run.start(PAUSE, timeout=0.9, grace=600)
    async with asyncio.timeout(25):
        agent_exit = await handle.wait()
    assert (agent_exit.reason, agent_exit.signal) == ("timeout", signal.SIGTERM)
    assert run.exit["at"] - run.started["at"] >= 0.9


def open_pipes(process: str) -> set[str]:
    """Return the pipes that a process has open."""
    names = {str(path.readlink()) for path in Path(f"/proc/{process}/fd").iterdir() if path.is_symlink()}
    return {name for name in names if name.startswith("pipe:")}


async def test_a_shim_that_waits_does_nothing(run: ShimRun) -> None:
    """However its agent has closed its streams, read lines and ended processes: it uses no CPU, nor many files."""
    program = (
        "import os, subprocess, sys, time\n"
        "sys.stdin.readline()\n"
        "subprocess.run(['sh', '-c', 'true & exit'])\n"
        "print('read')\n"
        "os.close(1), os.close(2)\n"
        "while time.process_time() < 1.5: pass\n"
        "open('done', 'w').close()\n"
        "sys.stdin.readline()\n"
    )
    await run.start(program)
    run.write(1, b"go\n")
    await eventually((run.folder.path.parent / "done").exists)
    fields = Path(f"/proc/{run.shim}/stat").read_text().rpartition(")")[2].split()
    assert sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK") < 0.75
    pipes = open_pipes(str(run.shim)) - open_pipes("self")
    assert len(pipes) == 2, "to wake up itself, and to feed the agent's stdin"
    assert output.tail(run.folder.output, 100) == "read\n"


async def test_the_files_of_a_run_are_its_owners(run: ShimRun) -> None:
    """Other users read and change none of them. Room for the exit record was kept from the start."""
    handle = await run.start("import sys\nprint('up')\nprint('up', file=sys.stderr)")
    await handle.wait()
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in run.folder.path.iterdir()}
    folders = dict.fromkeys(("output", "log", "stdin"), 0o700)
    files = dict.fromkeys(("lock", "input", "shim.log", "exit.json"), 0o600)
    assert modes == {**folders, **files, **{name: modes[name] for name in ("spec", "started.json")}}
    for segments in (run.folder.output, run.folder.log):
        assert [stat.S_IMODE(path.stat().st_mode) for path in segments.iterdir()] == [0o600]
    assert stat.S_IMODE(run.folder.path.stat().st_mode) == 0o700
    assert run.folder.exit.stat().st_size == 4096


async def test_the_limits_of_an_agent(run: ShimRun) -> None:
    """Its memory and cores; the kernel ends it before the runner; it ignores no signal that ends programs."""
    program = (
        "import os, resource\n"
        "print(*resource.getrlimit(resource.RLIMIT_AS), len(os.sched_getaffinity(0)))\n"
        "print(open('/proc/self/oom_score_adj').read(), end='')\n"
    )
    handle = await run.start(program, memory=2**36, cpu=0.5)
    await handle.wait()
    assert output.tail(run.folder.output, 100) == f"{2**36} {2**36} 1\n500\n"
    handle = await run.start("", argv=["grep", "SigIgn", "/proc/self/status"])
    await handle.wait()
    ignored = int(output.tail(run.folder.output, 100).split()[1], 16)
    reset = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGPIPE, signal.SIGXFSZ)
    assert [number for number in reset if ignored >> (number - 1) & 1] == []


async def test_a_shim_is_small(run: ShimRun) -> None:
    """A shim has at most 4.5 MiB of memory of its own: there is one for each agent."""
    await run.start(PAUSE)
    await run.until_up()
    assert own_memory(run.shim) < 4.5 * 1024


async def test_an_agent_keeps_the_limit_of_open_files_that_its_runner_was_started_with(
    run: ShimRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runner's own, which it raises, would break a program that uses select(2)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    monkeypatch.setattr(open_files, "INHERITED", soft // 2)
    handle = await run.start("import resource; print(*resource.getrlimit(resource.RLIMIT_NOFILE))")
    await handle.wait()
    assert output.read(run.folder.output, 0, 100).data == f"{soft // 2} {hard}\n".encode()
