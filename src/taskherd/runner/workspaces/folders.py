"""Layout of the runner's folder and of a task's folder in it.

```
ROOT/
  lock                  locked by the running runner
  TASK_ID/
    work/               the agent's working directory
    state/
      journal.json      accepted requests and their progress (journal.py)
      outbox.jsonl      unconfirmed reports (outbox.py)
      prompt.txt        the prompt, for agents that read it from a file
      run-BUILD/        one run of the agent; written by its shim (shim.py)
        spec.json       command and limits; written by the runner
        lock            locked by the shim while it runs
        shim.log        stderr of the shim, normally empty
        started.json    pid and start time of shim and agent
        input           a FIFO: the agent's stdin
        output/         output of the agent, in segments named by their start offset
        exit.json       how the agent ended
```
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The folder of one run of an agent."""

    path: Path

    @property
    def spec(self) -> Path:
        """Command and limits of the run."""
        return self.path / "spec.json"

    @property
    def lock(self) -> Path:
        """Lock file, locked by the shim while it runs."""
        return self.path / "lock"

    @property
    def started(self) -> Path:
        """Pids and start times of shim and agent."""
        return self.path / "started.json"

    @property
    def input(self) -> Path:
        """FIFO that is the agent's stdin."""
        return self.path / "input"

    @property
    def output(self) -> Path:
        """Folder with the segments of the agent's output."""
        return self.path / "output"

    @property
    def exit(self) -> Path:
        """The exit record."""
        return self.path / "exit.json"

    @property
    def shim_log(self) -> Path:
        """Stderr of the shim."""
        return self.path / "shim.log"

    def recreate(self) -> None:
        """Replace the folder by a new, empty one."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir(mode=0o700)


@dataclass(frozen=True, slots=True)
class TaskFolder:
    """The folder of one task."""

    root: Path
    task_id: UUID

    @property
    def path(self) -> Path:
        """The folder itself."""
        return self.root / str(self.task_id)

    @property
    def work(self) -> Path:
        """The agent's working directory."""
        return self.path / "work"

    @property
    def state(self) -> Path:
        """Folder for the files of runner and shim."""
        return self.path / "state"

    @property
    def journal(self) -> Path:
        """The journal: accepted requests and their progress."""
        return self.state / "journal.json"

    @property
    def outbox(self) -> Path:
        """The outbox: unconfirmed reports."""
        return self.state / "outbox.jsonl"

    @property
    def prompt(self) -> Path:
        """File with the prompt."""
        return self.state / "prompt.txt"

    def run(self, build_number: int) -> RunFolder:
        """Return the folder of the run that this build started."""
        return RunFolder(self.state / f"run-{build_number}")

    def create(self) -> None:
        """Create the folder, readable only by the runner's user. Raise ``OSError`` if that fails."""
        self.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.work.mkdir(mode=0o700, exist_ok=True)

    def list_runs(self) -> list[RunFolder]:
        """Return the folders of the runs that are on this disk."""
        return [RunFolder(path) for path in self.state.glob("run-*")]

    def remove_runs(self) -> None:
        """Remove the folders of all runs."""
        for run in self.list_runs():
            shutil.rmtree(run.path, ignore_errors=True)

    def remove_work(self) -> None:
        """Remove the agent's files and the runs. Raise ``OSError`` if a file cannot be removed."""
        if self.work.exists():
            shutil.rmtree(self.work)
        self.remove_runs()

    def remove(self) -> None:
        """Remove the whole folder. Raise ``OSError`` if a file cannot be removed."""
        if self.path.exists():
            shutil.rmtree(self.path)


def list_tasks(root: Path) -> list[TaskFolder]:
    """Return the folders of all tasks under ``root``."""
    folders = []
    for path in sorted(root.iterdir()):
        try:
            task_id = UUID(path.name)
        except ValueError:
            continue
        if path.is_dir() and str(task_id) == path.name:
            folders.append(TaskFolder(root, task_id))
    return folders
