from __future__ import annotations

import asyncio
import os
import resource
import subprocess
import sys
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest

from taskherd.runner.supervisor import TaskSupervisor
from taskherd.runner.workspaces import folders, removal
from taskherd.runner.workspaces.folders import TaskFolder

NAME = "d" * 250
LIMITED = """
import resource, sys
from pathlib import Path
from taskherd.runner.workspaces import removal
resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
removal.remove(Path(sys.argv[1]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""

CLOSED = """
import os, sys
from pathlib import Path
from taskherd.runner.workspaces import removal
os.chdir(sys.argv[1])
if os.getuid() == 0:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
for top_mode in (0o700, 0o555, 0):
    top = Path("top")
    below = top / "/".join("d" * (removal.MAX_DEPTH + 3))
    below.mkdir(parents=True)
    for folder in [*below.parents[:-2], below]:
        for mode in (0o555, 0o300, 0):
            closed = folder / f"{mode:o}"
            closed.mkdir()
            (closed / "file").touch()
            closed.chmod(mode)
    for folder in [below, *below.parents[:-2]]:
        folder.chmod(0o555)
    top.chmod(top_mode)
    removal.remove(top)
"""
"""Makes and removes folders that their owner may not list or change, as a user that is not root."""


def make_deep(path: Path, levels: int) -> None:
    """Make a folder with that many levels of folders, each with a file; no path leads to the last ones."""
    path.mkdir()
    folder = removal.open_folder(path)
    for _ in range(levels):
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, dir_fd=folder))
        os.mkdir(NAME, dir_fd=folder)
        child = removal.open_folder(NAME, folder)
        os.close(folder)
        folder = child
    os.close(folder)


def test_a_folder_of_any_depth_is_removed_with_few_files_and_little_memory(tmp_path: Path) -> None:
    """An agent makes such a folder in a second, and the runner is that of all tenants."""
    make_deep(tmp_path / "deep", 3_000)
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "deep")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert run.stderr == ""
    assert int(run.stdout) < 8 * 1024  # KiB
    assert list(tmp_path.iterdir()) == []


def test_a_wide_folder_is_removed_whose_folders_have_the_same_names(tmp_path: Path) -> None:
    """What is moved up gets names of its own."""
    top = tmp_path / "top"
    top.mkdir()
    for number in range(5):
        make_deep(top / str(number), removal.MAX_DEPTH * 2)
    removal.remove(top)
    assert list(tmp_path.iterdir()) == []


def test_no_link_is_followed(tmp_path: Path) -> None:
    """Neither one in the folder, at any depth, nor one in its place."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    inside = tmp_path / "top" / "/".join("a" * (removal.MAX_DEPTH + 2))
    inside.mkdir(parents=True)
    for folder in (inside, tmp_path / "top"):
        (folder / "link").symlink_to(outside)
    removal.remove(tmp_path / "top")
    (tmp_path / "top").symlink_to(outside)
    removal.remove(tmp_path / "top")
    removal.remove(tmp_path / "nothing")
    assert [path.name for path in tmp_path.iterdir()] == ["outside"]
    assert [path.name for path in outside.iterdir()] == ["kept"]


def test_folders_that_an_agent_has_closed_are_removed(tmp_path: Path) -> None:
    """Those of Go's module cache are read-only; the runner may be a user like any other, and is their owner."""
    tmp_path.chmod(0o777)
    command = [sys.executable, "-c", CLOSED, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert run.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_the_mode_of_what_is_not_removed_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither links lead to it, nor is the mode of another user's folder changed."""
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o500)
    (tmp_path / "top").mkdir()
    (tmp_path / "top" / "link").symlink_to(outside)
    removal.remove(tmp_path / "top")
    (tmp_path / "top").symlink_to(outside)
    removal.remove(tmp_path / "top")
    assert outside.stat().st_mode & 0o777 == 0o500
    (tmp_path / "top" / "inner").mkdir(parents=True)
    (tmp_path / "top").chmod(0o500)
    changed = list[object]()
    monkeypatch.setattr(os, "chmod", lambda *arguments, **_: changed.append(arguments))
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with suppress(PermissionError):  # root may remove it
        removal.remove(tmp_path / "top")
    assert changed == []
    monkeypatch.undo()
    removal.remove(tmp_path / "top")
    assert list(tmp_path.iterdir()) == [outside]


def test_a_removal_that_takes_too_long_is_given_up_and_can_go_on(tmp_path: Path) -> None:
    """A process that could not be killed may add files all the time."""
    make_deep(tmp_path / "top", 3)
    with pytest.raises(TimeoutError, match=r"/top still has files after 0 s"):
        removal.remove(tmp_path / "top", 0)
    removal.remove(tmp_path / "top")
    assert list(tmp_path.iterdir()) == []


