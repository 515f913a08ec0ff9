"""What happens in the demo, act by act; each act waits for what it causes to show, and notes what it saw."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Final, assert_never

from examples.demo.client import DemoClient
from examples.demo.processes import DemoProcesses
from examples.demo.scenarios import Role, Scenario
from examples.demo.screen import Screen
from examples.demo.task_table import DemoTask, TaskTable
from taskherd.broker.publish import Publisher
from taskherd.broker.topology import TopologyNames
from taskherd.dev.agents import answers
from taskherd.domain.reports import AgentHeartbeat, AgentState, AppStatus
from taskherd.messages.reports import encode, join

WORK_WITHIN: Final = 60.0
SHOWS_WITHIN: Final = 30.0
STAGGER: Final = 0.5
"""Seconds between two creates, so that the start-ups of a dozen processes do not fall on one moment."""
QUESTIONS: Final = ("domain", "store", answers.MAX_QUESTIONS)
NEW_PROMPT: Final = "Count the functions, from where you were"
GARBAGE: Final = b"\x89PNG\r\n\x1a\n is what a picture begins with"
_SEEN_AT_WORK: Final = 3
_MIN_AT_WORK: Final = 3
_UNDISTURBED: Final = frozenset({Role.PLAIN, Role.SELF_REPORTING, Role.GARBAGE})
ENDED: Final = frozenset({"complete", "failed"})


@dataclass(slots=True)
class Observations:
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
class ScenarioRunner:
    """The acts of one demo, and those who play in them."""

    client: DemoClient
    table: TaskTable
    processes: DemoProcesses
    publisher: Publisher
    names: TopologyNames
    screen: Screen
    observations: Observations

    async def run(self, parts: Sequence[Scenario]) -> None:
        """Create the tasks one after the other and see each to its end; no act waits longer than its bound."""
        async with asyncio.TaskGroup() as group:
            for number, part in enumerate(parts):
                group.create_task(self._part(part, number * STAGGER), name=part.job)
            group.create_task(self._lose_the_runner(), name="runner")

    async def _part(self, part: Scenario, delay: float) -> None:
        await asyncio.sleep(delay)
        await self.client.create(part)
        self.observations.created.add(part.job)
        match part.role:
            case Role.PLAIN | Role.FAILS | Role.FIXES | Role.SELF_REPORTING | Role.CRASHES:
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
        if not await self.table.until(lambda: len(self._undisturbed()) >= _MIN_AT_WORK, SHOWS_WITHIN):
            return
        self.observations.alive_before = self._agents()
        self.screen.say("kill -9 of the runner, while agents work")
        await asyncio.to_thread(self.processes.kill, "runner")
        self.observations.alive_after = self._agents()
        (meter,) = await asyncio.to_thread(self.processes.start, "runner")
        began = monotonic()
        while not self.observations.adopted and monotonic() - began < SHOWS_WITHIN:
            self.observations.adopted = int((await meter.read()).adopted)
            await asyncio.sleep(0.1)
        self.screen.say(f"a new runner is there, and has adopted {self.observations.adopted} agents")

    def _agents(self) -> set[int]:
        """The processes of the agents at work that nothing happens to but their work, as their shims name them."""
        found = (self.processes.agent(row.task_id) for row in self._undisturbed() if row.task_id is not None)
        return {pid for pid in found if pid is not None}

    def _undisturbed(self) -> list[DemoTask]:
        rows = self.table.rows.values()
        return [row for row in rows if row.scenario.role in _UNDISTURBED and row.state == "working" and row.worked > 1]

    async def _ends(self, part: Scenario) -> None:
        row = self.table.of(part)
        await self.table.until(lambda: row.state in ENDED, WORK_WITHIN)

    async def _send(self, part: Scenario) -> None:
        row = self.table.of(part)
        await self.table.until(lambda: row.state == "idle" and row.status == "active", SHOWS_WITHIN)
        self.screen.say(f"three inputs are sent to {part.name} at once")
        for question in QUESTIONS:
            self.observations.queued += await self.client.send(part, question)
        await self._ends(part)

    async def _pause(self, part: Scenario) -> None:
        row = self.table.of(part)
        await self._at_work(row)
        self.screen.say(f"{part.name} is paused, while it works")
        await self.client.pause(part)
        await self.table.until(lambda: row.status == "paused", SHOWS_WITHIN)
        assert row.task_id is not None
        self.observations.processes[part.job] = len(self.processes.agents(row.task_id))
        self.observations.done_before_resume = (
            (self.processes.folder(row.task_id).work / "done.txt").read_text().splitlines()
        )
        await self.client.change_input(part, NEW_PROMPT)
        self.screen.say(f"{part.name} is resumed, with another prompt")
        await self.client.resume(part)
        await self._ends(part)

    async def _time_out(self, part: Scenario) -> None:
        row = self.table.of(part)
        await self._ends(part)
        if row.task_id is not None:
            self.observations.processes[part.job] = len(self.processes.agents(row.task_id))

    async def _delete(self, part: Scenario) -> None:
        row = self.table.of(part)
        await self._at_work(row)
        self.screen.say(f"{part.name} is deleted, while it works")
        await self.client.delete(part.name)
        await self.table.until(lambda: row.deleted, SHOWS_WITHIN)
        assert row.task_id is not None
        path, task_id = self.processes.folder(row.task_id).work, row.task_id
        self.observations.folder_gone = await _soon(lambda: not path.exists())
        await _soon(lambda: not self.processes.agents(task_id))
        self.observations.processes[part.job] = len(self.processes.agents(task_id))

    async def _send_garbage(self, part: Scenario) -> None:
        """Send bytes that are no JSON, and an array with a bad element between two good ones."""
        row = self.table.of(part)
        await self._at_work(row)
        self.screen.say(f"somebody sends garbage about {part.name}")
        assert row.task_id is not None
        beat = encode(AgentHeartbeat(task_id=row.task_id, build_number=1, seq=0), with_seq=False)
        status = encode(AppStatus(task_id=row.task_id, build_number=1, seq=0, state=AgentState.WORKING), with_seq=False)
        bad = status.replace(b'"working"', b'"dancing"')
        for body in (GARBAGE, join([beat, bad, beat])):
            await self.publisher.publish(self.names.reports, str(row.task_id), body)
        await self._ends(part)

    async def _at_work(self, row: DemoTask) -> None:
        await self.table.until(lambda: row.worked >= _SEEN_AT_WORK and row.health == "healthy", SHOWS_WITHIN)


async def _soon(holds: Callable[[], bool]) -> bool:
    """Wait until something on this machine is so, which nobody tells; whether it is."""
    until = monotonic() + SHOWS_WITHIN
    while not holds() and monotonic() < until:  # noqa: ASYNC110 - files and processes ring no bell
        await asyncio.sleep(0.1)
    return holds()
