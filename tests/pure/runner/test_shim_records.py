"""What the shim writes without the module ``json``, and what it reads from /proc."""

from __future__ import annotations

import fcntl
import json
import marshal
import os
import resource
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, permutations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskherd.runner import agent_process, log_ids, process_table, shim

values = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"])) | st.sampled_from(
    ["\\", '"', "~", "\x7f"]
)


@given(st.dictionaries(st.text("abc_", min_size=1), values | texts))
def test_records_are_json(record: dict[str, object]) -> None:
    """What is read is what was written, whatever an error says; it is ASCII, as the file is."""
    encoded = shim.encode(record)
    assert encoded.isascii()
    assert json.loads(encoded) == record


def test_characters_beyond_the_first_plane_are_replaced() -> None:
    """They would need two escapes; the last character of the plane needs one."""
    assert json.loads(shim.encode({"a": "x\U0001f600\uffffy"})) == {"a": "x?\uffffy"}


def test_a_file_is_replaced_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else is left in the folder."""
    path = tmp_path / "started.json"
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda _: synced.append(path.with_suffix(".json.new").read_text()))
    for content in ("{}", '{"pid": 7}'):
        shim.write_atomically(str(path), content)
        assert path.read_text() == content
    assert synced == ["{}", '{"pid": 7}'], "all of it was on disk before it had its name"
    assert list(tmp_path.iterdir()) == [path]


@contextmanager
def shim_of(folder: Path, **changed: Any) -> Iterator[shim.Shim]:
    """Yield a shim that runs nothing."""
    spec = {"protocol": False, "segment_bytes": 64, "max_segments": 2, "cgroup": None, "uid": None, **changed}
    (folder / "spec").write_bytes(marshal.dumps(spec))
    made = shim.Shim(str(folder))
    yield made
    os.close(made._wakeup_read)
    os.close(made._wakeup_write)


@pytest.mark.parametrize("capacity", [65_536, 262_144])
def test_the_end_does_not_wait_for_who_writes_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capacity: int
) -> None:
    """All that the pipe holds is recorded, also beyond the limit, but not what who has it open writes meanwhile."""
    read, reads = os.read, list[int]()
    reader, writer = os.pipe2(os.O_NONBLOCK)
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, capacity)

    def refill(descriptor: int, size: int) -> bytes:
        data = read(descriptor, size)
        reads.append(len(data))
        assert len(reads) < 99, "it is read without end"
        os.write(writer, data)
        return data

    with shim_of(tmp_path, protocol=True) as made:
        (tmp_path / "output").mkdir()
        (tmp_path / "log").mkdir()
        made._output_read = reader
        os.write(writer, b"x" * capacity)
        monkeypatch.setattr(os, "read", refill)
        made._record_output(beyond_limit=True)
    for descriptor in (reader, writer):
        os.close(descriptor)
    assert capacity <= sum(reads) <= capacity + shim.READ_BYTES
    assert sum(path.stat().st_size for path in (tmp_path / "output").iterdir()) == sum(reads)


def test_the_larger_pipe_decides_how_much_is_read_at_the_end(tmp_path: Path) -> None:
    """An agent may have changed the capacity of either."""
    pipes = [os.pipe2(os.O_NONBLOCK) for _ in range(2)]
    fcntl.fcntl(pipes[0][1], fcntl.F_SETPIPE_SZ, 65_536)
    fcntl.fcntl(pipes[1][1], fcntl.F_SETPIPE_SZ, 262_144)
    with shim_of(tmp_path, protocol=True) as made:
        for made._output_read, made._log_read in permutations([reader for reader, _ in pipes]):
            assert made._chunks_in_pipes() == 262_144 // shim.READ_BYTES + 1
        made._output_read = made._log_read = -1
        assert made._chunks_in_pipes() == 0
    for descriptor in chain(*pipes):
        os.close(descriptor)


def exit_record(folder: Path, status: int | None, error: str | None = None, **spec: Any) -> dict[str, Any]:
    """Return what a shim records about the exit of an agent with this status."""
    descriptor = os.open(folder / "exit.new", os.O_RDWR | os.O_CREAT)
    with shim_of(folder, **spec) as made:
        made._status = status
        made._record_exit(descriptor, error, 3)
    os.close(descriptor)
    return dict(json.loads((folder / "exit.json").read_text()))


@pytest.mark.parametrize(
    ("status", "code", "number"), [(0, 0, None), (3 << 8, 3, None), (9, None, 9), (1, None, 1), (None, None, None)]
)
def test_what_is_recorded_about_an_exit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int | None, code: int | None, number: int | None
) -> None:
    """Its status or signal; it is on disk before the record has its name."""
    synced: list[bool] = []
    monkeypatch.setattr(os, "fsync", lambda _: synced.append((tmp_path / "exit.json").exists()))
    record = exit_record(tmp_path, status)
    assert (record["reason"], record["code"], record["signal"], record["detail"]) == ("exited", code, number, None)
    assert (record["leftover"], record["output"], record["dropped"], record["out_of_memory"]) == (3, 0, 0, False)
    assert synced == [False]


def test_what_is_recorded_about_a_start_that_failed(tmp_path: Path) -> None:
    """The error, as far as it fits the room that was kept for the record."""
    record = exit_record(tmp_path, None, "x" * 501)
    assert (record["reason"], record["detail"]) == ("not started", "x" * 500)


@pytest.mark.parametrize(
    ("events", "ran_out"),
    [
        ("low 1\noom 0\noom_kill 1\noom_group_kill 0\n", True),
        ("low 1\noom 1\noom_kill 0\noom_group_kill 1\n", False),
        ("oom_kill many\n", False),
        ("", False),
        (None, False),
    ],
)
def test_whether_the_memory_of_a_cgroup_ran_out(tmp_path: Path, events: str | None, *, ran_out: bool) -> None:
    """By the kernel's count of processes that it has killed for that."""
    if events is not None:
        (tmp_path / "memory.events").write_text(events)
    assert exit_record(tmp_path, 9, cgroup=str(tmp_path))["out_of_memory"] is ran_out


