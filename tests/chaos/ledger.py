"""The ledger records what was sent and what was published, without relying on the worker, and checks the invariants.

- I1: every confirmed input is reflected in its task, or is a dead letter with a reason; nothing else exists.
- I2: a task's versions are contiguous and unique, and each contains a visible change.
- I3: the final task is the pure fold of its inputs by (build_number, seq).
- I4: every version was published, exactly once after duplicates are removed; duplicates are identical; the feed is
  in order.

``violations`` checks everything and returns descriptions of the violations. ``lost`` and ``duplicated`` count the
inputs and changes that these violations mean.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import aio_pika
import asyncpg

from taskherd.broker.topology import TopologyNames
from taskherd.domain.reports import Report, TaskLog
from tests.chaos.expectation import Expected, expected, facets, without_timestamp
from tests.chaos.rows import Rows, read

MAX_LISTED = 20


@dataclass(frozen=True, slots=True)
class Violation:
    """A violated invariant, and the number of inputs or changes that were lost or duplicated."""

    message: str
    lost: int = 0
    duplicated: int = 0


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A dead letter; ``index`` is its index in the array that it was sent in."""

    reason: str
    body: bytes
    index: int | None
    length: int | None


@dataclass(slots=True)
class CollectedEvent:
    """A published event, and how often it was received."""

    event: dict[str, Any]
    times: int = 1


