"""The agents' processes: started, killed, ended; none outlives the demo."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self
from uuid import UUID

from taskherd.dev import processes
from taskherd.dev.demo.agent import VERDICT
from taskherd.dev.demo.cast import Part, Role

_GRACE: Final = 8.0


class Crew:
    """The agents of one demo. Each has a folder as its workspace, where its temporary files are, and a log beside it.

    As a context manager it ends what a killed demo left behind, and all of its own in the end.
    """

    def __init__(self, home: Path, environment: Mapping[str, str]) -> None:
        self.home = home.absolute()
        self._environment = dict(environment)
        self._running: dict[UUID, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        processes.end(processes.belonging_to(self.home), gently=signal.SIGKILL, within=5)
        shutil.rmtree(self.home / "workspaces", ignore_errors=True)
        (self.home / "workspaces").mkdir(parents=True)
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self.dismiss()
        shutil.rmtree(self.home / "workspaces", ignore_errors=True)

    def start(self, part: Part, build_number: int) -> None:
        """Start the agent of a part, in a session of its own, with its output in its log."""
        workspace = self.workspace(part)
        workspace.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "taskherd.dev.demo.agent", "--task", str(part.task_id)]
        command += ["--agent", str(part.agent_id), "--build", str(build_number), "--job", part.job]
        command += ["--prompt", part.prompt, *(["--garbage"] if part.role is Role.GARBAGE else [])]
        environment = {**os.environ, **self._environment, "TMPDIR": str(workspace)}
        with self.log(part).open("wb") as log:
            self._running[part.task_id] = subprocess.Popen(
                command,
                env=processes.marked(environment, self.home),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def kill(self, part: Part) -> None:
        """Kill -9 the agent, and what it runs."""
        if part.task_id in self._running:
            processes.kill(self._running[part.task_id])

    def end(self, part: Part) -> None:
        """Ask the agent to leave, wait until it is gone, and remove its workspace."""
        if part.task_id in self._running:
            processes.stop(self._running[part.task_id], gently=signal.SIGTERM, within=_GRACE)
        shutil.rmtree(self.workspace(part), ignore_errors=True)

    def is_running(self, part: Part) -> bool:
        """Whether the agent's process is there."""
        process = self._running.get(part.task_id)
        return process is not None and process.poll() is None

    def verdict(self, part: Part) -> str | None:
        """How the agent's work ended, as its own log says; None while it does not."""
        if not self.log(part).exists():
            return None
        for line in self.log(part).read_text(errors="replace").splitlines():
            if line.startswith(VERDICT):
                return line.removeprefix(VERDICT)
        return None

    def dismiss(self) -> None:
        """Ask all that are left to leave, and wait until they are gone."""
        for process in self._running.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self._running.values():
            processes.stop(process, gently=signal.SIGTERM, within=_GRACE)

    def workspace(self, part: Part) -> Path:
        """The folder of a part's workspace."""
        return self.home / "workspaces" / part.job

    def log(self, part: Part) -> Path:
        """The file that the agent's own output is in."""
        return self.home / f"{part.job}.log"
