"""Find out whether another process consumes under this runner's name: its requests would go to either of the two.

RabbitMQ ignores that a consumer of a quorum queue is to be exclusive, and queues that exist cannot become ones with a
single active consumer. Therefore the consumers of the queue are counted.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import structlog

from taskherd.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

log = structlog.get_logger(__name__)

CONFIRM_EVERY: Final = 5.0
"""Seconds between two looks whether this process is alone, until it is known to be."""
LOOK_EVERY: Final = 60.0
"""Seconds between two looks afterwards."""
MAX_LINGERING: Final = 300.0
"""Seconds after which a second consumer is none of this process's own: RabbitMQ counts that of a lost connection until
it has missed two heartbeats, or until it knows that the node of that connection is down."""


class SoleConsumer:
    """Whether this process is the only consumer of the queue of its runner's name."""

    def __init__(
        self,
        name: str,
        count: Callable[[], Awaitable[int]],
        consumes: Callable[[], bool],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create it.

        Args:
            name: the runner's name.
            count: returns the number of consumers of its queue; raises ``Unavailable``.
            consumes: whether this process is one of them, as far as is known.
            clock: returns seconds.
        """
        self._name = name
        self._count = count
        self._consumes = consumes
        self._clock = clock
        self._shared_since: float | None = None
        self.is_confirmed = False
        """Whether this process has been the only consumer."""
        self.problem: str | None = None
        """Why requests for this runner go to another process; None: they do not, as far as is known."""

    @property
    def look_after(self) -> float:
        """Seconds until the next look."""
        return LOOK_EVERY if self.is_confirmed else CONFIRM_EVERY

    async def check(self) -> None:
        """Raise ``Unavailable`` if another process consumes; to be called before this one does.

        A process that was alone before is let in: another consumer is probably its own, of a connection that it has
        lost and RabbitMQ has not.
        """
        self._shared_since = None
        if not self.is_confirmed and await self._count() > self._consumes():
            self._note_problem()
            raise Unavailable(self.problem)
        self.problem = None

    async def look(self) -> bool:
        """Return False if this process must stop consuming and ``check`` again, as another one has come with it.

        One that was alone before goes on, and says what is wrong after ``MAX_LINGERING`` seconds.
        """
        count = await self._count() if self._consumes() else 0
        if count == 1:
            self.is_confirmed, self._shared_since, self.problem = True, None, None
        if count <= 1:  # the leader of the queue does not answer if there is none
            return True
        if not self.is_confirmed:
            return False
        now = self._clock()
        self._shared_since = now if self._shared_since is None else self._shared_since
        if now - self._shared_since >= MAX_LINGERING:
            self._note_problem()
        return True

    def _note_problem(self) -> None:
        if self.problem is None:
            log.error("another runner has this name", runner=self._name)
        self.problem = (
            f"another runner has the name {self._name}: its queue has a consumer. Give one of them another "
            "TASKHERD_RUNNER_NAME; if it is this runner's own, of a machine that crashed, it is gone in a minute or two"
        )
