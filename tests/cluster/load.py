"""A steady load of reports, log entries and commands, and what a client of the API notices meanwhile."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import count, pairwise
from typing import Any, Final

import httpx

from taskherd.domain.reports import AgentState, AppStatus, LogEntry, LogSource, Report, TaskLog
from tests.chaos import workload
from tests.harness import histories
from tests.harness.chaos import ChaosHarness
from tests.harness.sse import SseClient, sse_client

TASKS: Final = 6
"""Tasks that reports are about; the others are only created."""
REPORT_INTERVAL: Final = 0.1
STATUSES, ENTRIES = 2, 3
"""Reports of each kind in each interval: 50 a second in all."""
POST_INTERVAL: Final = 0.5
WATCH_INTERVAL: Final = 0.2
MAX_UNCONFIRMED: Final = 1_000
"""Maximum number of intervals whose reports are not confirmed yet, a minute and a half."""
MAX_POSTS: Final = 60
"""Maximum number of creates at a time."""
POST_TIMEOUT: Final = 60.0
PATIENCE: Final = 180.0
"""Seconds within which every report is confirmed and every create accepted, however often it must be repeated."""
REPEATS_AFTER: Final = 0.5
"""Seconds after which a client repeats a create that was not accepted."""


@dataclass(slots=True)
class SteadyLoad:
    """The load; ``gap``, ``posts`` are what a client has noticed since ``mark`` was called."""

    harness: ChaosHarness
    client: httpx.AsyncClient
    stream: SseClient
    tasks: list[uuid.UUID] = field(default_factory=list)
    posts: list[tuple[int, float]] = field(default_factory=list)
    """Status and duration in seconds of each POST."""

    gap: float = 0.0
    """Longest time in seconds between two events of the stream."""

    _seq: count[int] = field(default_factory=lambda: count(10))
    _entries: dict[uuid.UUID, count[int]] = field(default_factory=dict)
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)
    _told_at: float = field(default_factory=time.monotonic)

    def mark(self) -> None:
        """Begin to measure."""
        self.posts.clear()
        self.gap, self._told_at = 0.0, time.monotonic()

    @property
    def longest_post(self) -> float:
        """Longest duration of a POST in seconds."""
        return max(seconds for _, seconds in self.posts)

    @property
    def refused(self) -> float:
        """Share of the POSTs that were answered with 503."""
        return sum(status == httpx.codes.SERVICE_UNAVAILABLE for status, _ in self.posts) / len(self.posts)

    async def start_tasks(self) -> None:
        """Create the tasks that reports are about, and make them active."""
        for _ in range(TASKS):
            task_id = await self._create()
            self._entries[task_id] = count()
            await self._report(task_id, workload.regular(task_id, 0))
            self.tasks.append(task_id)

    async def send_reports(self) -> None:
        """Report on one task after the other."""
        unconfirmed = asyncio.Semaphore(MAX_UNCONFIRMED)

        async def report(task_id: uuid.UUID, reports: list[Report]) -> None:
            async with unconfirmed:
                await self._report(task_id, reports)

        async with asyncio.TaskGroup() as sending:
            for number in count():
                if await self._pause(REPORT_INTERVAL):
                    return
                async with unconfirmed:
                    task_id = self.tasks[number % TASKS]
                    sending.create_task(report(task_id, self._next_reports(task_id)))

    async def send_creates(self) -> None:
        """Create one task after the other."""
        creating = asyncio.Semaphore(MAX_POSTS)

        async def create() -> None:
            async with creating:
                await self._create()

        async with asyncio.TaskGroup() as posting:
            while not await self._pause(POST_INTERVAL):
                async with creating:
                    posting.create_task(create())

    async def watch(self) -> None:
        """Measure the gaps between the events of the stream until the load ends."""
        seen = len(self.stream.events)
        while not self._stopping.is_set():
            self.stream.received.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(WATCH_INTERVAL):
                    await self.stream.received.wait()
            self.gap = max(self.gap, time.monotonic() - self._told_at)
            if len(self.stream.events) > seen:
                seen, self._told_at = len(self.stream.events), time.monotonic()

    def stop(self) -> None:
        """Send nothing new."""
        self._stopping.set()

    async def entries_out_of_order(self) -> int:
        """Read the logs over the API, and return the number of entries that come before an earlier one."""
        late = 0
        for task_id in self.tasks:
            response = await self.client.get(f"/tasks/me/{task_id}/logs")
            assert response.status_code == 200, response.text
            lines = [int(entry["content"].removeprefix("line ")) for entry in response.json()["logs"]]
            assert len(lines) == next(self._entries[task_id])
            late += sum(earlier > later for earlier, later in pairwise(lines))
        return late

    async def _pause(self, seconds: float) -> bool:
        """Wait, and return whether the load has ended."""
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return False
        return True

    def _next_reports(self, task_id: uuid.UUID) -> list[Report]:
        common: dict[str, Any] = {"task_id": task_id, "build_number": 1}
        agent = uuid.UUID(int=task_id.int ^ 1)
        reports: list[Report] = []
        for _ in range(STATUSES):
            seq = next(self._seq)
            step = f"step {seq}"
            reports.append(AppStatus(**common, seq=seq, agent_id=agent, state=AgentState.WORKING, message=step))
        for _ in range(ENTRIES):
            number = next(self._entries[task_id])
            entry = LogEntry(number, LogSource.OUTPUT, f"line {number}", histories.NOON)
            reports.append(TaskLog(**common, seq=next(self._seq), entries=(entry,)))
        return reports

    async def _report(self, task_id: uuid.UUID, reports: list[Report]) -> None:
        self.harness.ledger.reports[task_id] += reports
        names = self.harness.names
        messages = [workload.message(names, workload.encode([report]), str(task_id)) for report in reports]
        await self.harness.send(messages, within=PATIENCE)

    async def _create(self) -> uuid.UUID:
        """Create a task as a careful client does: repeat it with the same key until it is accepted."""
        key = str(uuid.uuid4())
        body = {"template_version_id": str(workload.VERSION), "input": f"Go on, {key}"}
        async with asyncio.timeout(PATIENCE):
            while True:
                began = time.monotonic()
                response = await self.client.post("/tasks/me", json=body, headers={"Idempotency-Key": key})
                self.posts.append((response.status_code, time.monotonic() - began))
                if response.status_code in {httpx.codes.CREATED, httpx.codes.OK}:  # OK: an earlier attempt did it
                    break
                assert response.status_code == httpx.codes.SERVICE_UNAVAILABLE, response.text
                await asyncio.sleep(REPEATS_AFTER)
        task_id = uuid.UUID(response.json()["id"])
        self.harness.ledger.reports.setdefault(task_id, [])
        self.harness.ledger.accepted_inputs.add(body["input"])
        self.harness.sent += 1
        return task_id


@asynccontextmanager
async def steady_load(harness: ChaosHarness, client: httpx.AsyncClient) -> AsyncIterator[SteadyLoad]:
    """Send the load during the block; afterwards everything is confirmed and accepted."""
    async with sse_client(client, "/tasks/watch") as stream:
        await stream.ready()
        load = SteadyLoad(harness, client, stream)
        await load.start_tasks()
        async with asyncio.TaskGroup() as running:
            for part in (load.send_reports(), load.send_creates(), load.watch()):
                running.create_task(part)
            try:
                yield load
            finally:
                load.stop()
