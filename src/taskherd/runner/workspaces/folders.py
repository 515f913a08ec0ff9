"""Layout of the runner's folder and of a task's folder in it.

```
ROOT/
  lock                  locked by the running runner
  TASK_ID/
    work/               the agent's working directory
    home/               HOME of an agent in a sandbox or with a user of its own
    tmp/                its folder for temporary files, emptied at each start
    prompt.txt          the prompt, for agents that read it from a file
    state/              not accessible to an agent in a sandbox or with a user of its own
      journal.json      accepted requests and their progress (journal.py)
      outbox.jsonl      unconfirmed reports (outbox.py)
      run-BUILD/        one run of the agent; written by its shim (shim.py)
        spec            command and limits; written by the runner, with marshal
        lock            locked by the shim while it runs
        shim.log        stderr of the shim, normally empty
        started.json    pid and start time of shim and agent
        input           a FIFO: the agent's stdin, or that of the shim, which reads ``stdin/`` when something arrives
        stdin/          lines of a protocol for the agent's stdin (line_feeder.py)
        output/         output of the agent, in segments named by their start offset
        log/            its stderr, if its stdout carries a protocol
        terminals/      a folder like this one for each command that it runs through the runner
        exit.json       how the agent ended
```

An agent with a user of its own may enter ``TASK_ID``, but not list or change it, and owns ``work``, ``home`` and
``tmp``. What it puts there, links in particular, must not lead the runner elsewhere, which may be root: files there are
created, given away and removed relative to open folders, without following links.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from taskherd.runner.workspaces import removal
from taskherd.runner.workspaces.background import raise_if_cancelled
from taskherd.runner.workspaces.removal import open_folder


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The folder of one run of an agent."""

    path: Path

    @property
    def spec(self) -> Path:
        """Command and limits of the run."""
        return self.path / "spec"

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
    def log(self) -> Path:
        """Folder with the segments of the agent's stderr, if its output carries a protocol."""
        return self.path / "log"

    @property
    def stdin(self) -> Path:
        """Folder with the lines of a protocol for the agent."""
        return self.path / "stdin"

    @property
    def terminals(self) -> Path:
        """Folder with the runs of the commands that the agent runs through the runner."""
        return self.path / "terminals"

    def terminal(self, number: int) -> RunFolder:
        """Return the folder of the run of one of these commands."""
        return RunFolder(self.terminals / str(number))

    def list_terminals(self) -> list[RunFolder]:
        """Return the folders of these runs that are on this disk."""
        return [RunFolder(path) for path in self.terminals.glob("*")]

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
        self.remove()
        self.path.mkdir(mode=0o700)

    def remove(self) -> None:
        """Remove the folder, as far as that is possible."""
        with suppress(OSError):
            removal.remove(self.path)


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
    def home(self) -> Path:
        """HOME of an agent in a sandbox or with a user of its own."""
        return self.path / "home"

    @property
    def tmp(self) -> Path:
        """Temporary files of an agent in a sandbox or with a user of its own."""
        return self.path / "tmp"

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
        return self.path / "prompt.txt"

    def run(self, build_number: int) -> RunFolder:
        """Return the folder of the run that this build started."""
        return RunFolder(self.state / f"run-{build_number}")

    def create(self) -> None:
        """Create the folder, readable only by the runner's user. Raise ``OSError`` if that fails."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path.mkdir(mode=0o700, exist_ok=True)
        self.state.mkdir(mode=0o700, exist_ok=True)
        self.work.mkdir(mode=0o700, exist_ok=True)

    def write_prompt(self, prompt: str, uid: int | None) -> None:
        """Replace the file with the prompt, readable by the user. Raise ``OSError`` if that fails."""
        self.prompt.unlink(missing_ok=True)
        descriptor = os.open(self.prompt, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "w", encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - created with its mode
            if uid is not None:
                os.fchown(descriptor, -1, uid)
                os.fchmod(descriptor, 0o640)
            file.write(prompt)

    def prepare(self, uid: int | None) -> None:
        """Create the folders of an agent in a sandbox or with a user of its own, and give them to that user.

        Raise ``OSError`` if that fails.
        """
        removal.remove(self.tmp)
        for folder in (self.home, self.tmp):
            folder.mkdir(mode=0o700, exist_ok=True)
        for folder in (self.work, self.home):  # an agent that ran without a sandbox may have left a link
            os.close(open_folder(folder))
        if uid is not None:
            os.chown(self.path, -1, uid)
            self.path.chmod(0o710)
            for folder in (self.work, self.home, self.tmp):
                if folder.lstat().st_uid != uid:
                    _give(folder, uid)

    def make_workdir(self, relative: str, uid: int | None) -> None:
        """Create the folders that are missing on a path below ``work``, and give them to the user.

        At anything that is no folder, such as a link of the agent's, it stops: the agent itself follows the path.
        """
        if relative.startswith("/"):
            return
        parent = open_folder(self.work)
        try:
            for name in Path(relative).parts:
                if name == "..":
                    return
                with suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=parent)
                    if uid is not None:
                        os.chown(name, uid, uid, dir_fd=parent, follow_symlinks=False)
                try:
                    child = open_folder(name, parent)
                except OSError:
                    return
                os.close(parent)
                parent = child
        finally:
            os.close(parent)

    def owner(self) -> int | None:
        """Return the user who owns the agent's working directory, or None if there is none."""
        try:
            return self.work.lstat().st_uid
        except OSError:
            return None

    def list_runs(self) -> list[RunFolder]:
        """Return the folders of the runs that are on this disk."""
        return [RunFolder(path) for path in self.state.glob("run-*")]

    def remove_runs(self) -> None:
        """Remove the folders of all runs."""
        for run in self.list_runs():
            run.remove()

    def remove_work(self) -> None:
        """Remove the agent's files and the runs. Raise ``OSError`` if a file cannot be removed."""
        with suppress(FileNotFoundError), os.scandir(self.path) as entries:
            for entry in entries:  # an agent that runs as the runner's user may have added some
                if entry.name != self.state.name:
                    removal.remove(Path(entry))
        self.remove_runs()

    def remove(self) -> None:
        """Remove the whole folder. Raise ``OSError`` if a file cannot be removed."""
        removal.remove(self.path)


def _give(folder: Path, uid: int) -> None:
    """Give a folder and what is in it to a user; not files with other names, which may be outside of the folder.

    Raise ``OSError`` if that fails.
    """
    try:
        for _, folders, files, descriptor in os.fwalk(folder, follow_symlinks=False):
            for name in (*folders, *files):
                raise_if_cancelled()
                status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode) or status.st_nlink == 1:
                    os.chown(name, uid, uid, dir_fd=descriptor, follow_symlinks=False)
    except RecursionError as error:  # before Python 3.12, which instead has too many open files
        raise OSError(errno.EMFILE, "its folders have too many levels", str(folder)) from error
    os.chown(folder, uid, uid, follow_symlinks=False)


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
