"""The exchanges and queues: their names, declarations and checks."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING

from aiormq.exceptions import ChannelAccessRefused, ChannelNotFoundEntity, ChannelPreconditionFailed

from taskherd.broker.requests import REQUEST_TIMEOUT, map_errors, share_out
from taskherd.errors import Misconfigured, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from aiormq.abc import AbstractChannel
    from pamqp.common import FieldTable

DELIVERY_LIMIT = 200
"""Number of redeliveries after which a quorum queue dead-letters a message."""
MAX_CHANNELS = 8
"""Maximum number of channels on which partitions are declared at the same time."""
PARTITIONS_OF_EACH = 8
"""Number of partitions for which it is worth opening another channel."""
_UNLIMITED = -1
_ALL_KEYS = "#"
_EQUAL_WEIGHT = "1"
_PRIORITY_BYTES = 4


@dataclass(frozen=True, slots=True)
class TopologyNames:
    """The names of all exchanges and queues under one ``prefix``; an exchange and its queue have the same name."""

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
    def claims(self) -> str:
        """Exchange and queue of the claims and questions of runners."""
        return f"{self.prefix}.claims"

    @property
    def events(self) -> str:
        """Exchange of the events."""
        return f"{self.prefix}.events"

    @property
    def wakeups(self) -> str:
        """Exchange of the messages that tell APIs to read the feed; they are published without confirms."""
        return f"{self.prefix}.wakeups"

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
        return (self.dead, self.reports, self.commands, self.claims, self.events, self.wakeups, self.work)

    @property
    def queues(self) -> tuple[str, ...]:
        """The shared queues that always exist."""
        return (self.dead, self.reports, self.commands, self.claims)

    @property
    def report_hash(self) -> str:
        """The exchange that distributes reports over the partitions by a hash of their routing key."""
        return f"{self.reports}.hash"

    def partition(self, index: int) -> str:
        """Return the queue of partition ``index``, counted from 0."""
        return f"{self.reports}.{index}"

    def report_queues(self, partitions: int = 1) -> tuple[str, ...]:
        """Return the queues to consume reports from.

        With partitions, the unpartitioned queue is included: it may contain reports from before the partitioning.
        """
        if partitions == 1:
            return (self.reports,)
        return (self.reports, *(self.partition(index) for index in range(partitions)))

    def work_queue(self, target: str) -> str:
        """Return the queue of the pool or runner ``target``."""
        return f"{self.work}.{target}"


def channels_for(partitions: int) -> int:
    """Return the number of channels on which to declare so many partitions."""
    return min(MAX_CHANNELS, -(-partitions // PARTITIONS_OF_EACH))


async def declare(
    channel: AbstractChannel, names: TopologyNames, partitions: int = 1, others: Sequence[AbstractChannel] = ()
) -> None:
    """Declare every exchange and the shared queues; idempotent. Partitions are declared on ``others`` at the same time.

    Before lowering the number of partitions, let their queues run empty: those beyond the new number are kept and
    receive no more reports, but no worker consumes them.

    Raises:
        Unavailable: the broker cannot be reached.
        Misconfigured: an exchange or queue of that name exists with other properties.
    """
    with _explain_mismatch("declaring the topology"):
        for exchange in names.exchanges:
            await channel.exchange_declare(exchange, exchange_type="topic", durable=True, timeout=REQUEST_TIMEOUT)
        for queue in names.queues:
            await _declare_shared(channel, names, queue, partitions)
    if partitions > 1:
        await _declare_partitions((channel, *others), names, partitions)


async def declare_queue(channel: AbstractChannel, names: TopologyNames, queue: str, partitions: int) -> None:
    """Declare and bind one of the shared queues or partitions; the exchanges exist. Raise as ``declare`` does."""
    with _explain_mismatch(f"declaring {queue}"):
        if queue in names.queues:
            await _declare_shared(channel, names, queue, partitions)
        else:
            await _declare_partition(channel, names, queue)


async def _declare_shared(channel: AbstractChannel, names: TopologyNames, queue: str, partitions: int) -> None:
    if queue == names.dead:
        # The dead-letter queue has no delivery limit: listing it counts as a delivery, and a message over the limit
        # would be lost, because this queue has no dead-letter exchange itself.
        await _declare_quorum(channel, queue, {"x-delivery-limit": _UNLIMITED})
    else:
        await _declare_quorum(channel, queue, _dead_lettering(names))
    if queue != names.reports or partitions == 1:
        await channel.queue_bind(queue, queue, _ALL_KEYS, timeout=REQUEST_TIMEOUT)
    if queue == names.reports and partitions == 1:
        await channel.exchange_unbind(names.report_hash, names.reports, _ALL_KEYS, timeout=REQUEST_TIMEOUT)


async def _declare_partitions(channels: Sequence[AbstractChannel], names: TopologyNames, partitions: int) -> None:
    """Distribute the reports over ``partitions`` queues, each with a single active consumer."""
    channel = channels[0]
    with _explain_partitions():
        await channel.exchange_declare(
            names.report_hash, exchange_type="x-consistent-hash", durable=True, timeout=REQUEST_TIMEOUT
        )
    await share_out(range(partitions), [partial(_declare_each, each, names) for each in channels])
    with _explain_partitions():
        # Add the new binding before removing the old one: for a moment a report may take both routes, but always one.
        await channel.exchange_bind(names.report_hash, names.reports, _ALL_KEYS, timeout=REQUEST_TIMEOUT)
        await channel.queue_unbind(names.reports, names.reports, _ALL_KEYS, timeout=REQUEST_TIMEOUT)


async def _declare_each(channel: AbstractChannel, names: TopologyNames, remaining: Iterator[int]) -> None:
    with _explain_partitions():
        for index in remaining:
            await _declare_partition(channel, names, names.partition(index))


async def _declare_partition(channel: AbstractChannel, names: TopologyNames, queue: str) -> None:
    await _declare_quorum(channel, queue, {**_dead_lettering(names), "x-single-active-consumer": True})
    await channel.queue_bind(queue, names.report_hash, _EQUAL_WEIGHT, timeout=REQUEST_TIMEOUT)


async def exist(channel: AbstractChannel, exchanges: Iterable[str] = (), queues: Iterable[str] = ()) -> bool:
    """Return whether all these exchanges and queues exist; if not, the channel is closed.

    This neither waits for a hung node of the broker's cluster, as a declaration does, nor sees bindings.

    Raises:
        Unavailable: the broker cannot be reached.
    """
    with _explain_mismatch("checking the topology"):
        try:
            await _declare_passively(channel, exchanges, queues)
        except ChannelNotFoundEntity:
            return False
    return True


async def has_consumer(channel: AbstractChannel, queue: str) -> bool:
    """Return whether a queue has a consumer. If there is no such queue, the broker closes the channel.

    Raises:
        Unavailable: the broker cannot be reached.
    """
    with _explain_mismatch(f"checking {queue}"):
        try:
            return bool((await channel.queue_declare(queue, passive=True, timeout=REQUEST_TIMEOUT)).consumer_count)
        except ChannelNotFoundEntity:
            return False


async def check(channel: AbstractChannel, exchanges: Iterable[str] = (), queues: Iterable[str] = ()) -> None:
    """Check that these exchanges and queues exist. Raise ``Unavailable`` naming the first one that does not.

    A process checks only what it uses itself, so that it can start before others have a new version.
    """
    with _explain_mismatch("checking the topology"):
        await _declare_passively(channel, exchanges, queues)


async def _declare_passively(channel: AbstractChannel, exchanges: Iterable[str], queues: Iterable[str]) -> None:
    for exchange in exchanges:
        await channel.exchange_declare(exchange, passive=True, timeout=REQUEST_TIMEOUT)
    for queue in queues:
        await channel.queue_declare(queue, passive=True, timeout=REQUEST_TIMEOUT)


async def declare_work_queue(channel: AbstractChannel, names: TopologyNames, target: str) -> str:
    """Declare and bind the queue of the pool or runner ``target`` and return its name. Raise as ``declare`` does.

    The exchange must exist: an unbound queue would look complete to later checks. The queue has no dead-letter
    exchange: the worker itself repeats a request that is not executed, and eventually gives up.
    """
    queue = names.work_queue(target)
    with _explain_mismatch(f"declaring {queue}"):
        await channel.exchange_declare(names.work, passive=True, timeout=REQUEST_TIMEOUT)
        await _declare_quorum(channel, queue, {"x-delivery-limit": DELIVERY_LIMIT})
        await channel.queue_bind(queue, names.work, f"*.*.{target}", timeout=REQUEST_TIMEOUT)
    return queue


async def delete_idle_work_queue(channel: AbstractChannel, names: TopologyNames, target: str) -> bool:
    """Delete the queue of a runner or pool that has no consumer and return True; return False if it has one.

    The broker has no conditional delete of quorum queues. A runner that subscribes at the same moment loses its
    consumer, and asks for its queue again. Raise as ``declare`` does.
    """
    queue = names.work_queue(target)
    # queue.delete succeeds for a queue that does not exist; declaring it first avoids the error of a passive declare.
    await declare_work_queue(channel, names, target)
    with _explain_mismatch(f"deleting {queue}"):
        declared = await channel.queue_declare(queue, passive=True, timeout=REQUEST_TIMEOUT)
        if declared.consumer_count:
            return False
        await channel.queue_delete(queue, timeout=REQUEST_TIMEOUT)
    return True


async def declare_exclusive_queue(
    channel: AbstractChannel, *, length: int, exchange: str = "", routing_keys: tuple[str, ...] = ()
) -> str:
    """Declare an exclusive queue of this connection, bound to ``exchange``, and return its server-generated name.

    It keeps the newest ``length`` messages and drops older ones, so a slow consumer never blocks the broker.
    """
    limits: FieldTable = {"x-queue-type": "classic", "x-max-length": length, "x-overflow": "drop-head"}
    with _explain_mismatch("declaring an exclusive queue"):
        declared = await channel.queue_declare(exclusive=True, arguments=limits, timeout=REQUEST_TIMEOUT)
        queue = str(declared.queue)
        for routing_key in routing_keys:
            await channel.queue_bind(queue, exchange, routing_key, timeout=REQUEST_TIMEOUT)
    return queue


def consumer_priority(worker: str, queue: str) -> int:
    """Return the consumer priority of ``worker`` on the partition ``queue``: 31 bits, evenly distributed.

    This is rendezvous hashing (https://en.wikipedia.org/wiki/Rendezvous_hashing), decided by the broker: the queues are
    distributed evenly, because each worker has the highest priority on its share of them; a worker that joins or leaves
    moves no queue between the others. RabbitMQ >= 4.0 assigns a queue with a single active consumer to the consumer
    with the highest priority, even if another consumer is active
    (https://www.rabbitmq.com/docs/consumers#sac-behaviour).
    """
    digest = blake2b(f"{worker}/{queue}".encode(), digest_size=_PRIORITY_BYTES).digest()
    return int.from_bytes(digest, "big") >> 1


async def consumer_count(channel: AbstractChannel, queue: str) -> int:
    """Return the number of consumers of ``queue``. Raise ``Unavailable`` if the queue does not exist."""
    with _explain_mismatch(f"counting the consumers of {queue}"):
        declared = await channel.queue_declare(queue, passive=True, timeout=REQUEST_TIMEOUT)
    return declared.consumer_count or 0


def _dead_lettering(names: TopologyNames) -> FieldTable:
    return {"x-delivery-limit": DELIVERY_LIMIT, "x-dead-letter-exchange": names.dead}


async def _declare_quorum(channel: AbstractChannel, queue: str, arguments: FieldTable) -> None:
    await channel.queue_declare(
        queue, durable=True, arguments={"x-queue-type": "quorum", **arguments}, timeout=REQUEST_TIMEOUT
    )


@contextmanager
def _explain_mismatch(
    action: str,
    setting: str = "TASKHERD_AMQP_PREFIX",
    expected: str = "a prefix that no other application uses",
) -> Iterator[None]:
    try:
        with map_errors(action):
            yield
    except Unavailable as error:
        cause = error.__cause__
        if isinstance(cause, ChannelPreconditionFailed):
            raise Misconfigured(setting, f"{cause}; expected {expected}") from error
        if isinstance(cause, ChannelAccessRefused):
            raise Misconfigured(
                "TASKHERD_AMQP_URL", f"{cause}; expected a user with the permission for this"
            ) from error
        if isinstance(cause, ChannelNotFoundEntity):
            raise Unavailable(f"{cause}; `taskherd topology apply` or a worker declares it") from error
        raise


def _explain_partitions() -> AbstractContextManager[None]:
    return _explain_mismatch(
        "declaring the partitions", "TASKHERD_REPORT_PARTITIONS", "1, or the plugin rabbitmq_consistent_hash_exchange"
    )
