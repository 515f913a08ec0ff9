"""Calls that are repeated over another connection when no reply comes.

A message or its reply may be stuck with a connection whose peer hangs, of this process or of the consumer, until the
node is declared down a minute later. The consumer must execute a repeated message only once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from taskherd.broker.command_client import RECORDED_AFTER
from taskherd.errors import Unavailable

if TYPE_CHECKING:
    from taskherd.broker.command_client import CommandClient, Recorded, Reply, StartedCall
    from taskherd.broker.connection import SupervisedConnection

REPEAT_AFTER: Final = 2.0
"""Seconds without a reply after which a message is sent again."""

MAX_REPEATING: Final = 64
"""Maximum number of calls that are repeated at the same time, in turn: a slow consumer must not get several times the
load."""


class RepeatingClient:
    """A client that sends a message again, over its connections in turns, until the first reply comes."""

    def __init__(
        self,
        clients: Sequence[tuple[SupervisedConnection, CommandClient]],
        *,
        timeout: float,
        on_waiting: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Create the client.

        Args:
            clients: connections and what calls over each; the first is used for the first attempt.
            timeout: seconds that each call waits for its reply, over all attempts.
            on_waiting: called with the number of waiting calls whenever it changes.
        """
        self._clients = clients
        self._timeout = timeout
        self._on_waiting = on_waiting
        self._waiting = 0
        self._repeats = asyncio.Semaphore(MAX_REPEATING)
        self._checks: dict[str, asyncio.Task[None]] = {}

    async def call(
        self, routing_key: str, body: bytes, recorded: Recorded | None = None, *, deadline: float | None = None
    ) -> Reply:
        """Publish a message, again if need be, and return the first reply, or the one that ``recorded`` finds.

        The call ends at ``deadline``, in seconds of the loop's clock, by default after the client's timeout.

        Raises:
            Unavailable: no reply arrived in time; the message may have been processed, or still be if a worker has it:
                that may wait for its database, or for a row that is locked.
        """
        now = asyncio.get_running_loop().time()
        if deadline is None:
            deadline = now + self._timeout
        self._set_waiting(self._waiting + 1)
        client = self._clients[0][1]
        started: StartedCall | None = None
        try:
            started = await client.start(routing_key, body, deadline)
            reply = None
            if started is not None:
                reply = await started.reply_within(min(RECORDED_AFTER, max(0.0, deadline - now)))
            return reply or await self._call_until_reply(routing_key, body, recorded, started, deadline)
        finally:
            self._set_waiting(self._waiting - 1)
            if started is not None:
                client.end(started)

    async def close(self) -> None:
        """Stop checking connections."""
        checks = list(self._checks.values())
        for check in checks:
            check.cancel()
        await asyncio.gather(*checks, return_exceptions=True)

    async def _call_until_reply(
        self, routing_key: str, body: bytes, recorded: Recorded | None, started: StartedCall | None, deadline: float
    ) -> Reply:
        """Return the first reply to a call, which may have been started, or repeat it until there is one."""
        attempts: set[asyncio.Task[Reply]] = set()

        async def attempt(within: float, started: StartedCall | None = None) -> Reply | None:
            """Send the message over the next connection, which is checked if no reply comes to any attempt."""
            connection, client = self._clients[len(attempts) % len(self._clients)]
            call = client.call(routing_key, body, deadline=deadline, recorded=recorded, started=started)
            attempts.add(asyncio.create_task(call))
            reply = await _wait(attempts, within=within)
            if reply is None:
                self._check(connection)
            return reply

        try:
            reply = await attempt(REPEAT_AFTER if started is None else REPEAT_AFTER - RECORDED_AFTER, started)
            if reply is None:
                reply = await self._repeat(attempt, attempts, deadline)
            return replace(reply, sent_again=True) if len(attempts) > 1 else reply
        finally:
            for each in attempts:
                each.cancel()
            await asyncio.gather(*attempts, return_exceptions=True)

    async def _repeat(
        self,
        attempt: Callable[[float], Awaitable[Reply | None]],
        attempts: set[asyncio.Task[Reply]],
        deadline: float,
    ) -> Reply:
        """Make further attempts, once there is a slot for one more call that is repeated, until the first reply."""
        loop = asyncio.get_running_loop()
        turn = asyncio.create_task(self._repeats.acquire(), name="turn to repeat a call")
        try:
            reply = await _wait(attempts, turn)
            while reply is None and deadline - loop.time() > REPEAT_AFTER / 2:
                reply = await attempt(REPEAT_AFTER)
        finally:
            if not turn.cancel():
                self._repeats.release()
        if reply is None:
            reply = await _wait(attempts)  # each attempt ends at the deadline
            assert reply is not None
        return reply

    def _check(self, connection: SupervisedConnection) -> None:
        """Start to check whether the peer of the connection still answers, unless such a check is in progress."""
        if connection.name not in self._checks:
            check = asyncio.create_task(connection.drop_if_hung(), name=f"check of {connection.name}")
            self._checks[connection.name] = check
            check.add_done_callback(lambda _: self._checks.pop(connection.name, None))

    def _set_waiting(self, number: int) -> None:
        self._waiting = number
        self._on_waiting(number)


async def _wait(
    attempts: set[asyncio.Task[Reply]], turn: asyncio.Task[Any] | None = None, *, within: float | None = None
) -> Reply | None:
    """Return the first reply, or None if ``turn`` is done before, or there is none within so many seconds.

    Raises:
        Unavailable: all attempts failed.
    """
    loop = asyncio.get_running_loop()
    until = None if within is None else loop.time() + within
    while True:
        remaining = None if until is None else max(0.0, until - loop.time())
        pending = {attempt for attempt in attempts if not attempt.done()}
        failures = [attempt.exception() for attempt in attempts - pending]
        if not pending:
            raise failures[0] or Unavailable("no reply")
        either: set[asyncio.Task[Any]] = {*pending, turn} if turn is not None else {*pending}
        done, _ = await asyncio.wait(either, timeout=remaining, return_when=asyncio.FIRST_COMPLETED)
        for attempt in pending & done:
            error = attempt.exception()
            if error is None:
                return attempt.result()
            if not isinstance(error, Unavailable):
                raise error
        if not done or turn in done:
            return None
