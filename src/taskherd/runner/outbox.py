"""A runner's outbox: the unconfirmed reports of one task, in memory for sending and on disk for the next runner.

It is not the worker's outbox of events, which is a table (``store.outbox``).

Each report keeps its seq, so sending it again has no effect. A record on disk may carry a *checkpoint*: how far the
follower had read when it made these reports, so that after a crash no output is reported again under a different id.

The file is open only while reports wait: there is an outbox for each task on disk, and most of them are empty.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MAX_TASK_BYTES = 1024 * 1024
"""Bytes of unconfirmed reports of one task at which its follower stops reading."""
MAX_CONFIRMED_BYTES = 64 * 1024
"""Bytes of confirmed reports in the file above which it is rewritten without them."""
MAX_WRITTEN_BYTES = 4 * 1024 * 1024
"""Bytes that are appended to the file before it is rewritten in any case, with the last checkpoint only."""

Checkpoint: TypeAlias = dict[str, Any]


@dataclass(slots=True)
class Budget:
    """Number of bytes that the outboxes of all tasks may hold together."""

    maximum: int
    used: int = 0
    room: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, size: int) -> None:
        """Add ``size`` bytes to those in use; a negative size releases them."""
        self.used += size
        if self.used < self.maximum:
            self.room.set()
        else:
            self.room.clear()


class Outbox:
    """The unconfirmed reports of one task, in order."""

    def __init__(self, path: Path, budget: Budget, on_append: Callable[[Outbox], None]) -> None:
        """Read the reports that an earlier runner left; all of them are sent again."""
        self._path = path
        self._budget = budget
        self._on_append = on_append
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._confirmed = 0
        self._written = 0
        """Bytes appended to the file since this outbox was made, or the file rewritten."""
        self._room = asyncio.Event()
        self._room.set()
        self._torn = False
        """True if the file lacks a record or the end of one: nothing may be appended before it is rewritten."""
        self._empty = asyncio.Event()
        self._empty.set()
        self._takes_no_more = False
        self.checkpoint: Checkpoint = {}
        self.is_saved = True
        """Whether ``checkpoint`` is on disk."""
        self.last_seq = 0
        """The greatest seq of the reports that an earlier runner left here, confirmed or not."""
        self._file: int | None = None
        self._load()

    def __len__(self) -> int:
        """Return the number of unconfirmed reports."""
        return len(self._waiting)

    @property
    def full(self) -> bool:
        """True while followers should not produce reports; ``append`` accepts them nevertheless."""
        return self._size >= MAX_TASK_BYTES or self._budget.used >= self._budget.maximum

    async def wait_room(self) -> None:
        """Wait until the outbox is no longer full."""
        while self.full:
            await self._room.wait()
            await self._budget.room.wait()

    async def wait_empty(self) -> None:
        """Wait until the outbox is empty."""
        await self._empty.wait()

    def append(self, reports: Sequence[str], checkpoint: Checkpoint | None = None) -> None:
        """Append JSON reports to be sent.

        If the disk is full they are kept only in memory until one is appended while it has room. No later checkpoint
        is written before them. After ``discard`` or ``close`` nothing is appended.
        """
        self.checkpoint = checkpoint or self.checkpoint
        if not self._takes_no_more:
            self._store(reports)
            is_written = self._write(reports, checkpoint)
            if checkpoint:
                self.is_saved = is_written
            if self._written > MAX_WRITTEN_BYTES:
                self._rewrite()
            if not self._waiting:
                self._close_file()

    def discard(self) -> None:
        """Discard all pending reports and accept no more."""
        self._takes_no_more = True
        self._waiting.clear()
        self._resize(-self._size)
        self._empty.set()
        self._close_file()

    def peek(self, limit: int, size: int) -> list[bytes]:
        """Return the first reports: up to ``limit``, and up to ``size`` bytes unless the first alone is larger."""
        chosen: list[bytes] = []
        for report in self._waiting:
            size -= len(report)
            if len(chosen) >= limit or (chosen and size < 0):
                break
            chosen.append(report)
        return chosen

    def confirm(self, count: int) -> None:
        """Remove the first ``count`` reports after the broker confirmed them.

        After ``discard`` or ``close`` nothing is removed.
        """
        if self._takes_no_more:
            return
        size = sum(len(self._waiting.popleft()) for _ in range(count))
        self._resize(-size)
        self._confirmed += size
        if not self._waiting:
            self._empty.set()
        if self._confirmed > MAX_CONFIRMED_BYTES or (self._torn and not self._waiting):
            self._rewrite()
        if not self._waiting:
            self._close_file()

    def close(self) -> None:
        """Close the file, release the budget, and leave the file to the next outbox of the same path.

        A confirm may still be on its way then, and would rewrite what the next one has written.
        """
        self._takes_no_more = True
        self._budget.add(-self._size)
        self._size = 0
        self._close_file()

    def _store(self, reports: Sequence[str]) -> None:
        if reports:
            encoded = [report.encode() for report in reports]
            self._waiting.extend(encoded)
            self._resize(sum(map(len, encoded)))
            self._empty.clear()
            self._on_append(self)

    def _resize(self, change: int) -> None:
        self._size += change
        self._budget.add(change)
        if self._size < MAX_TASK_BYTES:
            self._room.set()
        else:
            self._room.clear()

    def _write(self, reports: Sequence[str], checkpoint: Checkpoint | None) -> bool:
        """Write stored reports to the file, with those that it lacks, and return whether that succeeded."""
        if self._torn:
            return self._rewrite()
        try:
            if self._file is None:
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
                self._file = os.open(self._path, flags, 0o600)
            line = json.dumps([checkpoint, list(reports)]).encode() + b"\n"
            self._written += len(line)
            is_written = os.write(self._file, line) == len(line)
        except OSError:
            is_written = False
        self._torn = not is_written
        return is_written

    def _close_file(self) -> None:
        """Close the file; what is appended next opens it again."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _load(self) -> None:
        with suppress(FileNotFoundError):
            content = self._path.read_bytes()
            self._torn = not content.endswith(b"\n") and bool(content)
            for line in content.splitlines():
                with suppress(ValueError, TypeError):  # a line that was not completely written
                    checkpoint, reports = json.loads(line)
                    self.checkpoint = checkpoint or self.checkpoint
                    self._store([str(report) for report in reports])
                    self.last_seq = max([self.last_seq, *map(_seq, reports)])

    def _rewrite(self) -> bool:
        """Replace the file by one with only the unconfirmed reports, and return whether that succeeded."""
        temporary = self._path.with_suffix(".new")
        self._written = 0  # also if it fails: a file that only grew is not rewritten with each record
        try:
            record = json.dumps([self.checkpoint, [report.decode() for report in self._waiting]]) + "\n"
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(descriptor, "w") as file:  # noqa: PTH123 - opened with its mode
                file.write(record)
            temporary.replace(self._path)
        except OSError:
            with suppress(OSError):
                temporary.unlink()  # a part of it would take up the last room
            return False
        self._close_file()
        self._confirmed = 0
        self._torn = False
        self.is_saved = True
        return True


def _seq(report: str) -> int:
    fields = json.loads(report)
    return int(fields["seq"]) if isinstance(fields, dict) and "seq" in fields else 0
