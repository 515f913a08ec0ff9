"""The exchanges and queues: their names, and how they are declared or looked for."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

from aiormq.exceptions import ChannelAccessRefused, ChannelNotFoundEntity, ChannelPreconditionFailed

from taskherd.broker.connection import TIMEOUT, map_errors
from taskherd.errors import Misconfigured, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aiormq.abc import AbstractChannel
    from pamqp.common import FieldTable

DELIVERY_LIMIT = 200
_UNLIMITED = -1
_ANY = "#"
_AN_EQUAL_SHARE = "1"
_PRIORITY_BYTES = 4


@dataclass(frozen=True, slots=True)
class TopologyNames:
    """What everything is called under one `prefix`; an exchange and its queue share a name."""

    prefix: str = "taskherd"

    @property
    def reports(self) -> str:
        """Exchange and queue of the reports."""
        return f"{self.prefix}.reports"

    @property
    def commands(self) -> str:
        """Exchange and queue of the commands."""
        return f"{self.prefix}.commands"

    @property
    def events(self) -> str:
        """Exchange of the events."""
        return f"{self.prefix}.events"

    @property
    def work(self) -> str:
        """Exchange of the work requests."""
        return f"{self.prefix}.work"

    @property
    def dead(self) -> str:
        """Exchange and queue of the dead letters."""
        return f"{self.prefix}.dead"

    @property
    def exchanges(self) -> tuple[str, ...]:
        """Every topic exchange."""
        return (self.dead, self.reports, self.commands, self.events, self.work)

    @property
    def queues(self) -> tuple[str, ...]:
        """The shared queues that are always there."""
        return (self.dead, self.reports, self.commands)

    @property
    def report_hash(self) -> str:
        """The exchange that spreads reports over the partitions by a hash of their routing key."""
        return f"{self.reports}.hash"

    def partition(self, index: int) -> str:
        """Return the queue of partition `index`, from 0."""
        return f"{self.reports}.{index}"

    def report_queues(self, partitions: int = 1) -> tuple[str, ...]:
        """Return the queues to consume reports from.

        With partitions the plain one stays among them: it may hold reports from before there were any.
        """
        if partitions == 1:
            return (self.reports,)
        return (self.reports, *(self.partition(index) for index in range(partitions)))

    def work_queue(self, target: str) -> str:
        """Return the queue of the pool or runner `target`."""
        return f"{self.work}.{target}"


async def declare(channel: AbstractChannel, names: TopologyNames, partitions: int = 1) -> None:
    """Declare every exchange and the shared queues; doing it again changes nothing.

    Raises `Unavailable`, or `Misconfigured` where something of that name is already there but made differently.
    Before lowering the number of partitions, let their queues run empty: those beyond the new number are kept, and
    take no more reports, but nobody reads them.
    """
    with _explain_mismatch("declaring the topology"):
        for exchange in names.exchanges:
            await channel.exchange_declare(exchange, exchange_type="topic", durable=True, timeout=TIMEOUT)
        # A queue that dead letters wait in has no limit: reading through it counts as a delivery too, and with no
        # further place to go to, a letter over the limit would be lost.
        await _declare_quorum(channel, names.dead, {"x-delivery-limit": _UNLIMITED})
        await channel.queue_bind(names.dead, names.dead, _ANY, timeout=TIMEOUT)
        await _declare_quorum(channel, names.reports, _guarded(names))
        await _declare_quorum(channel, names.commands, _guarded(names))
        await channel.queue_bind(names.commands, names.commands, _ANY, timeout=TIMEOUT)
        if partitions == 1:
            await channel.queue_bind(names.reports, names.reports, _ANY, timeout=TIMEOUT)
            await channel.exchange_unbind(names.report_hash, names.reports, _ANY, timeout=TIMEOUT)
    if partitions > 1:
        await _declare_partitions(channel, names, partitions)


async def _declare_partitions(channel: AbstractChannel, names: TopologyNames, partitions: int) -> None:
    """Spread the reports over `partitions` queues, each with a single active consumer."""
    with _explain_mismatch(
        "declaring the partitions", "TASKHERD_REPORT_PARTITIONS", "1, or the plugin rabbitmq_consistent_hash_exchange"
    ):
        await channel.exchange_declare(
            names.report_hash, exchange_type="x-consistent-hash", durable=True, timeout=TIMEOUT
        )
        for index in range(partitions):
            queue = names.partition(index)
            await _declare_quorum(channel, queue, {**_guarded(names), "x-single-active-consumer": True})
            await channel.queue_bind(queue, names.report_hash, _AN_EQUAL_SHARE, timeout=TIMEOUT)
        # In this order a report may pass through both ways for a moment, but never through none.
        await channel.exchange_bind(names.report_hash, names.reports, _ANY, timeout=TIMEOUT)
        await channel.queue_unbind(names.reports, names.reports, _ANY, timeout=TIMEOUT)


async def check(channel: AbstractChannel, names: TopologyNames) -> None:
    """Look whether the exchanges and shared queues are there; raises `Unavailable` naming the first that is not."""
    with _explain_mismatch("looking for the topology"):
        for exchange in names.exchanges:
            await channel.exchange_declare(exchange, passive=True, timeout=TIMEOUT)
        for queue in names.queues:
            await channel.queue_declare(queue, passive=True, timeout=TIMEOUT)


async def declare_work_queue(channel: AbstractChannel, names: TopologyNames, target: str) -> str:
    """Declare and bind the queue of the pool or runner `target` and return its name; raises as `declare`.

    It has no dead-letter exchange: a request that nobody can take is repeated, and given up, by the worker.
    """
    queue = names.work_queue(target)
    with _explain_mismatch(f"declaring {queue}"):
        await _declare_quorum(channel, queue, {"x-delivery-limit": DELIVERY_LIMIT})
        await channel.queue_bind(queue, names.work, f"*.*.{target}", timeout=TIMEOUT)
    return queue


async def declare_exclusive_queue(
    channel: AbstractChannel, *, length: int, exchange: str = "", routing_keys: tuple[str, ...] = ()
) -> str:
    """Declare a queue for this connection alone, bound to `exchange`, and return the name that the broker gave it.

    It holds `length` messages and drops the oldest beyond, so that a slow reader never blocks the broker.
    """
    limits: FieldTable = {"x-queue-type": "classic", "x-max-length": length, "x-overflow": "drop-head"}
    with _explain_mismatch("declaring an own queue"):
        declared = await channel.queue_declare(exclusive=True, arguments=limits, timeout=TIMEOUT)
        queue = str(declared.queue)
        for routing_key in routing_keys:
            await channel.queue_bind(queue, exchange, routing_key, timeout=TIMEOUT)
    return queue


def priority(worker: str, queue: str) -> int:
    """Return the consumer priority that `worker` asks for on the partition `queue`: 31 bits, spread evenly.

    This is rendezvous hashing (https://en.wikipedia.org/wiki/Rendezvous_hashing) with the broker as the judge: of the
    workers there are, a different one has the highest number on each queue, so the queues are shared out, and one that
    comes or goes moves no queue between the others. RabbitMQ >= 4.0 hands a queue with a single active consumer to the
    consumer of the highest priority, also while another has it
    (https://www.rabbitmq.com/docs/consumers#sac-behaviour).
    """
    digest = blake2b(f"{worker}/{queue}".encode(), digest_size=_PRIORITY_BYTES).digest()
    return int.from_bytes(digest, "big") >> 1


async def consumers(channel: AbstractChannel, queue: str) -> int:
    """Return how many consumers `queue` has; raises `Unavailable`, also where there is no such queue."""
    with _explain_mismatch(f"looking at {queue}"):
        declared = await channel.queue_declare(queue, passive=True, timeout=TIMEOUT)
    return declared.consumer_count or 0


def _guarded(names: TopologyNames) -> FieldTable:
    return {"x-delivery-limit": DELIVERY_LIMIT, "x-dead-letter-exchange": names.dead}


async def _declare_quorum(channel: AbstractChannel, queue: str, arguments: FieldTable) -> None:
    await channel.queue_declare(queue, durable=True, arguments={"x-queue-type": "quorum", **arguments}, timeout=TIMEOUT)


@contextmanager
def _explain_mismatch(
    doing: str,
    setting: str = "TASKHERD_AMQP_PREFIX",
    expected: str = "a prefix under which nothing was declared by others",
) -> Iterator[None]:
    try:
        with map_errors(doing):
            yield
    except Unavailable as error:
        cause = error.__cause__
        if isinstance(cause, ChannelPreconditionFailed):
            raise Misconfigured(setting, f"{cause}; expected {expected}") from error
        if isinstance(cause, ChannelAccessRefused):
            raise Misconfigured("TASKHERD_AMQP_URL", f"{cause}; expected a user who may do this") from error
        if isinstance(cause, ChannelNotFoundEntity):
            raise Unavailable(f"{cause}; `taskherd topology apply` or a worker declares it") from error
        raise
