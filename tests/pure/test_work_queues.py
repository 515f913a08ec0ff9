"""Which queues of work are declared and deleted, and which runners are registered; without a broker and a database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

import pytest

from taskherd import retry
from taskherd.broker import topology
from taskherd.broker.topology import TopologyNames
from taskherd.errors import Misconfigured, Retry, Unavailable
from taskherd.messages.claims import RunnerHello
from taskherd.store import runners
from taskherd.store.runners import WorkTargets
from taskherd.worker import work_queues as module
from taskherd.worker.known_runners import KnownRunners
from taskherd.worker.work_queues import WorkQueues
from tests.harness.contexts import Waits, partial_context
from tests.harness.histories import NOON

NAMES = TopologyNames("test")
WEEK = timedelta(days=7)


class Connection:
    """A connection whose channels have its name."""

    def __init__(self, name: str) -> None:
        self.name, self.is_up = name, True

    @asynccontextmanager
    async def temporary_channel(self) -> AsyncIterator[str]:
        """Open a channel."""
        yield self.name


class Outside:
    """The broker, which has some queues and consumers, and the runners and pools of the database."""

    def __init__(self) -> None:
        self.done: list[tuple[Any, ...]] = []
        self.targets = WorkTargets(frozenset({"gpu"}), {"listed": "gpu"}, {}, {})
        self.queues: set[str] = set()
        self.consumed: set[str] = set()
        self.failing: dict[str, Exception] = {}
        self.idle: list[str] = []
        self.checking, self.declaring = Connection("checking"), Connection("declaring")
        self.known = KnownRunners()
        context: Any = partial_context(engine="engine", known_runners=self.known, names=NAMES, now=lambda: NOON)
        checking: Any = self.checking
        declaring: Any = self.declaring
        self.work_queues = WorkQueues(context, checking, declaring, self.ensure_exchanges)

    async def ensure_exchanges(self) -> None:
        """Note that exchanges are declared."""
        self.done.append(("exchanges",))

    async def exist(self, channel: str, *, queues: Sequence[str]) -> bool:
        """Return whether a queue is there."""
        assert channel == "checking"
        return self.queues.issuperset(queues)

    async def has_consumer(self, channel: str, queue: str) -> bool:
        """Return whether a queue has a consumer."""
        assert channel == "checking"
        return queue in self.consumed

    async def declare_work_queue(self, channel: str, names: TopologyNames, target: str) -> None:
        """Declare a queue."""
        assert (channel, names) == ("declaring", NAMES)
        self.done.append(("declare", target))
        if target in self.failing:
            raise self.failing[target]

    async def delete_idle_work_queue(self, channel: str, names: TopologyNames, target: str) -> bool:
        """Delete a queue without a consumer."""
        assert (channel, names) == ("declaring", NAMES)
        self.done.append(("delete", target))
        return names.work_queue(target) not in self.consumed

    async def read_targets(self, _: object) -> WorkTargets:
        """Return the runners and pools."""
        return self.targets

    async def lock(self, _: object) -> None:
        """Note that hellos are locked."""
        self.done.append(("lock",))

    async def record_hellos(self, _: object, pools: Mapping[str, str], now: datetime) -> None:
        """Note which runners are recorded."""
        self.done.append(("record", dict(pools), now))

    async def touch(self, _: object, name: str, now: datetime) -> None:
        """Note that a runner was seen."""
        self.done.append(("touch", name, now))

    async def idle_runners(self, _: object, before: datetime, limit: int) -> list[str]:
        """Return the runners that said nothing for long."""
        assert (before, limit) == (NOON - WEEK, 20)
        return self.idle

    async def forget(self, _: object, name: str, before: datetime) -> str | None:
        """Forget a runner, and return its pool."""
        assert before == NOON - WEEK
        self.done.append(("forget", name))
        return {"of-gpu": "gpu", "of-old": "old"}.get(name)

    def names(self, deed: str) -> list[str]:
        """Return what was declared or deleted, in order."""
        return [each[1] for each in self.done if each[0] == deed]


@asynccontextmanager
async def _no_transaction(engine: object) -> AsyncIterator[None]:
    assert engine == "engine"
    yield


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> Outside:
    """Return what is around the queues of work."""
    outside = Outside()
    for owner, name, function in (
        (topology, "exist", outside.exist),
        (topology, "has_consumer", outside.has_consumer),
        (topology, "declare_work_queue", outside.declare_work_queue),
        (topology, "delete_idle_work_queue", outside.delete_idle_work_queue),
        (runners, "targets", outside.read_targets),
        (runners, "lock", outside.lock),
        (runners, "record_hellos", outside.record_hellos),
        (runners, "touch", outside.touch),
        (runners, "idle", outside.idle_runners),
        (runners, "forget", outside.forget),
        (module, "transaction", _no_transaction),
    ):
        monkeypatch.setattr(owner, name, function)
    return outside


async def test_each_queue_is_declared_once(outside: Outside) -> None:
    """In order, after the exchanges; those that are new later, and all again after a reconnect."""
    await outside.work_queues.declare_missing_once()
    assert outside.done == [("exchanges",), ("declare", "gpu"), ("declare", "listed")]
    assert outside.known.is_of_another_pool("listed", "arm")
    outside.done.clear()
    await outside.work_queues.declare_missing_once()
    assert outside.done == []
    outside.targets = WorkTargets(frozenset({"gpu"}), {"listed": "gpu"}, {"hello": "arm"}, {})
    await outside.work_queues.declare_missing_once()
    assert outside.done == [("exchanges",), ("declare", "arm"), ("declare", "hello")]
    outside.work_queues.reset()
    outside.done.clear()
    await outside.work_queues.declare_missing_once()
    assert outside.names("declare") == ["arm", "gpu", "hello", "listed"]


@pytest.mark.parametrize("error", [Unavailable("it hangs"), Misconfigured("queue", "has other arguments")])
async def test_a_queue_that_cannot_be_declared_is_tried_again(outside: Outside, error: Exception) -> None:
    """After the others, which are declared once; without a connection none of them is tried."""
    outside.failing = {"gpu": error}
    with pytest.raises(type(error)):
        await outside.work_queues.declare_missing_once()
    assert outside.names("declare") == ["gpu", "listed"]
    outside.work_queues.reset()
    outside.done.clear()
    outside.declaring.is_up = False
    with pytest.raises(type(error)):
        await outside.work_queues.declare_missing_once()
    assert outside.names("declare") == ["gpu"]
    outside.declaring.is_up, outside.failing = True, {}
    outside.done.clear()
    await outside.work_queues.declare_missing_once()
    assert outside.names("declare") == ["gpu", "listed"]


async def test_a_runner_that_says_hello_has_its_queues(outside: Outside) -> None:
    """Those that are there are not declared; what was refused is neither recorded nor declared."""
    outside.queues = {NAMES.work_queue("gpu")}
    hellos = [
        RunnerHello("r1", "gpu"),
        RunnerHello("gpu", "other"),
        RunnerHello("r2", "arm"),
        RunnerHello("arm", "arm"),
    ]
    refusals = await outside.work_queues.register(hellos, NOON)
    assert [refusal is None for refusal in refusals] == [True, False, True, False]
    assert outside.done == [
        ("lock",), ("record", {"r1": "gpu", "r2": "arm"}, NOON),
        ("declare", "r1"), ("declare", "arm"), ("declare", "r2"),
    ]  # fmt: skip
    assert outside.known.is_of_another_pool("r2", "gpu")
    outside.done.clear()
    assert await outside.work_queues.register([RunnerHello("same", "same")], NOON) != [None]
    assert outside.done == [("lock",)]


async def test_hellos_of_a_sender_are_refused_by_its_share(outside: Outside, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the pools of each; without any nothing is counted. What comes earlier in a batch counts, too."""
    monkeypatch.setattr(module, "MAX_RUNNERS_OF_SENDER", 1)
    hellos = [RunnerHello("r1", "gpu"), RunnerHello("r2", "gpu"), RunnerHello("r3", "gpu")]
    gpu = frozenset({"gpu"})
    refusals = await outside.work_queues.register(hellos, NOON, [gpu, gpu, None])
    assert [refusal is None for refusal in refusals] == [True, False, True]


