"""How a run ended, from what its shim left on disk, and what a shim is given."""

from __future__ import annotations

import errno
import fcntl
import json
import marshal
import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Never

import pytest

from taskherd.domain.reports import ExitReason
from taskherd.runner import process_table
from taskherd.runner.activity import ActivityWatch, ProcessMonitor
from taskherd.runner.agents import stdin
from taskherd.runner.workspaces import processes
from taskherd.runner.workspaces.folders import RunFolder
from taskherd.runner.workspaces.processes import ExitRecord, RunSpec

SPEC = RunSpec(("a", "b"), Path("/work"), {"PATH": "/bin"}, 10.0, None, None, None, None, None)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """Return an empty run folder."""
    return RunFolder(tmp_path)


@pytest.mark.parametrize(
    ("record", "why", "text"),
    [
        (ExitRecord("exited", code=0), ExitReason.EXITED, "The agent ended with exit status 0."),
        (ExitRecord("exited", code=137), ExitReason.EXITED, "The agent ended with exit status 137."),
        (ExitRecord("exited", signal=9), ExitReason.SIGNALLED, "The agent was killed by signal 9 (SIGKILL)."),
        (ExitRecord("exited", signal=99), ExitReason.SIGNALLED, "The agent was killed by signal 99 (unknown)."),
        (
            ExitRecord("exited", signal=9, out_of_memory=True),
            ExitReason.OUT_OF_MEMORY,
            "The agent ran out of memory (`limits.memory` in the template) and was killed.",
        ),
        (
            ExitRecord("exited", code=137, out_of_memory=True),
            ExitReason.OUT_OF_MEMORY,
            "The agent ran out of memory (`limits.memory` in the template) and was killed.",
        ),
        (ExitRecord("exited", code=1, out_of_memory=True), ExitReason.EXITED, "The agent ended with exit status 1."),
        (
            ExitRecord("exited", signal=15, out_of_memory=True),
            ExitReason.SIGNALLED,
            "The agent was killed by signal 15 (SIGTERM).",
        ),
        (
            ExitRecord("interrupted", signal=2),
            ExitReason.INTERRUPTED,
            "The agent was ended by an interrupt. Resume the task to start it again.",
        ),
        (
            ExitRecord("not started", detail="No such file"),
            ExitReason.NOT_STARTED,
            "The agent could not be started: No such file",
        ),
        (
            ExitRecord("timeout", signal=15),
            ExitReason.TIMEOUT,
            "The agent was stopped because it exceeded its time limit (`limits.timeout` in the template).",
        ),
        (ExitRecord("lost"), ExitReason.LOST, processes.LOST),
        (ExitRecord("lost", detail="It is gone."), ExitReason.LOST, "It is gone."),
        (ExitRecord("stopped", code=0), ExitReason.STOPPED, "The agent ended with exit status 0."),
        (ExitRecord("exited", code=0, ended_because="It asked too often."), ExitReason.EXITED, "It asked too often."),
    ],
)
def test_how_an_agent_ended(record: ExitRecord, why: ExitReason, text: str) -> None:
    """The reason that is reported, and a sentence for people; memory counts only for one that was killed."""
    assert (record.why, record.describe()) == (why, text)


def test_only_an_exit_of_its_own_with_status_0_is_a_success(folder: RunFolder) -> None:
    """Whatever else the folder says; without a valid record there is none."""
    assert not processes.has_succeeded(folder)
    for fields, succeeded in (
        ({"reason": "exited", "code": 0}, True),
        ({"reason": "exited", "code": 1}, False),
        ({"reason": "stopped", "code": 0}, False),
        ({"reason": "exited", "signal": 9}, False),
        ({"reason": "exited", "code": 0, "ended_because": "It stalled."}, False),
        ({"reason": "lost", "code": 0}, False),
        ({"code": 0}, False),
    ):
        folder.exit.write_text(json.dumps(fields))
        assert processes.has_succeeded(folder) is succeeded


def test_the_exit_is_the_one_that_the_shim_recorded(folder: RunFolder) -> None:
    """Spaces after it were reserved for it, and unknown fields are a later shim's."""
    fields = {"reason": "timeout", "code": None, "signal": 15, "leftover": 2, "dropped": 7, "out_of_memory": True}
    folder.exit.write_text(json.dumps({**fields, "output": 9, "at": 1.5}) + " " * 4000)
    record = processes.read_exit(folder)
    assert record == ExitRecord("timeout", signal=15, leftover=2, dropped=7, out_of_memory=True)


