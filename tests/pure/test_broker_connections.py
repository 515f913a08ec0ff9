"""The connections of a process, and what is known of one without connecting."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.samples import Sample

from taskherd.broker import connection as connections
from taskherd.broker.connection import SupervisedConnection, endpoints_of
from taskherd.broker.connections import BrokerConnections
from taskherd.errors import Misconfigured, Unavailable
from taskherd.observability.metrics import Metrics
from taskherd.observability.readiness import Readiness

URL = "amqp://127.0.0.1:1/"


class Process:
    """The connections of a process, which are up when a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(SupervisedConnection, "_supervise", lambda _: asyncio.Event().wait())
        self.metrics = Metrics()
        self.readiness = Readiness("broker")
        self.losses = 0
        self.connections = BrokerConnections(URL, "worker a b", self.metrics, self.readiness, self._lose)

    def _lose(self) -> None:
        self.losses += 1

    def up(self, *connections: SupervisedConnection) -> None:
        """Note that these are up."""
        for connection in connections:
            connection._up.set()
            connection._hooks.on_up(connection.name)

    def down(self, connection: SupervisedConnection) -> None:
        """Note that it is lost."""
        connection._up.clear()
        connection._hooks.on_down(connection.name, "reset")

    async def state(self) -> tuple[float, str | None]:
        """Return the metric, and why the process is not ready."""
        return self.metrics.broker_up._value.get(), (await self.readiness.reasons())["broker"]

    @property
    def reconnects(self) -> dict[str, float]:
        """The number of reconnects by purpose."""
        samples: list[Sample] = [each for metric in self.metrics.reconnects.collect() for each in metric.samples]
        return {next(iter(each.labels.values())): each.value for each in samples if each.name.endswith("_total")}


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Process:
    """Return a process that is not connected."""
    return Process(monkeypatch)


async def test_a_process_is_ready_with_the_connections_that_it_needs(process: Process) -> None:
    """To consume, to publish, and for reports if it has started that; the others do not count."""
    found = process.connections
    found.start(found.work)
    process.up(found.consume)
    assert await process.state() == (0, "not known yet")
    process.up(found.publish)
    assert await process.state() == (1, None)
    process.up(found.work)
    process.down(found.work)
    assert (await process.state(), process.losses) == ((1, None), 0)
    process.down(found.publish)
    assert (await process.state(), process.losses) == ((0, "reset"), 1)
    process.up(found.publish)
    assert await process.state() == (1, None)
    found.consume._hooks.on_refused(found.consume.name, "refused")
    assert (await process.state(), process.losses) == ((1, "refused"), 1)
    assert process.reconnects == {"consume": 0, "publish": 1, "work": 0}
    await found.close()
    assert not any(each.is_started for each in (found.consume, found.publish, found.work))


async def test_reports_count_once_their_connection_has_started(process: Process) -> None:
    """So does each of its losses."""
    found = process.connections
    found.start(found.reports, found.unconfirmed, found.dead, found.declare)
    started = (found.consume, found.publish, found.reports, found.unconfirmed, found.dead, found.declare)
    assert all(each.is_started for each in started)
    assert not found.work.is_started
    process.up(found.consume, found.publish)
    assert await process.state() == (0, "not known yet")
    process.up(found.reports)
    assert await process.state() == (1, None)
    process.down(found.reports)
    assert (await process.state(), process.losses) == ((0, "reset"), 1)
    process.up(found.unconfirmed, found.unconfirmed)
    assert process.reconnects["unconfirmed"] == 1
    await found.close()
    assert not any(each.is_started for each in started)
    assert [each.name for each in started] == [
        f"worker a b {name}" for name in ("consume", "publish", "reports", "unconfirmed", "dead", "declare")
    ]


async def test_a_process_may_be_ready_without_the_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    """The metric tells then whether it is connected."""
    process = Process(monkeypatch)
    process.connections = found = BrokerConnections(URL, "api", process.metrics)
    assert process.reconnects == {"consume": 0, "publish": 0}
    found.start()
    process.up(found.consume, found.publish)
    assert await process.state() == (1, "not known yet")
    process.down(found.consume)
    assert await process.state() == (0, "not known yet")
    await found.close()


@pytest.mark.parametrize(
    ("url", "user"),
    [
        ("amqp://alice:secret@a,b/", "alice"),
        ("amqp://a%20b:secret@a/", "a b"),
        ("amqp://a/", "guest"),
        ("amqps://a/?auth=EXTERNAL", None),
        ("amqps://alice@a/?auth=plain", "alice"),
    ],
)
def test_the_user_of_a_connection(url: str, user: str | None) -> None:
    """With a certificate only the broker knows it."""
    assert SupervisedConnection(url, "test").user == user


def test_a_url_without_a_host_is_a_configuration_error() -> None:
    """It says what is expected."""
    with pytest.raises(Misconfigured, match="expected a URL like amqp://"):
        endpoints_of("amqp:///")


@pytest.mark.parametrize(
    ("error", "reason"),
    [(None, "closed"), (ConnectionResetError("reset by peer"), "reset by peer"), (ConnectionResetError(), "closed")],
)
async def test_why_a_connection_is_lost(error: Exception | None, reason: str) -> None:
    """As far as its end says so; one that is closed has none."""
    closing = asyncio.get_running_loop().create_future()
    lost: Any = SimpleNamespace(transport=SimpleNamespace(connection=SimpleNamespace(closing=closing)))
    waiting = asyncio.create_task(connections._wait_lost(lost))
    await asyncio.sleep(0)
    assert not waiting.done()
    if error is None:
        closing.cancel()
    else:
        closing.set_exception(error)
    assert await waiting == reason


class Hung:
    """A channel that is closed when a test says so, or fails."""

    def __init__(self) -> None:
        self.may_close = asyncio.Event()
        self.failure: Exception | None = None

    async def close(self) -> None:
        """Close it."""
        if self.failure is not None:
            raise self.failure
        await self.may_close.wait()


async def test_a_connection_is_dropped_only_if_nothing_answers_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither one that answers in time, nor one that is lost already, nor one that was never up."""
    connection, channel, drops = SupervisedConnection(URL, "test"), Hung(), list[str]()

    async def open_channel(_: SupervisedConnection) -> Hung:
        return channel

    monkeypatch.setattr(SupervisedConnection, "channel", open_channel)
    monkeypatch.setattr(SupervisedConnection, "drop", lambda dropped: drops.append(dropped.name))
    await connection.drop_if_hung(0.01)
    assert drops == []
    connection._up.set()
    await connection.drop_if_hung(0.01)
    assert drops == ["test"]
    channel.failure = ConnectionResetError("reset")
    await connection.drop_if_hung(0.01)
    channel.failure = None
    channel.may_close.set()
    await connection.drop_if_hung(60)
    assert drops == ["test"]


async def test_who_tries_all_hosts_is_told_why_none_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """As soon as that is known, or in half a minute."""
    monkeypatch.setattr(connections, "MAX_CONNECT_TIME", 0.01)
    connection = SupervisedConnection(URL, "test")
    with pytest.raises(Unavailable, match=r"^RabbitMQ can't be reached \(test\)$"):
        await connection.wait_tried()
    monkeypatch.setattr(connections, "MAX_CONNECT_TIME", 600)
    connection._on_refused("refused")
    with pytest.raises(Unavailable, match=r"\(test\): refused$"):
        await asyncio.wait_for(connection.wait_tried(), 30)
    connection._up.set()
    await asyncio.wait_for(connection.wait_tried(), 30)
    assert connection.is_up
