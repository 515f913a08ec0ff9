"""200 agents on one runner, of one kind: the cost of runner, worker and API, and whether heartbeats are missed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final
from uuid import UUID

import aio_pika
import httpx
import orjson
import psutil

from benchmarks.harness import acp_agent
from benchmarks.harness.seed import OWNER, VERSION
from benchmarks.harness.services import TOPOLOGY_NAMES, connected
from taskherd.api.http import user_tokens
from taskherd.dev import ports, processes
from taskherd.runner.workspaces.processes import MARKER_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aio_pika.abc import AbstractIncomingMessage

    from benchmarks.harness.run import Run
    from benchmarks.harness.services import BenchmarkServices

AGENTS: Final = 200
SECONDS: Final = 60.0
"""Duration of the measurement, after all agents have started."""
HEARTBEAT_EVERY: Final = 10.0
"""Seconds between two heartbeats of an agent, plus or minus a tenth: the default."""
LATE: Final = 1.5 * HEARTBEAT_EVERY
"""A longer gap between two heartbeats at the broker is a missed heartbeat."""
CONCURRENT_CREATES: Final = 8
START_TIMEOUT: Final = 600.0
SCRIPT: Final = 'i=0; while :; do i=$((i+1)); echo "step $i"; sleep 2; done'
"""The agents' program: a line every two seconds, each of which is activity and a log entry."""
STDIO: Final = {"agent": "stdio", "command": ["sh", "-c", SCRIPT], "idle_after": "30s"}
ACP: Final = {"agent": "acp", "command": [sys.executable, "-I", "-S", acp_agent.__file__]}


@dataclass(slots=True)
class HeartbeatGaps:
    """Heartbeats at the broker: the time of each agent's last one, and each agent's longest gap."""

    last: dict[str, float] = field(default_factory=dict)
    longest: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    count: int = 0
    reports: int = 0

    async def on_message(self, message: AbstractIncomingMessage) -> None:
        """Record the heartbeats in a message."""
        now, reports = time.monotonic(), orjson.loads(message.body)
        for report in reports if isinstance(reports, list) else [reports]:
            self.reports += 1
            if report["type"] == "agent.heartbeat":
                self.record(report["task_id"], now)

    def record(self, task: str, now: float) -> None:
        """Record one heartbeat."""
        self.count += 1
        if task in self.last:
            self.longest[task] = max(self.longest[task], now - self.last[task])
        self.last[task] = now

    def start(self) -> None:
        """Start counting; open gaps continue."""
        self.longest.clear()
        self.count = self.reports = 0

    def stop(self) -> None:
        """Close the open gaps."""
        now = time.monotonic()
        for task, at in self.last.items():
            self.longest[task] = max(self.longest[task], now - at)


@dataclass(frozen=True, slots=True)
class ProcessCost:
    """CPU seconds used by processes so far, and their memory in bytes."""

    cpu: float
    memory: int


@dataclass(frozen=True, slots=True)
class Processes:
    """The measured processes, the URL of the API, and the folder of the run, which marks its shims."""

    by_name: dict[str, psutil.Process]
    url: str
    folder: Path


async def measure(run: Run) -> str:
    """Return the table of CPU and memory of each process while the agents work, and the missed heartbeats."""
    services = run.services
    await services.prepare_tasks(1)
    token, stored = user_tokens.generate()
    kind = ACP if run.options.acp else STDIO
    run_options = {"pool": "default", "grace": "1s", **kind}
    async with connected(services.database_url) as connection:
        await connection.execute(
            "UPDATE template_versions SET run = $1 WHERE id = $2", orjson.dumps(run_options).decode(), VERSION
        )
        await connection.execute(
            "INSERT INTO api_tokens (id, user_id, secret_hash) VALUES ($1, $2, $3)",
            stored.id,
            OWNER,
            stored.secret_hash,
        )
    with (
        tempfile.TemporaryDirectory(prefix="taskherd-bench-agents-") as folder,
        _processes(services, Path(folder)) as running,
    ):
        return await _measure(run, running, token)


async def _measure(run: Run, running: Processes, token: str) -> str:
    services, heartbeats = run.services, HeartbeatGaps()
    async with (
        await aio_pika.connect(services.amqp_url, timeout=10) as connection,
        httpx.AsyncClient(
            base_url=f"{running.url}/api/v2", headers={"Coder-Session-Token": token}, timeout=60
        ) as client,
    ):
        channel = await connection.channel()
        queue = await channel.declare_queue(exclusive=True, timeout=10)
        await queue.bind(TOPOLOGY_NAMES.reports, "#", timeout=10)
        await queue.consume(heartbeats.on_message, no_ack=True)
        began = time.monotonic()
        tasks = await _create(client)
        run.log(f"{len(tasks)} tasks created in {time.monotonic() - began:.1f} s")
        async with asyncio.timeout(START_TIMEOUT):
            while (up := await _healthy(services, tasks)) < AGENTS or len(heartbeats.last) < AGENTS:
                run.log(f"{up} agents have started after {time.monotonic() - began:.0f} s")
                await asyncio.sleep(5)
        run.log(f"all have started after {time.monotonic() - began:.1f} s; measuring for {SECONDS:.0f} s")
        heartbeats.start()
        before, began = _costs(running), time.monotonic()
        await asyncio.sleep(SECONDS)
        after, passed = _costs(running), time.monotonic() - began
        heartbeats.stop()
        return _table(before, after, passed, heartbeats, await _healthy(services, tasks))


