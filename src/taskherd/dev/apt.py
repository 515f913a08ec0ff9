"""Install a Debian package if that needs no password, without starting its system service."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from taskherd.dev.sources import Missing

_COMMAND_TIMEOUT: Final = 600
"""Maximum duration of an apt-get command, in seconds."""
_OPTIONS: Final = ("-q", "-o", "DPkg::Lock::Timeout=300")  # another apt-get may be running
_NO_SERVICE: Final = "RUNLEVEL=1"  # keeps invoke-rc.d from starting the installed service


def install(package: str, announce: Callable[[str], None]) -> Missing | None:
    """Install ``package`` with apt-get, as root or with sudo if it needs no password.

    Return None if it is installed, else the reason why not.
    """
    if shutil.which("apt-get") is None:
        return Missing("no apt-get")
    prefix = _root_prefix()
    if isinstance(prefix, Missing):
        return prefix
    announce(f"installing {package} with apt-get")
    with _one_at_a_time():
        return _install(package, prefix)


def _install(package: str, prefix: list[str]) -> Missing | None:
    for arguments in (["update"], ["install", "-y", "--no-install-recommends", package]):
        env = ["env", "DEBIAN_FRONTEND=noninteractive", _NO_SERVICE]
        command = [*prefix, *env, "apt-get", *_OPTIONS, *arguments]
        try:
            process = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT, check=False
            )
        except subprocess.TimeoutExpired:
            return Missing(f"apt-get {arguments[0]} took longer than {_COMMAND_TIMEOUT} s")
        if process.returncode != 0 and arguments[0] == "install":
            return Missing(f"apt-get install {package} failed: {process.stderr.strip()[-300:]}")
    return None


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Let the processes of a parallel test run install one after the other: apt-get fails if its lists are locked."""
    path = Path(tempfile.gettempdir()) / f"taskherd-apt-{os.geteuid()}.lock"
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # held no longer than the two commands may take
        yield
    finally:
        os.close(descriptor)


def _root_prefix() -> list[str] | Missing:
    if os.geteuid() == 0:
        return []
    sudo = shutil.which("sudo")
    if sudo and subprocess.run([sudo, "-n", "true"], capture_output=True, check=False).returncode == 0:
        return [sudo, "-n"]
    return Missing("apt-get needs root, and sudo is missing or asks for a password")
