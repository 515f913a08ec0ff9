"""Calls over RabbitMQ: messages are published with a confirm, and replies arrive on the same channel.

The API sends its commands in this way, a runner its claims. A message that could not be published, or whose channel was
lost before the reply, is published again, so its consumer must execute a repeated one only once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from uuid import uuid4

from taskherd import retry
from taskherd.broker.direct_replies import publisher_with_replies
from taskherd.broker.publisher import OutgoingMessage, PublishOutcome
from taskherd.broker.reply_queues import DIRECT
from taskherd.errors import Unavailable

if TYPE_CHECKING:
    from taskherd.broker.delivery import Delivery
    from taskherd.broker.publisher import Publisher

MAX_WAITING: Final = 1_000
"""Maximum number of concurrent calls."""

RECORDED_AFTER: Final = 1.0
"""Seconds without a reply after which its record is looked for; then after twice as long, and so on.

RabbitMQ 4.0 and 4.1 delay each direct reply by 10 s while a node of the cluster hangs.
"""

Trace: TypeAlias = Callable[[], dict[str, str]]
"""A function that returns the trace headers for a call."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The body and headers of a reply."""

    body: bytes
    headers: Mapping[str, Any]
    sent_again: bool = False
    """True if the call was published more than once: the reply may be that to a repeated message."""


Recorded: TypeAlias = Callable[[], Awaitable[Reply | None]]
"""A function that looks for the reply where the consumer has recorded it."""


class NotPublished(Unavailable):
    """There is no reply, and no confirm of a message that ``call`` has published: it may be in no queue."""


class _ReplyLost(Exception):  # noqa: N818 - not an error; never leaves this module
    """The channel for the reply was lost while a call was waiting, or its message was not confirmed."""


@dataclass(frozen=True, slots=True)
class StartedCall:
    """A call whose message was published."""

    correlation_id: str
    reply: asyncio.Future[Reply]

    async def reply_within(self, seconds: float) -> Reply | None:
        """Return the reply, or None if it does not arrive in time or is lost."""
        await asyncio.wait({self.reply}, timeout=seconds)
        return self.reply.result() if self.reply.done() and self.reply.exception() is None else None

    def fail(self) -> None:
        """Note that no reply is to be expected any more."""
        if not self.reply.done():
            self.reply.set_exception(_ReplyLost())
            self.reply.exception()  # so that asyncio logs nothing if the call has its answer from elsewhere by now


