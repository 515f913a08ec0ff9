"""Real agents on two runners, of which one dies: what must show of them after a service was broken meanwhile."""

from __future__ import annotations

import asyncio
import json
import sys
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import asyncpg
import httpx

from taskherd.domain.view import LOST_CONNECTION
from tests.chaos import workload
from tests.chaos.figures import Figures
from tests.harness.chaos import ChaosHarness, WorkerProcess, until
from tests.harness.runner import kill_agents

SETTINGS: Final = {"agent_lost_after": "30s", "agent_connect_timeout": "2m"}
"""Those of workers that declare silent agents lost, as by default."""
DIES: Final = "dies"
LIVES: Final = "lives"
AGENTS: Final = 5
"""Number of agents of the runner that lives; nobody is declared lost while half of all agents are silent."""
MAX_MORE: Final = 6
"""Maximum number of tasks that are created until the other runner has one of them."""
WITHIN: Final = 180.0
STOP: Final = "stop"
COUNT: Final = f"""
import pathlib, time
number = 0
while not pathlib.Path({STOP!r}).exists():
    print("line", number, flush=True)
    number += 1
    time.sleep(0.2)
print("end", number, flush=True)
"""
"""An agent that counts until it is told to stop."""
LOST: Final = f"""
SELECT version FROM task_events
WHERE task_id = $1 AND document->'workspace_agent_health'->>'reason' = '{LOST_CONNECTION}'
"""
USE_AGENT: Final = "UPDATE template_versions SET run = $1"
REREAD_DIRECTORY: Final = "UPDATE directory_revision SET revision = revision + 1"


@dataclass(slots=True)
class Fleet:
    """The tasks of two runners, of which the one named ``DIES`` can be killed."""

    harness: ChaosHarness
    client: httpx.AsyncClient
    runners: dict[str, WorkerProcess] = field(default_factory=dict)
    tasks: list[uuid.UUID] = field(default_factory=list)

    async def start(self, amqp_url: str) -> None:
        """Start both runners, and tasks on each of them."""
        run = json.dumps({"command": [sys.executable, "-c", COUNT], "grace": 1})
        async with _connected(self.harness) as database, database.transaction():
            await database.execute(USE_AGENT, run)
            await database.execute(REREAD_DIRECTORY)
        await self._start_runner(LIVES, amqp_url)
        for _ in range(AGENTS):
            await self._start_agent()
        await self._start_runner(DIES, amqp_url)
        for _ in range(MAX_MORE):
            await self._start_agent()
            if self.of(DIES):
                return
        raise AssertionError("the second runner got no task")

    async def _start_runner(self, name: str, amqp_url: str) -> None:
        settings = {"amqp_url": amqp_url, "runner_name": name, "runner_root": str(self.root(name))}
        self.runners[name] = await self.harness.start("runner", **settings)
        await self.runners[name].until_ready()

    async def _start_agent(self) -> None:
        """Create a task, and wait until its agent writes."""
        body = {"template_version_id": str(workload.VERSION), "input": "Count"}
        response = await self.client.post("/tasks/me", json=body)
        assert response.status_code == httpx.codes.CREATED, response.text
        self.tasks.append(uuid.UUID(response.json()["id"]))
        await until(partial(self.lines, self.tasks[-1]), lambda lines: len(lines) > 1, WITHIN)

    def root(self, runner: str) -> Path:
        """Return the folder of a runner."""
        return self.harness.folder / runner

    def of(self, runner: str) -> set[uuid.UUID]:
        """Return the tasks that a runner has started agents of."""
        return {task_id for task_id in self.tasks if (self.root(runner) / str(task_id)).exists()}

    async def kill_runner(self, after: float = 0.0) -> None:
        """Kill the runner that dies, and its agents, after so many seconds, as the end of its machine would."""
        await asyncio.sleep(after)
        await self.runners[DIES].kill()
        kill_agents(self.root(DIES))

    async def until_lost(self) -> int:
        """Wait until each agent of the dead runner was declared lost, and return their number."""
        lost = self.of(DIES)
        for task_id in lost:
            await until(partial(self._fetch, LOST, task_id), bool, WITHIN)
        return len(lost)

    async def end(self) -> int:
        """Let the agents that live come to their end; return how many lines they wrote, each of which is there once."""
        written = 0
        for task_id in self.of(LIVES) - self.of(DIES):  # a lost agent may have been started again
            (self.root(LIVES) / str(task_id) / "work" / STOP).touch()
            lines = await until(partial(self.lines, task_id), _has_ended, WITHIN)
            expected = _expected(lines[-1])
            assert lines == expected, await self._describe_missing(task_id, lines, expected)
            assert await self._fetch(LOST, task_id) == [], "an agent that lives was declared lost"
            written += len(lines)
        return written

    async def _describe_missing(self, task_id: uuid.UUID, lines: list[str], expected: list[str]) -> str:
        """Return which lines were not there, and whether they come later."""
        since = time.monotonic()
        try:
            await until(partial(self.lines, task_id), expected.__eq__, WITHIN)
        except TimeoutError:
            later = f"not {WITHIN:.0f} s later either"
        else:
            later = f"but {time.monotonic() - since:.1f} s later"
        missing = [line for line in expected if line not in lines]
        return f"when the last line was there, {len(missing)} of {len(expected)} were not, {later}: {missing[:20]}"

    async def lines(self, task_id: uuid.UUID) -> list[str]:
        """Return the lines of the task's agents, in the order of its log."""
        response = await self.client.get(f"/tasks/me/{task_id}/logs")
        assert response.status_code == httpx.codes.OK, response.text
        entries = [entry["content"] for entry in response.json()["logs"] if entry["type"] == "output"]
        return [line for content in entries for line in content.splitlines()]

    async def _fetch(self, query: str, task_id: uuid.UUID) -> list[Any]:
        """Return the first column of the rows."""
        async with _connected(self.harness) as database:
            return [row[0] for row in await database.fetch(query, task_id)]


def _has_ended(lines: list[str]) -> bool:
    return bool(lines) and lines[-1].startswith("end ")


def _expected(last: str) -> list[str]:
    """Return all lines of the agent whose last one this is."""
    return [*(f"line {number}" for number in range(int(last.removeprefix("end ")))), last]


@asynccontextmanager
async def _connected(harness: ChaosHarness) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    connection = await asyncpg.connect(harness.ledger.database_url, timeout=10, command_timeout=10)
    try:
        yield connection
    finally:
        await connection.close(timeout=5)


@asynccontextmanager
async def running_fleet(harness: ChaosHarness, client: httpx.AsyncClient, amqp_url: str) -> AsyncIterator[Fleet]:
    """Run the agents until the end of the block; the processes of runners end with the harness."""
    fleet = Fleet(harness, client)
    try:
        await fleet.start(amqp_url)
        yield fleet
    finally:
        for name, runner in fleet.runners.items():
            await runner.kill()
            kill_agents(fleet.root(name))


def record(figures: Figures, fault: str, lines: int, lost: int) -> None:
    """Record the row of a fault during which agents wrote these lines, each of which was there once."""
    note = (
        f"the inputs are lines of agents, none of which was declared lost; {lost} of a runner that died meanwhile were"
    )
    figures.record(f"{fault}, agents of runners", faults=1, sent=lines, lost=0, duplicated=0, note=note)
