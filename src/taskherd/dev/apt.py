"""Install a Debian package if that needs no password, without starting its system service."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from typing import Final

from taskherd.dev.sources import Missing

_COMMAND_TIMEOUT: Final = 600
"""Seconds that one ``apt-get`` command may take."""
"""Maximum duration of an apt-get command, in seconds."""
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
    for arguments in (["update", "-q"], ["install", "-yq", "--no-install-recommends", package]):
        env = ["env", "DEBIAN_FRONTEND=noninteractive", _NO_SERVICE]
        command = [*prefix, *env, "apt-get", *arguments]
        try:
            process = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT, check=False
            )
        except subprocess.TimeoutExpired:
            return Missing(f"apt-get {arguments[0]} took longer than {_COMMAND_TIMEOUT} s")
        if process.returncode != 0 and arguments[0] == "install":
            return Missing(f"apt-get install {package} failed: {process.stderr.strip()[-300:]}")
    return None


def _root_prefix() -> list[str] | Missing:
    if os.geteuid() == 0:
        return []
    sudo = shutil.which("sudo")
    if sudo and subprocess.run([sudo, "-n", "true"], capture_output=True, check=False).returncode == 0:
        return [sudo, "-n"]
    return Missing("apt-get needs root, and sudo is missing or asks for a password")
