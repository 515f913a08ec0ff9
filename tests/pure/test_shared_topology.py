"""When a worker declares exchanges and shared queues, by what the broker has; without a broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from aiormq.abc import AbstractChannel
from aiormq.exceptions import ChannelPreconditionFailed

from taskherd import retry
from taskherd.broker import topology
from taskherd.broker.connection import SupervisedConnection
from taskherd.broker.topology import TopologyNames
from taskherd.errors import Misconfigured, Unavailable
from taskherd.worker.topology import Topology
from tests.harness.buffers import until
from tests.harness.contexts import Waits

NAMES = TopologyNames("test")
EXCHANGES = [*NAMES.exchanges]


class Connection:
    """A connection whose channels have its name."""

    def __init__(self, name: str) -> None:
        self.name = name

    @asynccontextmanager
    async def temporary_channel(self) -> AsyncIterator[str]:
        """Open a channel."""
        yield self.name

    @asynccontextmanager
    async def temporary_channels(self, count: int) -> AsyncIterator[list[str]]:
        """Open channels."""
        yield [self.name] * count


class Broker:
    """A broker that lacks the ``missing`` exchanges and queues; what is asked of it is noted."""

    def __init__(self, partitions: int) -> None:
        self.missing: set[str] = set()
        self.missing_queues: set[str] = set()
        self.asked: list[tuple[Any, ...]] = []
        self.errors: list[Exception] = []
        self.told: list[str] = []
        self.topology = Topology(
            cast("SupervisedConnection", Connection("checking")), cast("SupervisedConnection", Connection("declaring")),
            NAMES, partitions, self.told.append,
        )  # fmt: skip

    async def exist(self, channel: str, exchanges: Iterable[str] = (), queues: Iterable[str] = ()) -> bool:
        """Return whether all of these are there."""
        self.asked.append(("exist", channel, [*exchanges], [*queues]))
        return self.missing.isdisjoint(exchanges) and self.missing_queues.isdisjoint(queues)

    async def declare(self, *arguments: Any) -> None:
        """Declare all."""
        self.asked.append(("declare", *arguments))
        if self.errors:
            raise self.errors.pop(0)

    async def declare_queue(self, *arguments: Any) -> None:
        """Declare a queue."""
        self.asked.append(("declare_queue", *arguments))

    def use(self, monkeypatch: pytest.MonkeyPatch) -> Broker:
        """Let topologies use this broker."""
        for name in ("exist", "declare", "declare_queue"):
            monkeypatch.setattr(topology, name, getattr(self, name))
        return self


@pytest.mark.parametrize(
    ("partitions", "queue", "exchanges"),
    [
        (1, NAMES.claims, EXCHANGES),
        (2, NAMES.claims, EXCHANGES),
        (2, NAMES.reports, EXCHANGES),
        (2, NAMES.partition(1), [*EXCHANGES, NAMES.report_hash]),
    ],
)
async def test_only_what_is_missing_is_declared(
    monkeypatch: pytest.MonkeyPatch, partitions: int, queue: str, exchanges: list[str]
) -> None:
    """Nothing if all is there, a queue alone, or all if an exchange is missing: for a partition also that of those."""
    broker = Broker(partitions).use(monkeypatch)
    checks = [("exist", "checking", exchanges, []), ("exist", "checking", [], [queue])]
    await broker.topology.ensure(queue)
    assert broker.asked == checks
    broker.missing_queues = {queue}
    broker.asked.clear()
    await broker.topology.ensure(queue)
    assert broker.asked == [*checks, ("declare_queue", "declaring", NAMES, queue, partitions)]
    broker.missing = {NAMES.events}
    broker.asked.clear()
    await broker.topology.ensure(queue)
    assert broker.asked == [checks[0], checks[0], ("declare", "declaring", NAMES, partitions, [])]


async def test_commands_are_consumed_while_partitions_are_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that finds no partitions yet declares them, and waits with nothing else."""
    broker, declaring = Broker(256).use(monkeypatch), asyncio.Event()
    broker.missing = {NAMES.report_hash}

    async def declare(*_: Any) -> None:
        declaring.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(topology, "declare", declare)
    partition = asyncio.create_task(broker.topology.ensure(NAMES.partition(0)))
    async with asyncio.timeout(30):
        await declaring.wait()
        await broker.topology.ensure(NAMES.commands)
    assert not partition.done()
    partition.cancel()
    await asyncio.wait({partition})


