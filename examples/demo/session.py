"""The demo while it is played: everybody on stage, the acts, then the verdict and the end of all agents."""

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
from examples.demo.agent import DONE, VERDICT
from examples.demo.checks import Evidence, Expectation, check, check_shutdown
from examples.demo.client import DemoClient
from examples.demo.metrics import Meter
from examples.demo.processes import DemoProcesses
from examples.demo.runner import SHOWS_WITHIN, Observations, ScenarioRunner
from examples.demo.scenarios import Role, Scenario
from examples.demo.screen import Screen
from examples.demo.task_table import DemoTask, TaskTable
from taskherd.broker import dead_letters
from taskherd.broker.connection import SupervisedConnection
from taskherd.broker.publish import Publisher
from taskherd.broker.topology import TopologyNames
from taskherd.dev.services import Services
from taskherd.messages.dead_letters import DeadLetter, decode

LISTENING_WITHIN: Final = 15.0
AGREE_WITHIN: Final = 5.0
MAX_LETTERS: Final = 1_000
_MAX_TESTS: Final = 30.0
_POLL_INTERVAL: Final = 0.5


@dataclass(frozen=True, slots=True)
class SessionContext:
    """What the demo is played on."""

    services: Services
    names: TopologyNames
    scenarios: Sequence[Scenario]
    meter: Meter
    processes: DemoProcesses
    client: DemoClient
    console: Console


async def run_session(stage: SessionContext) -> list[Expectation]:
    """Play the demo and judge it. Raises Unavailable, alone or in a group, when a process or the broker dies."""
    consuming, publishing = (
        SupervisedConnection(stage.services.amqp_url, f"demo {what}") for what in ("consuming", "publishing")
    )
    consuming.start()
    publishing.start()
    try:
        return await _Session(stage, consuming, Publisher(publishing)).run()
    finally:
        await asyncio.gather(consuming.close(), publishing.close())


class _Session:
    def __init__(self, stage: SessionContext, consuming: SupervisedConnection, publisher: Publisher) -> None:
        self._stage = stage
        self._consuming = consuming
        self._facts = Observations()
        self._screen = Screen(stage.console)
        self._board = TaskTable(consuming, stage.names, stage.scenarios, self._screen.changed)
        self._acts = ScenarioRunner(
            stage.client, self._board, stage.processes, publisher, stage.names, self._screen, self._facts
        )

    async def run(self) -> list[Expectation]:
        stage, board = self._stage, self._board
        with self._screen as screen:
            async with asyncio.TaskGroup() as group:
                around = [
                    group.create_task(work)
                    for work in (board.run(), screen.run(board, stage.meter), _see_alive(stage.processes))
                ]
                await board.listening(LISTENING_WITHIN)
                await self._clear_up()
                await self._acts.run(stage.scenarios)
                letters = await self._letters()
                findings = check(await self._evidence(letters))
                table = screen.table(board, stage.meter)
                findings += await self._farewell()
                await stage.meter.read()
                for task in around:
                    task.cancel()
        stage.console.print(table)
        self._tell(findings, letters)
        return findings

    async def _clear_up(self) -> None:
        """Delete the tasks of an earlier demo that was cut short: nothing of them is on the disk any more."""
        left = [each for part in self._stage.scenarios for each in await self._stage.client.left_over(part.job)]
        for _, name in left:
            self._screen.say(f"{name} is of a demo that was cut short: it is deleted")
            await self._stage.client.delete(name)

    async def _evidence(self, letters: Sequence[DeadLetter]) -> Evidence:
        rows = self._board.rows
        answering = next(part for part in self._stage.scenarios if part.role is Role.SENT)
        fixing = next(row for row in rows.values() if row.scenario.role is Role.FIXES)
        return Evidence(
            rows,
            self._facts,
            letters,
            verdicts={row.scenario.job: self._read(row, VERDICT) for row in rows.values()},
            done={row.scenario.job: (self._read(row, DONE) or "").splitlines() for row in rows.values()},
            conversation=await self._stage.client.logs(answering),
            repaired="" if fixing.task_id is None else await asyncio.to_thread(_tests_in, self._work(fixing.task_id)),
        )

    def _work(self, task_id: UUID) -> Path:
        return self._stage.processes.folder(task_id).work

    def _read(self, row: DemoTask, name: str) -> str | None:
        """What an agent wrote in its folder."""
        if row.task_id is None or not (path := self._work(row.task_id) / name).exists():
            return None
        return path.read_text()

    async def _letters(self) -> list[DeadLetter]:
        """The dead letters that are about our tasks."""
        found = map(decode, await dead_letters.read(self._consuming, self._stage.names, MAX_LETTERS))
        ours = {str(row.task_id) for row in self._board.rows.values()}
        return [letter for letter in found if letter.origin.routing_key in ours]

    async def _farewell(self) -> list[Expectation]:
        """Pause all that are left, and compare the events with the database and the API."""
        rows = [*self._board.rows.values()]
        self._screen.say("all tasks are paused")
        up = [row for row in rows if not row.deleted and row.task_id is not None]
        await asyncio.gather(*(self._stage.client.pause(row.scenario) for row in up))
        await self._board.until(lambda: all(row.status == "paused" for row in up), SHOWS_WITHIN)
        versions = await database.versions(
            self._stage.services.database_url, [row.task_id for row in rows if row.task_id is not None]
        )
        await self._board.until(
            lambda: all(row.task_id is None or row.version == versions[row.task_id] for row in rows), AGREE_WITHIN
        )
        told: Mapping[str, Mapping[str, Any]] = {
            row.scenario.name: await self._stage.client.show(row.scenario) for row in up
        }
        left = [pid for row in rows if row.task_id is not None for pid in self._stage.processes.agents(row.task_id)]
        return check_shutdown(rows, versions, told, left)

    def _tell(self, findings: Sequence[Expectation], letters: Sequence[DeadLetter]) -> None:
        console = self._stage.console
        summary.show(console, findings)
        console.print()
        meter = self._stage.meter
        for line in (*summary.letters(letters), *summary.numbers(meter.first, meter.last, self._board)):
            console.print(Text(line), soft_wrap=True)


def _tests_in(folder: Path) -> str:
    """Run the tests in a mended repository; their last word and the last commit, empty where they fail."""
    words = ("-B", "-m", "unittest")
    tests = subprocess.run(
        [sys.executable, *words], cwd=folder, capture_output=True, text=True, timeout=_MAX_TESTS, check=False
    )
    if tests.returncode != 0:
        return ""
    git = ["git", "log", "-1", "--format=%h %s"]
    commit = subprocess.run(git, cwd=folder, capture_output=True, text=True, timeout=_MAX_TESTS, check=False)
    _, _, last = tests.stderr.strip().rpartition("\n")
    return f"{last}; {commit.stdout.strip()}"


async def _see_alive(house: DemoProcesses) -> None:
    """Raise Unavailable when one of the processes ends, for then nothing more will come."""
    while True:
        house.see_alive()
        await asyncio.sleep(_POLL_INTERVAL)