@pytest.mark.parametrize(
    "content", [None, "", "{}", '{"reason": "interrupted"}', '{"reason": "lost"}', '{"reason": 7}']
)
def test_without_a_shims_record_the_exit_is_lost(folder: RunFolder, content: str | None) -> None:
    """An agent cannot choose how it ended; one that never started is told from one that has."""
    if content is not None:
        folder.exit.write_text(content)
    unstarted = processes.read_exit(folder)
    assert unstarted == ExitRecord("not started", detail="its shim was never started")
    folder.shim_log.write_text("")
    silent = "its shim exited without an error message; it may have been killed"
    assert processes.read_exit(folder).detail == silent
    folder.shim_log.write_text("Traceback\nOSError: no space\n\n")
    assert processes.read_exit(folder).detail == "OSError: no space"
    assert processes.read_exit(folder, agent_started=True) == ExitRecord("lost", detail=processes.FOLDER_DELETED)
    folder.started.write_text("{}")
    assert processes.read_exit(folder) == ExitRecord("lost")


def test_what_a_killed_shim_left_is_killed(folder: RunFolder) -> None:
    """By the variable that marks the processes of a run; those of another run go on."""
    other = RunFolder(folder.path / "other")
    with (
        subprocess.Popen(
            ["/bin/cat"], stdin=subprocess.PIPE, env={processes.MARKER_VARIABLE: str(folder.path)}
        ) as left,
        subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE, env={processes.MARKER_VARIABLE: str(other.path)}) as kept,
    ):
        for each in (left, kept):  # for a moment after it has begun, a program has no environment
            while not Path(f"/proc/{each.pid}/environ").read_bytes():
                continue
        assert processes.kill_marked(folder) == 0
        assert left.wait() == -signal.SIGKILL
        assert kept.poll() is None
        kept.kill()


