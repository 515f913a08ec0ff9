"""Read and replay dead letters: one at a time, on a connection of its own, within bounds of time and bytes.

What is read is hidden from everybody else until it is returned, which the end of the connection does. A connection of
its own also means that neither a refusal nor a broker that hangs costs what other requests use.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import structlog

from taskherd.api.dead_letters.documents import letter_json
from taskherd.broker import dead_letters as broker
from taskherd.broker.connection import endpoints_of, open_connection
from taskherd.broker.topology import TopologyNames
from taskherd.dead_letters import Replay, Selection, replay
from taskherd.errors import Unavailable
from taskherd.messages.dead_letters import decode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from datetime import datetime

    from taskherd.broker.connection import SupervisedConnection
    from taskherd.broker.dead_letters import QueuedMessage
    from taskherd.settings import Settings

log = structlog.get_logger(__name__)

MAX_READ: Final = 1_000
"""Maximum number of dead letters, the oldest, that one request looks at."""
MAX_READ_BYTES: Final = 32 * 1024 * 1024
"""Total size of bodies after which a request looks at no more."""
MAX_SECONDS: Final = 10.0
"""Seconds after which a request looks at no more dead letters."""
WAIT: Final = 5.0
"""Maximum number of seconds to wait for another request to finish."""
OLDEST_FOR: Final = 30.0
"""Seconds for which the time of the oldest dead letter is used again."""
OLDEST_WAIT: Final = 1.0
"""Maximum number of seconds to wait for the time of the oldest dead letter."""


class BusyError(Exception):
    """Another request reads or replays dead letters."""


@dataclass(slots=True)
class Browsed:
    """Documents of dead letters, oldest first, of ``read`` that were looked at; ``left`` were not."""

    found: list[dict[str, Any]] = field(default_factory=list)
    read: int = 0
    left: int = 0
    bytes_read: int = 0
    oldest: datetime | None = None


class DeadLetterQueue:
    """The dead letters, for one request at a time."""

    def __init__(self, settings: Settings, owner: str, now: Callable[[], float]) -> None:
        """Create it; ``owner`` names the process in the broker's list of connections, and ``now`` is in seconds."""
        self._settings = settings
        self._purpose = f"{owner} dead letters"
        self._endpoints = endpoints_of(settings.amqp_url)
        self._now = now
        self._lock = asyncio.Lock()
        self._oldest: datetime | None = None
        self._looked_at = float("-inf")
        self._looking: asyncio.Task[None] | None = None

    async def browse(self, reason: str | None, limit: int) -> Browsed:
        """Return up to ``limit`` of the oldest dead letters, with a reason if it is given, and leave them all.

        Raises:
            BusyError: another request did not finish in time.
            MayNotRead: the RabbitMQ user may not read them.
            Unavailable: the broker is unreachable.
        """
        async with self._connected() as connection:
            return await self._browse(connection, reason, limit)

    async def replay(self, selection: Selection) -> tuple[Replay, str | None]:
        """Replay the selected of the oldest dead letters; return what became of them, and why it ended early, or None.

        Raises as ``browse``, but not after something was done.
        """
        state = Replay(selection)
        async with self._connected() as connection:
            until = self._now() + MAX_SECONDS

            def in_bounds() -> bool:
                return self._now() < until and state.bytes_read < MAX_READ_BYTES

            def more() -> bool:
                return in_bounds() and (not selection.ids or bool(state.missing))

            self._looked_at = float("-inf")
            try:
                await replay(connection, self._settings, state, limit=MAX_READ, more=more)
            except Unavailable as error:
                if not state.replayed and not state.kept:
                    raise
                return state, f"The broker stopped answering ({error}): the last one may be replayed and kept."
            return state, None if in_bounds() else "It took too long or they were too large: look again, and go on."

    async def oldest(self) -> datetime | None:
        """Return when the oldest was dead-lettered, as of the last half minute; None if that is not known."""
        if self._now() - self._looked_at > OLDEST_FOR and self._looking is None:
            self._looking = asyncio.create_task(self._look(), name="oldest dead letter")
        if self._looking is not None:
            await asyncio.wait({self._looking}, timeout=OLDEST_WAIT)
        return self._oldest

    async def _look(self) -> None:
        try:
            async with self._connected() as connection:
                self._oldest = (await self._browse(connection, None, 1)).oldest
        except (BusyError, Unavailable) as error:
            self._oldest = None
            log.info("cannot read the oldest dead letter", reason=str(error))
        finally:
            self._looked_at = self._now()
            self._looking = None

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[SupervisedConnection]:
        try:
            async with asyncio.timeout(WAIT):
                await self._lock.acquire()
        except TimeoutError:
            raise BusyError("another request reads or replays dead letters") from None
        try:
            async with open_connection(self._settings.amqp_url, self._purpose, self._endpoints) as connection:
                yield connection
        finally:
            self._lock.release()

    async def _browse(self, connection: SupervisedConnection, reason: str | None, limit: int) -> Browsed:
        browsed, selection, until = Browsed(), Selection(reason=reason), self._now() + MAX_SECONDS

        def visit(message: QueuedMessage) -> None:
            letter = decode(message)
            browsed.read += 1
            browsed.bytes_read += len(letter.body)
            if letter.time is not None and (browsed.oldest is None or letter.time < browsed.oldest):
                browsed.oldest = letter.time
            if selection.has(letter):
                browsed.found.append(letter_json(letter))

        def more() -> bool:
            return len(browsed.found) < limit and browsed.bytes_read < MAX_READ_BYTES and self._now() < until

        names = TopologyNames(self._settings.amqp_prefix)
        browsed.left = await broker.browse(connection, names, visit, limit=MAX_READ, more=more)
        return browsed
