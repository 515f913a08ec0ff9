"""Limit the commands in flight, so that one user's commands do not hold up those of others.

Commands that arrive together are executed together, and a process handles replies in the order in which they come: what
one user sends makes what others wait for longer. So while single commands are sent, few of batches and actions are in
flight, of the users who send them in turns, and while several users send single commands, few of each user. A process
knows only its own users; between processes the worker lets users take turns, and has each of them wait for replies. So
while these are slow, fewer of batches and actions are in flight: others would be sent again, and looked for.

Commands for one task are executed one after the other. If more of them than a few were in flight, the worker would have
room for no others: it takes only so many bytes at a time from its queue.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from taskherd.errors import Unavailable

if TYPE_CHECKING:
    from uuid import UUID

MAX_BULK: Final = 400
"""Maximum number of commands of batches and actions of one process that wait for a reply: two batches of a worker's."""
FEW_BULK: Final = 4
"""That number while single commands are sent too."""
SLOW_REPLY: Final = 0.3
"""Seconds that one of these waits for its reply from which on fewer of them are sent."""
MIN_BULK: Final = 100
"""That number however slow replies are: where each transaction is slow, few at a time would take for ever."""
FEW_OF_USER: Final = 4
"""Maximum number of single commands of one user that wait for a reply while those of other users are sent too."""
FEW_OF_TASK: Final = 4
"""Maximum number of single commands for one task that wait for a reply."""
QUIET: Final = 0.5
"""Seconds after the answer of a command until the others are not limited any more."""


def _ignore() -> None:
    pass


class _Slots:
    """Slots that users take in turns; ``available`` returns how many there are now, always at least one."""

    def __init__(self, available: Callable[[], float]) -> None:
        self._available = available
        self._used = 0
        self._waiters: OrderedDict[UUID, deque[asyncio.Future[None]]] = OrderedDict()
        """Those of each user who has some; the next slot is for the first user."""

    @property
    def idle(self) -> bool:
        """True if no slot is in use. Nobody waits for one then."""
        return not self._used

    async def acquire(self, user: UUID, deadline: float) -> None:
        if not self._waiters and self._used < self._available():
            self._used += 1
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(user, deque()).append(waiter)
        try:
            async with asyncio.timeout_at(deadline):
                await waiter  # the slot is counted by ``release``
        except (asyncio.CancelledError, TimeoutError) as error:
            if not waiter.cancelled():  # the slot was given just before
                self.release()
            if isinstance(error, TimeoutError):
                raise Unavailable("too many commands wait for replies") from None
            raise

    def release(self) -> None:
        """Give a slot back. While there are waiters a slot is in use, so this is called again."""
        self._used -= 1
        while self._waiters and self._used < self._available():
            waiter = self._next_waiter()
            if not waiter.done():
                self._used += 1
                waiter.set_result(None)

    def _next_waiter(self) -> asyncio.Future[None]:
        user, waiters = self._waiters.popitem(last=False)
        waiter = waiters.popleft()
        if waiters:
            self._waiters[user] = waiters
        return waiter


class CommandSlots:
    """The slots of one process; ``now`` is a monotonic clock in seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._bulk = _Slots(self._available_to_bulk)
        self._max_bulk = MAX_BULK
        self._users: dict[UUID, _Slots] = {}
        """Those of users with a command that waits for a slot or for a reply."""
        self._tasks: dict[UUID, _Slots] = {}
        """Those of tasks with such a command."""
        self._single_until = self._shared_until = float("-inf")

    @asynccontextmanager
    async def bulk(self, user: UUID, deadline: float) -> AsyncIterator[None]:
        """Hold the slot of a command of a batch or an action of this user while the block runs; wait for it in turn.

        Raises:
            Unavailable: there was no slot until ``deadline``, in seconds of the loop's clock.
        """
        await self._bulk.acquire(user, deadline)
        sent_at = self._now()
        try:
            yield
        finally:
            self._note_bulk(self._now() - sent_at)
            self._bulk.release()

    @asynccontextmanager
    async def single(self, user: UUID, task: UUID, deadline: float) -> AsyncIterator[None]:
        """Hold the slot of a single command of this user for a task while the block runs; wait for it in turn.

        Raises:
            Unavailable: there was no slot until ``deadline``, in seconds of the loop's clock.
        """
        async with (
            _held(self._tasks, task, _Slots(lambda: FEW_OF_TASK), user=user, deadline=deadline, on_change=_ignore),
            _held(
                self._users,
                user,
                _Slots(self._available_to_user),
                user=user,
                deadline=deadline,
                on_change=self._note_single,
            ),
        ):
            yield

    def _note_bulk(self, took: float) -> None:
        """Have one command fewer in flight after a slow reply, and one more after another."""
        self._max_bulk = max(MIN_BULK, min(self._max_bulk + (-1 if took > SLOW_REPLY else 1), MAX_BULK))

    def _note_single(self) -> None:
        """Leave room for others for a while: a single command is sent, or was answered."""
        until = self._now() + QUIET
        self._single_until = until
        if len(self._users) > 1:
            self._shared_until = until

    def _available_to_bulk(self) -> int:
        return FEW_BULK if self._users or self._now() < self._single_until else self._max_bulk

    def _available_to_user(self) -> float:
        return FEW_OF_USER if self._now() < self._shared_until else float("inf")


@asynccontextmanager
async def _held(
    all_slots: dict[UUID, _Slots],
    key: UUID,
    new: _Slots,
    *,
    user: UUID,
    deadline: float,
    on_change: Callable[[], None],
) -> AsyncIterator[None]:
    """Hold one of the slots of ``key`` while the block runs; ``new`` ones are forgotten when none is in use.

    ``on_change`` is called when a command comes, and before its slot is given back.
    """
    slots = all_slots.setdefault(key, new)
    on_change()
    try:
        await slots.acquire(user, deadline)
        try:
            yield
        finally:
            on_change()
            slots.release()
    finally:
        if slots.idle:
            all_slots.pop(key, None)
