"""Remove a folder that an agent may have made as deep and as large as it liked, and may still write to.

``shutil.rmtree`` and ``rm`` need memory for each level, the former also an open file: 3,000 levels of long names took
1.1 GiB. Here the levels below ``MAX_DEPTH`` are moved up into the folder itself, a few at a time.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Final

from taskherd.runner.workspaces.background import raise_if_cancelled, run_in_thread

TIMEOUT: Final = 600.0
"""Seconds after which a removal is given up: an agent's process that could not be killed may add files all the time."""
MAX_DEPTH: Final = 32
"""Maximum number of levels that are open at a time. Most folders have fewer, and nothing in them is moved."""
_EXECUTOR: Final = ThreadPoolExecutor(2, thread_name_prefix="removal")
"""Its threads remove the files of deleted tasks, of which there may be many: nothing else waits for them."""
_NOT_EMPTY: Final = frozenset({errno.ENOTEMPTY, errno.EEXIST})


async def in_background(function: Callable[[], None]) -> None:
    """Remove files by this function in one of the few threads for that; raise what it raises.

    If the caller is cancelled, what is left stays.
    """
    await run_in_thread(_EXECUTOR, function)


def remove(path: Path, seconds: float = TIMEOUT) -> None:
    """Remove a folder with its content, or what else has its name, if anything has; no link is followed.

    Raises:
        TimeoutError: something is still in it after ``seconds``; another call goes on.
        OSError: something in it cannot be removed.
    """
    deadline = time.monotonic() + seconds
    with suppress(FileNotFoundError):
        try:
            top = _open_own(path)
        except NotADirectoryError:
            path.unlink()
            return
        try:
            removal = _Removal(top, deadline, f"{path} still has files after {seconds:g} s")
            while not _is_removed(path):
                removal.empty(top, 1)
                removal.raise_if_over()
        finally:
            os.close(top)


def open_folder(path: Path | str, parent: int | None = None) -> int:
    """Return a descriptor of a folder, relative to that of its parent. Raise ``NotADirectoryError`` for a link."""
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)


class _Removal:
    """The removal of what is in the open folder ``top``."""

    def __init__(self, top: int, deadline: float, late: str) -> None:
        self._top = top
        self._deadline = deadline
        self._late = late
        self._device = os.fstat(top).st_dev
        prefix = secrets.token_hex(8)  # so that the agent has nothing of this name
        self._names = (f"{prefix}-{number}" for number in count())

    def empty(self, folder: int, depth: int) -> None:
        """Remove what is in a folder at this depth; what is too deep is then in ``top``."""
        with os.scandir(folder) as entries:
            for entry in entries:
                self.raise_if_over()
                if _is_removed_from(folder, entry):
                    continue
                with suppress(FileNotFoundError, NotADirectoryError):  # the agent has changed it meanwhile
                    self._remove_child(folder, entry.name, depth)

    def raise_if_over(self) -> None:
        """Raise ``TimeoutError`` after the deadline, ``CallerCancelled`` if nobody waits for the removal any more."""
        raise_if_cancelled()
        if time.monotonic() > self._deadline:
            raise TimeoutError(self._late)

    def _remove_child(self, folder: int, name: str, depth: int) -> None:
        """Remove a folder in one at this depth, or move it into ``top``."""
        child = _open_own(name, folder, self._device)  # to move it, too, takes the right to change it
        try:
            if depth == MAX_DEPTH:
                os.rename(name, next(self._names), src_dir_fd=folder, dst_dir_fd=self._top)
                return
            self.empty(child, depth + 1)
        finally:
            os.close(child)
        _rmdir(name, folder)


def _open_own(path: Path | str, parent: int | None = None, device: int | None = None) -> int:
    """Open a folder as ``open_folder`` does, after giving its owner all rights to it if that is the runner's user.

    Raise ``OSError`` if it is not on this device.
    """
    handle = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        status = os.fstat(handle)
        if device not in {None, status.st_dev}:
            raise OSError(errno.EXDEV, "another file system is mounted there", str(path))
        if status.st_uid == os.geteuid() and status.st_mode & stat.S_IRWXU != stat.S_IRWXU:
            Path(f"/proc/self/fd/{handle}").chmod(stat.S_IRWXU)  # fchmod refuses a folder that may not be read
        return open_folder(".", handle)
    finally:
        os.close(handle)


def _is_removed(path: Path) -> bool:
    return _rmdir(path, None)


def _is_removed_from(folder: int, entry: os.DirEntry[str]) -> bool:
    """Remove a file, link or empty folder. Return False for a folder with content."""
    try:
        if entry.is_dir(follow_symlinks=False):
            return _rmdir(entry.name, folder)
        os.unlink(entry.name, dir_fd=folder)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        pass  # the agent has changed it meanwhile: if it is still there, it is found again
    return True


def _rmdir(name: Path | str, parent: int | None) -> bool:
    """Remove an empty folder. Return False if it has content."""
    try:
        os.rmdir(name, dir_fd=parent)
    except OSError as error:
        if error.errno in _NOT_EMPTY:
            return False
        raise
    return True