def test_a_start_that_fails_after_its_shim_began_leaves_nothing(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even an agent that the shim has started by then."""
    spec = replace(SPEC, argv=("sleep", "600"), cwd=folder.path, env=dict(os.environ))

    def fail_once_started(_: int) -> int:
        deadline = time.monotonic() + 30
        while not folder.started.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert processes._marked(folder) != []
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "pidfd_open", fail_once_started)
    with pytest.raises(OSError, match="Too many open files"):
        processes.spawn(folder, spec)
    assert processes._marked(folder) == []


def test_a_shim_runs_while_its_lock_is_held(folder: RunFolder) -> None:
    """A runner that looks does not hold it itself."""
    assert not processes.has_shim(folder)
    with folder.lock.open("w") as lock:
        assert not processes.has_shim(folder)
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert processes.has_shim(folder)
    assert not processes.has_shim(folder)


def test_a_shim_that_cannot_be_looked_for_now_is_not_taken_for_dead(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For want of descriptors: its agent would be killed, though it works."""
    folder.started.write_text(json.dumps({"pid": os.getpid(), "start": process_table.start_ticks(os.getpid())}))

    def fail(*_: object, **__: object) -> Never:
        raise OSError(errno.EMFILE, "Too many open files")

    for module, name in ((os, "open"), (os, "pidfd_open"), (process_table, "start_ticks")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, fail)
            with pytest.raises(OSError, match="Too many open files"):
                (processes.has_shim if name == "open" else processes.open_running)(folder)


def test_a_shim_is_found_by_its_pid_and_start_time(folder: RunFolder) -> None:
    """Another process with its pid is none, and neither is what no shim has written."""
    own = {"pid": os.getpid(), "start": process_table.start_ticks(os.getpid())}
    wrong: list[object] = [
        {**own, "start": own["start"] + 1},
        {"pid": os.getpid()},
        {"pid": "1"},
        [],
        {**own, "pid": -7},
    ]
    for record in (None, *wrong):
        if record is not None:
            folder.started.write_text(json.dumps(record))
        assert processes.open_running(folder) is None
    folder.started.write_text(json.dumps(own))
    handle = processes.open_running(folder)
    assert handle is not None
    assert (handle.agent_started, handle.has_exited, handle.collect()) == (True, False, None)
    folder.exit.write_text("{}")
    assert handle.has_exited
    handle.close()


def spec_of(spec: RunSpec) -> dict[str, Any]:
    """Return what the shim reads."""
    record = processes._spec_record(spec)
    marshal.dumps(record)  # which raises an error for any other type than those of Python itself
    return record


def test_what_a_shim_is_given() -> None:
    """Paths as texts, and nothing for what there is not; in a sandbox bubblewrap chooses the working directory."""
    plain = spec_of(SPEC)
    assert {name: plain[name] for name in ("argv", "cwd", "cgroup", "stdin", "own_env", "uid")} == {
        "argv": ["a", "b"],
        "cwd": "/work",
        "cgroup": None,
        "stdin": None,
        "own_env": {},
        "uid": None,
    }
    assert (plain["segment_bytes"], plain["max_segments"], plain["stdin_pipe_bytes"]) == (2**20, 16, 2**20)
    full = spec_of(
        replace(
            SPEC, cgroup=Path("/cg"), stdin=Path("/dev/null"), sandboxed=True, uid=5, killer_uid=6, protocol=True,
            beside_agent=True, segment_bytes=64, timeout=3.0, memory=7, cpu=0.5,
        )
    )  # fmt: skip
    assert (full["cwd"], full["cgroup"], full["stdin"], full["segment_bytes"]) == ("/", "/cg", "/dev/null", 64)
    assert (full["uid"], full["killer_uid"], full["timeout"], full["memory"], full["cpu"]) == (5, 6, 3.0, 7, 0.5)
    assert (full["sandboxed"], full["protocol"], full["beside_agent"], full["grace"]) == (True, True, True, 10.0)


def test_the_shim_is_not_given_what_the_dynamic_linker_reads() -> None:
    """It may be root. The agent is given it, and what is its own goes before that."""
    env = {"LD_PRELOAD": "/a.so", "GLIBC_TUNABLES": "x", "OLD_LD": "1"}
    spec = spec_of(replace(SPEC, env=env, own_env={"LD_PRELOAD": "/b.so", "TERM": "dumb"}))
    assert spec["own_env"] == {"LD_PRELOAD": "/b.so", "GLIBC_TUNABLES": "x", "TERM": "dumb"}


NO_RECORDS: list[str | None] = [None, "", "{}", "[]", '{"pid": 1}']
"""What may be found in place of a shim's record of its start, if anything is."""


@pytest.mark.parametrize("record", NO_RECORDS)
async def test_nothing_is_known_of_an_agent_without_a_record(folder: RunFolder, record: str | None) -> None:
    """Whether it works is looked at again later: an agent with the runner's user may have written anything there."""
    if record is not None:
        folder.started.write_text(record)
    assert await ActivityWatch(ProcessMonitor(), folder).is_working() is None


@pytest.mark.parametrize("record", [*NO_RECORDS[:-1], '{"pid": 0}'])
def test_without_an_agent_nobody_reads_inputs(folder: RunFolder, record: str | None) -> None:
    """Neither before it has started, nor if its stdin is no FIFO of this run."""
    if record is not None:
        folder.started.write_text(record)
    if record != '{"pid": 0}':
        os.mkfifo(folder.input)
    assert not stdin.has_reader(folder)


def test_an_input_may_have_a_reader_that_cannot_be_looked_for(folder: RunFolder) -> None:
    """A record that cannot be read, for want of descriptors for example, says nothing about the agent."""
    os.mkfifo(folder.input)
    folder.started.mkdir()
    assert stdin.has_reader(folder)


def test_an_input_has_a_reader_while_a_process_of_the_agent_has_the_fifo_open(folder: RunFolder) -> None:
    """Until it closes it, or the exit of the agent is recorded."""
    os.mkfifo(folder.input)
    folder.started.write_text(json.dumps({"pid": os.getpid()}))
    assert not stdin.has_reader(folder)
    with folder.input.open("r+b", buffering=0) as fifo, subprocess.Popen(["/bin/cat"], stdin=fifo) as agent:
        assert stdin.has_reader(folder)
        folder.exit.write_text("{}")
        assert not stdin.has_reader(folder)
        folder.exit.unlink()
        agent.kill()
        agent.wait()
        assert not stdin.has_reader(folder)
