"""``.ci/tree``: by its checksum ``make test`` knows that no file has changed since ``make check`` passed."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / ".ci" / "tree"


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """Return a folder with the script, an ignored file and two others; nothing is known to git yet."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(SCRIPT, tmp_path / ".ci")
    for name, content in {".gitignore": "ignored\n", "ignored": "", "a file": "1\n", "b": "1\n"}.items():
        (tmp_path / name).write_text(content)
    return tmp_path


def _git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", folder, *arguments], check=True, capture_output=True, timeout=30)


def _checksum(folder: Path) -> str:
    return subprocess.run(
        ["sh", folder / ".ci" / "tree"], check=True, capture_output=True, text=True, timeout=30
    ).stdout


@pytest.mark.parametrize(
    ("change", "changes"),
    [
        (lambda folder: (folder / "a file").write_text("2\n"), True),
        (lambda folder: (folder / "b").unlink(), True),
        (lambda folder: (folder / "b").rename(folder / "c"), True),
        (lambda folder: (folder / "new").write_text(""), True),
        (lambda folder: _git(folder, "rm", "-q", "--cached", "b"), False),
        (lambda folder: (folder / "ignored").write_text("2\n"), False),
        (lambda folder: (folder / "b").write_text("1\n"), False),
    ],
    ids=["edited", "deleted", "renamed", "new", "unknown to git", "ignored", "written again"],
)
def test_a_change_of_any_file_changes_it(clone: Path, change: Callable[[Path], object], *, changes: bool) -> None:
    """Whether git knows the file or not; the tests without services read documents and settings, too."""
    _git(clone, "init", "-q")
    _git(clone, "add", ".")
    before = _checksum(clone)
    assert before
    change(clone)
    assert (_checksum(clone) != before) is changes


def test_it_is_empty_outside_of_a_clone(clone: Path) -> None:
    """Where nothing says which files count, the tests run."""
    assert not _checksum(clone)
