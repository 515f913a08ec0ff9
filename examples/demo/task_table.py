"""What the demo knows of its tasks, and only from their change events; a reader like any other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import orjson
from aiormq.abc import AbstractChannel

from examples.demo.scenarios import Scenario
from taskherd.broker import topology
from taskherd.broker.connection import SupervisedConnection
from taskherd.broker.consume import Consumer, Source
from taskherd.broker.topology import TopologyNames

_LENGTH: Final = 50_000


@dataclass(slots=True)
class DemoTask:
    """A task as its latest event shows it."""

    scenario: Scenario
    task_id: UUID | None = None
    """None until its first event came."""
    version: int = 0
    status: str = ""
    state: str = ""
    message: str = ""
    health: str = ""
    deleted: bool = False
    document: dict[str, Any] = field(default_factory=dict)
    """The whole of it."""
    statuses: set[str] = field(default_factory=set)
    """Each status that was seen."""
    worked: int = 0
    """How many messages of a working agent were shown."""

    def apply(self, kind: str, version: int, task: dict[str, Any]) -> None:
        """Become what an event says."""
        before = self.message
        state, health = task["current_state"] or {}, task["workspace_agent_health"]
        self.version, self.task_id, self.status = version, UUID(task["id"]), task["status"]
        self.document = task
        self.statuses.add(self.status)
        self.state, self.message = state.get("state", ""), state.get("message", "")
        self.health = "" if health is None else "healthy" if health["healthy"] else health["reason"]
        self.deleted = kind == "deleted"
        self.worked += self.status == "active" and self.state == "working" and self.message != before


class TaskTable:
    """Reads the events, and the reports beside them for the time at which each was made.

    `lags` holds the seconds from a runner's `app.status` being made until the event that tells of it came here.
    """

    def __init__(
        self,
        consuming: SupervisedConnection,
        names: TopologyNames,
        parts: Sequence[Scenario],
        on_change: Callable[[DemoTask], None],
    ) -> None:
        self.rows = {part.name: DemoTask(part) for part in parts}
        self.events = 0
        self.repeats = 0
        self.lags: list[float] = []
        self._names = names
        self._on_change = on_change
        self._sent: dict[tuple[UUID, str], datetime] = {}  # bounded: what a dozen agents say in a minute
        self._changed = asyncio.Event()
        self._listening = asyncio.Event()
        self._intake = Consumer(consuming, self._prepare, prefetch=1000)

    async def run(self) -> None:
        """Take events until cancelled."""
        self._intake.start()
        try:
            while deliveries := await self._intake.batch(100, 0):
                for delivery in deliveries:
                    if delivery.exchange == self._names.events:
                        self._take_events(delivery.body)
                    else:
                        self._note_sending(delivery.body)
                await self._intake.ack(deliveries)
                self._changed.set()
        finally:
            await self._intake.close()

    async def listening(self, within: float) -> None:
        """Return when no event can be missed any more; raises TimeoutError after `within` seconds."""
        async with asyncio.timeout(within):
            await self._listening.wait()

    async def until(self, holds: Callable[[], bool], within: float) -> bool:
        """Wait until `holds()` after an event, or for `within` seconds; whether it holds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                while not holds():
                    self._changed.clear()
                    await self._changed.wait()
        return holds()

    def of(self, part: Scenario) -> DemoTask:
        """The row of a part's task."""
        return self.rows[part.name]

    def _take_events(self, body: bytes) -> None:
        for event in orjson.loads(body):
            row = self.rows.get(event["data"]["task"]["name"])
            version = event["data"]["version"]
            if row is None:
                continue
            if version <= row.version:
                self.repeats += 1
                continue
            self.events += 1
            row.apply(event["type"].split(".")[3], version, event["data"]["task"])
            self._measure(UUID(event["subject"]), row, event["data"]["cause"])
            self._on_change(row)

    def _measure(self, task_id: UUID, row: DemoTask, cause: dict[str, Any]) -> None:
        sent = self._sent.pop((task_id, row.message), None)
        if sent is not None and cause["kind"] == "report" and cause["type"] == "app.status":
            self.lags.append((datetime.now(UTC) - sent).total_seconds())

    def _note_sending(self, body: bytes) -> None:
        """Remember when an app status was sent, where that can be read."""
        with suppress(ValueError, KeyError, TypeError):
            said = orjson.loads(body)
            for report in said if isinstance(said, list) else [said]:
                if report["type"] == "app.status":
                    key = (UUID(report["task_id"]), report["message"])
                    self._sent[key] = datetime.fromisoformat(report["observed_at"])

    async def _prepare(self, channel: AbstractChannel) -> Sequence[Source]:
        events = await topology.declare_exclusive_queue(
            channel, length=_LENGTH, exchange=self._names.events, routing_keys=("task.#",)
        )
        reports = await topology.declare_exclusive_queue(
            channel, length=_LENGTH, exchange=self._names.reports, routing_keys=("#",)
        )
        self._listening.set()
        return [Source(reports), Source(events)]
