"""A cgroup for each run, if the runner has a delegated cgroup v2.

Its limits are the only ones that apply to a whole process tree, and it ends all processes of a run at once, also those
that have left the tree.

See https://docs.kernel.org/admin-guide/cgroup-v2.html.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from taskherd.errors import Misconfigured

if TYPE_CHECKING:
    from uuid import UUID

    from taskherd.directory_file.run import Limits

CONTROLLERS = frozenset({"cpu", "memory"})
PERIOD = 100_000
"""Period of the CPU quota, in microseconds."""

END_TIMEOUT = 10.0
"""Seconds within which the killed processes of a run must be gone."""
_POLL_INTERVAL = 0.02


class Cgroups:
    """The cgroups of all runs, children of one delegated cgroup."""

    def __init__(self, root: Path) -> None:
        """Enable the controllers for children of ``root``. Raise ``Misconfigured`` if it is no cgroup of its own."""
        self._root = root
        try:
            self.missing_controllers = CONTROLLERS - set((root / "cgroup.controllers").read_text().split())
            """The controllers whose limits cannot be set; the cgroups of runs then only end their processes."""
            enabled = sorted(CONTROLLERS - self.missing_controllers)
            (root / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in enabled))
        except OSError as error:
            problem = f"{root} cannot be used ({error.strerror}); expected a delegated cgroup v2 without processes"
            raise Misconfigured("runner_cgroup", problem) from error

    def create(self, task_id: UUID, build_number: int, limits: Limits) -> Path:
        """Create the cgroup of a run and set its limits. Raise ``OSError`` if that fails, also without a controller."""
        path = self._path(task_id, build_number)
        path.mkdir(exist_ok=True)
        if limits.memory:
            (path / "memory.max").write_text(str(limits.memory))
        if limits.cpu:
            (path / "cpu.max").write_text(f"{round(limits.cpu * PERIOD)} {PERIOD}")
        return path

    def remove(self, task_id: UUID, build_number: int) -> int:
        """Kill all processes in the cgroups of a task's runs, up to this build's, and remove them once these are gone.

        There are several if a start was accepted while the agent of an earlier one lived. Return the number of
        processes that are left.
        """
        paths = [path for path in self._root.glob(f"{task_id}-*") if _build_number(path) <= build_number]
        for path in paths:
            with suppress(OSError):  # it may be removed already
                (path / "cgroup.kill").write_text("1")
        deadline = time.monotonic() + END_TIMEOUT
        return sum(_remove(path, deadline) for path in paths)

    def _path(self, task_id: UUID, build_number: int) -> Path:
        return self._root / f"{task_id}-{build_number}"


def _build_number(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def _remove(path: Path, deadline: float) -> int:
    """Remove a cgroup once its processes are gone. Return the number of those that are left at the deadline."""
    with suppress(OSError):  # as above
        while _is_populated(path) and time.monotonic() < deadline:
            time.sleep(_POLL_INTERVAL)
        left = len((path / "cgroup.procs").read_text().split()) if _is_populated(path) else 0
        if left:
            return left
        path.rmdir()
    return 0


def _is_populated(path: Path) -> bool:
    """Return whether a cgroup or one below it has living processes."""
    return "populated 1" in (path / "cgroup.events").read_text()
