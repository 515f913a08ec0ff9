"""Say hello to the worker, which declares this runner's queues, and check that they exist."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import structlog

from taskherd.backoff import Backoff
from taskherd.broker import topology
from taskherd.errors import Malformed, Misconfigured, Unavailable
from taskherd.messages.claims import RUNNER_HELLO, RunnerHello, decode_hello_reply, encode_hello

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from taskherd.broker.command_client import CommandClient
    from taskherd.broker.connection import SupervisedConnection
    from taskherd.broker.topology import TopologyNames

log = structlog.get_logger(__name__)

REPEAT: Final = Backoff(first=10.0, maximum=600.0)
"""The delays between hellos that no worker answers."""


class Hellos:
    """The hellos of one runner; those that no worker answers wait in its queue, so they are repeated seldom."""

    def __init__(
        self,
        client: CommandClient,
        check: Callable[[list[str]], Awaitable[None]],
        names: TopologyNames,
        hello: RunnerHello,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create them. ``check`` raises ``Unavailable`` unless these queues exist; ``clock`` returns seconds."""
        self._client = client
        self._check = check
        self._names = names
        self._hello = hello
        self._clock = clock
        self._unanswered = 0
        self._repeat_at = 0.0

    async def obtain_queues(self) -> list[str]:
        """Return the queues of this runner and its pool, once both exist.

        If no worker answers but both exist from an earlier time, they are used.

        Raises:
            Unavailable: they do not exist yet; call this again later.
            Misconfigured: the worker refused the hello.
        """
        queues = [self._names.work_queue(self._hello.pool), self._names.work_queue(self._hello.runner)]
        try:
            refusal = await self._say()
        except (Unavailable, Malformed) as error:
            try:
                await self._check(queues)
            except Unavailable:
                raise Unavailable(f"waiting for a worker to declare {' and '.join(queues)}: {error}") from error
            log.warning("hello unanswered, using the queues that exist", reason=str(error))
            return queues
        if refusal is not None:
            runner, pool = self._hello.runner, self._hello.pool
            raise Misconfigured("runner_name", f"the worker refused runner {runner} of pool {pool}: {refusal}")
        await self._check(queues)
        return queues

    async def _say(self) -> str | None:
        """Say hello and return why it was refused, or None. Raise ``Unavailable`` if it is too early to repeat it."""
        now = self._clock()
        if now < self._repeat_at:
            raise Unavailable("no worker has answered runner.hello yet")
        self._repeat_at = now + REPEAT.longest(self._unanswered + 1)
        self._unanswered += 1
        reply = await self._client.call(RUNNER_HELLO, encode_hello(self._hello), no_expiry=True)
        self._unanswered, self._repeat_at = 0, 0.0
        return decode_hello_reply(reply.body)


async def check_queues(connection: SupervisedConnection, names: TopologyNames, queues: list[str]) -> None:
    """Check that these queues exist, and the exchange of claims: before workers declare that, none answers a claim.

    Raise ``Unavailable`` naming the first one that does not.
    """
    async with connection.temporary_channel() as channel:
        await topology.check(channel, [names.claims], queues)


async def count_consumers(connection: SupervisedConnection, queue: str) -> int:
    """Return the number of consumers of a queue. Raise ``Unavailable`` if it does not exist."""
    async with connection.temporary_channel() as channel:
        return await topology.consumer_count(channel, queue)
