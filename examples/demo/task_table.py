"""The demo's view of its tasks, built from change events only."""

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
from taskherd.broker.consumer import Consumer
from taskherd.broker.subscription import Source
from taskherd.broker.topology import TopologyNames

_QUEUE_LENGTH: Final = 50_000


@dataclass(slots=True)
class DemoTask:
    """A task as of its latest event."""

    scenario: Scenario
    task_id: UUID | None = None
    """None before the first event."""
    version: int = 0
    status: str = ""
    state: str = ""
    message: str = ""
    health: str = ""
    deleted: bool = False
    document: dict[str, Any] = field(default_factory=dict)
    """The complete task document."""
    statuses: set[str] = field(default_factory=set)
    """All statuses that the task has had."""
    messages: int = 0
    """Number of different messages that the agent reported while working."""

    def apply(self, kind: str, version: int, task: dict[str, Any]) -> None:
        """Update the row from an event."""
        previous = self.message
        state, health = task["current_state"] or {}, task["workspace_agent_health"]
        self.version, self.task_id, self.status = version, UUID(task["id"]), task["status"]
        self.document = task
        self.statuses.add(self.status)
        self.state, self.message = state.get("state", ""), state.get("message", "")
        self.health = "" if health is None else "healthy" if health["healthy"] else health["reason"]
        self.deleted = kind == "deleted"
        self.messages += self.status == "active" and self.state == "working" and self.message != previous


class TaskTable:
    """A consumer of all change events, and of all reports to learn when each was made.

    ``lags`` has, in seconds, the time from a runner's ``app.status`` report to the arrival of its event.
    """

    def __init__(
        self,
        consuming: SupervisedConnection,
        names: TopologyNames,
        scenarios: Sequence[Scenario],
        on_change: Callable[[DemoTask], None],
    ) -> None:
        self.rows = {scenario.name: DemoTask(scenario) for scenario in scenarios}
        self.events = 0
        self.repeats = 0
        self.lags: list[float] = []
        self._names = names
        self._on_change = on_change
        self._sent: dict[tuple[UUID, str], datetime] = {}  # stays small: fourteen agents report for a minute
        self._changed = asyncio.Event()
        self._subscribed = asyncio.Event()
        self._consumer = Consumer(consuming, self._prepare, prefetch=1000)

    async def run(self) -> None:
        """Consume events until cancelled."""
        self._consumer.start()
        try:
            while deliveries := await self._consumer.next_batch(100, 0):
                for delivery in deliveries:
                    if delivery.exchange == self._names.events:
                        self._apply_events(delivery.body)
                    else:
                        self._record_reports(delivery.body)
                await self._consumer.ack(deliveries)
                self._changed.set()
        finally:
            await self._consumer.close()

    async def subscribed(self, within: float) -> None:
        """Wait until no further event can be missed; raise ``TimeoutError`` after ``within`` seconds."""
        async with asyncio.timeout(within):
            await self._subscribed.wait()

    async def until(self, holds: Callable[[], bool], within: float) -> bool:
        """Wait up to ``within`` seconds until ``holds()``, checking it after each event; return whether it holds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                while not holds():
                    self._changed.clear()
                    await self._changed.wait()
        return holds()

    def of(self, scenario: Scenario) -> DemoTask:
        """Return the row of a scenario's task."""
        return self.rows[scenario.name]

    def _apply_events(self, body: bytes) -> None:
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

    def _record_reports(self, body: bytes) -> None:
        """Record when each app status was made; invalid reports are ignored."""
        with suppress(ValueError, KeyError, TypeError):
            reports = orjson.loads(body)
            for report in reports if isinstance(reports, list) else [reports]:
                if report["type"] == "app.status":
                    key = (UUID(report["task_id"]), report["message"])
                    self._sent[key] = datetime.fromisoformat(report["observed_at"])

    async def _prepare(self, channel: AbstractChannel) -> Sequence[Source]:
        events = await topology.declare_exclusive_queue(
            channel, length=_QUEUE_LENGTH, exchange=self._names.events, routing_keys=("task.#",)
        )
        reports = await topology.declare_exclusive_queue(
            channel, length=_QUEUE_LENGTH, exchange=self._names.reports, routing_keys=("#",)
        )
        self._subscribed.set()
        return [Source(reports), Source(events)]
