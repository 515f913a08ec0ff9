"""Reconcile messages together; if they fail together, halve them until the one that makes them fail is found.

Messages are also halved if together they take longer than the database allows, conflict for ever, or need too much
memory. Those for tasks that another transaction keeps locked are tried after all others until they are done, or given
back; and so, until it is done, is one that takes too long alone. One that fails alone is rejected. If it fails by a
bug in a statement, it may be that all do, as with a column that is missing: so it is tried again, after all others
too, and after a wait that doubles with each such message in a row. That keeps a whole queue from becoming dead letters
before anybody has noticed, while messages that do not fail are still processed.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import structlog

from taskherd import retry
from taskherd.backoff import Backoff
from taskherd.errors import Retry, Unavailable
from taskherd.store.engine import STATEMENT_BUGS, LockTimeout, PromptSizeError, StatementTimeout
from taskherd.worker.batch import MESSAGE_ERRORS
from taskherd.worker.load import find_locked

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence
    from uuid import UUID

    from taskherd.worker.batch import BatchResult
    from taskherd.worker.context import WorkerContext

log = structlog.get_logger(__name__)

T = TypeVar("T")

MAX_TIMEOUTS: Final = 2
"""Number of times that messages may take too long before they are halved, or one of them waits for all others."""
BUGS: Final = Backoff(first=0.1, maximum=30.0)
"""The wait before a message that fails by a bug in a statement is tried for the last time."""


class _TooMuch(Exception):  # noqa: N818 - not an error: they are halved, and one comes last
    """Messages take too long, or conflict too often."""


class _Locked(Exception):  # noqa: N818 - not an error: their messages come last, or are given back
    """Another transaction keeps tasks locked."""

    def __init__(self, tasks: frozenset[UUID]) -> None:
        super().__init__(tasks)
        self.tasks = tasks


@dataclass(slots=True)
class _Messages(Generic[T]):
    """What ``Bisection.run`` was given, and what has become of it so far: of each message, by its index.

    Attributes:
        parts: those that are still to be reconciled; the messages of each part together, and part by part.
        results: what becomes of a message, as ``accept`` and ``reject`` have returned.
        saved: the messages that were saved.
        last: those that are tried again after all others, each with the error with which it failed alone, None for one
            that comes after such a message for the same task.
    """

    tasks: Sequence[UUID]
    attempt: Callable[[Sequence[int]], Awaitable[BatchResult]]
    accept: Callable[[Sequence[int], BatchResult], Awaitable[Sequence[T]]]
    reject: Callable[[int, Exception], Awaitable[T]]
    set_aside: Callable[[Sequence[int]], Sequence[T]] | None
    parts: deque[Sequence[int]]
    results: dict[int, T] = field(default_factory=dict)
    saved: set[int] = field(default_factory=set)
    last: dict[int, Exception | None] = field(default_factory=dict)

    async def save(self, part: Sequence[int], result: BatchResult) -> None:
        self.saved.update(part)
        self.results.update(zip(part, await self.accept(part, result), strict=True))

    async def give_up(self, index: int, error: Exception) -> None:
        self.results[index] = await self.reject(index, error)

    def take(self, tasks: Collection[UUID]) -> list[int]:
        """Take the messages for these tasks out of all parts, and return their indexes in order."""
        parts = [*self.parts]
        self.parts.clear()
        self.parts.extend(rest for part in parts if (rest := [i for i in part if self.tasks[i] not in tasks]))
        return sorted(i for part in parts for i in part if self.tasks[i] in tasks)

    def put_aside(self, tasks: Collection[UUID]) -> None:
        """Give back the messages for locked tasks, or put them behind all others."""
        indexes = self.take(tasks)
        if self.set_aside is None:
            self.parts.append(indexes)
        else:
            self.results.update(zip(indexes, self.set_aside(indexes), strict=True))

    def try_last(self, index: int, error: Exception) -> None:
        """Try a message again after all others, and so those that come after it for its task."""
        self.last[index] = error
        self.last.update(dict.fromkeys(self.take([self.tasks[index]])))


class Bisection:
    """Reconciles the batches of one consumer."""

    def __init__(self, context: WorkerContext) -> None:
        self._context = context
        self._bugs_in_a_row = 0

    async def run(
        self,
        tasks: Sequence[UUID],
        attempt: Callable[[Sequence[int]], Awaitable[BatchResult]],
        accept: Callable[[Sequence[int], BatchResult], Awaitable[Sequence[T]]],
        reject: Callable[[int, Exception], Awaitable[T]],
        set_aside: Callable[[Sequence[int]], Sequence[T]] | None = None,
    ) -> list[T]:
        """Reconcile messages, and return what becomes of each.

        Args:
            tasks: the ids of their tasks; the index of a message is that of its task. The messages for each task are
                reconciled in their order.
            attempt: reconciles the messages with these indexes once.
            accept: called with the result of each commit, before other messages are tried again, which may take long;
                returns what becomes of each of these messages.
            reject: called so with the error of a message that fails alone; returns what becomes of it.
            set_aside: takes back the messages for tasks that another transaction keeps locked, and returns what becomes
                of each; without it they are tried after all others until they are done.

        Raises:
            Unavailable: the database was, while the worker was stopping.
        """
        messages = _Messages(tasks, attempt, accept, reject, set_aside, deque([range(len(tasks))]))
        while messages.parts:
            part = messages.parts.popleft()
            try:
                result = await self._try(messages, part)
            except _Locked as error:
                messages.parts.appendleft(part)
                messages.put_aside(error.tasks)
            except (*MESSAGE_ERRORS, PromptSizeError, _TooMuch) as error:
                if len(part) > 1:
                    self._context.metrics.batch_failures.labels("bisected").inc()
                    middle = len(part) // 2
                    messages.parts.extendleft((part[middle:], part[:middle]))
                elif isinstance(error, (*STATEMENT_BUGS, _TooMuch)):
                    messages.try_last(part[0], error)
                else:
                    await messages.give_up(part[0], error)
            else:
                await messages.save(part, result)
        await self._try_last(messages)
        return [messages.results[index] for index in range(len(tasks))]

    async def _try_last(self, messages: _Messages[T]) -> None:
        """Reconcile those that were left to the end. One that was saved between two bugs ends their row."""
        for index in range(len(messages.tasks)):
            if index in messages.last:
                try:
                    result = await self._try_until_done(partial(messages.attempt, [index]), messages.last[index])
                except (*MESSAGE_ERRORS, PromptSizeError) as error:
                    await messages.give_up(index, error)
                else:
                    await messages.save([index], result)
            if index in messages.saved:
                self._bugs_in_a_row = 0

    async def _try(self, messages: _Messages[T], part: Sequence[int]) -> BatchResult:
        """Reconcile some of the messages through outages and some conflicts.

        Raises:
            _Locked: some of the tasks are locked, or all of them, and their messages can be set aside.
            _TooMuch: the messages take too long, or conflict too often.
        """
        timeouts = conflicts = 0
        tasks = frozenset([messages.tasks[index] for index in part])
        is_only = len(messages.tasks) == 1

        async def look_for_locked(error: Exception) -> bool:
            are_all = await self._look_for_locked(tasks, error)
            if are_all and messages.set_aside is not None:
                raise _Locked(tasks) from error
            return are_all

        async def once() -> BatchResult:
            nonlocal timeouts, conflicts
            try:
                return await messages.attempt(part)
            except StatementTimeout as error:
                timeouts += 1
                if timeouts >= MAX_TIMEOUTS and not is_only:
                    raise _TooMuch from error
                await look_for_locked(error)
                raise
            except Retry as error:
                if isinstance(error, LockTimeout) and await look_for_locked(error):
                    raise
                conflicts += 1
                if conflicts > retry.MAX_CONFLICTS and not is_only:
                    raise _TooMuch from error
                raise

        return await self._context.until_stopped(once, "database")

    async def _look_for_locked(self, tasks: frozenset[UUID], error: Exception) -> bool:
        """Return whether another transaction keeps all these tasks locked.

        Raises:
            _Locked: some of them.
            Unavailable: all, and the worker is stopping.
        """
        locked = await find_locked(self._context, tasks)
        if locked:
            log.warning("tasks are locked", count=len(locked), task_id=str(min(locked)), reason=str(error))
        if locked and locked != tasks:
            raise _Locked(locked) from error
        if locked and self._context.stopping.is_set():
            raise Unavailable("stopping") from error
        return bool(locked)

    async def _try_until_done(
        self, attempt: Callable[[], Awaitable[BatchResult]], error: Exception | None
    ) -> BatchResult:
        """Reconcile a message that failed with ``error``, through outages and conflicts; after a bug, once more."""
        if error is None or isinstance(error, _TooMuch):
            try:
                return await self._context.until_stopped(attempt, "database")
            except STATEMENT_BUGS as bug:
                error = bug
        wait = BUGS.delay(self._bugs_in_a_row)
        self._bugs_in_a_row += 1
        self._context.on_error(f"a bug in a statement: {type(error).__name__}")
        await retry.wait(self._context.stopping, wait)
        if self._context.stopping.is_set():
            raise Unavailable("stopping") from error
        return await self._context.until_stopped(attempt, "database")
