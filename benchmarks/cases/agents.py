"""Two hundred agents on one runner: what runner, worker and API cost meanwhile, and whether a heartbeat is missed."""

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

from benchmarks.harness.seed import OWNER, VERSION
from benchmarks.harness.services import NAMES, connected
from taskherd.api.http import user_tokens
from taskherd.dev import ports, processes
from taskherd.runner.workspaces.processes import MARKER_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aio_pika.abc import AbstractIncomingMessage

    from benchmarks.harness.services import BenchmarkServices

AGENTS: Final = 200
SECONDS: Final = 60.0
"""How long it is measured, once all agents are up."""
HEARTBEAT_EVERY: Final = 10.0
"""Seconds between two heartbeats of an agent, a tenth more or less: the default."""
LATE: Final = 1.5 * HEARTBEAT_EVERY
"""A gap longer than this, as seen at the broker, is a missed heartbeat."""
AT_ONCE: Final = 8
UP_WITHIN: Final = 600.0
SCRIPT: Final = 'i=0; while :; do i=$((i+1)); echo "step $i"; sleep 2; done'
"""What each agent does: a line every two seconds, which is activity and a log entry."""


@dataclass(slots=True)
class HeartbeatGaps:
    """The heartbeats as they reach the broker: when each agent was last heard, and the longest gap of each."""

    last: dict[str, float] = field(default_factory=dict)
    longest: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    count: int = 0
    reports: int = 0

    async def take(self, message: AbstractIncomingMessage) -> None:
        """Note the heartbeats in a message."""
        now, said = time.monotonic(), orjson.loads(message.body)
        for report in said if isinstance(said, list) else [said]:
            self.reports += 1
            if report["type"] == "agent.heartbeat":
                self.note(report["task_id"], now)

    def note(self, task: str, now: float) -> None:
        """One heartbeat."""
        self.count += 1
        if task in self.last:
            self.longest[task] = max(self.longest[task], now - self.last[task])
        self.last[task] = now

    def begin(self) -> None:
        """Count from here; the gap that is open goes on."""
        self.longest.clear()
        self.count = self.reports = 0

    def end(self) -> None:
        """Close the open gaps."""
        now = time.monotonic()
        for task, at in self.last.items():
            self.longest[task] = max(self.longest[task], now - at)


@dataclass(frozen=True, slots=True)
class Cost:
    """What a process used: seconds of CPU so far, and resident bytes."""

    cpu: float
    resident: int


@dataclass(frozen=True, slots=True)
class Processes:
    """The processes that are measured, where the API is, and the folder that all of it is in."""

    running: dict[str, psutil.Process]
    url: str
    folder: Path


async def measure(stage: BenchmarkServices, _reports: int, say: Callable[[str], None]) -> str:
    """The table: CPU and memory of each process while the agents work, and the heartbeats."""
    await stage.set_up_for(1)
    token, kept = user_tokens.generate()
    run = {"pool": "default", "command": ["sh", "-c", SCRIPT], "idle_after": "30s", "grace": "1s"}
    async with connected(stage.database_url) as connection:
        await connection.execute(
            "UPDATE template_versions SET run = $1 WHERE id = $2", orjson.dumps(run).decode(), VERSION
        )
        await connection.execute(
            "INSERT INTO api_tokens (id, user_id, secret_hash) VALUES ($1, $2, $3)", kept.id, OWNER, kept.secret_hash
        )
    with (
        tempfile.TemporaryDirectory(prefix="taskherd-bench-agents-") as folder,
        _processes(stage, Path(folder)) as house,
    ):
        return await _measured(stage, house, token, say)


async def _measured(stage: BenchmarkServices, house: Processes, token: str, say: Callable[[str], None]) -> str:
    beats = HeartbeatGaps()
    async with (
        await aio_pika.connect(stage.amqp_url, timeout=10) as connection,
        httpx.AsyncClient(base_url=f"{house.url}/api/v2", headers={"Coder-Session-Token": token}, timeout=60) as client,
    ):
        channel = await connection.channel()
        queue = await channel.declare_queue(exclusive=True, timeout=10)
        await queue.bind(NAMES.reports, "#", timeout=10)
        await queue.consume(beats.take, no_ack=True)
        began = time.monotonic()
        tasks = await _create(client)
        say(f"{len(tasks)} tasks created in {time.monotonic() - began:.1f} s")
        async with asyncio.timeout(UP_WITHIN):
            while (up := await _healthy(stage, tasks)) < AGENTS or len(beats.last) < AGENTS:
                say(f"{up} agents are up after {time.monotonic() - began:.0f} s")
                await asyncio.sleep(5)
        say(f"all are up after {time.monotonic() - began:.1f} s; measuring for {SECONDS:.0f} s")
        beats.begin()
        before, began = _costs(house), time.monotonic()
        await asyncio.sleep(SECONDS)
        after, passed = _costs(house), time.monotonic() - began
        beats.end()
        return _table(before, after, passed, beats, await _healthy(stage, tasks))


