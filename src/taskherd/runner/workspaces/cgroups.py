"""A cgroup for each run, if the runner has a delegated cgroup v2: the only limits that apply to a whole process tree.

See https://docs.kernel.org/admin-guide/cgroup-v2.html.
"""

from __future__ import annotations

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


class Cgroups:
    """The cgroups of all runs, children of one delegated cgroup."""

    def __init__(self, root: Path) -> None:
        """Enable the controllers for children of ``root``. Raise ``Misconfigured`` if it cannot be used for that."""
        self._root = root
        try:
            available = set((root / "cgroup.controllers").read_text().split())
            if not available >= CONTROLLERS:
                missing = ", ".join(sorted(CONTROLLERS - available))
                raise Misconfigured("runner_cgroup", f"{root} lacks {missing}; expected the controllers cpu and memory")
            (root / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in sorted(CONTROLLERS)))
        except OSError as error:
            problem = f"{root} cannot be used ({error.strerror}); expected a delegated cgroup v2 without processes"
            raise Misconfigured("runner_cgroup", problem) from error

    def create(self, task_id: UUID, build_number: int, limits: Limits) -> Path:
        """Create the cgroup of a run and set its limits. Raise ``OSError`` if that fails."""
        path = self._root / f"{task_id}-{build_number}"
        path.mkdir(exist_ok=True)
        if limits.memory:
            (path / "memory.max").write_text(str(limits.memory))
        if limits.cpu:
            (path / "cpu.max").write_text(f"{round(limits.cpu * PERIOD)} {PERIOD}")
        return path

    def remove(self, task_id: UUID, build_number: int) -> None:
        """Kill all processes in the cgroup of a finished run, and remove it."""
        path = self._root / f"{task_id}-{build_number}"
        with suppress(OSError):  # it may be removed already, or not be empty yet; an empty cgroup costs little
            (path / "cgroup.kill").write_text("1")
            path.rmdir()
