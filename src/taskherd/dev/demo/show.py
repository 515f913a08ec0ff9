"""The demo while it is played: everybody on stage, the acts, then the verdict and the agents' farewell."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from rich.console import Console
from rich.text import Text

from taskherd.broker import dead
from taskherd.broker.connection import Link
from taskherd.broker.publish import Publisher
from taskherd.broker.topology import Names
from taskherd.dev.demo import stored, summary
from taskherd.dev.demo.acts import Acts, Facts
from taskherd.dev.demo.board import Board
from taskherd.dev.demo.cast import parts
from taskherd.dev.demo.crew import Crew
from taskherd.dev.demo.desk import Desk
from taskherd.dev.demo.meter import Meter
from taskherd.dev.demo.provisioner import Provisioner
from taskherd.dev.demo.screen import Screen
from taskherd.dev.demo.verdict import Evidence, Finding, are_off, farewell, judge
from taskherd.dev.services import Services
from taskherd.errors import Unavailable
from taskherd.store.directory import Directory

LISTENING_WITHIN: Final = 15.0
FAREWELL_WITHIN: Final = 10.0
AGREE_WITHIN: Final = 5.0
LETTERS_MOST: Final = 1_000


@dataclass(frozen=True, slots=True)
class Stage:
    """What the demo is played on."""

    services: Services
    names: Names
    directory: Directory
    meter: Meter
    crew: Crew
    worker: subprocess.Popen[bytes]
    console: Console


async def play(stage: Stage) -> list[Finding]:
    """Play the demo and judge it. Raises Unavailable, alone or in a group, when the worker or the broker dies."""
    consuming, publishing = (Link(stage.services.amqp_url, f"demo {what}") for what in ("consuming", "publishing"))
    consuming.start()
    publishing.start()
    try:
        return await _Play(stage, consuming, Publisher(publishing)).run()
    finally:
        await asyncio.gather(consuming.close(), publishing.close())


class _Play:
    def __init__(self, stage: Stage, consuming: Link, publisher: Publisher) -> None:
        self._stage = stage
        self._consuming = consuming
        self._parts = parts()
        self._facts = Facts()
        self._screen = Screen(stage.console)
        names = stage.names
        self._board = Board(consuming, names, self._parts, self._screen.changed)
        template = stage.directory.templates[0]
        user_id, version_id = stage.directory.users[0].id, template.active_version
        self._desk = Desk(consuming, publisher, names, user_id, version_id)
        self._provisioner = Provisioner(consuming, publisher, names, stage.crew, self._parts)
        self._acts = Acts(
            self._desk, self._board, self._provisioner, stage.crew, stage.meter, self._screen, self._facts
        )

    async def run(self) -> list[Finding]:
        stage, board = self._stage, self._board
        with self._screen as screen:
            async with asyncio.TaskGroup() as group:
                around = [
                    group.create_task(work)
                    for work in (
                        board.run(),
                        self._desk.run(),
                        self._provisioner.run(),
                        screen.run(board, stage.meter),
                        _see_alive(stage.worker),
                    )
                ]
                await board.listening(LISTENING_WITHIN)
                await self._acts.play(self._parts)
                letters = await self._letters()
                findings = judge(self._evidence(letters))
                table = screen.table(board, stage.meter)
                screen.say("the agents leave")
                await asyncio.to_thread(stage.crew.dismiss)
                findings += await self._farewell()
                await stage.meter.read()
                for task in around:
                    task.cancel()
        stage.console.print(table)
        self._tell(findings, letters)
        return findings

    def _evidence(self, letters: Sequence[dead.DeadLetter]) -> Evidence:
        verdicts = {part.task_id: self._stage.crew.verdict(part) for part in self._parts}
        return Evidence(self._board.rows, self._facts, verdicts, letters)

    async def _letters(self) -> list[dead.DeadLetter]:
        """The dead letters that are about our tasks."""
        found = await dead.read(self._consuming, self._stage.names, LETTERS_MOST)
        ours = {str(part.task_id) for part in self._parts}
        return [letter for letter in found if letter.origin.routing_key in ours]

    async def _farewell(self) -> list[Finding]:
        """Wait until the worker has taken the agents' goodbyes, and compare the events with the database."""
        rows = self._board.rows
        await self._board.until(lambda: are_off(rows.values()), FAREWELL_WITHIN)
        versions = await stored.versions(self._stage.services.database_url, [*rows])
        await self._board.until(lambda: all(rows[each].version == at for each, at in versions.items()), AGREE_WITHIN)
        return farewell(rows.values(), versions)

    def _tell(self, findings: Sequence[Finding], letters: Sequence[dead.DeadLetter]) -> None:
        console = self._stage.console
        summary.show(console, findings)
        console.print()
        meter = self._stage.meter
        for line in (*summary.letters(letters), *summary.numbers(meter.first, meter.last, self._board)):
            console.print(Text(line), soft_wrap=True)


async def _see_alive(worker: subprocess.Popen[bytes]) -> None:
    """Raise Unavailable when the worker ends, for then nothing more will come."""
    while worker.poll() is None:  # noqa: ASYNC110 - a process rings no bell
        await asyncio.sleep(0.5)
    raise Unavailable(f"the worker ended by itself with code {worker.returncode}; its log says why")
