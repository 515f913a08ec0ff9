"""What tests of isolation need: the modes that this machine allows, folders for all users, and processes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

IS_ROOT = os.getuid() == 0
UIDS = "200000-200063"
CGROUP = "cgroup"
"""A placeholder for the cgroup of a test in ``Mode.settings``."""


@dataclass(frozen=True, eq=False)
class Mode:
    """A mode of isolation: settings of the runner, fields of the template's ``run``, and the runner's user.

    ``uid`` is an ordinary user's; by default the runner has the user of the tests. Modes are compared by identity: they
    must be hashable for pytest to run the tests of each one after the other.
    """

    name: str
    settings: dict[str, str] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    uid: int | None = None


NONE = Mode("none")
BWRAP = Mode("bwrap", run={"sandbox": "bwrap"})
NO_NETWORK = Mode("bwrap, no network", run={"sandbox": "bwrap", "network": "none"})
USERS = Mode("users", {"runner_agent_uids": UIDS})
BOTH = Mode("users and bwrap", {"runner_agent_uids": UIDS}, {"sandbox": "bwrap"})
CGROUPS = Mode("cgroup", {"runner_cgroup": CGROUP})
ORDINARY = Mode("ordinary user", uid=199_998)
ORDINARY_BWRAP = Mode("ordinary user, bwrap", run={"sandbox": "bwrap"}, uid=199_998)
UNCONTAINED = (NONE, ORDINARY)
"""The modes in which an agent's processes can outlive it."""


def _others_may_read(path: Path) -> bool:
    """Return whether every folder above ``path`` may be entered by every user."""
    return all(folder.stat().st_mode & 0o001 for folder in path.resolve().parents)


MODES = [
    *(NONE, BWRAP, NO_NETWORK),
    *([USERS, BOTH, CGROUPS] if IS_ROOT else []),
    *(
        [ORDINARY, ORDINARY_BWRAP]
        if IS_ROOT and all(map(_others_may_read, (Path(__file__), Path(sys.prefix) / "_")))
        else []
    ),
]
"""The modes that can be had here.

Only root can give users and cgroups of their own, and start a runner as another user, who must be able to read this.
The first three are those of an ordinary user where the tests run as one.
"""


def in_modes(modes: Iterable[Mode]) -> pytest.MarkDecorator:
    """Return the mark for tests that run in each of these modes; all tests of a file in one mode run together."""
    return pytest.mark.parametrize("mode", [*modes], ids=lambda mode: mode.name, scope="module")


every_mode = in_modes(MODES)


VAR_TMP = "/var/tmp"  # noqa: S108 - a sandbox has a /tmp of its own, and so shows nothing below the machine's
"""Where the folders are that sandboxes are to show."""


@contextmanager
def open_folder(parent: str | None = None) -> Iterator[Path]:
    """Yield a new folder that every user may enter; pytest's own are closed to others."""
    folder = Path(tempfile.mkdtemp(prefix="taskherd-isolation-", dir=parent))
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
            for child in [each for each in path.iterdir() if each.is_dir()]:
                with suppress(FileNotFoundError):  # its runner has just removed it
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
