"""End the processes that the agents of one task have left."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from taskherd.runner.workspaces import processes, terminals

if TYPE_CHECKING:
    from taskherd.runner.journal import Journal
    from taskherd.runner.workspaces.folders import RunFolder, TaskFolder
    from taskherd.runner.workspaces.isolation import Isolation


class TaskProcesses:
    """The processes of one task, as far as its isolation can tell them from others."""

    def __init__(self, isolation: Isolation, folder: TaskFolder, journal: Journal) -> None:
        self._isolation = isolation
        self._folder = folder
        self._journal = journal

    async def end(self) -> int:
        """End all processes of the task. Return the number of those left."""
        return await asyncio.to_thread(self._end_all, self._journal.build_number)

    async def end_unknown_runs(self) -> None:
        """Kill what is left of runs that no shim has recorded the exit of, such as those of a journal that was lost."""
        for run in (each for each in (*self._folder.list_runs(), *self._deleted_runs()) if not each.exit.exists()):
            await asyncio.to_thread(processes.kill_marked, run)

    def _deleted_runs(self) -> list[RunFolder]:
        """Return the run of the latest start if its agent may have deleted its folder."""
        start = self._journal.start
        if start is None or self._journal.planned_build != start.build_number:
            return []
        run = self._folder.run(start.build_number)
        return [] if run.path.exists() else [run]

    def _end_all(self, build_number: int) -> int:
        left = sum(terminals.end_all(run) for run in self._folder.list_runs())
        return max(left, self._isolation.end(self._journal.task_id, build_number))
