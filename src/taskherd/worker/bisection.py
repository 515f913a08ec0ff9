"""Reconcile messages together; if they fail together, halve them until the one that makes them fail is found.

Messages are also halved if together they take longer than the database allows, conflict for ever, or need too much
memory. One that fails alone is rejected. If it fails by a bug in a statement, it may be that all do, as with a column
that is missing: so it is tried again first, after a wait that doubles with each such message in a row. That keeps a
whole queue from becoming dead letters before anybody has noticed, while messages that do not fail are still processed.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from taskherd import retry
from taskherd.backoff import Backoff
from taskherd.errors import Retry, Unavailable
from taskherd.store.engine import STATEMENT_BUGS, PromptSizeError, StatementTimeout
from taskherd.worker.batch import MESSAGE_ERRORS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from taskherd.worker.batch import BatchResult
    from taskherd.worker.context import WorkerContext

T = TypeVar("T")

MAX_TIMEOUTS: Final = 2
"""Number of times that several messages may take too long before they are halved."""
BUGS: Final = Backoff(first=0.1, maximum=30.0)
"""The wait before a message that fails by a bug in a statement is tried for the last time."""


class _TooMuch(Exception):  # noqa: N818 - not an error: it is halved
    """Several messages take too long together, or conflict too often."""


class Bisection:
    """Reconciles the batches of one consumer."""

    def __init__(self, context: WorkerContext) -> None:
        self._context = context
        self._bugs_in_a_row = 0

    async def run(
        self,
        part: range,
        attempt: Callable[[range], Awaitable[BatchResult]],
        accept: Callable[[range, BatchResult], Awaitable[list[T]]],
        reject: Callable[[int, Exception], Awaitable[T]],
    ) -> list[T]:
        """Reconcile the messages with the indexes ``part``, and return what becomes of each.

        Args:
            part: the indexes of the messages.
            attempt: reconciles these messages once.
            accept: called with the result of each commit, before other messages are tried again, which may take long;
                returns what becomes of each of these messages.
            reject: called so with the error of a message that fails alone; returns what becomes of it.

        Raises:
            Unavailable: the database was, while the worker was stopping.
        """
        try:
            result = await self._persist(partial(attempt, part), len(part))
        except (*MESSAGE_ERRORS, PromptSizeError, _TooMuch) as error:
            if len(part) == 1:
                return [await reject(part.start, error)]
            self._context.metrics.batch_failures.labels("bisected").inc()
            middle = part.start + len(part) // 2
            halves = (range(part.start, middle), range(middle, part.stop))
            return [each for half in halves for each in await self.run(half, attempt, accept, reject)]
        self._bugs_in_a_row = 0
        return await accept(part, result)

    async def _persist(self, attempt: Callable[[], Awaitable[BatchResult]], size: int) -> BatchResult:
        """Reconcile ``size`` messages through outages and conflicts; raise ``_TooMuch`` to have several halved."""
        try:
            return await self._wait_out(attempt, size)
        except STATEMENT_BUGS as error:
            if size > 1:
                raise
            wait = BUGS.delay(self._bugs_in_a_row)
            self._bugs_in_a_row += 1
            self._context.on_error(f"a bug in a statement: {type(error).__name__}")
            await retry.wait(self._context.stopping, wait)
            if self._context.stopping.is_set():
                raise Unavailable("stopping") from error
            return await self._wait_out(attempt, size)

    async def _wait_out(self, attempt: Callable[[], Awaitable[BatchResult]], size: int) -> BatchResult:
        timeouts = conflicts = 0

        async def once() -> BatchResult:
            nonlocal timeouts, conflicts
            try:
                return await attempt()
            except StatementTimeout as error:
                timeouts += 1
                if size > 1 and timeouts >= MAX_TIMEOUTS:
                    raise _TooMuch from error
                raise
            except Retry as error:
                conflicts += 1
                if size > 1 and conflicts > retry.MAX_CONFLICTS:
                    raise _TooMuch from error
                raise

        return await self._context.until_stopped(once, "database")
