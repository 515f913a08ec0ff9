"""Programs that tests need beside the services: found on this machine, or installed as Debian packages."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

from taskherd.dev import apt

_SYSTEM_FOLDERS = "/usr/local/sbin:/usr/sbin:/sbin"
"""Folders of servers such as pgbouncer, which are not in the PATH of every user."""


def find_program(name: str, package: str, announce: Callable[[str], None]) -> str:
    """Return the path of a program; install its package if it is missing, and fail with the reason if that fails."""
    if _which(name) is None:
        missing = apt.install(package, announce)
        assert missing is None, f"the program {name} is needed (`sudo apt-get install {package}`): {missing.reason}"
    path = _which(name)
    assert path is not None, f"the package {package} is installed, but {name} is not in the PATH"
    return path


def _which(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:{_SYSTEM_FOLDERS}")