async def test_a_queue_that_does_not_fit_refuses_its_runner(outside: Outside) -> None:
    """The others are registered."""
    outside.failing = {"r1": Misconfigured("queue", "has other arguments")}
    refused, accepted = await outside.work_queues.register([RunnerHello("r1", "gpu"), RunnerHello("r2", "gpu")], NOON)
    assert "other arguments" in (refused or "")
    assert accepted is None
    assert ("declare", "r2") in outside.done


async def test_a_name_that_a_runner_of_another_pool_uses_is_kept_for_it(outside: Outside) -> None:
    """As long as it consumes, and for a while longer."""
    outside.targets = WorkTargets(frozenset({"gpu", "arm"}), {}, {"r1": "gpu", "r2": "gpu"}, {})
    outside.consumed = {NAMES.work_queue("r1")}
    refusals = await outside.work_queues.register([RunnerHello("r1", "arm"), RunnerHello("r2", "arm")], NOON)
    assert [refusal is None for refusal in refusals] == [False, True]
    assert ("touch", "r1", NOON) in outside.done
    assert ("touch", "r2", NOON) not in outside.done
    outside.done.clear()
    outside.targets = WorkTargets(frozenset({"gpu", "arm"}), {}, {"r1": "gpu", "r2": "arm"}, {})
    outside.consumed = {NAMES.work_queue("r2")}
    assert await outside.work_queues.register([RunnerHello("r2", "arm")], NOON) == [None]
    assert "touch" not in {deed for deed, *_ in outside.done}


