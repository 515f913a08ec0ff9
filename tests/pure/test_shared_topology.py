"""When a worker declares exchanges and shared queues, by what the broker has; without a broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

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


@pytest.mark.parametrize(("partitions", "exchanges"), [(1, EXCHANGES), (2, [*EXCHANGES, NAMES.report_hash])])
async def test_only_what_is_missing_is_declared(
    monkeypatch: pytest.MonkeyPatch, partitions: int, exchanges: list[str]
) -> None:
    """Nothing if all is there, a queue alone, or all if an exchange is missing: also that of partitions, if any."""
    broker = Broker(partitions).use(monkeypatch)
    checks = [("exist", "checking", exchanges, []), ("exist", "checking", [], [NAMES.claims])]
    await broker.topology.ensure(NAMES.claims)
    assert broker.asked == checks
    broker.missing_queues = {NAMES.claims}
    broker.asked.clear()
    await broker.topology.ensure(NAMES.claims)
    assert broker.asked == [*checks, ("declare_queue", "declaring", NAMES, NAMES.claims, partitions)]
    broker.missing = {NAMES.events}
    broker.asked.clear()
    await broker.topology.ensure(NAMES.claims)
    assert broker.asked == [checks[0], checks[0], ("declare", "declaring", NAMES, partitions)]


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
    assert [asked for asked in broker.asked if asked[0] != "exist"] == [("declare", "declaring", NAMES, 256)]
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
