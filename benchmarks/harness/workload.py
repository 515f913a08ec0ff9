"""The work: which tasks, which reports in which order. Every contender gets the same bytes."""

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
"""The AMQP prefix of everything that a benchmark declares."""

PROMPT_BYTES = 200
MESSAGE_BYTES = 80
ROW_TASKS, ROW_BEATS, ROW_STATUSES = 20, 3, 2
"""A row as a runner sends it: so many tasks, each with so many heartbeats and app statuses."""

_BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)
_STATES = ("working", "idle")


@dataclass(frozen=True, slots=True)
class Workload:
    """So many reports, spread evenly over so many tasks; each alone in a message, or in rows of 100.

    ``first`` is the number of the first report: a second helping for the same tasks goes on from where the first ended.
    """

    tasks: int
    reports: int
    rows: bool = False
    first: int = 0

    @property
    def per_message(self) -> int:
        """Reports in one message."""
        return ROW_TASKS * (ROW_BEATS + ROW_STATUSES) if self.rows else 1

    @property
    def described(self) -> str:
        """The work in one line."""
        if self.rows:
            each = f"{ROW_BEATS} heartbeats and {ROW_STATUSES} app.status each"
            shape = f"in arrays of {self.per_message} ({ROW_TASKS} tasks, {each})"
            share = ROW_STATUSES * 100 // (ROW_BEATS + ROW_STATUSES)
        else:
            shape, share = "one a message", 50
        return (
            f"{self.tasks:,} tasks, {self.reports:,} reports waiting, {shape}, evenly spread; {share} % app.status, "
            f"all of which change the document, the rest heartbeats, which do not; prompts of {PROMPT_BYTES} B, status "
            f"messages of {MESSAGE_BYTES} B"
        )

    def messages(self) -> Iterator[tuple[str, bytes]]:
        """Routing key and body of each message, in order."""
        return self._rows() if self.rows else self._singles()

    def _singles(self) -> Iterator[tuple[str, bytes]]:
        for number in range(self.first, self.first + self.reports):
            turn, index = divmod(number, self.tasks)
            report = _status(index, number) if (turn + index) % 2 else _heartbeat(index, number)
            yield str(task_id(index)), orjson.dumps(report)

    def _rows(self) -> Iterator[tuple[str, bytes]]:
        number = self.first
        for row in range(self.reports // self.per_message):
            reports = []
            for place in range(ROW_TASKS):
                index = (row * ROW_TASKS + place) % self.tasks
                for made in (_heartbeat, _status, _heartbeat, _status, _heartbeat):
                    reports.append(made(index, number))
                    number += 1
            yield str(task_id(row * ROW_TASKS % self.tasks)), orjson.dumps(reports)


def task_id(index: int) -> UUID:
    """The id of a task, the same that PostgreSQL makes with ``md5(index::text)::uuid``."""
    return UUID(md5(str(index).encode(), usedforsecurity=False).hexdigest())


def agent_id(index: int) -> UUID:
    """The id of a task's agent, as ``md5('agent' || index)::uuid``."""
    return UUID(md5(f"agent{index}".encode(), usedforsecurity=False).hexdigest())


def _heartbeat(index: int, number: int) -> dict[str, object]:
    return {
        "type": "agent.heartbeat",
        "task_id": str(task_id(index)),
        "build_number": 1,
        "seq": number + 1_000,
        "observed_at": (_BEGINNING + timedelta(milliseconds=number)).isoformat(),
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