async def test_runners_that_are_long_gone_are_forgotten(outside: Outside) -> None:
    """With their queues, and those of pools that are no longer in use; one that consumes is not."""
    await outside.work_queues.declare_missing_once()
    outside.idle = ["consuming", "of-gpu", "of-old", "unknown"]
    outside.consumed = {NAMES.work_queue("consuming")}
    outside.done.clear()
    await outside.work_queues.forget_idle_once(NOON)
    assert outside.done == [
        ("delete", "consuming"), ("touch", "consuming", NOON),
        ("delete", "of-gpu"), ("lock",), ("forget", "of-gpu"),
        ("delete", "of-old"), ("lock",), ("forget", "of-old"), ("delete", "old"),
        ("delete", "unknown"), ("lock",), ("forget", "unknown"),
    ]  # fmt: skip


async def test_a_queue_that_was_deleted_is_declared_again(outside: Outside) -> None:
    """When its runner says hello again."""
    await outside.work_queues.declare_missing_once()
    outside.idle = ["listed"]
    await outside.work_queues.forget_idle_once(NOON)
    outside.done.clear()
    await outside.work_queues.declare_missing_once()
    assert outside.names("declare") == ["listed"]


async def test_queues_are_looked_after_every_half_minute(outside: Outside, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sooner after a failure, with a wait that grows; a failure of one part keeps the other from nothing."""
    waits, slept, rounds = Waits(), list[float](), list[str]()
    errors: list[Exception | None] = [
        Unavailable("no broker"), Retry("a conflict"), Misconfigured("queue", "differs"), None,
        Unavailable("away"), None,
    ]  # fmt: skip

    async def declare_missing_once() -> None:
        rounds.append("declare")
        if (error := errors.pop(0)) is not None:
            raise error

    async def forget_idle_once(now: datetime) -> None:
        assert now == NOON
        rounds.append("forget")

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if not errors:
            raise asyncio.CancelledError

    monkeypatch.setattr(outside.work_queues, "declare_missing_once", declare_missing_once)
    monkeypatch.setattr(outside.work_queues, "forget_idle_once", forget_idle_once)
    monkeypatch.setattr(retry, "delay", waits.delay)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        await outside.work_queues.run()
    assert rounds == ["declare", "forget"] * 6
    assert (waits.after, slept) == ([1, 2, 3, 1], [0, 0, 0, 30, 0, 30])
