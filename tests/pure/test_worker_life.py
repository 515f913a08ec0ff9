"""What a worker does from its start to its end, and in which order, without services."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from taskherd import garbage_collector
from taskherd.broker.requests import REQUEST_TIMEOUT
from taskherd.broker.topology import consumer_priority
from taskherd.errors import Unavailable
from taskherd.observability import logs
from taskherd.settings import Settings
from taskherd.worker import app
from taskherd.worker.app import Worker
from tests.harness.buffers import until

URLS: dict[str, Any] = {"database_url": "postgresql://db/t", "amqp_url": "amqp://mq/"}
CONSUMERS = ("reports", "commands", "claims")
BACKGROUND = {
    "sweeper", "indexer", "maintenance", "probe", "topology", "work_queues", "watchdog", "wakeups", "wakeup_publisher",
    "rates",
}  # fmt: skip
END_WITHIN = 60.0
"""Seconds after which a worker that has not ended never will."""


class Parts:
    """The parts of a worker, which note in order what the worker has them do, and need several turns for all of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        times: dict[str, Any] = {"sweep_every": 7, "probe_every": 8, "probe_timeout": 9}
        self.worker = Worker(Settings(**URLS, **times, secret_key="s" * 32, batch_most=10, batch_wait=0.5), "w1")
        self.worker._tracing.close()
        self.done: list[str] = []
        self.running: dict[str, tuple[Any, ...]] = {}
        """The parts that run, and what they were given."""
        self.handlers: dict[int, Callable[[], None]] = {}
        self._ends = {name: asyncio.Event() for name in (*CONSUMERS, "relay", "replies")}
        self._replace(monkeypatch)

    def _replace(self, monkeypatch: pytest.MonkeyPatch) -> None:
        worker, loop = self.worker, asyncio.get_running_loop()
        connections: dict[str, Any] = {name: name for name in ("reports", "unconfirmed", "work", "dead", "declare")}
        connections["start"] = lambda *others: self.done.append(f"connecting {sorted(others)}")
        replaced = {
            "_ops": SimpleNamespace(start=self._open_port, close=self._step("ops closed")),
            "_connections": SimpleNamespace(**connections, close=self._step("connections closed")),
            "_tracing": SimpleNamespace(close=lambda: self.done.append("tracing closed")),
            "_relay": self._loop("relay"),
            "_replies": self._loop("replies"),
            "_report_consumer": self._loop("reports"),
            "_command_consumer": self._loop("commands"),
            "_claim_consumer": self._loop("claims"),
            "_sweeper": self._loop("sweeper", deregister=self._step("deregistered")),
            "probe": SimpleNamespace(send_probes=self._loop("probe").run, reset=lambda: None),
            **{f"_{name}": self._loop(name) for name in BACKGROUND - {"sweeper", "probe", "rates"}},
            **{f"_{name}": self._consumer(name) for name in CONSUMERS},
        }
        for name, part in replaced.items():
            monkeypatch.setattr(worker, name, part)
        monkeypatch.setattr(worker._context.rates, "run", self._loop("rates").run)
        monkeypatch.setattr(worker._context.rates, "write_once", self._step("rates written"))
        monkeypatch.setattr(worker, "_prepare_database", self._step("database tried"))
        monkeypatch.setattr(app, "dispose", self._step("database closed"))
        monkeypatch.setattr(loop, "add_signal_handler", self.handlers.__setitem__)

    async def _open_port(self, *_: object) -> int:
        return 4_321

    def _step(self, name: str) -> Callable[..., Coroutine[Any, Any, None]]:
        async def do(*_: object) -> None:
            await _several_steps()
            self.done.append(name)

        return do

    def _loop(self, name: str, **others: Callable[..., Awaitable[None]]) -> Any:
        """Return a part that runs until it is told to end, or is cancelled."""

        async def run(*arguments: Any) -> None:
            self.running[name] = arguments
            try:
                await self._ends.get(name, asyncio.Event()).wait()
                await _several_steps()
                self.done.append(f"{name} ended")
            except asyncio.CancelledError:
                await _several_steps()
                self.done.append(f"{name} cancelled")
                raise

        def stop() -> None:
            self.done.append(f"{name} stopping")
            self._ends[name].set()

        return SimpleNamespace(run=run, stop=stop, in_flight=0, **others)

    def _consumer(self, name: str) -> Any:
        async def stop() -> None:
            self._ends[name].set()
            for _ in range(3):
                await _several_steps()
            self.done.append(f"{name} stopped")

        start = self.done.append
        return SimpleNamespace(
            start=lambda: start(f"{name} started"), stop=stop, close=self._step(f"{name} closed"), consuming=True,
            buffered=0,
        )  # fmt: skip

    async def run(self, stopping: Callable[[], bool]) -> None:
        """Run the worker, and stop it by a signal once this is so."""
        async with asyncio.timeout(END_WITHIN):
            running = asyncio.create_task(self.worker.run(), name="worker")
            await until(lambda: stopping() or running.done())
            if not running.done():
                self.handlers[signal.SIGTERM]()
            await running

    @property
    def is_working(self) -> bool:
        """Whether all parts run."""
        return self.running.keys() >= {*CONSUMERS, *BACKGROUND, "relay", "replies"}


async def _several_steps() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


@pytest.fixture
async def parts(monkeypatch: pytest.MonkeyPatch) -> Parts:
    """Return the parts of a worker."""
    return Parts(monkeypatch)


LEFT = ["ops closed", "connections closed", "database closed", "tracing closed"]
CONNECTING = "connecting ['dead', 'declare', 'reports', 'unconfirmed', 'work']"
STARTED = ["database tried", CONNECTING, "commands started", "claims started", "reports started"]
CLOSED = ["reports closed", "commands closed", "claims closed"]


