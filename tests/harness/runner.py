"""Run real runner processes against a real worker; their agents are processes of ``tests/harness/agent.py``."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aio_pika

from tests.harness import fork_server
from tests.harness.fork_server import PROGRAM, RunningProcess
from tests.harness.worker import VERSION, WorkerHarness

TIMEOUT = 180.0
"""Seconds after which waiting for a condition fails the test; runners and agents are processes, which start slowly."""
AGENT = Path(__file__).parent / "agent.py"


@dataclass
class RunnerSubprocess:
    """A running ``taskherd runner`` process."""

    process: RunningProcess
    log: Path

    async def kill(self) -> None:
        """Kill the process with SIGKILL; its agents keep running."""
        with suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()

    async def terminate(self) -> int:
        """Stop the process with SIGTERM and return its exit status."""
        self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(TIMEOUT):
            return await self.process.wait()

    async def ready(self) -> bool:
        """Return whether ``/readyz`` reports ready."""
        return "200 OK" in await self.get("/readyz")

    async def metrics(self) -> str:
        """Return the text of ``/metrics``."""
        return await self.get("/metrics")

    async def get(self, path: str) -> str:
        """Return the response to a GET request on the operations port, with its head."""
        port = next((line["ops_port"] for line in self.lines() if "ops_port" in line), None)
        if port is None:
            assert self.process.returncode is None, self.log.read_text()
            return ""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET {path} HTTP/1.1\r\n\r\n".encode())
        response = await reader.read()
        writer.close()
        return response.decode()

    def lines(self) -> list[dict[str, Any]]:
        """Return its log records."""
        records = []
        for line in self.log.read_text(errors="replace").splitlines():
            with suppress(ValueError):
                records.append(json.loads(line))
        return records


@dataclass
class RunnerHarness:
    """The runners of one test, and the folders of their tasks."""

    worker: WorkerHarness
    folder: Path
    runners: list[RunnerSubprocess] = field(default_factory=list)
    names: set[str] = field(default_factory=set)

    @property
    def root(self) -> Path:
        """The root folder of runner ``r1``."""
        return self.folder / "r1"

    def state(self, task_id: uuid.UUID) -> Path:
        """Return the ``state`` folder of a task."""
        return self.root / str(task_id) / "state"

    def work(self, task_id: uuid.UUID) -> Path:
        """Return the ``work`` folder of a task."""
        return self.root / str(task_id) / "work"

    async def start(self, name: str = "r1", *, prefix: Sequence[str] = (), **settings: str) -> RunnerSubprocess:
        """Start a runner and wait until it is ready; ``prefix`` is a command that runs another, such as setpriv."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("TASKHERD_")}
        defaults = {
            "amqp_url": self.worker.urls[1],
            "amqp_prefix": self.worker.prefix,
            "runner_name": name,
            "runner_root": str(self.folder / name),
            "runner_heartbeat_every": "500ms",
            "ops_port": "0",
            "log_format": "json",
            **settings,
        }
        environment = {**inherited, **{f"TASKHERD_{key.upper()}": value for key, value in defaults.items()}}
        log = self.folder / f"runner-{len(self.runners)}.log"
        with log.open("wb") as output:
            if prefix:
                process: RunningProcess = await asyncio.create_subprocess_exec(
                    *prefix, *PROGRAM, "runner", env=environment, stdout=output, stderr=output
                )
            else:
                process = await fork_server.start("runner", environment, output=output, errors=output)
        runner = RunnerSubprocess(process, log)
        self.names.add(name)
        self.runners.append(runner)
        await eventually_async(runner.ready, lambda ready: ready)
        return runner

    async def task(self, *steps: str, prompt: str | None = None, **run: Any) -> uuid.UUID:
        """Create a task whose agent executes these steps of ``tests/harness/agent.py``.

        Its prompt is ``prompt_of`` its id unless ``prompt`` is given.
        """
        await self.template({"command": [sys.executable, str(AGENT), *steps], "idle_after": 0.5, "grace": 1, **run})
        fields: dict[str, Any] = {} if prompt is None else {"input": prompt}
        return await self.worker.create(**fields)

    async def repeat_request(self, start: dict[str, Any], target: str = "default", **changed: Any) -> None:
        """Publish another copy of a start request to the queue of a pool or runner."""
        body = json.dumps({**start, **changed}).encode()
        exchange = await self.worker.channel.get_exchange(f"{self.worker.prefix}.work", ensure=False)
        await exchange.publish(aio_pika.Message(body), f"workspace.start.{target}", timeout=30)

    async def template(self, run: dict[str, Any]) -> None:
        """Replace the ``run`` of the template version, as applying a directory does."""
        async with self.worker.database.transaction():
            await self.worker.database.execute(
                "UPDATE template_versions SET run = $1 WHERE id = $2", json.dumps(run), VERSION
            )
            await self.worker.database.execute("UPDATE directory_revision SET revision = revision + 1")

    async def until(self, condition: Callable[[], Any]) -> None:
        """Wait until messages from the worker make the condition true."""
        async with asyncio.timeout(TIMEOUT):
            while not condition():
                self.worker.received.clear()
                await self.worker.received.wait()

    async def until_state(self, task_id: uuid.UUID, state: str, message: str = "") -> None:
        """Wait until the task has this current state."""
        await self.until(
            lambda: (
                self.worker.state(task_id).get("state") == state and message in self.worker.state(task_id)["message"]
            )
        )

    async def until_status(self, task_id: uuid.UUID, status: str) -> None:
        """Wait until the task has this status."""
        await self.until(lambda: self.worker.document(task_id).get("status") == status)

    async def output(self, task_id: uuid.UUID) -> list[str]:
        """Return the contents of the task's output log entries."""
        return await self._logs(task_id, "output")

    async def inputs(self, task_id: uuid.UUID) -> list[str]:
        """Return the contents of the task's input log entries."""
        return await self._logs(task_id, "input")

    async def _logs(self, task_id: uuid.UUID, kind: str) -> list[str]:
        rows = await self.worker.database.fetch(
            "SELECT content FROM task_logs WHERE task_id = $1 AND type = $2 ORDER BY log_id", task_id, kind
        )
        return [row["content"] for row in rows]

    async def until_output(self, task_id: uuid.UUID, text: str) -> None:
        """Wait until an output log entry contains the text."""
        await eventually_async(lambda: self.output(task_id), lambda entries: any(text in entry for entry in entries))

    def marked(self, task_id: uuid.UUID, root: Path | None = None) -> set[int]:
        """Return the pids of all living processes of the task, including its shims."""
        return marked_by(f"{root or self.root}/{task_id}/")

    def kill(self, pid: int) -> None:
        """Kill a process with SIGKILL."""
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def kill_all(self, *task_ids: uuid.UUID, root: Path | None = None) -> None:
        """Kill all processes of tasks at once, as the end of a machine does: no shim records how an agent ended."""
        while pids := {pid for task_id in task_ids for pid in self.marked(task_id, root)}:
            for number in (signal.SIGSTOP, signal.SIGKILL):
                for pid in pids:
                    with suppress(ProcessLookupError):
                        os.kill(pid, number)

    def agent(self, task_id: uuid.UUID, build_number: int = 1) -> dict[str, Any]:
        """Return ``started.json`` of a run: pids and start times of shim and agent."""
        record: dict[str, Any] = json.loads((self.state(task_id) / f"run-{build_number}/started.json").read_text())
        return record


