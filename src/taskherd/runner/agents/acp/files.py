"""Files that an agent reads and writes through its client, confined to the task's folder.

Each folder on the path is opened relative to the one before it, and no link is followed: what the agent puts there
cannot lead the runner elsewhere, however it changes meanwhile.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_FILE_BYTES: Final = 1024 * 1024
"""Maximum size of a file that is read or written, in bytes."""
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class NotAllowed(Exception):  # noqa: N818 - it says what the access is
    """The file is outside of the folder, no regular file, too large, or not there."""


def read_text(root: Path, path: str, line: int | None, limit: int | None, uid: int | None) -> str:
    """Return a text file, or ``limit`` lines from ``line`` (from 1) on. Raise ``NotAllowed``.

    A file with several names, one of which may be outside of the folder, must belong to the agent's user ``uid``.
    """
    parent, name = _open_parent(root, path, create=False, uid=None)
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
    except OSError as error:
        raise NotAllowed(f"{path}: {error.strerror}") from None
    finally:
        os.close(parent)
    _check_regular(path, descriptor)
    with open(descriptor, "rb") as file:  # noqa: PTH123 - opened relative to its folder
        status = os.fstat(descriptor)
        if status.st_nlink != 1 and uid is not None and status.st_uid != uid:
            raise NotAllowed(f"{path} has several names and belongs to another user")
        content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise NotAllowed(f"{path} is larger than {MAX_FILE_BYTES} bytes")
    text = content.decode(errors="replace")
    if line is None and limit is None:
        return text
    lines = text.splitlines(keepends=True)[max(0, (line or 1) - 1) :]
    return "".join(lines if limit is None else lines[:limit])


def write_text(root: Path, path: str, content: str, uid: int | None) -> None:
    """Replace a text file, or create it and missing folders for the user ``uid``. Raise ``NotAllowed``."""
    encoded = content.encode(errors="replace")
    if len(encoded) > MAX_FILE_BYTES:
        raise NotAllowed(f"{path}: the text is larger than {MAX_FILE_BYTES} bytes")
    parent, name = _open_parent(root, path, create=True, uid=uid)
    try:
        flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            descriptor = os.open(name, flags | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=parent)
            is_new = True
        except FileExistsError:
            descriptor = os.open(name, flags, dir_fd=parent)
            is_new = False
        _check_regular(path, descriptor)
        with open(descriptor, "wb") as file:  # noqa: PTH123 - opened relative to its folder
            if os.fstat(descriptor).st_nlink != 1:
                raise NotAllowed(f"{path} has several names, perhaps outside of the task's folder")
            if uid is not None and is_new:
                os.fchown(descriptor, uid, uid)
            file.truncate()
            file.write(encoded)
    except OSError as error:
        raise NotAllowed(f"{path}: {error.strerror}") from None
    finally:
        os.close(parent)


def check_folder(root: Path, path: str) -> None:
    """Check that a folder is there, in ``root``, without any link on the way. Raise ``NotAllowed``."""
    os.close(_open_folder(root, path, _relative_parts(root, path), create=False, uid=None))


def _relative_parts(root: Path, path: str) -> tuple[str, ...]:
    pure = PurePosixPath(path)
    if "\0" in path or not pure.is_absolute() or ".." in pure.parts or not pure.is_relative_to(root):
        raise NotAllowed(f"{path!r} is not in the task's folder {root}")
    return pure.relative_to(root).parts


def _open_parent(root: Path, path: str, *, create: bool, uid: int | None) -> tuple[int, str]:
    """Return a descriptor of the folder of a file, and the file's name."""
    *folders, name = _relative_parts(root, path) or ("",)
    if not name:
        raise NotAllowed(f"{path!r} is a folder")
    return _open_folder(root, path, folders, create=create, uid=uid), name


def _open_folder(root: Path, path: str, folders: Sequence[str], *, create: bool, uid: int | None) -> int:
    """Return a descriptor of the last of the folders on a path."""
    parent = -1
    try:
        parent = os.open(root, _FOLDER)
        for folder in folders:
            is_new = False
            if create:
                with suppress(FileExistsError):
                    os.mkdir(folder, 0o755, dir_fd=parent)
                    is_new = True
            child = os.open(folder, _FOLDER, dir_fd=parent)
            os.close(parent)
            parent = child
            if is_new and uid is not None:
                os.fchown(parent, uid, uid)
    except OSError as error:
        if parent >= 0:
            os.close(parent)
        raise NotAllowed(f"{path}: {error.strerror}") from None
    return parent


def _check_regular(path: str, descriptor: int) -> None:
    """Close what is no regular file, which ``open`` would leave open if it is a folder, and raise ``NotAllowed``."""
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotAllowed(f"{path} is no regular file")
