"""The demo's worker, API and runner, started as in production; all are stopped with the demo."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, Self
from uuid import UUID

from examples.demo.metrics import Meter
from taskherd.dev import dev, ports, processes
from taskherd.errors import Unavailable
from taskherd.runner.workspaces.folders import TaskFolder
from taskherd.runner.workspaces.processes import MARKER_VARIABLE

ORDER: Final = ("runner", "api", "worker")
"""Shutdown order: publishers of reports before the consumer."""
RUNNER: Final = "demo-runner"
_START_TIMEOUT: Final = 60.0
"""Seconds within which a process must be ready."""
_GRACE: Final = 30.0
"""Seconds from SIGTERM to SIGKILL of a process."""


class DemoProcesses:
    """The demo's processes, with a common environment; each has a folder that marks it, and a log next to the folder.

    As a context manager it first ends processes that a killed demo left behind, and at the end all of this demo.
    """

    def __init__(
        self,
        data: Path,
        environment: Mapping[str, str],
        users: Mapping[str, Mapping[str, str]] | None = None,
        inherited: Collection[str] = (),
    ) -> None:
        """Create them; ``users`` are the variables that a process gets in addition, by command.

        ``inherited`` are the names of the variables that templates inherit from the runner.
        """
        self.data = data.absolute()
        self.root = self.data / "agents"
        """The folder of the runner."""
        (self.api_port,) = ports.find_free([None])
        self.url = f"http://{ports.HOST}:{self.api_port}"
        self.environment = {
            **environment,
            "TASKHERD_API_PORT": str(self.api_port),
            "TASKHERD_AGENT_API_URL": self.url,
            "TASKHERD_RUNNER_ROOT": str(self.root),
            "TASKHERD_RUNNER_NAME": RUNNER,
        }
        self._users = users or {}
        self._inherited = inherited
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        self._end_leftovers()
        shutil.rmtree(self.root, ignore_errors=True)
        for command in ORDER:
            self.log(command).unlink(missing_ok=True)
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _tb: TracebackType | None
    ) -> None:
        with ExitStack() as stack:
            stack.callback(self._end_leftovers)
            self.stop()

    def start(self, *commands: str, worker_port: int | None = None) -> list[Meter]:
        """Start ``taskherd COMMAND`` for each command and wait until they are ready; ``Unavailable`` if one fails."""
        meters = [Meter(self._spawn(command, worker_port if command == "worker" else None)) for command in commands]
        for command, meter in zip(commands, meters, strict=True):
            process, log = self.running[command], self.log(command)
            processes.await_ready(process, meter.is_ready, what=f"the {command}", log=log, within=_START_TIMEOUT)
        return meters

    def _spawn(self, command: str, ops_port: int | None) -> int:
        """Start a process and return its operations port."""
        port = ops_port or ports.find_free([None])[0]
        own = {**self.environment, **self._users.get(command, {}), "TASKHERD_OPS_PORT": str(port)}
        environment = dev.process_environment(command, {**os.environ, **own}, self._inherited)
        with self.log(command).open("ab") as output:
            self.running[command] = subprocess.Popen(
                [sys.executable, "-m", "taskherd", command],
                env=processes.marked(environment, self.data / command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return port

    def kill(self, command: str) -> None:
        """Kill this process with SIGKILL, but not the processes that it started."""
        process = self.running.pop(command)
        process.kill()
        process.wait(_GRACE)

    def stop(self) -> dict[str, int]:
        """Stop the processes one after the other with SIGTERM, and return their exit codes."""
        codes = {}
        for command in ORDER:
            if (process := self.running.pop(command, None)) is not None:
                processes.stop(process, gently=signal.SIGTERM, within=_GRACE)
                codes[command] = process.returncode
        return codes

    def check_alive(self) -> None:
        """Raise ``Unavailable`` if one of the processes has exited."""
        for command, process in [*self.running.items()]:
            if process.poll() is not None:
                raise Unavailable(
                    f"the {command} exited unexpectedly with code {process.returncode}; {self.log(command)} says why"
                )

    def leftovers(self) -> list[int]:
        """Return the pids of this demo's processes that are still running, agents included."""
        found = [process for command in ORDER for process in processes.belonging_to(self.data / command)]
        return sorted({process.pid for process in [*found, *processes.with_variable(MARKER_VARIABLE, f"{self.root}/")]})

    def agents(self, task_id: UUID) -> list[int]:
        """Return the pids of a task's agent and its shim."""
        return [process.pid for process in processes.with_variable(MARKER_VARIABLE, f"{self.folder(task_id).path}/")]

    def agent(self, task_id: UUID) -> int | None:
        """Return the pid of the agent that a task's first build started, or None if it is not running."""
        started = self.folder(task_id).run(1).started
        if not started.exists():
            return None
        pid = int(json.loads(started.read_bytes())["agent"])
        return pid if processes.tree(pid) else None

    def folder(self, task_id: UUID) -> TaskFolder:
        """Return the runner's folder for a task."""
        return TaskFolder(self.root, task_id)

    def log(self, command: str) -> Path:
        """Return the path of a process's log."""
        return self.data / f"{command}.log"

    def _end_leftovers(self) -> None:
        for command in ORDER:
            processes.end(processes.belonging_to(self.data / command), gently=signal.SIGTERM, within=_GRACE)
        processes.end(processes.with_variable(MARKER_VARIABLE, f"{self.root}/"), gently=signal.SIGKILL, within=5)