class CommandClient:
    """A client that publishes commands or claims to one exchange and waits for the reply to each."""

    def __init__(
        self,
        publisher: Publisher,
        exchange: str,
        *,
        timeout: float,
        trace: Trace = dict,
    ) -> None:
        """Create the client.

        Args:
            publisher: its connection is used, with a channel for the calls.
            exchange: the exchange for the messages.
            timeout: seconds that each call waits for its reply.
            trace: returns the trace headers for a call.
        """
        self._trace = trace
        self._publisher = publisher_with_replies(publisher, self._resolve, self._on_lost)
        self._exchange = exchange
        self._timeout = timeout
        self._waiting: dict[str, StartedCall] = {}

    async def start(self, routing_key: str, body: bytes, deadline: float) -> StartedCall | None:
        """Publish a message that expires at ``deadline``, or return None if something has to be waited for before.

        The call has to be given to ``end``.
        """
        if len(self._waiting) >= MAX_WAITING:
            return None
        call = self._expect_reply()
        try:
            is_started = await self._publisher.start(self._message(call, routing_key, body, deadline), call.fail)
        except BaseException:
            self.end(call)
            raise
        if is_started:
            return call
        self.end(call)
        return None

    def end(self, call: StartedCall) -> None:
        """Expect no reply to a call any more."""
        self._waiting.pop(call.correlation_id, None)

    async def call(
        self,
        routing_key: str,
        body: bytes,
        *,
        no_expiry: bool = False,
        deadline: float | None = None,
        recorded: Recorded | None = None,
        started: StartedCall | None = None,
    ) -> Reply:
        """Publish a message, unless the call was started ``RECORDED_AFTER`` ago, and return the reply.

        By default the message expires when the call times out; with ``no_expiry`` it stays in its queue. The call ends
        at ``deadline``, in seconds of the loop's clock, by default after the client's timeout. If no reply arrives for
        ``RECORDED_AFTER``, ``recorded`` is asked for it, and again until it has one.

        Raises:
            NotPublished: nor has the broker confirmed a message that was published here; it may be in no queue.
            Unavailable: no reply arrived in time; the message may or may not have been processed, or may be later.
        """
        if len(self._waiting) >= MAX_WAITING:
            raise NotPublished(f"{MAX_WAITING} calls are waiting for a reply already")
        if deadline is None:
            deadline = asyncio.get_running_loop().time() + self._timeout
        failures = 0
        reason = "it was published"
        sent_again = False
        published = asyncio.Event()
        try:
            async with asyncio.timeout_at(deadline):
                while True:
                    try:
                        if started is not None and not sent_again:
                            reply = await _first_of(started.reply, recorded, 0)
                        else:
                            expiry = None if no_expiry else deadline
                            reply = await self._call_once(routing_key, body, expiry, recorded, published)
                    except _ReplyLost:
                        sent_again = True
                    except Unavailable as error:
                        sent_again = True
                        failures += 1
                        reason = str(error)
                        await asyncio.sleep(retry.delay(failures))
                    else:
                        return replace(reply, sent_again=True) if sent_again else reply
        except TimeoutError:
            kind = Unavailable if published.is_set() else NotPublished
            raise kind(f"no reply to {routing_key} within {self._timeout:g} s: {reason}") from None

    async def _call_once(
        self,
        routing_key: str,
        body: bytes,
        deadline: float | None,
        recorded: Recorded | None,
        published: asyncio.Event,
    ) -> Reply:
        """Publish a message, set ``published`` once the broker has it in a queue, and return the reply."""
        call = self._expect_reply()
        try:
            outcome = await self._publisher.send(self._message(call, routing_key, body, deadline))
            if outcome is PublishOutcome.UNROUTED:
                raise Unavailable(
                    f"no queue is bound to exchange {self._exchange}; `taskherd topology apply` binds one"
                )
            published.set()
            return await _first_of(call.reply, recorded, RECORDED_AFTER)
        finally:
            self.end(call)

    def _expect_reply(self) -> StartedCall:
        call = StartedCall(uuid4().hex, asyncio.get_running_loop().create_future())
        self._waiting[call.correlation_id] = call
        return call

    def _message(self, call: StartedCall, routing_key: str, body: bytes, deadline: float | None) -> OutgoingMessage:
        """Return the message of a call, which expires at ``deadline``."""
        remaining = None if deadline is None else max(0.1, deadline - asyncio.get_running_loop().time())
        return OutgoingMessage(
            self._exchange,
            routing_key,
            body,
            headers={**self._trace()} or None,
            mandatory=True,
            expiration=remaining,
            reply_to=DIRECT,
            correlation_id=call.correlation_id,
        )

    def _resolve(self, delivery: Delivery) -> None:
        call = self._waiting.get(delivery.correlation_id or "")
        if call is not None and not call.reply.done():
            call.reply.set_result(Reply(delivery.body, delivery.headers))

    def _on_lost(self) -> None:
        for call in self._waiting.values():
            call.fail()


async def _first_of(reply: asyncio.Future[Reply], recorded: Recorded | None, look_after: float) -> Reply:
    """Return the reply, or its record if that is found first, which is looked for after so many seconds."""
    interval = RECORDED_AFTER
    while recorded is not None:
        await asyncio.wait({reply}, timeout=look_after)
        if reply.done():
            break
        found = await _look_until(reply, recorded)
        if found is not None:
            return found
        look_after = interval = 2 * interval  # many calls wait while workers are slow
    return await reply


async def _look_until(reply: asyncio.Future[Reply], recorded: Recorded) -> Reply | None:
    """Return what ``recorded`` finds; end it and return None if the reply arrives before."""
    look = asyncio.ensure_future(recorded())
    either: set[asyncio.Future[Any]] = {reply, look}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        return None if reply.done() else look.result()
    finally:
        look.cancel()
        await asyncio.gather(look, return_exceptions=True)