@dataclass(slots=True)
class Ledger:
    """The ledger of one test. ``reports`` and ``deleted`` are inputs that the test sent and the broker confirmed."""

    database_url: str
    amqp_url: str
    names: TopologyNames
    reports: dict[UUID, list[Report]] = field(default_factory=dict)
    deleted: set[UUID] = field(default_factory=set)
    expected_dead_letters: list[tuple[str, bytes]] = field(default_factory=list)
    """Reason and body of each expected dead letter, except the build conflicts among the reports."""

    accepted_inputs: set[str] = field(default_factory=set)
    """Inputs of tasks that were created in the end: copies of their creates that expired on the way are no loss."""

    published: dict[tuple[UUID, int], CollectedEvent] = field(default_factory=dict)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    lost: int = 0
    """Number of inputs that are not reflected and changes that were not published, at the last check."""

    duplicated: int = 0
    """Number of changes and log entries that exist twice, at the last check."""

    _differing_duplicates: list[Violation] = field(default_factory=list)
    _expected: dict[UUID, tuple[int, Expected]] = field(default_factory=dict)

    @property
    def queue(self) -> str:
        """Name of the ledger's queue of events, which has no length limit."""
        return f"{self.names.prefix}.ledger"

    async def open(self) -> None:
        """Declare the ledger's queue, after the topology and before the first message."""
        async with await aio_pika.connect(self.amqp_url, timeout=10) as connection:
            channel = await connection.channel()
            queue = await channel.declare_queue(self.queue, durable=True, arguments={"x-queue-type": "quorum"})
            await queue.bind(self.names.events, "#")

    async def close(self) -> None:
        """Delete the queue."""
        async with await aio_pika.connect(self.amqp_url, timeout=10) as connection:
            await (await connection.channel()).queue_delete(self.queue, timeout=10)

    async def rows(self) -> Rows:
        """Read the tables."""
        connection = await asyncpg.connect(self.database_url, timeout=5, command_timeout=10)
        try:
            return await read(connection)
        finally:
            await connection.close(timeout=5)

    async def violations(self) -> list[str]:
        """Check everything and return up to 20 violations; the worker may still be working."""
        rows = await self.rows()
        if rows.outbox:
            return [f"I4: {rows.outbox} events are in the outbox"]
        await self._collect()
        violations = list(self._differing_duplicates)
        for task_id, reports in self.reports.items():
            violations += self._check_task(rows, task_id, reports)
        unexpected = rows.tasks.keys() - self.reports.keys()
        violations += [Violation(f"I1: unexpected task {task_id}") for task_id in unexpected]
        violations += self._check_dead_letters(rows)
        violations += self._check_events(rows)
        self.lost = sum(violation.lost for violation in violations)
        self.duplicated = sum(violation.duplicated for violation in violations)
        return [violation.message for violation in violations[:MAX_LISTED]]

    def expect(self, task_id: UUID) -> Expected:
        """Return the pure fold of the reports sent about a task."""
        reports = self.reports[task_id]
        cached = self._expected.get(task_id)
        if cached is None or cached[0] != len(reports):
            cached = self._expected[task_id] = (len(reports), expected(task_id, reports))
        return cached[1]

    @property
    def republished(self) -> int:
        """Number of events received again."""
        return sum(collected.times - 1 for collected in self.published.values())

    def _check_task(self, rows: Rows, task_id: UUID, reports: list[Report]) -> Iterable[Violation]:
        row = rows.tasks.get(task_id)
        if row is None:
            yield Violation(f"I1: task {task_id} was not created", lost=1)
            return
        yield from _versions(rows, task_id)
        if (row.deleted_at is not None) != (task_id in self.deleted):
            yield Violation(f"I1: task {task_id} deleted at {row.deleted_at}", lost=1)
        if row.deleted_at is not None:
            return
        fold = self.expect(task_id)
        stored, wanted = facets(row.state), facets(fold.state)
        for name in wanted:
            if stored[name] != wanted[name]:
                yield Violation(f"I3: {name} of {task_id} is {stored[name]}, expected {wanted[name]}", lost=1)
        document, right = without_timestamp(row.document), without_timestamp(fold.document(row))
        for name in sorted(document.keys() | right.keys()):
            if document.get(name) != right.get(name):
                yield Violation(
                    f"I3: {name} in the document of {task_id} is {document.get(name)}, expected {right.get(name)}"
                )
        yield from _logs(rows, task_id, reports)

    def _check_dead_letters(self, rows: Rows) -> Iterable[Violation]:
        """Check that exactly the expected dead letters exist. A conflict that was parked may still be parked."""
        wanted = {(reason, _normalized(body)) for reason, body in self.expected_dead_letters}
        parked = {_normalized(body.encode()) for body in rows.parked}
        for task_id in self.reports:
            wanted |= {("build_conflict", _normalized(body)) for body in self.expect(task_id).conflicts}
        actual = Counter((letter.reason, _normalized(letter.body)) for letter in self.dead_letters)
        for reason, body in wanted - actual.keys():
            if body not in parked:
                yield Violation(f"I1: no dead letter {reason} for {body[:200]!r}", lost=1)
        for reason, body in actual.keys() - wanted:
            if (
                self.accepted_inputs
                and reason == "broker: expired"
                and json.loads(body).get("input") in self.accepted_inputs
            ):
                continue
            yield Violation(f"I1: unexpected dead letter {reason}: {body[:200]!r}")
        for body in parked - {body for _, body in wanted}:
            yield Violation(f"I1: still parked: {body[:200]!r}", lost=1)

    def _check_events(self, rows: Rows) -> Iterable[Violation]:
        for key in rows.events.keys() - self.published.keys():
            yield Violation(f"I4: version {key[1]} of {key[0]} was never published", lost=1)
        for key in self.published.keys() - rows.events.keys():
            yield Violation(f"I4: version {key[1]} of {key[0]} was published but is not in the history")
        ids = Counter(collected.event["id"] for collected in self.published.values())
        for event_id, times in ids.items():
            if times > 1:
                yield Violation(f"I4: id {event_id} for {times} versions")
        for key, collected in self.published.items():
            event = rows.events.get(key)
            document = collected.event["data"]["task"]
            if event and any(document.get(name) != value for name, value in event.document.items()):
                yield Violation(f"I4: version {key[1]} of {key[0]} was published with another document than committed")
        yield from _feed(rows)

    async def _collect(self) -> None:
        """Consume the events and dead letters published since the last call."""
        async with await aio_pika.connect(self.amqp_url, timeout=10) as connection:
            channel = await connection.channel()
            for body, _ in await _drain(channel, self.queue):
                for event in json.loads(body):
                    self._add_event(event)
            for body, headers in await _drain(channel, self.names.dead):
                self.dead_letters.append(_dead_letter(body, headers))

    def _add_event(self, event: dict[str, Any]) -> None:
        key = (UUID(event["subject"]), event["data"]["version"])
        earlier = self.published.get(key)
        if earlier is None:
            self.published[key] = CollectedEvent(event)
            return
        earlier.times += 1
        if earlier.event != event:
            self._differing_duplicates.append(Violation(f"I4: duplicates of version {key[1]} of {key[0]} differ"))