def test_a_deleted_task_leaves_nothing_that_its_agent_has_put_beside_its_folders(tmp_path: Path) -> None:
    """An agent that runs as the runner's user may; only what the runner still needs is left."""
    folder = TaskFolder(tmp_path, UUID(int=1))
    folder.create()
    folder.journal.write_text("{}")
    folder.run(1).path.mkdir()
    make_deep(folder.path / "beside", 100)
    make_deep(folder.run(1).path / "inside", 100)
    (folder.path / "file").touch()
    folder.remove_work()
    assert [path.name for path in folder.path.iterdir()] == ["state"]
    assert list(folder.state.iterdir()) == [folder.journal]
    folder.remove()
    folder.remove_work()
    assert list(tmp_path.iterdir()) == []


def test_folders_that_are_too_deep_to_be_given_to_a_user_are_an_error_with_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which one depends on Python's version; a start fails with it, and its supervisor goes on."""
    monkeypatch.setattr(os, "chown", lambda *_, **__: None)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    make_deep(tmp_path / "work", 2_000)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1_024, hard))
    try:
        with pytest.raises(OSError, match=r"Too many open files|too many levels"):
            folders._give(tmp_path / "work", 1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    removal.remove(tmp_path / "work")


async def test_a_supervisor_ends_well_although_the_rest_of_its_folder_cannot_be_removed() -> None:
    """The task was deleted; as the journal says so, an error would come again with each restart of the supervisor."""
    attempts = []

    def remove() -> None:
        attempts.append(1)
        raise PermissionError

    supervisor = SimpleNamespace(_folder=SimpleNamespace(remove=remove), task_id=UUID(int=2))
    await TaskSupervisor._remove_folder(cast("Any", supervisor))
    assert attempts == [1]


async def test_removals_leave_the_threads_of_everything_else_alone() -> None:
    """However many wait: journals are written meanwhile, and exits noticed."""
    may_go_on = threading.Event()

    def remove_much() -> None:
        may_go_on.wait(60)

    removals = [asyncio.create_task(removal.in_background(remove_much)) for _ in range(100)]
    try:
        assert await asyncio.wait_for(asyncio.to_thread(lambda: 7), 30) == 7
        assert not any(each.done() for each in removals)
    finally:
        may_go_on.set()
    await asyncio.gather(*removals)


async def test_a_removal_ends_with_whoever_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runner would not stop otherwise, and removals that have not begun would follow."""
    top, removes = tmp_path / "top", threading.Event()
    top.mkdir()
    (top / "file").touch()
    begun, ended = list[int](), list[int]()
    monkeypatch.setattr(os, "unlink", lambda *_, **__: removes.set())  # and removes nothing, so it goes on and on

    def remove(number: int) -> None:
        begun.append(number)
        try:
            removal.remove(top, 60)
        finally:
            ended.append(number)

    removals = [asyncio.create_task(removal.in_background(partial(remove, number))) for number in range(9)]
    assert await asyncio.to_thread(removes.wait, 30)
    assert not any(each.done() for each in removals)
    for each in removals:
        each.cancel()
    results = await asyncio.wait_for(asyncio.gather(*removals, return_exceptions=True), 30)
    assert [type(each) for each in results] == [asyncio.CancelledError] * 9
    assert sorted(begun) == sorted(ended)
    assert len(begun) < 9
    assert (top / "file").exists()


async def test_a_folder_is_given_to_a_user_until_whoever_waits_for_that_is_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have as many files as one that is removed."""
    begun, may_go_on, given = threading.Event(), threading.Event(), list[str]()

    def chown(name: str, *_: int, **__: object) -> None:
        given.append(name)
        begun.set()
        may_go_on.wait(60)

    for name in ("a", "b", "c"):
        (tmp_path / name).touch()
    monkeypatch.setattr(os, "chown", chown)
    giving = asyncio.create_task(removal.in_background(partial(folders._give, tmp_path, 1)))
    assert await asyncio.to_thread(begun.wait, 30)
    giving.cancel()
    for _ in range(9):
        await asyncio.sleep(0)
    assert not giving.done()
    may_go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(giving, 30)
    assert len(given) == 1


def test_what_its_agent_removes_meanwhile_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder may be gone between the look at its parent and its own turn; the others are removed."""
    top, opened = tmp_path / "top", list[str]()
    for name in ("a", "b", "c"):
        (top / name / "inner").mkdir(parents=True)

    def open_own(path: Path | str, parent: int | None = None, device: int | None = None) -> int:
        if parent is not None and str(path) != "inner":
            opened.append(str(path))
            if len(opened) == 2:
                os.rmdir(f"{path}/inner", dir_fd=parent)
                os.rmdir(path, dir_fd=parent)
        return removal_open(path, parent, device)

    removal_open = removal._open_own
    monkeypatch.setattr(removal, "_open_own", open_own)
    removal.remove(top)
    assert sorted(opened) == ["a", "b", "c"]
    assert list(tmp_path.iterdir()) == []