def marked_by(prefix: str) -> set[int]:
    """Return the pids of all living processes of runs in folders that begin like this, including the shims."""
    marker = f"TASKHERD_RUN_FOLDER={prefix}".encode()
    return {pid for pid in _processes() if marker in _environment(pid) and is_alive(pid)}


async def eventually(condition: Callable[[], Any], seconds: float = TIMEOUT) -> None:
    """Poll until a condition on this machine holds."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - files and processes send no notification
            await asyncio.sleep(0.02)


async def eventually_async(read: Callable[[], Any], is_met: Callable[[Any], bool], seconds: float = TIMEOUT) -> None:
    """Poll until the result of ``read`` meets the condition."""
    async with asyncio.timeout(seconds):
        while not is_met(await read()):  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.05)


def json_lines(path: Path) -> list[Any]:
    """Return what a file of JSON lines holds, none if it is missing.

    Another process may be appending: its last line is left out until it is whole.
    """
    try:
        whole, _, _ = path.read_bytes().rpartition(b"\n")
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in whole.split(b"\n")] if whole else []


def is_alive(pid: int) -> bool:
    """Return whether a process is running; a zombie is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@asynccontextmanager
async def runner_harness(worker: WorkerHarness, folder: Path) -> AsyncIterator[RunnerHarness]:
    """Open a harness; on exit, kill all runners, shims and agents, and delete the runners' queues."""
    harness = RunnerHarness(worker, folder)
    try:
        yield harness
    finally:
        for runner in harness.runners:
            await runner.kill()
        kill_agents(folder)
        for name in harness.names:
            await worker.channel.queue_delete(f"{worker.prefix}.work.{name}", timeout=30)


def kill_agents(folder: Path) -> None:
    """Kill all shims and agents in a folder of runners, as the end of their machine would."""
    while pids := {pid for pid in _processes() if f"TASKHERD_RUN_FOLDER={folder}/".encode() in _environment(pid)}:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _environment(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""
