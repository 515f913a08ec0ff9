"""Installing a Debian package where that needs no password, without starting the system's own service of it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from typing import Final

from taskherd.dev.sources import Missing

_WITHIN: Final = 600
_NO_SERVICE: Final = "RUNLEVEL=1"  # keeps invoke-rc.d from starting what was just installed


def install(package: str, announce: Callable[[str], None]) -> Missing | None:
    """Install `package` with apt-get, as root or with a sudo that asks nothing; None when it is installed now."""
    if shutil.which("apt-get") is None:
        return Missing("no apt-get")
    become = _become_root()
    if isinstance(become, Missing):
        return become
    announce(f"installing {package} with apt-get")
    for words in (["update", "-q"], ["install", "-yq", "--no-install-recommends", package]):
        env = ["env", "DEBIAN_FRONTEND=noninteractive", _NO_SERVICE]
        command = [*become, *env, "apt-get", *words]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_WITHIN, check=False
            )
        except subprocess.TimeoutExpired:
            return Missing(f"apt-get {words[0]} took longer than {_WITHIN} s")
        if done.returncode != 0 and words[0] == "install":
            return Missing(f"apt-get install {package} failed: {done.stderr.strip()[-300:]}")
    return None


def _become_root() -> list[str] | Missing:
    if os.geteuid() == 0:
        return []
    sudo = shutil.which("sudo")
    if sudo and subprocess.run([sudo, "-n", "true"], capture_output=True, check=False).returncode == 0:
        return [sudo, "-n"]
    return Missing("apt-get needs root, and there is no sudo without a password")
