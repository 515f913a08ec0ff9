"""The folders of tasks and runs: who may read them, to whom they are given, and which are removed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from taskherd.runner.workspaces import removal
from taskherd.runner.workspaces.folders import RunFolder, TaskFolder, list_tasks

UID = 200_000


@pytest.fixture
def task(tmp_path: Path) -> TaskFolder:
    """Return the folder of a task."""
    folder = TaskFolder(tmp_path / "root", UUID(int=7))
    folder.create()
    return folder


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Return what is given to whom, which needs privileges."""
    deeds: list[tuple[Any, ...]] = []

    def chown(path: Any, uid: int, gid: int, *, dir_fd: int | None = None, follow_symlinks: bool = True) -> None:
        if dir_fd is not None:
            path = Path(f"/proc/self/fd/{dir_fd}").readlink() / path
        deeds.append((Path(path).name, uid, gid, follow_symlinks))

    monkeypatch.setattr(os, "chown", chown)
    monkeypatch.setattr(os, "fchown", lambda _, uid, gid: deeds.append(("open file", uid, gid)))
    return deeds


def open_descriptors() -> int:
    """Return how many files this process has open."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def mode(path: Path) -> int:
    """Return who may use a path."""
    return path.stat().st_mode & 0o777


def test_a_task_is_for_the_runner_alone(task: TaskFolder) -> None:
    """With a place for each of its files; it may be there already."""
    task.create()
    path = task.root / str(task.task_id)
    assert {mode(each) for each in (task.root, path, task.state, task.work)} == {0o700}
    names = {"work": task.work, "home": task.home, "tmp": task.tmp, "state": task.state, "prompt.txt": task.prompt}
    assert all(each == path / name for name, each in names.items())
    assert (task.journal, task.outbox) == (task.state / "journal.json", task.state / "outbox.jsonl")
    assert task.run(3).path == task.state / "run-3"
    assert task.owner() == os.getuid()
    assert TaskFolder(task.root, uuid4()).owner() is None


def test_a_run_has_a_place_for_each_of_its_files(tmp_path: Path) -> None:
    """They are all in its folder, also those of the commands of an agent."""
    run = RunFolder(tmp_path / "run-1")
    run.path.mkdir()
    (run.path / "old").write_text("")
    run.recreate()
    assert (mode(run.path), [*run.path.iterdir()]) == (0o700, [])
    files = (run.spec, run.lock, run.started, run.input, run.output, run.log, run.stdin, run.terminals, run.exit)
    assert [each.relative_to(run.path).name for each in (*files, run.shim_log)] == [
        "spec", "lock", "started.json", "input", "output", "log", "stdin", "terminals", "exit.json", "shim.log"
    ]  # fmt: skip
    assert run.list_terminals() == []
    run.terminal(5).path.mkdir(parents=True)
    assert run.list_terminals() == [RunFolder(run.path / "terminals" / "5")]
    run.remove()
    run.remove()
    assert not run.path.exists()


@pytest.mark.parametrize(("uid", "readers"), [(None, 0o600), (UID, 0o640)])
def test_a_prompt_is_read_by_the_agent(
    task: TaskFolder, given: list[tuple[Any, ...]], uid: int | None, readers: int
) -> None:
    """By its group if it has a user of its own; an earlier file is replaced, not followed."""
    task.prompt.symlink_to(task.root / "elsewhere")
    task.write_prompt("Do it \udcff", uid)
    assert (task.prompt.read_text(), mode(task.prompt)) == ("Do it ?", readers)
    assert not (task.root / "elsewhere").exists()
    assert given == ([] if uid is None else [("open file", -1, UID)])


def test_the_folders_of_an_agent_are_given_to_its_user(task: TaskFolder, given: list[tuple[Any, ...]]) -> None:
    """With what is in them, but no file that has another name elsewhere; temporary files are new each time."""
    task.prepare(None)
    assert (mode(task.home), mode(task.tmp), mode(task.path), given) == (0o700, 0o700, 0o700, [])
    (task.tmp / "old").write_text("")
    (task.home / "kept").write_text("")
    (task.work / "folder" / "deep").mkdir(parents=True)
    (task.work / "folder" / "file").write_text("")
    (task.work / "linked").hardlink_to(task.home / "kept")
    (task.work / "link").symlink_to("/etc")
    (task.work / "dangling").symlink_to("/nowhere")
    task.prepare(UID)
    assert (mode(task.path), [*task.tmp.iterdir()]) == (0o710, [])
    owned = [("work", UID, UID, False), ("home", UID, UID, False), ("tmp", UID, UID, False)]
    inside = [(name, UID, UID, False) for name in ("deep", "file", "folder", "link", "dangling")]
    assert given[0] == (str(task.task_id), -1, UID, True)
    assert sorted(given[1:]) == sorted([*owned, *inside])


def test_folders_that_are_the_agents_already_are_left_alone(task: TaskFolder, given: list[tuple[Any, ...]]) -> None:
    """There may be many files in them."""
    task.prepare(os.getuid())
    assert given == [(str(task.task_id), -1, os.getuid(), True)]


@pytest.mark.parametrize(
    ("relative", "made", "handed"),
    [
        ("a/b", ["a", "a/b"], ["a", "b"]),
        ("there/c", ["there/c"], ["c"]),
        (".", [], []),
        ("/absolute", [], []),
        ("../out", [], []),
        ("a/../b", ["a"], ["a"]),
        ("link/x", [], []),
        ("file/x", [], []),
    ],
)
def test_a_missing_working_directory_is_made_for_the_agent(
    task: TaskFolder, given: list[tuple[Any, ...]], relative: str, made: list[str], handed: list[str]
) -> None:
    """As far as there are only folders on the way to it."""
    (task.work / "there").mkdir()
    (task.work / "link").symlink_to(task.root)
    (task.work / "file").write_text("")
    before, descriptors = {*task.root.rglob("*")}, open_descriptors()
    task.make_workdir(relative, UID)
    after = {*task.root.rglob("*")} - before
    assert after == {task.work / each for each in made}
    assert all(mode(path) == 0o700 for path in after)
    assert given == [(name, UID, UID, False) for name in handed]
    task.make_workdir("mine", None)
    assert (task.work / "mine").is_dir()
    assert len(given) == len(handed)
    assert open_descriptors() == descriptors


def test_what_the_agent_has_left_is_removed(task: TaskFolder) -> None:
    """The journal stays until the delete is reported."""
    task.journal.write_text("{}")
    (task.work / "file").write_text("")
    (task.path / "added").write_text("")
    for number in (1, 2):
        task.run(number).path.mkdir()
    assert {run.path.name for run in task.list_runs()} == {"run-1", "run-2"}
    task.remove_work()
    assert {path.relative_to(task.path) for path in task.path.rglob("*")} == {Path("state"), Path("state/journal.json")}
    task.remove()
    assert not task.path.exists()
    task.remove_work()


def test_only_folders_of_tasks_are_tasks(tmp_path: Path) -> None:
    """Named by an id as it is written here, in its order."""
    one, two, three = (UUID(int=number) for number in (1, 2, 3))
    (tmp_path / ".cache").mkdir()
    assert list_tasks(tmp_path) == []
    for name in (str(two), str(one), three.hex, "lock.d"):
        (tmp_path / name).mkdir()
    (tmp_path / str(three)).write_text("no folder")
    assert [(task.root, task.task_id) for task in list_tasks(tmp_path)] == [(tmp_path, one), (tmp_path, two)]


def test_the_folder_of_a_runner_is_made_with_those_around_it(tmp_path: Path) -> None:
    """A runner may be the first program that uses the place."""
    folder = TaskFolder(tmp_path / "var" / "lib" / "runner", UUID(int=8))
    folder.create()
    assert folder.work.is_dir()


def test_a_run_folder_that_cannot_be_removed_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What else is to be done goes on; one that can be removed is replaced by an empty one for the runner alone."""
    run = RunFolder(tmp_path / "run-1")
    for _ in range(2):
        run.recreate()
        assert (mode(run.path), [*run.path.iterdir()]) == (0o700, [])
        run.shim_log.write_text("")

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(removal, "remove", refuse)
    run.remove()
    assert run.shim_log.exists()
    with pytest.raises(FileExistsError):
        run.recreate()


@pytest.mark.parametrize("name", ["home", "work"])
def test_a_link_that_an_agent_left_in_place_of_its_folder_is_not_followed(task: TaskFolder, name: str) -> None:
    """A sandbox would show what it leads to, writable."""
    shutil.rmtree(task.path / name, ignore_errors=True)
    (task.path / name).symlink_to("/")
    with pytest.raises(NotADirectoryError):
        task.prepare(None)
