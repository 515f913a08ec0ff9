"""One demo session: run the scenarios, check the results, pause all tasks, print the summary."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from rich.console import Console
from rich.text import Text

from examples.demo import database, summary
from examples.demo.agent import DONE, RESULT
from examples.demo.checks import Evidence, Expectation, check, check_shutdown
from examples.demo.client import DemoClient
from examples.demo.metrics import Meter
from examples.demo.people_checks import check_people
from examples.demo.processes import DemoProcesses
from examples.demo.scenario_runner import EFFECT_TIMEOUT, Observations, ScenarioRunner
from examples.demo.scenarios import Role, Scenario
from examples.demo.screen import Screen
from examples.demo.task_table import DemoTask, TaskTable
from taskherd.broker import dead_letters
from taskherd.broker.connection import SupervisedConnection
from taskherd.broker.publisher import Publisher
from taskherd.broker.topology import TopologyNames
from taskherd.dev.services import Services
from taskherd.messages.dead_letters import DeadLetter, decode

SUBSCRIBE_TIMEOUT: Final = 15.0
AGREE_TIMEOUT: Final = 5.0
"""Seconds within which events with the versions in the database must arrive."""
MAX_DEAD_LETTERS: Final = 1_000
_TEST_TIMEOUT: Final = 30.0
"""Seconds that the tests of the fixed program, or ``git``, may take."""
_POLL_INTERVAL: Final = 0.5
"""Seconds between two checks that the processes are running."""


@dataclass(frozen=True, slots=True)
class SessionContext:
    """Everything that a session needs."""

    services: Services
    names: TopologyNames
    scenarios: Sequence[Scenario]
    meter: Meter
    processes: DemoProcesses
    client: DemoClient
    console: Console


async def run_session(context: SessionContext) -> list[Expectation]:
    """Run the scenarios and check the results.

    Raise ``Unavailable``, alone or in a group, if a process or the broker dies.
    """
    consuming, publishing = (
        SupervisedConnection(context.services.amqp_url, f"demo {purpose}") for purpose in ("consuming", "publishing")
    )
    consuming.start()
    publishing.start()
    try:
        return await _Session(context, consuming, Publisher(publishing)).run()
    finally:
        await asyncio.gather(consuming.close(), publishing.close())


class _Session:
    def __init__(self, context: SessionContext, consuming: SupervisedConnection, publisher: Publisher) -> None:
        self._context = context
        self._consuming = consuming
        self._observations = Observations()
        self._screen = Screen(context.console)
        self._tasks = TaskTable(consuming, context.names, context.scenarios, self._screen.changed)
        self._runner = ScenarioRunner(
            context.client, self._tasks, context.processes, publisher, context.names, self._screen, self._observations
        )

    async def run(self) -> list[Expectation]:
        context, tasks = self._context, self._tasks
        with self._screen as screen:
            async with asyncio.TaskGroup() as group:
                background = [
                    group.create_task(work)
                    for work in (tasks.run(), screen.run(tasks, context.meter), _watch_processes(context.processes))
                ]
                await tasks.subscribed(SUBSCRIBE_TIMEOUT)
                await self._delete_leftovers()
                await self._runner.run(context.scenarios)
                dead = await self._dead_letters()
                evidence = await self._evidence(dead)
                expectations = [*check(evidence), *check_people(evidence)]
                table = screen.table(tasks, context.meter)
                expectations += await self._pause_all()
                await context.meter.read()
                for task in background:
                    task.cancel()
        context.console.print(table)
        self._print_summary(expectations, dead)
        return expectations

    async def _delete_leftovers(self) -> None:
        """Delete the tasks of an interrupted demo, whose folders are gone."""
        client = self._context.client
        left = [(each.owner, name) for each in self._context.scenarios for name in await client.left_over(each)]
        for owner, name in left:
            self._screen.say(f"deleting {name}, which an interrupted demo left")
            await client.delete(owner, name)

    async def _evidence(self, dead: Sequence[DeadLetter]) -> Evidence:
        rows = self._tasks.rows
        client, of_role = self._context.client, {row.scenario.role: row for row in rows.values()}
        fixing, asking, steered = (of_role[role] for role in (Role.FIXES, Role.ASKS, Role.INTERRUPTED))
        return Evidence(
            rows,
            self._observations,
            dead,
            results={row.scenario.job: self._read(row, RESULT) for row in rows.values()},
            done={row.scenario.job: (self._read(row, DONE) or "").splitlines() for row in rows.values()},
            conversation=await client.logs(of_role[Role.ANSWERS].scenario),
            repaired="" if fixing.task_id is None else await asyncio.to_thread(_tests_in, self._work(fixing.task_id)),
            requests={each["title"]: each for each in await client.requests(asking.scenario)},
            build_note=self._read(asking, "build.txt") or "",
            steered_conversation=await client.logs(steered.scenario),
            steered_timeline=await client.timeline(steered.scenario),
        )

    def _work(self, task_id: UUID) -> Path:
        return self._context.processes.folder(task_id).work

    def _read(self, row: DemoTask, name: str) -> str | None:
        """Return the content of a file in an agent's folder, or None if there is none."""
        if row.task_id is None or not (path := self._work(row.task_id) / name).exists():
            return None
        return path.read_text()

    async def _dead_letters(self) -> list[DeadLetter]:
        """Return the dead letters about tasks of this demo."""
        letters = map(decode, await dead_letters.read(self._consuming, self._context.names, MAX_DEAD_LETTERS))
        task_ids = {str(row.task_id) for row in self._tasks.rows.values()}
        return [letter for letter in letters if letter.origin.routing_key in task_ids]

    async def _pause_all(self) -> list[Expectation]:
        """Pause all remaining tasks, and compare the events with the database and the API."""
        rows = [*self._tasks.rows.values()]
        self._screen.say("pausing all tasks")
        remaining = [row for row in rows if not row.deleted and row.task_id is not None]
        await asyncio.gather(*(self._context.client.pause(row.scenario) for row in remaining))
        await self._tasks.until(lambda: all(row.status == "paused" for row in remaining), EFFECT_TIMEOUT)
        versions = await database.versions(
            self._context.services.database_url, [row.task_id for row in rows if row.task_id is not None]
        )
        await self._tasks.until(
            lambda: all(row.task_id is None or row.version == versions[row.task_id] for row in rows), AGREE_TIMEOUT
        )
        documents: Mapping[str, Mapping[str, Any]] = {
            row.scenario.name: await self._context.client.show(row.scenario) for row in remaining
        }
        pids = [pid for row in rows if row.task_id is not None for pid in self._context.processes.agents(row.task_id)]
        return check_shutdown(rows, versions, documents, pids)

    def _print_summary(self, expectations: Sequence[Expectation], dead: Sequence[DeadLetter]) -> None:
        console = self._context.console
        summary.show(console, expectations)
        console.print()
        meter = self._context.meter
        for line in (*summary.dead_letter_lines(dead), *summary.numbers(meter.first, meter.last, self._tasks)):
            console.print(Text(line), soft_wrap=True)


def _tests_in(folder: Path) -> str:
    """Run the tests in the fixed repository; return their last line and the last commit, or "" if they fail."""
    arguments = ("-B", "-m", "unittest")
    tests = subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=_TEST_TIMEOUT, check=False
    )
    if tests.returncode != 0:
        return ""
    git = ["git", "log", "-1", "--format=%h %s"]
    commit = subprocess.run(git, cwd=folder, capture_output=True, text=True, timeout=_TEST_TIMEOUT, check=False)
    _, _, last = tests.stderr.strip().rpartition("\n")
    return f"{last}; {commit.stdout.strip()}"


async def _watch_processes(processes: DemoProcesses) -> None:
    """Raise ``Unavailable`` when one of the processes exits."""
    while True:
        processes.check_alive()
        await asyncio.sleep(_POLL_INTERVAL)
