"""The reports of one task that are still to be sent: in memory to send from, and on disk for the next runner.

Each keeps the seq it was given, so sending one again changes nothing. A record on disk may carry a *mark*: how far its
follower had come when it made these reports. So after a crash no output is told twice under different ids.
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

MAX_OWN_BYTES = 1024 * 1024
"""Bytes that wait for one task, beyond which its output is not followed further for now."""
MAX_SENT_BYTES = 64 * 1024
"""Bytes of sent reports in the file, beyond which it is written anew."""

Checkpoint: TypeAlias = dict[str, Any]


@dataclass(slots=True)
class Budget:
    """What the outboxes of all tasks may hold together, in bytes."""

    maximum: int
    used: int = 0
    room: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, size: int) -> None:
        """Take so many bytes more, or give them back."""
        self.used += size
        if self.used < self.maximum:
            self.room.set()
        else:
            self.room.clear()


class Outbox:
    """The reports of one task, in order."""

    def __init__(self, path: Path, budget: Budget, on_more: Callable[[Outbox], None]) -> None:
        """Read what an earlier runner left; it is all to be sent again."""
        self._path = path
        self._budget = budget
        self._on_more = on_more
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._told = 0
        self._room = asyncio.Event()
        self._room.set()
        self._torn = False
        self._emptied = asyncio.Event()
        self._emptied.set()
        self._muted = False
        self.checkpoint: Checkpoint = {}
        self._file: int | None = None
        self._load()

    def __len__(self) -> int:
        """How many reports wait."""
        return len(self._waiting)

    @property
    def full(self) -> bool:
        """Whether no more should be made for now; what must be said is taken nevertheless."""
        return self._size >= MAX_OWN_BYTES or self._budget.used >= self._budget.maximum

    async def wait_room(self) -> None:
        """Wait until there is room."""
        while self.full:
            await self._room.wait()
            await self._budget.room.wait()

    async def wait_empty(self) -> None:
        """Wait until all is sent."""
        await self._emptied.wait()

    def append(self, reports: Sequence[str], mark: Checkpoint | None = None) -> None:
        """Take reports, as JSON, to be sent; where the disk is full they are kept in memory alone, for now."""
        self.checkpoint = mark or self.checkpoint
        if not self._muted:
            self._write(reports, mark)
            self._store(reports)

    def discard(self) -> None:
        """Take no more, and drop what waits: nobody wants to know."""
        self._muted = True
        self._waiting.clear()
        self._resize(-self._size)
        self._emptied.set()

    def peek(self, limit: int, size: int) -> list[bytes]:
        """The first reports, up to `limit`, and up to `size` bytes unless the first alone is larger."""
        chosen: list[bytes] = []
        for report in self._waiting:
            size -= len(report)
            if len(chosen) >= limit or (chosen and size < 0):
                break
            chosen.append(report)
        return chosen

    def confirm(self, count: int) -> None:
        """The first so many were confirmed."""
        if self._muted:
            return
        size = sum(len(self._waiting.popleft()) for _ in range(count))
        self._resize(-size)
        self._told += size
        if not self._waiting:
            self._emptied.set()
        if self._told > MAX_SENT_BYTES or (self._torn and not self._waiting):
            self._rewrite()

    def close(self) -> None:
        """Let go of the file, and of the budget."""
        self._budget.add(-self._size)
        self._size = 0
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _store(self, reports: Sequence[str]) -> None:
        if reports:
            encoded = [report.encode() for report in reports]
            self._waiting.extend(encoded)
            self._resize(sum(map(len, encoded)))
            self._emptied.clear()
            self._on_more(self)

    def _resize(self, change: int) -> None:
        self._size += change
        self._budget.add(change)
        if self._size < MAX_OWN_BYTES:
            self._room.set()
        else:
            self._room.clear()

    def _write(self, reports: Sequence[str], mark: Checkpoint | None) -> None:
        line = b"\n" if self._torn else b""
        try:
            if self._file is None:
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
                self._file = os.open(self._path, flags, 0o600)
            line += json.dumps([mark, list(reports)]).encode() + b"\n"
            if os.write(self._file, line) < len(line):
                self._torn = True
        except OSError:
            self._torn = True

    def _load(self) -> None:
        with suppress(OSError):
            content = self._path.read_bytes()
            self._torn = not content.endswith(b"\n") and bool(content)
            for line in content.splitlines():
                with suppress(ValueError, TypeError):  # the end of a line that was not written to its end
                    mark, reports = json.loads(line)
                    self.checkpoint = mark or self.checkpoint
                    self._store([str(report) for report in reports])

    def _rewrite(self) -> None:
        """Write the file anew with what still waits."""
        beside = self._path.with_suffix(".new")
        with suppress(OSError):
            record = json.dumps([self.checkpoint, [report.decode() for report in self._waiting]]) + "\n"
            descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(descriptor, "w") as file:  # noqa: PTH123 - opened with its mode
                file.write(record)
            beside.replace(self._path)
            if self._file is not None:
                os.close(self._file)
                self._file = None
            self._told = 0
            self._torn = False