async def _create(client: httpx.AsyncClient) -> list[UUID]:
    """Create the tasks, a few at a time."""
    remaining, tasks = iter(range(AGENTS)), list[UUID]()

    async def create_some() -> None:
        for _ in remaining:
            body = {"template_version_id": str(VERSION), "input": "Count"}
            response = await client.post("/tasks/me", json=body)
            response.raise_for_status()
            tasks.append(UUID(response.json()["id"]))

    await asyncio.gather(*(create_some() for _ in range(CONCURRENT_CREATES)))
    return tasks


async def _healthy(services: BenchmarkServices, tasks: list[UUID]) -> int:
    """Return the number of tasks that are active with a healthy agent."""
    async with connected(services.database_url) as connection:
        count = await connection.fetchval(
            "SELECT count(*) FROM tasks WHERE id = ANY($1) AND status = 'active'"
            " AND document->'workspace_agent_health'->>'healthy' = 'true'",
            tasks,
        )
        return int(count)


@contextmanager
def _processes(services: BenchmarkServices, folder: Path) -> Iterator[Processes]:
    """Run a worker, an API and a runner; stop them and every process that they started."""
    api_port, *ops = ports.find_free([None] * 4)
    environment = {
        **services.environment(),
        "TASKHERD_API_PORT": str(api_port),
        "TASKHERD_API_RATE_LIMIT": "0",
        "TASKHERD_RUNNER_NAME": "bench-runner",
        "TASKHERD_RUNNER_ROOT": str(folder / "root"),
        "TASKHERD_RUNNER_HEARTBEAT_EVERY": f"{HEARTBEAT_EVERY:g}",
        "TASKHERD_LOG_LEVEL": "warning",
    }
    started: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for command, port in zip(("worker", "api", "runner"), ops, strict=True):
            started[command] = _start(command, {**environment, "TASKHERD_OPS_PORT": str(port)}, folder)
        for command, port in (("api", api_port), *zip(started, ops, strict=True)):
            log = folder / f"{command}.log"
            listens = partial(processes.listens, started[command].pid, port)
            processes.await_ready(started[command], listens, what=command, log=log, within=120)
        by_name = {name: psutil.Process(process.pid) for name, process in started.items()}
        yield Processes(by_name, f"http://{ports.HOST}:{api_port}", folder)
    finally:
        if "runner" in started:
            started["runner"].send_signal(signal.SIGTERM)
            started["runner"].wait(60)
        processes.end(processes.with_variable(MARKER_VARIABLE, f"{folder}/"), gently=signal.SIGKILL, within=10)
        for process in started.values():
            processes.stop(process, gently=signal.SIGTERM, within=60)


def _start(command: str, environment: dict[str, str], folder: Path) -> subprocess.Popen[bytes]:
    """Start ``taskherd`` with this command, with a log in ``folder``."""
    with (folder / f"{command}.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "taskherd", command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _costs(running: Processes) -> dict[str, ProcessCost]:
    """Return the cost of each process so far, and of all shims of this run together."""
    costs = {name: _cost([process]) for name, process in running.by_name.items()}
    shims = [
        process
        for process in processes.with_variable(MARKER_VARIABLE, f"{running.folder}/")
        if any("taskherd.runner.shim" in argument for argument in _arguments(process))
    ]
    return {**costs, f"{len(shims)} shims": _cost(shims)}


def _arguments(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def _cost(measured: list[psutil.Process]) -> ProcessCost:
    """Return CPU and proportional memory (PSS): a shared page is divided among its processes."""
    cpu, memory = 0.0, 0
    for process in measured:
        times = process.cpu_times()
        cpu += times.user + times.system
        memory += process.memory_full_info().pss
    return ProcessCost(cpu, memory)


def _table(
    before: dict[str, ProcessCost],
    after: dict[str, ProcessCost],
    passed: float,
    heartbeats: HeartbeatGaps,
    healthy: int,
) -> str:
    lines = ["| process | CPU, of one core | memory (PSS) |", "|---|---|---|"]
    for (name, cost), earlier in zip(after.items(), before.values(), strict=True):
        lines.append(f"| {name} | {(cost.cpu - earlier.cpu) / passed:.1%} | {cost.memory / 2**20:.0f} MiB |")
    gaps = sorted(heartbeats.longest.values())
    missed = sum(gap > LATE for gap in gaps)
    summary = (
        f"{AGENTS} agents for {passed:.0f} s, each with a line every 2 s: {heartbeats.count} heartbeats, "
        f"{missed} missed (gaps of more than {LATE:g} s at the broker; the longest was {gaps[-1]:.1f} s); "
        f"{heartbeats.reports / passed:.0f} reports/s; {healthy} agents healthy at the end; "
        f"load average {os.getloadavg()[0]:.1f}."
    )
    return "\n".join([*lines, "", summary])
