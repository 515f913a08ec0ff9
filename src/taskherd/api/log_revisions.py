"""Tell streams of task logs when their log has changed: one statement twice a second for all of a process.

Log entries raise no version of their task, so the change feed does not tell of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

import structlog

from taskherd import retry
from taskherd.errors import Retry, Unavailable
from taskherd.store import task_queries

if TYPE_CHECKING:
    from uuid import UUID

    from taskherd.store.read_pool import ReadPool

log = structlog.get_logger(__name__)

INTERVAL: Final = 0.5
"""Seconds between two reads."""


class FollowedLog:
    """The log of one task: its revision, and whether the task was deleted or the process stops."""

    def __init__(self) -> None:
        self.revision = 0
        self.ended = False
        self.followers = 0
        self._changed = asyncio.Event()

    def update(self, revision: int, *, ended: bool) -> None:
        """Set what is known of the log, and wake its followers."""
        self.revision, self.ended = revision, ended
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def wait_after(self, revision: int, timeout: float) -> bool:  # noqa: ASYNC109 - no change is a result
        """Wait for a greater revision or the end, at most ``timeout`` seconds; return whether there is one."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while not self._is_after(revision):
                    await self._changed.wait()
        return self._is_after(revision)

    def _is_after(self, revision: int) -> bool:
        return self.revision > revision or self.ended


class LogRevisions:
    """The revisions of all logs that this process follows; without followers nothing is read."""

    def __init__(self, reader: ReadPool) -> None:
        self._reader = reader
        self._stopping = False
        self._logs: dict[UUID, FollowedLog] = {}
        self._followed = asyncio.Event()

    @contextmanager
    def follow(self, task_id: UUID) -> Iterator[FollowedLog]:
        """Follow the log of a task while the block runs."""
        followed = self._logs.setdefault(task_id, FollowedLog())
        followed.followers += 1
        followed.ended |= self._stopping
        self._followed.set()
        try:
            yield followed
        finally:
            followed.followers -= 1
            if not followed.followers:
                del self._logs[task_id]

    async def run(self) -> None:
        """Read every ``INTERVAL`` seconds while there are followers; retry during an outage."""
        failures = 0
        while True:
            if not self._logs:
                self._followed.clear()
                await self._followed.wait()
            try:
                await self.read_once()
            except (Unavailable, Retry) as error:
                failures += 1
                log.warning("cannot read the revisions of logs", reason=str(error))
                await asyncio.sleep(retry.delay(failures))
            else:
                failures = 0
                await asyncio.sleep(INTERVAL)

    async def read_once(self) -> None:
        """Read the revisions of all followed logs and wake the followers of those that changed."""
        for row in await task_queries.log_revisions(self._reader, list(self._logs)):
            followed = self._logs.get(row["id"])
            ended = row["deleted"] or self._stopping
            if followed is not None and (followed.revision, followed.ended) != (row["revision"], ended):
                followed.update(row["revision"], ended=ended)

    def stop(self) -> None:
        """Wake all followers, because the process stops."""
        self._stopping = True
        for followed in self._logs.values():
            followed.update(followed.revision, ended=True)