def _versions(rows: Rows, task_id: UUID) -> Iterable[Violation]:
    row = rows.tasks[task_id]
    versions = sorted(version for of, version in rows.events if of == task_id)
    if rows.duplicated:
        yield Violation(f"I2: versions in the history twice: {rows.duplicated}", duplicated=1)
    if versions != list(range(1, row.version + 1)):
        yield Violation(f"I2: the row of {task_id} is at version {row.version}, its history is {versions}")
        return
    for version in versions[1:]:
        before, after = rows.events[task_id, version - 1], rows.events[task_id, version]
        if after.kind != "deleted" and before.document == after.document:
            yield Violation(f"I2: version {version} of {task_id} changed nothing", duplicated=1)
    kinds = [rows.events[task_id, version].kind for version in versions]
    wanted = ["created"] + ["updated"] * (len(kinds) - 1)
    if row.deleted_at is not None:
        wanted[-1] = "deleted"
    if kinds != wanted:
        yield Violation(f"I2: the history of {task_id} is {kinds}")
    elif row.deleted_at is None and rows.events[task_id, row.version].document != row.document:
        yield Violation(f"I2: the last event of {task_id} differs from the row")


def _feed(rows: Rows) -> Iterable[Violation]:
    last: dict[UUID, int] = {}
    for task_id, version in rows.feed:
        if version != last.get(task_id, 0) + 1:
            yield Violation(f"I4: the feed has version {version} of {task_id} after {last.get(task_id, 0)}")
        last[task_id] = version
    for task_id, row in rows.tasks.items():
        if last.get(task_id, 0) != row.version:
            yield Violation(f"I4: the feed of {task_id} ends at {last.get(task_id, 0)}, its row is at {row.version}")


def _logs(rows: Rows, task_id: UUID, reports: list[Report]) -> Iterable[Violation]:
    wanted: dict[tuple[int, int], tuple[int, str]] = {}
    for report in reports:
        if isinstance(report, TaskLog):
            for entry in report.entries:
                key = (report.sort_key[0], entry.id)
                wanted[key] = max(wanted.get(key, (-1, "")), (report.seq, entry.content))
    entries = rows.logs.get(task_id, [])
    actual = {(entry.build_number, entry.entry_id): (entry.seq, entry.content) for entry in entries}
    if actual != wanted or len(entries) != len(actual):
        missing, twice = sorted(wanted.keys() - actual.keys()), len(entries) - len(actual)
        yield Violation(
            f"I1: log entries of {task_id} missing: {missing}, twice: {twice}, others differ or are unexpected",
            len(missing),
            twice,
        )
    if sorted(entry.log_id for entry in entries) != list(range(len(entries))):
        yield Violation(f"I2: the log ids of {task_id} are not 0 to {len(entries) - 1}")


async def _drain(channel: aio_pika.abc.AbstractChannel, queue: str) -> list[tuple[bytes, dict[str, Any]]]:
    """Consume all messages of a queue."""
    source = await channel.get_queue(queue, ensure=False)
    messages: list[tuple[bytes, dict[str, Any]]] = []
    while (message := await source.get(no_ack=True, fail=False, timeout=10)) is not None:
        messages.append((message.body, dict(message.headers)))
    return messages


def _dead_letter(body: bytes, headers: dict[str, Any]) -> DeadLetter:
    deaths = headers.get("x-death")
    reason = headers.get("x-taskherd-reason") or (f"broker: {deaths[0].get('reason')}" if deaths else "none")
    return DeadLetter(str(reason), body, headers.get("x-taskherd-index"), headers.get("x-taskherd-length"))


def _normalized(body: bytes) -> str:
    """Return a body as text that does not depend on the layout of its JSON."""
    try:
        return json.dumps(json.loads(body), sort_keys=True)
    except (ValueError, RecursionError):
        return repr(body)
