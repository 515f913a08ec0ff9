"""A cgroup for each run, where the runner was given a delegated cgroup v2: the only limits that hold for a whole tree.

See https://docs.kernel.org/admin-guide/cgroup-v2.html.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from taskherd.errors import Misconfigured

if TYPE_CHECKING:
    from uuid import UUID

    from taskherd.runner.template import Limits

NEEDED = frozenset({"cpu", "memory"})
PERIOD = 100_000
"""Microseconds over which the CPU time of a run is counted."""


class Cgroups:
    """The runs' cgroups, all of them children of one."""

    def __init__(self, root: Path) -> None:
        """Raises Misconfigured unless `root` is one that we may make children of, with the controllers that we need."""
        self._root = root
        try:
            there = set((root / "cgroup.controllers").read_text().split())
            if not there >= NEEDED:
                raise Misconfigured("runner_cgroup", f"{root} lacks {', '.join(sorted(NEEDED - there))}; expected both")
            (root / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in sorted(NEEDED)))
        except OSError as error:
            why = (
                f"{root} can't be used ({error.strerror}); expected a cgroup v2 that is delegated and has no processes"
            )
            raise Misconfigured("runner_cgroup", why) from error

    def make(self, task_id: UUID, build_number: int, limits: Limits) -> Path:
        """Make the cgroup of a run, and set its limits; raises OSError."""
        path = self._root / f"{task_id}-{build_number}"
        path.mkdir(exist_ok=True)
        if limits.memory:
            (path / "memory.max").write_text(str(limits.memory))
        if limits.cpu:
            (path / "cpu.max").write_text(f"{round(limits.cpu * PERIOD)} {PERIOD}")
        return path

    def drop(self, task_id: UUID, build_number: int) -> None:
        """Kill whatever is in the cgroup of a run that is over, and remove it."""
        path = self._root / f"{task_id}-{build_number}"
        with suppress(OSError):  # it may be gone, or still be emptying; the next start of this build's task tries again
            (path / "cgroup.kill").write_text("1")
            path.rmdir()
