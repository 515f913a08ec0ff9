"""Programs that tests need beside the services: found on this machine, or installed as Debian packages."""

from __future__ import annotations

import shutil
from collections.abc import Callable

from taskherd.dev import apt


def find_program(name: str, package: str, announce: Callable[[str], None]) -> str:
    """Return the path of a program; install its package if it is missing, and fail with the reason if that fails."""
    if shutil.which(name) is None:
        missing = apt.install(package, announce)
        assert missing is None, f"the program {name} is needed (`sudo apt-get install {package}`): {missing.reason}"
    path = shutil.which(name)
    assert path is not None, f"the package {package} is installed, but {name} is not in the PATH"
    return path
