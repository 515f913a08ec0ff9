"""Tell streams of task logs when their log or inbox has changed: one statement twice a second for all of a process.

Log entries and inputs raise no version of their task, so the change feed does not tell of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final, NamedTuple

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


class InboxSummary(NamedTuple):
    """The inputs of a task that its agent was or is to be given."""

    last: int
    """The number of the last one, 0 if there is none."""
    waiting: int
    """How many were not delivered yet, and have not failed; of more than 100, 101 are counted."""


class FollowedLog:
    """The log and the inbox of one task, and whether the task was deleted or the process stops."""

    def __init__(self) -> None:
        self.revision = 0
        self.inbox: InboxSummary | None = None
        """None until it is known."""
        self.ended = False
        self.followers = 0
        self._changed = asyncio.Event()

    def update(self, revision: int, inbox: InboxSummary | None, *, ended: bool) -> None:
        """Set what is known of the log and the inbox, and wake the followers."""
        self.revision, self.inbox, self.ended = revision, inbox, ended
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def wait_after(
        self,
        revision: int,
        inbox: InboxSummary | None,
        timeout: float,  # noqa: ASYNC109 - no change is a result
    ) -> bool:
        """Wait at most ``timeout`` seconds for the end, or another log or inbox than these; return whether it came."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while not self._is_after(revision, inbox):
                    await self._changed.wait()
        return self._is_after(revision, inbox)

    def _is_after(self, revision: int, inbox: InboxSummary | None) -> bool:
        return self.revision > revision or self.inbox != inbox or self.ended


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
            inbox = InboxSummary(row["last_input"], row["waiting_inputs"])
            if followed is not None and (followed.revision, followed.inbox, followed.ended) != (
                row["revision"],
                inbox,
                ended,
            ):
                followed.update(row["revision"], inbox, ended=ended)

    def stop(self) -> None:
        """Wake all followers, because the process stops."""
        self._stopping = True
        for followed in self._logs.values():
            followed.update(followed.revision, followed.inbox, ended=True)
