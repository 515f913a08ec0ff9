"""Where a task's things are on the runner's disk.

```
ROOT/
  lock                  held by the runner that lives
  TASK_ID/
    work/               the agent's; it starts here
    state/
      journal.json      what was asked for and how far it is (journal.py)
      outbox.jsonl      reports that may not have been sent yet (outbox.py)
      prompt.txt        the prompt, for an agent that would rather read a file
      run-BUILD/        one run of the agent, the shim's
        spec.json       what to run, and within which limits
        lock            held by the shim while it lives
        started.json    pid and start time of shim and agent
        input           a FIFO: the agent's stdin
        output/         what the agent wrote, in segments named by the offset at which they begin
        exit.json       how it ended
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
        """What to run."""
        return self.path / "spec.json"

    @property
    def lock(self) -> Path:
        """Held by the shim."""
        return self.path / "lock"

    @property
    def started(self) -> Path:
        """Which processes these are."""
        return self.path / "started.json"

    @property
    def input(self) -> Path:
        """The agent's stdin."""
        return self.path / "input"

    @property
    def output(self) -> Path:
        """What the agent wrote."""
        return self.path / "output"

    @property
    def exit(self) -> Path:
        """How it ended."""
        return self.path / "exit.json"

    def clear(self) -> None:
        """Make it a new, empty folder."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir(mode=0o700)


@dataclass(frozen=True, slots=True)
class TaskFolder:
    """The folder of one task."""

    root: Path
    task_id: UUID

    @property
    def path(self) -> Path:
        """The whole of it."""
        return self.root / str(self.task_id)

    @property
    def work(self) -> Path:
        """Where the agent works."""
        return self.path / "work"

    @property
    def state(self) -> Path:
        """What the runner and the shim keep."""
        return self.path / "state"

    @property
    def journal(self) -> Path:
        """What was asked for and how far it is."""
        return self.state / "journal.json"

    @property
    def outbox(self) -> Path:
        """Reports that may not have been sent yet."""
        return self.state / "outbox.jsonl"

    @property
    def prompt(self) -> Path:
        """The prompt as a file."""
        return self.state / "prompt.txt"

    def run(self, build_number: int) -> RunFolder:
        """The folder of the run that this build started."""
        return RunFolder(self.state / f"run-{build_number}")

    def make(self) -> None:
        """Make it, for nobody but our own user to read; raises OSError."""
        self.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.work.mkdir(mode=0o700, exist_ok=True)

    def drop_runs(self, but: int | None = None) -> None:
        """Remove the folders of all runs but one."""
        for path in self.state.glob("run-*"):
            if but is None or path.name != f"run-{but}":
                shutil.rmtree(path, ignore_errors=True)

    def drop_work(self) -> None:
        """Remove what the agent made, and the runs; raises OSError when something can't be removed."""
        if self.work.exists():
            shutil.rmtree(self.work)
        self.drop_runs()

    def drop(self) -> None:
        """Remove everything; raises OSError when something can't be removed."""
        if self.path.exists():
            shutil.rmtree(self.path)


def list_tasks(root: Path) -> list[TaskFolder]:
    """The tasks that have a folder under `root`."""
    folders = []
    for path in sorted(root.iterdir()):
        try:
            task_id = UUID(path.name)
        except ValueError:
            continue
        if path.is_dir() and str(task_id) == path.name:
            folders.append(TaskFolder(root, task_id))
    return folders
