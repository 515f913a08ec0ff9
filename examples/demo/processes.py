"""The demo's processes: a worker, an API and a runner, as anyone would start them; none outlives the demo."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, Self
from uuid import UUID

from examples.demo.metrics import Meter
from taskherd.dev import ports, processes
from taskherd.errors import Unavailable
from taskherd.runner.workspaces.folders import TaskFolder
from taskherd.runner.workspaces.processes import MARKER_VARIABLE

ORDER: Final = ("runner", "api", "worker")
"""The order in which they are ended: who speaks first, who listens last."""
RUNNER: Final = "demo-runner"
_READY_WITHIN: Final = 60.0
_GRACE: Final = 30.0


class DemoProcesses:
    """Starts them with one environment, each marked with its folder and with its log beside that.

    As a context manager it ends what a killed demo left behind, and all of its own in the end.
    """

    def __init__(self, data: Path, environment: Mapping[str, str]) -> None:
        self.data = data.absolute()
        self.root = self.data / "agents"
        """The runner's folder."""
        (self.api_port,) = ports.claim([None])
        self.url = f"http://{ports.HOST}:{self.api_port}"
        self.environment = {
            **environment,
            "TASKHERD_API_PORT": str(self.api_port),
            "TASKHERD_AGENT_API_URL": self.url,
            "TASKHERD_RUNNER_ROOT": str(self.root),
            "TASKHERD_RUNNER_NAME": RUNNER,
        }
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
            self.end()

    def start(self, *commands: str, worker_port: int | None = None) -> list[Meter]:
        """Start `taskherd COMMAND` for each and return when all are ready; raises Unavailable."""
        meters = [Meter(self._spawn(command, worker_port if command == "worker" else None)) for command in commands]
        for command, meter in zip(commands, meters, strict=True):
            process, log = self.running[command], self.log(command)
            processes.await_ready(process, meter.is_ready, what=f"the {command}", log=log, within=_READY_WITHIN)
        return meters

    def _spawn(self, command: str, ops_port: int | None) -> int:
        """Start a process; its operations port."""
        port = ops_port or ports.claim([None])[0]
        own = {**os.environ, **self.environment, "TASKHERD_OPS_PORT": str(port)}
        with self.log(command).open("ab") as output:
            self.running[command] = subprocess.Popen(
                [sys.executable, "-m", "taskherd", command],
                env=processes.marked(own, self.data / command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return port

    def kill(self, command: str) -> None:
        """Kill -9 this one process, none of those that it started."""
        process = self.running.pop(command)
        process.kill()
        process.wait(_GRACE)

    def end(self) -> dict[str, int]:
        """Ask each to leave, one after the other, and wait until they are gone; their exit codes."""
        codes = {}
        for command in ORDER:
            if (process := self.running.pop(command, None)) is not None:
                processes.stop(process, gently=signal.SIGTERM, within=_GRACE)
                codes[command] = process.returncode
        return codes

    def see_alive(self) -> None:
        """Raise Unavailable when one of them has ended by itself, for then nothing more will come."""
        for command, process in [*self.running.items()]:
            if process.poll() is not None:
                raise Unavailable(
                    f"the {command} ended by itself with code {process.returncode}; {self.log(command)} says why"
                )

    def left(self) -> list[int]:
        """The processes of this demo that still run, agents included."""
        found = [process for command in ORDER for process in processes.belonging_to(self.data / command)]
        return sorted({process.pid for process in [*found, *processes.carrying(MARKER_VARIABLE, f"{self.root}/")]})

    def agents(self, task_id: UUID) -> list[int]:
        """The processes of a task's agent, its shim included."""
        return [process.pid for process in processes.carrying(MARKER_VARIABLE, f"{self.folder(task_id).path}/")]

    def agent(self, task_id: UUID) -> int | None:
        """The process of the agent that a task's first build started; None where it does not run."""
        started = self.folder(task_id).run(1).started
        if not started.exists():
            return None
        pid = int(json.loads(started.read_bytes())["agent"])
        return pid if processes.tree(pid) else None

    def folder(self, task_id: UUID) -> TaskFolder:
        """Where the runner keeps a task."""
        return TaskFolder(self.root, task_id)

    def log(self, command: str) -> Path:
        """The file that a process's log is in."""
        return self.data / f"{command}.log"

    def _end_leftovers(self) -> None:
        for command in ORDER:
            processes.end(processes.belonging_to(self.data / command), gently=signal.SIGTERM, within=_GRACE)
        processes.end(processes.carrying(MARKER_VARIABLE, f"{self.root}/"), gently=signal.SIGKILL, within=5)