async def test_a_worker_stops_in_order(parts: Parts) -> None:
    """It stops consuming, finishes what is in progress, publishes what is committed and leaves; the rest is cut off."""
    await parts.run(lambda: parts.is_working)
    done = parts.done
    assert done[: len(STARTED)] == STARTED
    stopped = done[len(STARTED) :]
    assert set(stopped[:6]) == {f"{name} {what}" for name in CONSUMERS for what in ("stopped", "ended")}
    assert stopped[6:8] == ["relay stopping", "replies stopping"]
    assert set(stopped[8:12]) == {"relay ended", "replies ended", "deregistered", "rates written"}
    assert stopped.index("deregistered") < stopped.index("rates written")
    assert set(stopped[12:22]) == {f"{name} cancelled" for name in BACKGROUND}
    assert stopped[22:] == CLOSED + LEFT
    assert (parts.worker._readiness._reasons["consumers"], parts.worker._stopping.is_set()) == ("stopping", True)


async def test_a_worker_has_an_operations_port_and_ends_at_signals(parts: Parts) -> None:
    """The port is known, also where the system chose it; SIGINT is Ctrl-C."""
    await parts.run(lambda: parts.is_working)
    assert parts.worker.ops_port == 4_321
    assert set(parts.handlers) == {signal.SIGTERM, signal.SIGINT}


async def test_parts_work_in_the_rhythm_of_the_settings(parts: Parts) -> None:
    """Sweeps, probes and batches."""
    await parts.run(lambda: parts.is_working)
    given = parts.running
    assert (given["reports"], given["sweeper"]) == ((10, 0.5), (7,))
    assert given["probe"] == (8, 9, parts.worker._report_queues)


async def test_a_worker_that_waits_for_its_database_stops_when_it_is_told_to(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gives up before it closes anything, and starts nothing."""
    waiting = asyncio.Event()

    async def hang() -> None:
        waiting.set()
        try:
            await asyncio.Event().wait()
        finally:
            await _several_steps()
            parts.done.append("given up")

    monkeypatch.setattr(parts.worker, "_prepare_database", hang)
    await parts.run(waiting.is_set)
    assert parts.done == ["given up", *LEFT]


async def test_a_prepared_worker_keeps_no_task_that_waits_for_the_end(parts: Parts) -> None:
    """Only those of its parts."""
    before = asyncio.all_tasks()
    assert await parts.worker._prepare()
    await _several_steps()
    assert {"migrate", "stopping"}.isdisjoint(task.get_name() for task in asyncio.all_tasks() - before)


async def test_queues_are_declared_before_they_are_consumed(monkeypatch: pytest.MonkeyPatch) -> None:
    """All share the first one of reports; each partition goes to the worker that values it most."""
    worker = Worker(Settings(**URLS, secret_key="s" * 32, report_partitions=2, amqp_prefix="p"), "w1")
    worker._tracing.close()
    ensured: list[str] = []

    async def ensure(queue: str) -> None:
        ensured.append(queue)

    monkeypatch.setattr(worker._topology, "ensure", ensure)
    channel: Any = None
    first, *partitions = queues = worker._report_queues
    sources = [
        *await worker._report_sources(channel),
        *await worker._command_source(channel),
        *await worker._claim_source(channel),
    ]
    assert len(partitions) == 2
    names = worker._names
    assert [(each.queue, each.priority) for each in sources] == [
        (first, None), *((each, consumer_priority("w1", each)) for each in partitions),
        (names.commands, None), (names.claims, None),
    ]  # fmt: skip
    for source in sources:
        assert source.ensure is not None
        await source.ensure()
    assert ensured == [*queues, names.commands, names.claims]


async def test_a_database_that_is_only_read_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check uses a connection of the worker."""
    worker = Worker(Settings(**URLS, secret_key="s" * 32))
    worker._tracing.close()
    checked: list[object] = []

    @asynccontextmanager
    async def transaction(engine: object) -> AsyncIterator[object]:
        yield ("connection of", engine)

    async def check(connection: object) -> None:
        checked.append(connection)
        raise Unavailable("read-only")

    monkeypatch.setattr(app, "transaction", transaction)
    monkeypatch.setattr(app, "check_writable", check)
    with pytest.raises(Unavailable, match="read-only"):
        await worker._check_database()
    assert checked == [("connection of", worker._engine)]


async def test_missing_probes_have_the_connection_of_reports_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as a request to the broker may take."""
    worker = Worker(Settings(**URLS, secret_key="s" * 32))
    worker._tracing.close()
    waited: list[float] = []

    async def drop_if_hung(timeout: float) -> None:  # noqa: ASYNC109 - the name of the real one
        waited.append(timeout)

    monkeypatch.setattr(worker._connections.reports, "drop_if_hung", drop_if_hung)
    await worker._check_consuming()
    assert waited == [REQUEST_TIMEOUT]


def test_a_process_runs_its_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it logs as its settings say, and collects garbage rarely."""
    settings = Settings(**URLS, secret_key="s" * 32, log_level="warning", log_format="json")
    done: list[object] = []

    class Process:
        """A worker."""

        def __init__(self, given: Settings) -> None:
            assert given is settings

        def run(self) -> str:
            """Return what is run."""
            return "the worker"

    def configure(*arguments: object, secrets: object) -> None:
        done.append((arguments, secrets))

    monkeypatch.setattr(logs, "configure", configure)
    monkeypatch.setattr(app, "Worker", Process)
    monkeypatch.setattr(garbage_collector, "collect_rarely", lambda: done.append("garbage"))
    monkeypatch.setattr(app, "uvloop", SimpleNamespace(run=done.append))
    app.main(settings)
    assert done == [((settings.log_level, settings.log_format), settings.secrets), "garbage", "the worker"]
