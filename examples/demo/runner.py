"""What happens in the demo, act by act; each act waits for what it causes to show, and notes what it saw."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Final, assert_never

from examples.demo.client import Desk
from examples.demo.processes import House
from examples.demo.scenarios import Part, Role
from examples.demo.screen import Screen
from examples.demo.task_table import Board, Row
from taskherd.broker.publish import Publisher
from taskherd.broker.topology import Names
from taskherd.dev.agents import answers
from taskherd.domain.reports import AgentHeartbeat, AppStatus, State
from taskherd.messages.reports import encode, join

WORK_WITHIN: Final = 60.0
SHOWS_WITHIN: Final = 30.0
STAGGER: Final = 0.5
"""Seconds between two creates, so that the start-ups of a dozen processes do not fall on one moment."""
QUESTIONS: Final = ("domain", "store", answers.ENOUGH)
NEW_PROMPT: Final = "Count the functions, from where you were"
GARBAGE: Final = b"\x89PNG\r\n\x1a\n is what a picture begins with"
_SEEN_AT_WORK: Final = 3
_AT_WORK_LEAST: Final = 3
_UNDISTURBED: Final = frozenset({Role.PLAIN, Role.ITSELF, Role.GARBAGE})
ENDED: Final = frozenset({"complete", "failed"})


@dataclass(slots=True)
class Facts:
    """What was seen on the way that the tasks themselves don't show in the end."""

    created: set[str] = field(default_factory=set)
    queued: int = 0
    adopted: int = 0
    alive_before: set[int] = field(default_factory=set)
    alive_after: set[int] = field(default_factory=set)
    processes: dict[str, int] = field(default_factory=dict)
    """How many processes of a task were left when its act was over, by job."""
    done_before_resume: list[str] = field(default_factory=list)
    folder_gone: bool = False


@dataclass(frozen=True, slots=True)
class Acts:
    """The acts of one demo, and those who play in them."""

    desk: Desk
    board: Board
    house: House
    publisher: Publisher
    names: Names
    screen: Screen
    facts: Facts

    async def play(self, parts: Sequence[Part]) -> None:
        """Create the tasks one after the other and see each to its end; no act waits longer than its bound."""
        async with asyncio.TaskGroup() as group:
            for number, part in enumerate(parts):
                group.create_task(self._part(part, number * STAGGER), name=part.job)
            group.create_task(self._lose_the_runner(), name="runner")

    async def _part(self, part: Part, delay: float) -> None:
        await asyncio.sleep(delay)
        await self.desk.create(part)
        self.facts.created.add(part.job)
        match part.role:
            case Role.PLAIN | Role.FAILS | Role.FIXES | Role.ITSELF | Role.CRASHES:
                await self._ends(part)
            case Role.SENT:
                await self._send(part)
            case Role.PAUSED:
                await self._pause(part)
            case Role.HANGS:
                await self._time_out(part)
            case Role.DELETED:
                await self._delete(part)
            case Role.GARBAGE:
                await self._send_garbage(part)
            case _:
                assert_never(part.role)

    async def _lose_the_runner(self) -> None:
        """Kill the runner while agents work, and start another in its place."""
        if not await self.board.until(lambda: len(self._undisturbed()) >= _AT_WORK_LEAST, SHOWS_WITHIN):
            return
        self.facts.alive_before = self._agents()
        self.screen.say("kill -9 of the runner, while agents work")
        await asyncio.to_thread(self.house.kill, "runner")
        self.facts.alive_after = self._agents()
        (meter,) = await asyncio.to_thread(self.house.start, "runner")
        began = monotonic()
        while not self.facts.adopted and monotonic() - began < SHOWS_WITHIN:
            self.facts.adopted = int((await meter.read()).adopted)
            await asyncio.sleep(0.1)
        self.screen.say(f"a new runner is there, and has adopted {self.facts.adopted} agents")

    def _agents(self) -> set[int]:
        """The processes of the agents at work that nothing happens to but their work, as their shims name them."""
        found = (self.house.agent(row.task_id) for row in self._undisturbed() if row.task_id is not None)
        return {pid for pid in found if pid is not None}

    def _undisturbed(self) -> list[Row]:
        rows = self.board.rows.values()
        return [row for row in rows if row.part.role in _UNDISTURBED and row.state == "working" and row.worked > 1]

    async def _ends(self, part: Part) -> None:
        row = self.board.of(part)
        await self.board.until(lambda: row.state in ENDED, WORK_WITHIN)

    async def _send(self, part: Part) -> None:
        row = self.board.of(part)
        await self.board.until(lambda: row.state == "idle" and row.status == "active", SHOWS_WITHIN)
        self.screen.say(f"three inputs are sent to {part.name} at once")
        for question in QUESTIONS:
            self.facts.queued += await self.desk.send(part, question)
        await self._ends(part)

    async def _pause(self, part: Part) -> None:
        row = self.board.of(part)
        await self._at_work(row)
        self.screen.say(f"{part.name} is paused, while it works")
        await self.desk.pause(part)
        await self.board.until(lambda: row.status == "paused", SHOWS_WITHIN)
        assert row.task_id is not None
        self.facts.processes[part.job] = len(self.house.agents(row.task_id))
        self.facts.done_before_resume = (self.house.folder(row.task_id).work / "done.txt").read_text().splitlines()
        await self.desk.change_input(part, NEW_PROMPT)
        self.screen.say(f"{part.name} is resumed, with another prompt")
        await self.desk.resume(part)
        await self._ends(part)

    async def _time_out(self, part: Part) -> None:
        row = self.board.of(part)
        await self._ends(part)
        if row.task_id is not None:
            self.facts.processes[part.job] = len(self.house.agents(row.task_id))

    async def _delete(self, part: Part) -> None:
        row = self.board.of(part)
        await self._at_work(row)
        self.screen.say(f"{part.name} is deleted, while it works")
        await self.desk.delete(part.name)
        await self.board.until(lambda: row.deleted, SHOWS_WITHIN)
        assert row.task_id is not None
        path, task_id = self.house.folder(row.task_id).work, row.task_id
        self.facts.folder_gone = await _soon(lambda: not path.exists())
        await _soon(lambda: not self.house.agents(task_id))
        self.facts.processes[part.job] = len(self.house.agents(task_id))

    async def _send_garbage(self, part: Part) -> None:
        """Send bytes that are no JSON, and an array with a bad element between two good ones."""
        row = self.board.of(part)
        await self._at_work(row)
        self.screen.say(f"somebody sends garbage about {part.name}")
        assert row.task_id is not None
        beat = encode(AgentHeartbeat(task_id=row.task_id, build_number=1, seq=0), with_seq=False)
        status = encode(AppStatus(task_id=row.task_id, build_number=1, seq=0, state=State.WORKING), with_seq=False)
        bad = status.replace(b'"working"', b'"dancing"')
        for body in (GARBAGE, join([beat, bad, beat])):
            await self.publisher.publish(self.names.reports, str(row.task_id), body)
        await self._ends(part)

    async def _at_work(self, row: Row) -> None:
        await self.board.until(lambda: row.worked >= _SEEN_AT_WORK and row.health == "healthy", SHOWS_WITHIN)


async def _soon(holds: Callable[[], bool]) -> bool:
    """Wait until something on this machine is so, which nobody tells; whether it is."""
    until = monotonic() + SHOWS_WITHIN
    while not holds() and monotonic() < until:  # noqa: ASYNC110 - files and processes ring no bell
        await asyncio.sleep(0.1)
    return holds()
