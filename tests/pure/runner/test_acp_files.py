"""Files that an agent reads and writes through its runner, without an agent."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from taskherd.runner.agents.acp import files
from taskherd.runner.agents.acp.files import NotAllowed, check_folder, read_text, write_text

MIB = 1024 * 1024


def open_descriptors() -> int:
    """Return how many files this process has open."""
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a path would open another one


@pytest.mark.parametrize(
    ("line", "limit", "text"),
    [
        (None, None, "one\ntwo\nthree"),
        (1, None, "one\ntwo\nthree"),
        (2, None, "two\nthree"),
        (None, 2, "one\ntwo\n"),
        (2, 1, "two\n"),
        (0, 1, "one\n"),
        (-5, 1, "one\n"),
        (1, 0, ""),
        (9, None, ""),
    ],
)
def test_the_lines_of_a_file(tmp_path: Path, line: int | None, limit: int | None, text: str) -> None:
    """They are counted from 1; what is no UTF-8 is replaced."""
    (tmp_path / "a").write_text("one\ntwo\nthree")
    assert read_text(tmp_path, f"{tmp_path}/a", line, limit, None) == text
    (tmp_path / "a").write_bytes(b"one\n\xff")
    assert read_text(tmp_path, f"{tmp_path}/a", 2, None, None) == "\ufffd"


def test_a_file_has_up_to_one_mib(tmp_path: Path) -> None:
    """A larger one is neither read nor written, and one that is refused is not changed."""
    path = f"{tmp_path}/a"
    write_text(tmp_path, path, "ä" * (MIB // 2), None)
    assert len(read_text(tmp_path, path, None, None, None)) == MIB // 2
    with pytest.raises(NotAllowed, match="the text is larger than 1048576 bytes"):
        write_text(tmp_path, path, "ä" * (MIB // 2) + "b", None)
    (tmp_path / "a").write_bytes(b"b" * (MIB + 1))
    with pytest.raises(NotAllowed, match="is larger than 1048576 bytes"):
        read_text(tmp_path, path, None, None, None)


def test_a_file_is_replaced_and_its_folders_are_made(tmp_path: Path) -> None:
    """Others may read them; a shorter text leaves nothing of a longer one."""
    path = tmp_path / "new" / "folder" / "a"
    for text in ("a long text", "short"):
        write_text(tmp_path, str(path), text, None)
        assert path.read_text() == text
    umask = os.umask(0)
    os.umask(umask)
    modes = [stat.S_IMODE(each.stat().st_mode) for each in (path, path.parent, path.parent.parent)]
    assert modes == [0o644 & ~umask, 0o755 & ~umask, 0o755 & ~umask]


def test_what_is_new_belongs_to_the_agents_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was there already keeps its owner."""
    given: list[tuple[int, int, int]] = []
    monkeypatch.setattr(os, "fchown", lambda descriptor, *owner: given.append((os.fstat(descriptor).st_ino, *owner)))
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "a").touch()
    for path in ("old/a", "old/b", "new/c"):
        write_text(tmp_path, f"{tmp_path}/{path}", "text", 7)
        write_text(tmp_path, f"{tmp_path}/{path}", "text", 7)
    made = [(tmp_path / path).stat().st_ino for path in ("old/b", "new", "new/c")]
    assert given == [(inode, 7, 7) for inode in made]
    write_text(tmp_path, f"{tmp_path}/newer/d", "text", None)
    assert len(given) == 3


REFUSED: list[tuple[str, str]] = [
    ("/etc/passwd", "is not in the task's folder"),
    ("ROOT/../work/a", "is not in the task's folder"),
    ("a", "is not in the task's folder"),
    ("ROOT/a\0", "is not in the task's folder"),
    ("ROOT", "is a folder"),
    ("ROOT/folder", "regular file|Is a directory"),
    ("ROOT/link", "symbolic links"),
    ("ROOT/links/a", "Not a directory"),
    ("ROOT/a/b", "Not a directory"),
    ("ROOT/pipe", "regular file|No such device"),
]


@pytest.mark.parametrize(("path", "words"), REFUSED)
def test_what_is_no_file_in_the_folder_is_refused(tmp_path: Path, path: str, words: str) -> None:
    """Nothing is made, changed or left open for it."""
    root = tmp_path / "work"
    (root / "folder").mkdir(parents=True)
    (root / "a").write_text("mine")
    (tmp_path / "secret").write_text("secret")
    (root / "link").symlink_to(tmp_path / "secret")
    (root / "links").symlink_to(root)
    os.mkfifo(root / "pipe")
    before = {each: each.lstat().st_mtime_ns for each in root.iterdir()}
    open_before = open_descriptors()
    full = path.replace("ROOT", str(root))
    with pytest.raises(NotAllowed, match=words):
        read_text(root, full, None, None, None)
    with pytest.raises(NotAllowed, match=words):
        write_text(root, full, "overwritten", None)
    assert open_descriptors() == open_before
    assert {each: each.lstat().st_mtime_ns for each in root.iterdir()} == before
    assert ((tmp_path / "secret").read_text(), (root / "a").read_text()) == ("secret", "mine")


def test_nothing_is_made_to_read(tmp_path: Path) -> None:
    """What is not there is refused, with its folders, and nothing stays open."""
    before = open_descriptors()
    for path in ("missing", "missing/a"):
        with pytest.raises(NotAllowed, match="No such file"):
            read_text(tmp_path, f"{tmp_path}/{path}", None, None, None)
        with pytest.raises(NotAllowed, match="No such file"):
            check_folder(tmp_path, f"{tmp_path}/{path}")
    with pytest.raises(NotAllowed, match="No such file"):
        check_folder(tmp_path / "gone", f"{tmp_path}/gone")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "folder").mkdir()
    for path in ("", "/folder"):
        check_folder(tmp_path, f"{tmp_path}{path}")
    (tmp_path / "a").touch()
    with pytest.raises(NotAllowed, match="Not a directory"):
        check_folder(tmp_path, f"{tmp_path}/a")
    assert open_descriptors() == before


def test_a_file_with_several_names_is_not_written(tmp_path: Path) -> None:
    """One of them may be outside; it is read if it is the agent's own, and left as it is."""
    (tmp_path / "a").write_text("shared")
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    owner = (tmp_path / "a").stat().st_uid
    with pytest.raises(NotAllowed, match="has several names"):
        write_text(tmp_path, f"{tmp_path}/a", "overwritten", owner)
    for uid in (None, owner):
        assert read_text(tmp_path, f"{tmp_path}/a", None, None, uid) == "shared"
    with pytest.raises(NotAllowed, match="belongs to another user"):
        read_text(tmp_path, f"{tmp_path}/a", None, None, owner + 1)


def test_a_disk_that_is_full_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As any other reason that an agent may know."""

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "_check_regular", fail)
    with pytest.raises(NotAllowed, match="No space left on device"):
        write_text(tmp_path, f"{tmp_path}/a", "text", None)
