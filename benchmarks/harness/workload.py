"""The workload: tasks, and reports in a fixed order. Every contender receives the same bytes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import md5
from typing import TYPE_CHECKING
from uuid import UUID

import orjson

if TYPE_CHECKING:
    from collections.abc import Iterator

PREFIX = "bench"
"""The AMQP prefix of all benchmarks."""

PROMPT_BYTES = 200
MESSAGE_BYTES = 80
ARRAY_TASKS, ARRAY_HEARTBEATS, ARRAY_STATUSES = 20, 3, 2
"""An array as a runner sends it: the number of tasks, and of heartbeats and app statuses for each."""

_START = datetime(2026, 1, 1, tzinfo=UTC)
_STATES = ("working", "idle")


@dataclass(frozen=True, slots=True)
class Workload:
    """``reports`` reports, spread evenly over ``tasks`` tasks, one per message or in arrays of 100.

    ``first`` is the number of the first report; a second workload for the same tasks continues where the first ended.
    """

    tasks: int
    reports: int
    arrays: bool = False
    first: int = 0

    @property
    def per_message(self) -> int:
        """Reports in one message."""
        return ARRAY_TASKS * (ARRAY_HEARTBEATS + ARRAY_STATUSES) if self.arrays else 1

    @property
    def description(self) -> str:
        """The workload in one line."""
        if self.arrays:
            each = f"{ARRAY_HEARTBEATS} heartbeats and {ARRAY_STATUSES} app.status each"
            shape = f"in arrays of {self.per_message} ({ARRAY_TASKS} tasks, {each})"
            share = ARRAY_STATUSES * 100 // (ARRAY_HEARTBEATS + ARRAY_STATUSES)
        else:
            shape, share = "one per message", 50
        return (
            f"{self.tasks:,} tasks, {self.reports:,} reports waiting, {shape}, evenly spread; {share} % app.status, "
            f"all of which change the document, the others heartbeats, which do not; prompts of {PROMPT_BYTES} B, "
            f"status messages of {MESSAGE_BYTES} B"
        )

    def messages(self) -> Iterator[tuple[str, bytes]]:
        """Return routing key and body of each message, in order."""
        return self._arrays() if self.arrays else self._singles()

    def _singles(self) -> Iterator[tuple[str, bytes]]:
        for number in range(self.first, self.first + self.reports):
            step, index = divmod(number, self.tasks)
            report = _status(index, number) if (step + index) % 2 else _heartbeat(index, number)
            yield str(task_id(index)), orjson.dumps(report)

    def _arrays(self) -> Iterator[tuple[str, bytes]]:
        number = self.first
        for array in range(self.reports // self.per_message):
            reports = []
            for position in range(ARRAY_TASKS):
                index = (array * ARRAY_TASKS + position) % self.tasks
                for make in (_heartbeat, _status, _heartbeat, _status, _heartbeat):
                    reports.append(make(index, number))
                    number += 1
            yield str(task_id(array * ARRAY_TASKS % self.tasks)), orjson.dumps(reports)


def task_id(index: int) -> UUID:
    """Return the id of a task, as PostgreSQL computes it with ``md5(index::text)::uuid``."""
    return UUID(md5(str(index).encode(), usedforsecurity=False).hexdigest())


def agent_id(index: int) -> UUID:
    """Return the id of a task's agent, as ``md5('agent' || index)::uuid``."""
    return UUID(md5(f"agent{index}".encode(), usedforsecurity=False).hexdigest())


def _heartbeat(index: int, number: int) -> dict[str, object]:
    return {
        "type": "agent.heartbeat",
        "task_id": str(task_id(index)),
        "build_number": 1,
        "seq": number + 1_000,
        "observed_at": (_START + timedelta(milliseconds=number)).isoformat(),
        "agent_id": str(agent_id(index)),
    }


def _status(index: int, number: int) -> dict[str, object]:
    return {
        **_heartbeat(index, number),
        "type": "app.status",
        "state": _STATES[number // 7 % 2],
        "message": f"step {number}: reading the tests that fail, then the code they call".ljust(MESSAGE_BYTES, "."),
        "uri": f"https://example.com/runs/{number}",
    }
