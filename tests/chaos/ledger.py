"""The ledger: what was sent and what came out, kept apart from the worker, and the invariants that tie the two.

- I1: every confirmed input is reflected in its task, or in the dead letters with its reason; nothing else is there.
- I2: a task's versions are contiguous and unique, and each tells of something that a reader can see.
- I3: the final task is the pure fold of its inputs by (build_number, seq).
- I4: every version was published; after dropping repeats exactly once, all repeats alike, in the feed in order.

``violations`` looks at everything and says in words what does not hold; an empty list is the only good answer. ``lost``
and ``doubled`` count what of it is a loss, and what was done twice.
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
from tests.chaos.expectation import Expected, expected, facets, seen_by_readers
from tests.chaos.rows import Rows, read

MOST_TOLD = 20


@dataclass(frozen=True, slots=True)
class Violation:
    """Something that does not hold, in words, and how many inputs or changes it means were lost or doubled."""

    told: str
    lost: int = 0
    doubled: int = 0


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter: why, and what it said; ``place`` is its index in the array that it came in."""

    reason: str
    body: bytes
    place: int | None
    length: int | None


@dataclass(slots=True)
class CollectedEvent:
    """An event as it came out, and how often."""

    event: dict[str, Any]
    times: int = 1


@dataclass(slots=True)
class Ledger:
    """The books of one test. ``reports`` and ``deleted`` are what the test has sent and the broker confirmed."""

    database_url: str
    amqp_url: str
    names: TopologyNames
    reports: dict[UUID, list[Report]] = field(default_factory=dict)
    deleted: set[UUID] = field(default_factory=set)
    bad: list[tuple[str, bytes]] = field(default_factory=list)
    """Reason and body of each dead letter that must be there, besides the build conflicts among the reports."""

    told: dict[tuple[UUID, int], CollectedEvent] = field(default_factory=dict)
    letters: list[Letter] = field(default_factory=list)
    lost: int = 0
    """Of the last look: inputs that are nowhere reflected, and changes that were never told."""

    doubled: int = 0
    """Of the last look: changes and log entries that are there twice."""

    _different: list[Violation] = field(default_factory=list)
    _expected: dict[UUID, tuple[int, Expected]] = field(default_factory=dict)

    @property
    def queue(self) -> str:
        """The ledger's own queue of events, without a limit."""
        return f"{self.names.prefix}.ledger"

    async def open(self) -> None:
        """Declare the ledger's queue, before anything happens; the topology is there."""
        async with await aio_pika.connect(self.amqp_url, timeout=10) as connection:
            channel = await connection.channel()
            queue = await channel.declare_queue(self.queue, durable=True, arguments={"x-queue-type": "quorum"})
            await queue.bind(self.names.events, "#")

    async def close(self) -> None:
        """Delete the queue."""
        async with await aio_pika.connect(self.amqp_url, timeout=10) as connection:
            await (await connection.channel()).queue_delete(self.queue, timeout=10)

    async def rows(self) -> Rows:
        """What the database says now."""
        connection = await asyncpg.connect(self.database_url, timeout=5, command_timeout=10)
        try:
            return await read(connection)
        finally:
            await connection.close(timeout=5)

    async def violations(self) -> list[str]:
        """Everything that does not hold, at most 20 lines; the worker may still be on its way."""
        rows = await self.rows()
        if rows.outbox:
            return [f"I4: {rows.outbox} events wait in the outbox"]
        await self._collect()
        found = list(self._different)
        for task_id, reports in self.reports.items():
            found += self._task(rows, task_id, reports)
        strangers = rows.tasks.keys() - self.reports.keys()
        found += [Violation(f"I1: a task that nobody created: {task_id}") for task_id in strangers]
        found += self._letters(rows)
        found += self._events(rows)
        self.lost = sum(breach.lost for breach in found)
        self.doubled = sum(breach.doubled for breach in found)
        return [breach.told for breach in found[:MOST_TOLD]]

    def expect(self, task_id: UUID) -> Expected:
        """The pure fold of what was sent about a task."""
        reports = self.reports[task_id]
        known = self._expected.get(task_id)
        if known is None or known[0] != len(reports):
            known = self._expected[task_id] = (len(reports), expected(task_id, reports))
        return known[1]

    @property
    def repeats(self) -> int:
        """How many events came out more than once."""
        return sum(told.times - 1 for told in self.told.values())

    def _task(self, rows: Rows, task_id: UUID, reports: list[Report]) -> Iterable[Violation]:
        row = rows.tasks.get(task_id)
        if row is None:
            yield Violation(f"I1: task {task_id} was not created", lost=1)
            return
        yield from _versions(rows, task_id)
        if (row.deleted_at is not None) != (task_id in self.deleted):
            yield Violation(f"I1: task {task_id} deleted at {row.deleted_at}", lost=1)
        if row.deleted_at is not None:
            return
        state = self.expect(task_id).memory
        held, wanted = facets(row.memory), facets(state)
        for name in wanted:
            if held[name] != wanted[name]:
                yield Violation(f"I3: {name} of {task_id} is {held[name]}, the fold says {wanted[name]}", lost=1)
        shown, right = seen_by_readers(row.document), seen_by_readers(self.expect(task_id).document(row))
        for name in sorted(shown.keys() | right.keys()):
            if shown.get(name) != right.get(name):
                yield Violation(f"I3: {name} of {task_id} shows {shown.get(name)}, the fold says {right.get(name)}")
        yield from _logs(rows, task_id, reports)

    def _letters(self, rows: Rows) -> Iterable[Violation]:
        """Every bad input has its letter, and nothing else has one. A conflict that was parked may still be parked."""
        wanted = {(reason, _plain(body)) for reason, body in self.bad}
        waiting = {_plain(body.encode()) for body in rows.parked}
        for task_id in self.reports:
            wanted |= {("build_conflict", _plain(body)) for body in self.expect(task_id).conflicts}
        found = Counter((letter.reason, _plain(letter.body)) for letter in self.letters)
        for reason, body in wanted - found.keys():
            if body not in waiting:
                yield Violation(f"I1: no dead letter {reason} for {body[:200]!r}", lost=1)
        for reason, body in found.keys() - wanted:
            yield Violation(f"I1: an innocent in the dead letters, {reason}: {body[:200]!r}")
        for body in waiting - {body for _, body in wanted}:
            yield Violation(f"I1: still parked: {body[:200]!r}", lost=1)

    def _events(self, rows: Rows) -> Iterable[Violation]:
        for key in rows.events.keys() - self.told.keys():
            yield Violation(f"I4: version {key[1]} of {key[0]} was never published", lost=1)
        for key in self.told.keys() - rows.events.keys():
            yield Violation(f"I4: version {key[1]} of {key[0]} was published, and is not in the history")
        identities = Counter(told.event["id"] for told in self.told.values())
        for identity, times in identities.items():
            if times > 1:
                yield Violation(f"I4: id {identity} for {times} versions")
        for key, told in self.told.items():
            event = rows.events.get(key)
            document = told.event["data"]["task"]
            if event and any(document.get(name) != value for name, value in event.document.items()):
                yield Violation(f"I4: version {key[1]} of {key[0]} was published otherwise than committed")
        yield from _feed(rows)

    async def _collect(self) -> None:
        """Take what came out since the last time off the queues."""
        async with await aio_pika.connect(self.amqp_url, timeout=10) as connection:
            channel = await connection.channel()
            for body, _ in await _empty(channel, self.queue):
                for event in json.loads(body):
                    self._note(event)
            for body, headers in await _empty(channel, self.names.dead):
                self.letters.append(_letter(body, headers))

    def _note(self, event: dict[str, Any]) -> None:
        key = (UUID(event["subject"]), event["data"]["version"])
        known = self.told.get(key)
        if known is None:
            self.told[key] = CollectedEvent(event)
            return
        known.times += 1
        if known.event != event:
            self._different.append(Violation(f"I4: repeats of version {key[1]} of {key[0]} differ"))