def test_a_cgroup_is_killed_as_a_whole(tmp_path: Path) -> None:
    """One that is gone is left alone."""
    with shim_of(tmp_path, cgroup=str(tmp_path)) as made:
        made._kill_others()
    assert (tmp_path / "cgroup.kill").read_text() == "1"
    with shim_of(tmp_path, cgroup=str(tmp_path / "gone")) as made:
        made._kill_others()
    assert not (tmp_path / "gone").exists()


def begins(folder: Path) -> bool:
    """Return whether a shim in this folder, which contains nothing to run, tries to run something."""
    packages = Path(shim.__file__).parents[2]
    argv = [sys.executable, "-I", "-S", "-c", shim.BOOT, str(packages), str(folder), "prepared"]
    ended = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert ended.returncode == ("FileNotFoundError" in ended.stderr)
    return ended.returncode == 1


def test_a_run_has_one_shim(tmp_path: Path) -> None:
    """Neither while another one runs, nor after that, does a second one begin."""
    assert begins(tmp_path)
    assert stat.S_IMODE((tmp_path / "lock").stat().st_mode) == 0o600
    for name in ("started.json", "exit.json"):
        (tmp_path / name).touch()
        assert not begins(tmp_path)
        (tmp_path / name).unlink()
    with (tmp_path / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert not begins(tmp_path)
    assert begins(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_the_limits_of_an_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cores are the next ones from a place that its pid decides, so that not all agents share the first."""
    cores: list[tuple[int, list[int]]] = []
    limits: list[tuple[int, tuple[int, int]]] = []
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    spec = {"cgroup": str(tmp_path), "memory": 7, "open_files": 5, "cpu": 2.5}
    with monkeypatch.context() as patch:
        patch.setattr(agent_process, "OOM_SCORE", Path("/proc/self/oom_score_adj").read_text())
        patch.setattr(os, "sched_getaffinity", lambda _: {3, 2, 1, 0})
        patch.setattr(os, "sched_setaffinity", lambda *given: cores.append(given))
        patch.setattr(os, "getpid", lambda: 4_006)
        patch.setattr(resource, "setrlimit", lambda *given: limits.append(given))
        agent_process._apply_limits(spec)
        agent_process._apply_limits({**spec, "cgroup": None, "memory": None, "open_files": 2 * hard, "cpu": None})
    assert cores == [(0, [2, 3, 0])]
    assert limits == [
        (resource.RLIMIT_AS, (7, 7)), (resource.RLIMIT_NOFILE, (5, hard)), (resource.RLIMIT_NOFILE, (hard, hard)),
    ]  # fmt: skip
    assert (tmp_path / "cgroup.procs").read_text() == "0"


def test_descendants_are_found_at_any_depth() -> None:
    """Also if pids were reused so that parents form a circle; the root is no descendant of its own."""
    parents = {2: 1, 3: 2, 4: 3, 5: 1, 6: 9, 8: 7, 7: 8}
    assert process_table.descendants_in(parents, 1) == {2, 3, 4, 5}
    assert process_table.descendants_in(parents, 3) == {4}
    assert process_table.descendants_in(parents, 7) == {8, 7}
    assert process_table.descendants_in(parents, 6) == set()


def test_a_process_is_found_whatever_its_name_is(tmp_path: Path) -> None:
    """The name in /proc/PID/stat may contain anything; a zombie is no process, but has a start time."""
    program = tmp_path / ") Z 0 ("
    program.symlink_to("/bin/sh")
    command = [str(program), "-c", "echo up; read line"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == b"up\n"
        assert process_table.parents()[process.pid] == os.getpid()
        assert process.pid in process_table.descendants(os.getpid())
        begun = process_table.start_ticks(process.pid)
        assert process_table.start_ticks(os.getpid()) <= begun
        process.stdin.close()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert process.pid not in process_table.parents()
        assert process_table.start_ticks(process.pid) == begun


def test_a_signal_reaches_all_that_are_left() -> None:
    """One that has ended meanwhile does not keep it from the others."""
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE) as gone:
        assert gone.stdin
        gone.stdin.close()
        gone.wait()
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE) as left:
        process_table.send_signal({gone.pid, left.pid}, 9)
        assert left.wait() == -9


def test_ids_of_log_entries_are_the_same_in_every_release() -> None:
    """An entry replaces one with its id, so the ranges of different sources must not overlap, nor ever change."""
    ids = (log_ids.FIRST_ERROR_ID, log_ids.FIRST_NOTICE_ID, log_ids.LAST_OUTPUT_ID, log_ids.FIRST_INPUT_ID)
    assert ids == (2**40, 2**41, 2**42, 2**43)
    assert log_ids.FAILED_START_ID == 2**42 + 1
