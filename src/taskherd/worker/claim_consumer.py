"""Consume what runners ask: claims of builds, whose their tasks are, and their queues.

They have a queue of their own, so a start waits behind nobody's reports or commands. All claims that wait are decided
in one transaction and answered after its commit. A claim waits, unacked, while another transaction keeps its task
locked. Hellos wait for the broker's declarations, so they are handled beside the claims.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import structlog

from taskherd.domain.claims import BuildClaim
from taskherd.domain.command_results import CommandRefused
from taskherd.domain.outcome import DeadLetterReason, ReportOutcome
from taskherd.errors import Unavailable
from taskherd.messages import claims, replies
from taskherd.messages.claims import BUILD_CLAIM, RUNNER_HELLO, TASK_OWNED, OwnershipQuery, RunnerHello
from taskherd.messages.decoding import InvalidMessage
from taskherd.observability.failpoints import Failpoint
from taskherd.store.engine import DataError, transaction
from taskherd.worker.batch import MESSAGE_ERRORS, Batch
from taskherd.worker.bisection import Bisection
from taskherd.worker.concurrency import isolate_possible_poison
from taskherd.worker.dead_letter_sender import DeadLetterSender
from taskherd.worker.dead_letters import untrusted_sender
from taskherd.worker.load import load_ownership
from taskherd.worker.locked_tasks import LockedTasks
from taskherd.worker.outgoing_replies import OutgoingReply, reply_queue, send_replies
from taskherd.worker.reconcile import reconcile
from taskherd.worker.sender_pools import NO_POOL

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from taskherd.broker.consumer import Consumer
    from taskherd.broker.delivery import Delivery
    from taskherd.domain.claims import Ownership
    from taskherd.worker.batch import BatchResult
    from taskherd.worker.context import WorkerContext
    from taskherd.worker.dead_letter_sender import Rejected
    from taskherd.worker.relay import Relay
    from taskherd.worker.sender_pools import Pools, SenderPools
    from taskherd.worker.work_queues import WorkQueues

    _Claim: TypeAlias = tuple[Delivery, BuildClaim]

log = structlog.get_logger(__name__)

UNPROCESSED = "The claim could not be processed."
UNANSWERED = "The question whose tasks these are could not be answered."

MAX_DELIVERIES = 500
"""Maximum number of messages that are taken from the buffer at a time."""
MAX_QUERIES = 5
"""Maximum number of ownership queries that are answered in one transaction; each has up to 1,000 tasks."""
MAX_LOGGED = 5
"""Maximum number of damaged tasks in a log line."""
MAX_HELLOS = 100
"""Maximum number of hellos that are recorded in one transaction."""


@dataclass(slots=True)
class DecodedMessages:
    """The messages in some deliveries, by type, each with its delivery."""

    claims: list[_Claim] = field(default_factory=list)
    queries: list[tuple[Delivery, OwnershipQuery]] = field(default_factory=list)
    hellos: list[tuple[Delivery, RunnerHello]] = field(default_factory=list)
    invalid: list[Rejected] = field(default_factory=list)


class ClaimConsumer:
    """Consumes the messages of runners until ``consumer`` is stopped."""

    def __init__(self, consumer: Consumer, context: WorkerContext, relay: Relay, work_queues: WorkQueues) -> None:
        """Create the consumer; ``run`` starts it."""
        self._consumer = consumer
        self._context = context
        self._relay = relay
        self._work_queues = work_queues
        self._hellos: list[tuple[Delivery, RunnerHello]] = []  # unacked, so the prefetch bounds it
        self._hello_arrived = asyncio.Event()
        self._aside: list[_Claim] = []
        """Claims of locked tasks, in order: unacked too."""
        self._freed = asyncio.Event()
        self._locked = LockedTasks(context, self._freed.set)
        self._finished = False
        self._bisection = Bisection(context)
        self._dead_letters = DeadLetterSender(consumer, context)

    async def run(self) -> None:
        """Process messages until consuming has stopped and the buffer is empty."""
        async with self._dead_letters.sending(), asyncio.TaskGroup() as group:
            group.create_task(self._handle_hellos(), name="hellos")
            group.create_task(self._handle_freed(), name="claims of freed tasks")
            watching = group.create_task(self._locked.watch(), name="locked tasks")
            try:
                while await self._consume_once():
                    continue
            finally:
                watching.cancel()
                self._finished = True
                self._hello_arrived.set()
                self._freed.set()

    async def _consume_once(self) -> int:
        """Process the next messages and return their number; 0 after the last one."""
        deliveries = await self._consumer.next_batch(MAX_DELIVERIES, 0)
        for part in isolate_possible_poison(deliveries):
            decoded = _decode(part, self._context.senders)
            if decoded.hellos:
                self._hellos += decoded.hellos
                self._hello_arrived.set()
            try:
                with self._context.tracing.span("claims", deliveries=len(part)):
                    await self._handle(decoded)
            except Unavailable as error:
                log.warning("claims abandoned, the broker redelivers them", reason=str(error))
        return len(deliveries)

    async def _handle(self, decoded: DecodedMessages) -> None:
        """Decide and answer claims first: agents wait for them."""
        locked, others = self._split(decoded.claims)
        if locked:
            self._aside = [*self._held(), *locked]
        decoded.invalid += await self._decide(others)
        for start in range(0, len(decoded.queries), MAX_QUERIES):
            decoded.invalid += await self._answer_queries(decoded.queries[start : start + MAX_QUERIES])
        if decoded.invalid:
            await self._reject(decoded.invalid)

    def _split(self, batch: Sequence[_Claim]) -> tuple[list[_Claim], list[_Claim]]:
        """Split claims into those of tasks that are locked, as far as is known, and the others."""
        parts: tuple[list[_Claim], list[_Claim]] = ([], [])
        for each in batch:
            parts[each[1].task_id not in self._locked.ids].append(each)
        return parts

    def _held(self) -> list[_Claim]:
        """Return the claims that were set aside, without those that the broker redelivers, as their channel is lost."""
        return [each for each in self._aside if self._consumer.holds(each[0])]

    async def _handle_freed(self) -> None:
        """Decide claims that were set aside once their tasks are free, until the consumer has finished."""
        while not self._finished:
            await self._freed.wait()
            self._freed.clear()
            self._aside, freed = self._split(self._held())
            safe = [each for each in freed if not each[0].possible_poison]
            parts = [safe[start : start + MAX_DELIVERIES] for start in range(0, len(safe), MAX_DELIVERIES)]
            parts += [[each] for each in freed if each[0].possible_poison]
            try:
                for part in parts:
                    await self._reject(await self._decide(part))
            except Unavailable as error:
                log.warning("claims abandoned, the broker redelivers them", reason=str(error))
        if self._aside:
            log.warning("claims abandoned, their tasks are locked", count=len(self._aside))

    async def _decide(self, batch: Sequence[_Claim]) -> list[Rejected]:
        """Decide and answer claims, and return those that cannot be decided; those of locked tasks are set aside."""
        if not batch:
            return []
        senders = self._context.senders
        pools: list[Pools] = [senders.pools_of(delivery) for delivery, _ in batch] if senders.restricted else []

        async def attempt(part: Sequence[int]) -> BatchResult:
            claimed = Batch(claims=[batch[i][1] for i in part], claim_pools=[pools[i] for i in part] if pools else ())
            return await reconcile(self._context, claimed, self._context.now())

        async def accept(part: Sequence[int], result: BatchResult) -> list[DeadLetterReason | None]:
            self._relay.offer(result.changes, has_due_requests=result.has_due_requests)
            self._context.failpoint(Failpoint.POST_CLAIM)
            answers: list[OutgoingReply] = []
            reasons: list[DeadLetterReason | None] = []
            for index, decision in zip(part, result.decisions, strict=True):
                if isinstance(decision, DeadLetterReason):
                    reasons.append(decision)
                else:
                    reasons.append(None)
                    self._count(BUILD_CLAIM, decision.outcome.value)
                    answers.append(OutgoingReply(batch[index][0], claims.claim_reply(decision)))
            await self._answer(answers)
            return reasons

        async def reject(index: int, error: Exception) -> DeadLetterReason:
            log.warning("claim rejected", task_id=str(batch[index][1].task_id), reason=repr(error)[:200])
            return _reason_of(error)

        def set_aside(part: Sequence[int]) -> list[None]:
            self._locked.add([batch[i][1].task_id for i in part])
            self._aside += [batch[i] for i in part]
            return [None] * len(part)

        reasons = await self._bisection.run([claim.task_id for _, claim in batch], attempt, accept, reject, set_aside)
        return [
            (delivery, InvalidMessage(None, reason, _detail_of(reason), delivery.body))
            for (delivery, _), reason in zip(batch, reasons, strict=True)
            if reason is not None
        ]

    async def _answer_queries(self, queries: Sequence[tuple[Delivery, OwnershipQuery]]) -> list[Rejected]:
        """Answer queries together, or each by itself if that fails, and return those that cannot be answered."""

        async def read() -> list[dict[UUID, Ownership | None]]:
            async with transaction(self._context.engine) as connection:
                return await load_ownership(connection, [query for _, query in queries])

        try:
            answers = await self._context.until_stopped(read, "database")
        except MESSAGE_ERRORS as error:
            if len(queries) > 1:
                return [rejected for each in queries for rejected in await self._answer_queries([each])]
            delivery, query = queries[0]
            log.warning("ownership query rejected", runner=query.runner, reason=repr(error)[:200])
            return [(delivery, InvalidMessage(None, _reason_of(error), UNANSWERED, delivery.body))]
        for (_, query), answer in zip(queries, answers, strict=True):
            if damaged := [str(task_id) for task_id in query.task_ids if task_id not in answer]:
                first = damaged[:MAX_LOGGED]
                log.warning("states of tasks are damaged", runner=query.runner, count=len(damaged), first=first)
        await self._answer(
            [
                OutgoingReply(delivery, claims.ownership_reply(answer))
                for (delivery, _), answer in zip(queries, answers, strict=True)
            ]
        )
        for _ in queries:
            self._count(TASK_OWNED, "answered")
        return []

    async def _handle_hellos(self) -> None:
        """Declare the queues of runners that say hello, until the consumer has finished."""
        while True:
            await self._hello_arrived.wait()
            self._hello_arrived.clear()
            while self._hellos:
                batch, self._hellos = self._hellos[:MAX_HELLOS], self._hellos[MAX_HELLOS:]
                try:
                    await self._answer_hellos(batch)
                except Unavailable as error:
                    log.warning("hellos abandoned, the broker redelivers them", reason=str(error))
            if self._finished:
                return

    async def _answer_hellos(self, batch: Sequence[tuple[Delivery, RunnerHello]]) -> None:
        senders = self._context.senders
        pools = [senders.pools_of(delivery) for delivery, _ in batch] if senders.restricted else []
        refusals = await self._context.until_stopped(
            lambda: self._work_queues.register([hello for _, hello in batch], self._context.now(), pools), "broker"
        )
        answers: list[OutgoingReply] = []
        refused: list[Rejected] = []
        for (delivery, hello), refusal in zip(batch, refusals, strict=True):
            self._count(RUNNER_HELLO, "refused" if refusal else "accepted")
            if refusal is None:
                answers.append(OutgoingReply(delivery, claims.hello_reply()))
                continue
            log.warning("hello of a runner refused", runner=hello.runner, pool=hello.pool, reason=refusal)
            if reply_queue(self._context, delivery):
                answers.append(OutgoingReply(delivery, replies.refused_reply(CommandRefused(409, refusal))))
            else:
                reason = DeadLetterReason.COMMAND_REFUSED
                refused.append((delivery, InvalidMessage(None, reason, refusal, delivery.body)))
        await self._answer(answers)
        await self._dead_letters.add(refused)

    async def _reject(self, rejected: Sequence[Rejected]) -> None:
        """Reply to invalid messages with an error, and have them published as dead letters."""
        for _ in rejected:
            self._count("unknown", "invalid")
        answers = [OutgoingReply(delivery, replies.invalid_message_reply(invalid)) for delivery, invalid in rejected]
        send_replies(self._context, answers)
        await self._dead_letters.add(rejected)

    async def _answer(self, answers: Sequence[OutgoingReply]) -> None:
        """Publish the replies and ack their messages."""
        send_replies(self._context, answers)
        await self._consumer.ack([answer.delivery for answer in answers])

    def _count(self, kind: str, outcome: str) -> None:
        self._context.metrics.claims.labels(kind, outcome).inc()


def _detail_of(reason: DeadLetterReason) -> str:
    return ReportOutcome.UNTRUSTED_SENDER.detail if reason is DeadLetterReason.UNTRUSTED_SENDER else UNPROCESSED


def _reason_of(error: Exception) -> DeadLetterReason:
    return DeadLetterReason.DATA_ERROR if isinstance(error, DataError) else DeadLetterReason.FAULT


def _decode(deliveries: Sequence[Delivery], senders: SenderPools) -> DecodedMessages:
    decoded = DecodedMessages()
    for delivery in deliveries:
        pools = senders.pools_of(delivery)
        if pools == NO_POOL:
            decoded.invalid.append((delivery, untrusted_sender(delivery, "TASKHERD_REPORT_SENDERS")))
            continue
        match claims.decode_runner_message(delivery.body, delivery.original_length):
            case BuildClaim() as claim:
                decoded.claims.append((delivery, claim))
            case OwnershipQuery() as query:
                decoded.queries.append((delivery, query))
            case RunnerHello() as hello if pools is not None and hello.pool not in pools:
                detail = ReportOutcome.UNTRUSTED_SENDER.detail
                reason = DeadLetterReason.UNTRUSTED_SENDER
                decoded.invalid.append((delivery, InvalidMessage(None, reason, detail, delivery.body)))
            case RunnerHello() as hello:
                decoded.hellos.append((delivery, hello))
            case InvalidMessage() as invalid:
                decoded.invalid.append((delivery, invalid))
    return decoded
