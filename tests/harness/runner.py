"""A real worker, real runner processes, and agents that are real processes: one small program told what to do."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aio_pika

from tests.harness.worker import VERSION, WorkerHarness

TIMEOUT = 60.0
"""Seconds after which a condition that a test waits for is not going to come true; agents are whole processes."""
AGENT = Path(__file__).parent / "agent.py"


@dataclass
class RunnerSubprocess:
    """`taskherd runner` as a process of its own."""

    process: asyncio.subprocess.Process
    log: Path

    async def kill(self) -> None:
        """Kill -9; its agents are not told."""
        with suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()

    async def leave(self) -> int:
        """Ask it to leave; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(TIMEOUT):
            return await self.process.wait()

    async def ready(self) -> bool:
        """Whether it says that it is ready."""
        return "200 OK" in await self._get("/readyz")

    async def metrics(self) -> str:
        """What it has counted."""
        return await self._get("/metrics")

    async def _get(self, path: str) -> str:
        port = next((line["ops_port"] for line in self.lines() if "ops_port" in line), None)
        if port is None:
            assert self.process.returncode is None, self.log.read_text()
            return ""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET {path} HTTP/1.1\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
        return answer.decode()

    def lines(self) -> list[dict[str, Any]]:
        """What it logged."""
        said = []
        for line in self.log.read_text(errors="replace").splitlines():
            with suppress(ValueError):
                said.append(json.loads(line))
        return said


@dataclass
class RunnerHarness:
    """What a test does to runners and sees of them."""

    worker: WorkerHarness
    folder: Path
    runners: list[RunnerSubprocess] = field(default_factory=list)
    names: set[str] = field(default_factory=set)

    @property
    def root(self) -> Path:
        """Where the runner of that name keeps its tasks."""
        return self.folder / "r1"

    def state(self, task_id: uuid.UUID) -> Path:
        """What the runner and its shims keep of a task."""
        return self.root / str(task_id) / "state"

    def work(self, task_id: uuid.UUID) -> Path:
        """Where the agent works."""
        return self.root / str(task_id) / "work"

    async def start(self, name: str = "r1", **settings: str) -> RunnerSubprocess:
        """Start a runner of that name."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("TASKHERD_")}
        own = {
            "amqp_url": self.worker.urls[1],
            "amqp_prefix": self.worker.prefix,
            "runner_name": name,
            "runner_root": str(self.folder / name),
            "runner_heartbeat_every": "500ms",
            "ops_port": "0",
            "log_format": "json",
            **settings,
        }
        environment = {**inherited, **{f"TASKHERD_{key.upper()}": value for key, value in own.items()}}
        log = self.folder / f"runner-{len(self.runners)}.log"
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "taskherd", "runner", env=environment, stdout=output, stderr=output
            )
        runner = RunnerSubprocess(process, log)
        self.names.add(name)
        self.runners.append(runner)
        await eventually_async(runner.ready, lambda ready: ready)
        return runner

    async def task(self, *words: str, prompt: str = "Do it", **run: Any) -> uuid.UUID:
        """Create a task whose agent is the tests' own program, told to do `words`."""
        await self.template({"command": [sys.executable, str(AGENT), *words], "idle_after": 0.5, "grace": 1, **run})
        return await self.worker.create(input=prompt)

    async def repeat_request(self, start: dict[str, Any], **changed: Any) -> None:
        """Put another copy of a request to start into the pool's queue."""
        body = json.dumps({**start, **changed}).encode()
        exchange = await self.worker.channel.get_exchange(f"{self.worker.prefix}.work", ensure=False)
        await exchange.publish(aio_pika.Message(body), "workspace.start.default", timeout=5)

    async def template(self, run: dict[str, Any]) -> None:
        """Let the template say this."""
        await self.worker.database.execute(
            "UPDATE template_versions SET run = $1 WHERE id = $2", json.dumps(run), VERSION
        )

    async def until(self, condition: Callable[[], Any]) -> None:
        """Wait until something that the worker said makes the condition true."""
        async with asyncio.timeout(TIMEOUT):
            while not condition():
                self.worker.noticed.clear()
                await self.worker.noticed.wait()

    async def until_state(self, task_id: uuid.UUID, state: str, message: str = "") -> None:
        """Wait until the task says that."""
        await self.until(
            lambda: (
                self.worker.state(task_id).get("state") == state and message in self.worker.state(task_id)["message"]
            )
        )

    async def until_status(self, task_id: uuid.UUID, status: str) -> None:
        """Wait until the task has that status."""
        await self.until(lambda: self.worker.document(task_id).get("status") == status)

    async def output(self, task_id: uuid.UUID) -> list[str]:
        """The conversation as the worker keeps it: what came out."""
        return await self._logs(task_id, "output")

    async def inputs(self, task_id: uuid.UUID) -> list[str]:
        """What went in."""
        return await self._logs(task_id, "input")

    async def _logs(self, task_id: uuid.UUID, kind: str) -> list[str]:
        rows = await self.worker.database.fetch(
            "SELECT content FROM task_logs WHERE task_id = $1 AND type = $2 ORDER BY log_id", task_id, kind
        )
        return [row["content"] for row in rows]

    async def until_output(self, task_id: uuid.UUID, text: str) -> None:
        """Wait until this came out."""
        await eventually_async(lambda: self.output(task_id), lambda said: any(text in one for one in said))

    def marked(self, task_id: uuid.UUID, root: Path | None = None) -> set[int]:
        """Every living process of the task, its shims included."""
        wanted = f"TASKHERD_RUN_FOLDER={root or self.root}/{task_id}/".encode()
        return {pid for pid in _processes() if is_alive(pid) and wanted in _environment(pid)}

    def kill(self, pid: int) -> None:
        """Kill -9."""
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def agent(self, task_id: uuid.UUID, build_number: int = 1) -> dict[str, Any]:
        """Which processes the shim says it has."""
        said: dict[str, Any] = json.loads((self.state(task_id) / f"run-{build_number}/started.json").read_text())
        return said


async def eventually(condition: Callable[[], Any], within: float = TIMEOUT) -> None:
    """Wait until something on this machine is as wanted, which nobody tells us."""
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110 - files and processes tell nobody
            await asyncio.sleep(0.02)


async def eventually_async(look: Callable[[], Any], wanted: Callable[[Any], bool], within: float = TIMEOUT) -> None:
    """Wait until what `look` finds is as wanted."""
    async with asyncio.timeout(within):
        while not wanted(await look()):  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.05)


def is_alive(pid: int) -> bool:
    """Whether a process runs, zombies left aside."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@asynccontextmanager
async def runner_harness(herd: WorkerHarness, folder: Path) -> AsyncIterator[RunnerHarness]:
    """Somewhere to run runners; what they leave behind is ended."""
    own = RunnerHarness(herd, folder)
    try:
        yield own
    finally:
        for runner in own.runners:
            await runner.kill()
        _end_all(folder)
        for name in own.names:
            await herd.channel.queue_delete(f"{herd.prefix}.work.{name}", timeout=10)


def _end_all(folder: Path) -> None:
    while left := {pid for pid in _processes() if f"TASKHERD_RUN_FOLDER={folder}/".encode() in _environment(pid)}:
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _environment(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""