async def _create(client: httpx.AsyncClient) -> list[UUID]:
    """Create the tasks, a few at a time."""
    left, tasks = iter(range(AGENTS)), list[UUID]()

    async def some() -> None:
        for _ in left:
            body = {"template_version_id": str(VERSION), "input": "Count"}
            answer = await client.post("/tasks/me", json=body)
            answer.raise_for_status()
            tasks.append(UUID(answer.json()["id"]))

    await asyncio.gather(*(some() for _ in range(AT_ONCE)))
    return tasks


async def _healthy(stage: BenchmarkServices, tasks: list[UUID]) -> int:
    """How many of the tasks are active with a healthy agent."""
    async with connected(stage.database_url) as connection:
        found = await connection.fetchval(
            "SELECT count(*) FROM tasks WHERE id = ANY($1) AND status = 'active'"
            " AND document->'workspace_agent_health'->>'healthy' = 'true'",
            tasks,
        )
        return int(found)


@contextmanager
def _processes(stage: BenchmarkServices, folder: Path) -> Iterator[Processes]:
    """A worker, an API and a runner; all that they started is ended with them."""
    api_port, *ops = ports.claim([None] * 4)
    environment = {
        **stage.environment(),
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
            with (folder / f"{command}.log").open("wb") as log:
                started[command] = subprocess.Popen(
                    [sys.executable, "-m", "taskherd", command],
                    env={**environment, "TASKHERD_OPS_PORT": str(port)},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        for command, port in (("api", api_port), *zip(started, ops, strict=True)):
            processes.await_ready(
                started[command],
                partial(ports.is_open, port),
                what=command,
                log=folder / f"{command}.log",
                within=120,
            )
        running = {name: psutil.Process(process.pid) for name, process in started.items()}
        yield Processes(running, f"http://{ports.HOST}:{api_port}", folder)
    finally:
        if "runner" in started:
            started["runner"].send_signal(signal.SIGTERM)
            started["runner"].wait(60)
        processes.end(processes.carrying(MARKER_VARIABLE, f"{folder}/"), gently=signal.SIGKILL, within=10)
        for process in started.values():
            processes.stop(process, gently=signal.SIGTERM, within=60)


def _costs(house: Processes) -> dict[str, Cost]:
    """What each process used so far, and all shims together."""
    found = {name: _cost([process]) for name, process in house.running.items()}
    shims = [
        process
        for process in processes.carrying(MARKER_VARIABLE, "/")
        if any("shim.py" in word for word in _words(process))
    ]
    return {**found, f"{len(shims)} shims": _cost(shims)}


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def _cost(found: list[psutil.Process]) -> Cost:
    """CPU, and memory in proportion: a page that several share counts once, divided among them."""
    cpu, resident = 0.0, 0
    for process in found:
        times = process.cpu_times()
        cpu += times.user + times.system
        resident += process.memory_full_info().pss
    return Cost(cpu, resident)


def _table(before: dict[str, Cost], after: dict[str, Cost], passed: float, beats: HeartbeatGaps, healthy: int) -> str:
    lines = ["| process | CPU, of one core | memory (PSS) |", "|---|---|---|"]
    for (name, cost), earlier in zip(after.items(), before.values(), strict=True):
        lines.append(f"| {name} | {(cost.cpu - earlier.cpu) / passed:.1%} | {cost.resident / 2**20:.0f} MiB |")
    gaps = sorted(beats.longest.values())
    missed = sum(gap > LATE for gap in gaps)
    told = (
        f"{AGENTS} agents for {passed:.0f} s, each a line every 2 s: {beats.count} heartbeats, "
        f"{missed} missed (a gap of more than {LATE:g} s at the broker; the longest was {gaps[-1]:.1f} s); "
        f"{beats.reports / passed:.0f} reports/s; {healthy} agents healthy in the end; "
        f"load average {os.getloadavg()[0]:.1f}."
    )
    return "\n".join([*lines, "", told])