class Channel:
    """A channel of a broker that notes which requests are under way at the same time."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests
        self._is_busy = False

    async def _request(self, name: str) -> None:
        assert not self._is_busy
        self._is_busy = True
        await self._requests.make(name)
        self._is_busy = False

    async def exchange_declare(self, name: str, **_: Any) -> None:
        """Declare an exchange."""
        await self._request(f"exchange {name}")

    async def queue_declare(self, name: str, **_: Any) -> None:
        """Declare a queue."""
        await self._request(name)

    async def queue_bind(self, name: str, exchange: str, *_: Any, **__: Any) -> None:
        """Bind a queue."""
        await self._request(f"{exchange} to {name}")

    async def queue_unbind(self, name: str, exchange: str, *_: Any, **__: Any) -> None:
        """Unbind a queue."""
        await self._request(f"not {exchange} to {name}")

    async def exchange_bind(self, name: str, exchange: str, *_: Any, **__: Any) -> None:
        """Bind an exchange."""
        await self._request(f"{exchange} to {name}")


class Requests:
    """The requests to a broker in their order, one of which it may refuse."""

    def __init__(self, refused: str = "") -> None:
        self.made: list[str] = []
        self.most = 0
        self._refused = refused
        self._under_way = 0

    async def make(self, name: str) -> None:
        """Answer after all that is sent at the same time."""
        self._under_way += 1
        self.most = max(self.most, self._under_way)
        await asyncio.sleep(0)
        self._under_way -= 1
        self.made.append(name)
        if name == self._refused:
            raise ChannelPreconditionFailed(name)


@pytest.mark.parametrize(("partitions", "channels"), [(1, 1), (2, 1), (9, 2), (64, 8), (256, 8)])
async def test_partitions_are_declared_over_several_channels(
    monkeypatch: pytest.MonkeyPatch, partitions: int, channels: int
) -> None:
    """One for 8 partitions, up to 8; the reports go to them when all are bound."""
    requests = Requests()
    opened = 0

    @asynccontextmanager
    async def temporary_channels(_: Connection, count: int) -> AsyncIterator[list[Channel]]:
        nonlocal opened
        opened += count
        yield [Channel(requests) for _ in range(count)]

    monkeypatch.setattr(Connection, "temporary_channels", temporary_channels)
    monkeypatch.setattr(Channel, "exchange_unbind", Channel.queue_unbind, raising=False)
    await Broker(partitions).topology.declare_once()
    assert (opened, requests.most) == (channels, channels)
    bound = [f"{NAMES.report_hash} to {NAMES.partition(index)}" for index in range(partitions)]
    last = [f"{NAMES.reports} to {NAMES.report_hash}", f"not {NAMES.reports} to {NAMES.reports}"]
    if partitions > 1:
        assert {*bound} <= {*requests.made[:-2]}
        assert requests.made[-2:] == last
    assert len(requests.made) == len({*requests.made})


async def test_a_partition_that_is_refused_is_one_error() -> None:
    """However many are declared at the same time; reports still go to the queue without partitions."""
    requests = Requests(NAMES.partition(5))
    channel, *others = cast("list[AbstractChannel]", [Channel(requests) for _ in range(8)])
    with pytest.raises(Misconfigured, match="TASKHERD_REPORT_PARTITIONS"):
        await topology.declare(channel, NAMES, 64, others)
    assert not any(each.startswith("not ") for each in requests.made)


async def test_what_many_queues_lack_is_declared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each partition's consumer finds on a new broker that nothing is there; a queue that is still missing follows."""
    broker = Broker(256).use(monkeypatch)
    broker.missing, broker.missing_queues = {NAMES.events}, {NAMES.claims}
    declare = broker.declare

    async def declare_all(*arguments: Any) -> None:
        await asyncio.sleep(0)
        await declare(*arguments)
        broker.missing.clear()

    monkeypatch.setattr(topology, "declare", declare_all)
    await asyncio.gather(*(broker.topology.ensure(f"partition {number}") for number in range(256)))
    assert [asked for asked in broker.asked if asked[0] != "exist"] == [
        ("declare", "declaring", NAMES, 256, ["declaring"] * 7)
    ]
    broker.missing = {NAMES.events}
    broker.asked.clear()
    await asyncio.gather(broker.topology.ensure("partition 1"), broker.topology.ensure(NAMES.claims))
    assert [asked[0] for asked in broker.asked if asked[0] != "exist"] == ["declare", "declare_queue"]


async def test_all_is_declared_at_the_start_and_again_after_a_reconnect(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until that succeeds: each failure is told, and the waits become longer."""
    broker, waits = Broker(1).use(monkeypatch), Waits()
    monkeypatch.setattr(retry, "delay", waits.delay)
    broker.errors = [Unavailable("no broker"), Misconfigured("queue", "has other arguments")]
    running = asyncio.create_task(broker.topology.run())
    await until(lambda: len(broker.asked) == 3)
    assert broker.told == ["no broker", str(Misconfigured("queue", "has other arguments"))]
    assert waits.after == [1, 2]
    broker.errors = [Unavailable("away again")]
    broker.topology.reset()
    await until(lambda: len(broker.asked) == 5)
    assert (waits.after, running.done()) == ([1, 2, 1], False)
    running.cancel()
    await asyncio.wait({running})
    assert {asked for asked, *_ in broker.asked} == {"declare"}