def _versions(rows: Rows, task_id: UUID) -> Iterable[Violation]:
    row = rows.tasks[task_id]
    versions = sorted(version for of, version in rows.events if of == task_id)
    if rows.doubled:
        yield Violation(f"I2: versions that are in the history twice: {rows.doubled}", doubled=1)
    if versions != list(range(1, row.version + 1)):
        yield Violation(f"I2: the row of {task_id} is at version {row.version}, its history is {versions}")
        return
    for version in versions[1:]:
        before, after = rows.events[task_id, version - 1], rows.events[task_id, version]
        if after.kind != "deleted" and before.document == after.document:
            yield Violation(f"I2: version {version} of {task_id} changed nothing", doubled=1)
    kinds = [rows.events[task_id, version].kind for version in versions]
    wanted = ["created"] + ["updated"] * (len(kinds) - 1)
    if row.deleted_at is not None:
        wanted[-1] = "deleted"
    if kinds != wanted:
        yield Violation(f"I2: the history of {task_id} is {kinds}")
    elif row.deleted_at is None and rows.events[task_id, row.version].document != row.document:
        yield Violation(f"I2: the last event of {task_id} does not show what the row shows")


def _feed(rows: Rows) -> Iterable[Violation]:
    last: dict[UUID, int] = {}
    for task_id, version in rows.feed:
        if version != last.get(task_id, 0) + 1:
            yield Violation(f"I4: the feed tells version {version} of {task_id} after {last.get(task_id, 0)}")
        last[task_id] = version
    for task_id, row in rows.tasks.items():
        if last.get(task_id, 0) != row.version:
            yield Violation(f"I4: the feed of {task_id} ends at {last.get(task_id, 0)}, its row says {row.version}")


