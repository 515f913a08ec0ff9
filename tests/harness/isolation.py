"""What tests of isolation need: the modes that this machine allows, folders for all users, and processes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from taskherd.dev import apt

IS_ROOT = os.getuid() == 0
UIDS = "200000-200063"
CGROUP = "cgroup"
"""A placeholder for the cgroup of a test in ``Mode.settings``."""


@dataclass(frozen=True)
class Mode:
    """A mode of isolation: settings of the runner, and fields of the template's ``run``."""

    name: str
    settings: dict[str, str] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)


NONE = Mode("none")
BWRAP = Mode("bwrap", run={"sandbox": "bwrap"})
NO_NETWORK = Mode("bwrap, no network", run={"sandbox": "bwrap", "network": "none"})
USERS = Mode("users", {"runner_agent_uids": UIDS})
BOTH = Mode("users and bwrap", {"runner_agent_uids": UIDS}, {"sandbox": "bwrap"})
CGROUPS = Mode("cgroup", {"runner_cgroup": CGROUP})
MODES = [NONE, BWRAP, NO_NETWORK, *([USERS, BOTH, CGROUPS] if IS_ROOT else [])]
"""The modes that can be had here: users and cgroups of their own can only be given by root."""

every_mode = pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)


def require_bubblewrap(announce: Callable[[str], None]) -> None:
    """Install bubblewrap if it is missing; fail if that is not possible."""
    if shutil.which("bwrap") is None:
        missing = apt.install("bubblewrap", announce)
        if missing is not None:
            pytest.fail(f"install bubblewrap: {missing.reason}")


@contextmanager
def open_folder() -> Iterator[Path]:
    """Yield a new folder that every user may enter; pytest's own are closed to others."""
    folder = Path(tempfile.mkdtemp(prefix="taskherd-isolation-"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextmanager
def cgroup() -> Iterator[Path]:
    """Yield a new cgroup v2 without processes; mount the hierarchy if the machine has not."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    mounted = [Path(mount[1]) for mount in mounts if mount[2] == "cgroup2"]
    with tempfile.TemporaryDirectory() as folder:
        if not mounted:
            subprocess.run(["mount", "-t", "cgroup2", "none", folder], check=True)
        path = (mounted[0] if mounted else Path(folder)) / f"taskherd-test-{uuid.uuid4().hex[:8]}"
        path.mkdir()
        try:
            yield path
        finally:
            (path / "cgroup.kill").write_text("1")
            while "populated 1" in (path / "cgroup.events").read_text():
                time.sleep(0.02)
            for child in path.iterdir():
                if child.is_dir():
                    child.rmdir()
            path.rmdir()
            if not mounted:
                subprocess.run(["umount", folder], check=True)


def running(argument: str) -> set[int]:
    """Return the pids of all living processes with this argument in their command line."""
    found = set()
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with suppress(OSError):
                if argument.encode() in (path / "cmdline").read_bytes().split(b"\0"):
                    found.add(int(path.name))
    return found


def kill_all(argument: str) -> None:
    """Kill the processes with this argument, which a test has shown to escape."""
    for pid in running(argument):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
