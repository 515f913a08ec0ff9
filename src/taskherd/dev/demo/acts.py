"""What happens in the demo, act by act; each act waits for what it causes to show, and notes what it saw."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Final, assert_never

from taskherd.dev.demo.board import Board, Row
from taskherd.dev.demo.cast import Part, Role
from taskherd.dev.demo.crew import Crew
from taskherd.dev.demo.desk import Desk
from taskherd.dev.demo.meter import Meter
from taskherd.dev.demo.provisioner import Provisioner
from taskherd.dev.demo.screen import Screen

WORK_WITHIN: Final = 60.0
SHOWS_WITHIN: Final = 25.0
PARKED_WITHIN: Final = 10.0
STAGGER: Final = 0.6
"""Seconds between two creates, so that the start-ups of a dozen processes do not fall on one moment."""
_PARKED_LEAST: Final = 4
_SEEN_AT_WORK: Final = 4
ENDED: Final = frozenset({"complete", "failed"})
LOST: Final = "agent has lost connection"


@dataclass(slots=True)
class Facts:
    """What was seen on the way that the tasks themselves don't show in the end."""

    replies: dict[str, dict[str, Any]] = field(default_factory=dict)
    delete_reply: dict[str, Any] = field(default_factory=dict)
    pause_reply: dict[str, Any] = field(default_factory=dict)
    parked: int = 0
    lost_after: float | None = None
    gone_after_delete: bool = False


@dataclass(frozen=True, slots=True)
class Acts:
    """The acts of one demo, and those who play in them."""

    desk: Desk
    board: Board
    provisioner: Provisioner
    crew: Crew
    meter: Meter
    screen: Screen
    facts: Facts

    async def play(self, parts: Sequence[Part]) -> None:
        """Create the tasks one after the other and see each to its end; no act waits longer than its bound."""
        async with asyncio.TaskGroup() as group:
            for number, part in enumerate(parts):
                group.create_task(self._part(part, number * STAGGER), name=part.job)

    async def _part(self, part: Part, delay: float) -> None:
        if part.role is Role.EARLY:
            await self._report_early(part)
        else:
            await asyncio.sleep(delay)
        self.facts.replies[part.job] = await self.desk.create(part)
        match part.role:
            case Role.PLAIN | Role.FAILS | Role.EARLY | Role.GARBAGE:
                await self._ends(part)
            case Role.KILLED:
                await self._kill(part)
            case Role.DELETED:
                await self._delete(part)
            case Role.PAUSED:
                await self._pause(part)
            case _:
                assert_never(part.role)

    async def _ends(self, part: Part) -> None:
        row = self.board.of(part)
        await self.board.until(lambda: row.state in ENDED, WORK_WITHIN)

    async def _report_early(self, part: Part) -> None:
        """Start the agent of a task that does not exist yet, and create it when the worker has parked some reports."""
        self.screen.say(f"an agent reports before its task is created: {part.prompt}")
        before = self.meter.last.by_outcome.get("parked", 0)
        await self.provisioner.start(part, 1, "early-bird")
        began = monotonic()
        while self.facts.parked < _PARKED_LEAST and monotonic() - began < PARKED_WITHIN:
            await asyncio.sleep(0.5)  # the metrics are read once a second
            self.facts.parked = int(self.meter.last.by_outcome.get("parked", 0) - before)
        self.screen.say(f"the worker has parked {self.facts.parked} reports; now comes the create")

    async def _kill(self, part: Part) -> None:
        row = self.board.of(part)
        await self._at_work(row)
        await asyncio.to_thread(self.crew.kill, part)
        killed_at = monotonic()
        self.screen.say(f"kill -9 of the agent of {row.name}")
        if await self.board.until(lambda: row.health == LOST, SHOWS_WITHIN):
            self.facts.lost_after = monotonic() - killed_at

    async def _delete(self, part: Part) -> None:
        row = self.board.of(part)
        await self._at_work(row)
        self.screen.say(f"task.delete of {row.name}, while it works")
        self.facts.delete_reply = await self.desk.delete(part)
        await self.board.until(lambda: row.deleted, SHOWS_WITHIN)
        began = monotonic()
        while self.crew.is_running(part) and monotonic() - began < SHOWS_WITHIN:  # noqa: ASYNC110 - a process rings no bell
            await asyncio.sleep(0.1)
        self.facts.gone_after_delete = not self.crew.is_running(part)

    async def _pause(self, part: Part) -> None:
        row = self.board.of(part)
        await self.board.until(lambda: row.state == "complete", WORK_WITHIN)
        self.screen.say(f"task.pause of {row.name}, which is done")
        self.facts.pause_reply = await self.desk.pause(part)
        await self.board.until(lambda: row.status == "paused", SHOWS_WITHIN)

    async def _at_work(self, row: Row) -> None:
        await self.board.until(lambda: row.worked >= _SEEN_AT_WORK and row.health == "healthy", SHOWS_WITHIN)