def _logs(rows: Rows, task_id: UUID, reports: list[Report]) -> Iterable[Violation]:
    wanted: dict[tuple[int, int], tuple[int, str]] = {}
    for report in reports:
        if isinstance(report, TaskLog):
            for entry in report.entries:
                key = (report.key[0], entry.id)
                wanted[key] = max(wanted.get(key, (-1, "")), (report.seq, entry.content))
    kept = rows.logs.get(task_id, [])
    found = {(entry.build_number, entry.entry_id): (entry.seq, entry.content) for entry in kept}
    if found != wanted or len(kept) != len(found):
        missing, twice = sorted(wanted.keys() - found.keys()), len(kept) - len(found)
        yield Violation(
            f"I1: log entries of {task_id} missing: {missing}, twice: {twice}, others differ or are strange",
            len(missing),
            twice,
        )
    if sorted(entry.log_id for entry in kept) != list(range(len(kept))):
        yield Violation(f"I2: the log ids of {task_id} are not 0 to {len(kept) - 1}")


async def _empty(channel: aio_pika.abc.AbstractChannel, queue: str) -> list[tuple[bytes, dict[str, Any]]]:
    """Take all there is."""
    source = await channel.get_queue(queue, ensure=False)
    taken: list[tuple[bytes, dict[str, Any]]] = []
    while (message := await source.get(no_ack=True, fail=False, timeout=10)) is not None:
        taken.append((message.body, dict(message.headers)))
    return taken


def _letter(body: bytes, headers: dict[str, Any]) -> Letter:
    deaths = headers.get("x-death")
    reason = headers.get("x-taskherd-reason") or (f"broker: {deaths[0].get('reason')}" if deaths else "none")
    return Letter(str(reason), body, headers.get("x-taskherd-index"), headers.get("x-taskherd-length"))


def _plain(body: bytes) -> str:
    """A body as text that is the same however its JSON is laid out."""
    try:
        return json.dumps(json.loads(body), sort_keys=True)
    except (ValueError, RecursionError):
        return repr(body)
