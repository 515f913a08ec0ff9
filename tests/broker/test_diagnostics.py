"""What ``taskherd doctor`` asks of a broker, and what it makes of the answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import aiormq
import pytest
from aiormq.exceptions import ChannelAccessRefused, ChannelNotFoundEntity

from taskherd.broker import diagnostics, topology
from taskherd.broker.diagnostics import QueueInfo, TopologyReport
from taskherd.broker.excess_rights import excess_rights
from taskherd.broker.publisher import OutgoingMessage, Publisher
from taskherd.broker.topology import TopologyNames
from taskherd.errors import Unavailable
from tests.broker.conftest import ConnectTo, ConsumeReports, until
from tests.harness.noted_channel import NotedConnection, Request, request
from tests.harness.tcp_proxy import TcpProxy

KEY = "taskherd.doctor.binds.nothing"
NOTHING = TopologyReport((), (), (), ())


@pytest.fixture
async def other(amqp_url: str) -> AsyncIterator[aiormq.abc.AbstractConnection]:
    """Yield a connection of aiormq."""
    async with await aiormq.connect(amqp_url) as connection:
        yield connection


@pytest.fixture
def noted(other: aiormq.abc.AbstractConnection) -> Any:
    """Return a connection whose channels note what they are asked."""
    return NotedConnection(other)


def look_at(exchange: str) -> Request:
    """Return the request that looks for an exchange."""
    return request("exchange_declare", exchange, passive=True)


def unbind(destination: str, source: str) -> Request:
    """Return the request that needs the right to write an exchange and to read another."""
    return request("exchange_unbind", destination, source, KEY)


def exchange_requests(names: TopologyNames, exchange: str) -> list[Request]:
    """Return the requests that check an exchange."""
    declaring = request("exchange_declare", exchange, exchange_type="topic", durable=True)
    return [look_at(exchange), declaring, unbind(exchange, names.work if exchange == names.events else names.events)]


def queue_requests(names: TopologyNames, queue: str) -> list[Request]:
    """Return the requests that check a queue."""
    arguments: dict[str, Any] = {"x-queue-type": "quorum", "x-delivery-limit": -1}
    if queue != names.dead:
        arguments |= {"x-delivery-limit": 200, "x-dead-letter-exchange": names.dead}
    if queue not in names.queues:
        arguments["x-single-active-consumer"] = True
    looking = request("queue_declare", queue, passive=True)
    return [looking, request("queue_declare", queue, durable=True, arguments=arguments)]


@pytest.mark.parametrize("partitions", [1, 2])
async def test_all_exchanges_and_queues_are_looked_at(
    *,
    names: TopologyNames,
    publisher: Publisher,
    amqp_url: str,
    connect_to: ConnectTo,
    consume_reports: ConsumeReports,
    other: aiormq.abc.AbstractConnection,
    noted: Any,
    partitions: int,
) -> None:
    """Each on a channel of its own, with the arguments that it should have."""
    others = names.report_queues(partitions)[1:]
    await topology.declare(await other.channel(), names, partitions)
    await publisher.publish_many([OutgoingMessage(names.claims, "k", b"x")] * 3)
    consumer = consume_reports(connect_to(amqp_url, "consume"))
    await until(consumer.consumer_count, lambda count: count == 1)
    report = await diagnostics.check_topology(noted, names, partitions)
    channel = await other.channel()
    for queue in others:
        await channel.queue_delete(queue, timeout=30)
    await channel.exchange_delete(names.report_hash, timeout=30)
    counts = {names.claims: (3, 0), names.reports: (0, 1)}
    queues = [*names.queues, *others]
    found = TopologyReport(tuple(QueueInfo(each, *counts.get(each, (0, 0))) for each in queues), (), (), ())
    assert repr(report) == repr(found), "none is 0, not False"
    expected = [each for exchange in names.exchanges for each in exchange_requests(names, exchange)]
    assert noted.take() == expected + [each for queue in queues for each in queue_requests(names, queue)]
    assert len(noted.channels) == len(names.exchanges) + len(queues)


async def test_each_problem_of_the_topology_is_told(
    names: TopologyNames, other: aiormq.abc.AbstractConnection, noted: Any
) -> None:
    """One does not hide the next, and nothing is created."""
    channel = await other.channel()
    await channel.exchange_delete(names.wakeups, timeout=30)
    await channel.exchange_delete(names.claims, timeout=30)
    await channel.exchange_declare(names.claims, exchange_type="fanout", durable=True, timeout=30)
    await channel.queue_delete(names.dead, timeout=30)
    await channel.queue_delete(names.reports, timeout=30)
    await channel.queue_declare(names.reports, durable=True, timeout=30)
    forbidden = ChannelAccessRefused("refused")
    noted.failing += [
        (exchange_requests(names, names.events)[2], forbidden),
        (queue_requests(names, names.commands)[1], forbidden),
    ]
    report = await diagnostics.check_topology(noted, names, 1)
    assert report.queues == (QueueInfo(names.claims, 0, 0),)
    assert report.missing == (f"exchange {names.wakeups}", f"queue {names.dead}")
    exchange, queue = report.different
    assert exchange.startswith(f"exchange {names.claims} (PRECONDITION_FAILED")
    assert queue.startswith(f"queue {names.reports} (PRECONDITION_FAILED")
    assert report.forbidden == (f"exchange {names.events} ({forbidden})", f"queue {names.commands} ({forbidden})")
    noted.take()
    again = await diagnostics.check_topology(noted, names, 1)
    assert (again.missing, again.forbidden) == (report.missing, ())


async def test_queues_are_counted_without_any_right(names: TopologyNames, publisher: Publisher, noted: Any) -> None:
    """Each once; those that do not exist are left out."""
    await publisher.publish_many([OutgoingMessage(names.claims, "k", b"x")] * 3)
    found = await diagnostics.queue_infos(noted, [names.claims, "gone", names.dead, names.claims])
    expected = {names.claims: QueueInfo(names.claims, 3, 0), names.dead: QueueInfo(names.dead, 0, 0)}
    assert repr(found) == repr(expected), "none is 0, not False"
    assert noted.take() == [request("queue_declare", each, passive=True) for each in (names.claims, "gone", names.dead)]


async def test_a_publisher_needs_its_exchanges_and_the_right_to_write_them(names: TopologyNames, noted: Any) -> None:
    """And to read another one; each exchange is looked at once, and nothing is bound or unbound."""
    written = (names.commands, names.reports, names.commands)
    assert await diagnostics.check_publisher(noted, names, written, (names.wakeups,)) == NOTHING
    looks = [look_at(names.commands), look_at(names.reports), look_at(names.wakeups)]
    assert noted.take() == [*looks, *(unbind(name, names.wakeups) for name in written)]
    assert await diagnostics.check_publisher(noted, names, (names.reports,), ()) == NOTHING
    assert noted.take() == [look_at(names.reports), unbind(names.reports, names.work)]


async def test_what_a_publisher_lacks_is_told(
    names: TopologyNames, other: aiormq.abc.AbstractConnection, noted: Any
) -> None:
    """The refusal of an exchange that was not asked about is none; without an exchange no right is tried."""
    written, read = (names.commands, names.reports), (names.wakeups,)
    of_own, of_read, of_other = (
        ChannelAccessRefused(f"access to exchange '{name}' refused") for name in (names.reports, names.wakeups, "x")
    )
    for first, told in ((of_read, (f"exchange {names.commands} ({of_read})",)), (of_other, ())):
        noted.failing += [
            (unbind(names.commands, names.wakeups), first),
            (unbind(names.reports, names.wakeups), of_own),
        ]
        report = await diagnostics.check_publisher(noted, names, written, read)
        assert report == TopologyReport((), (), (), (*told, f"exchange {names.reports} ({of_own})"))
        noted.take()
    gone = ChannelNotFoundEntity("deleted meanwhile")
    noted.failing += [(unbind(each, names.work), gone) for each in written]
    report = await diagnostics.check_publisher(noted, names, written, ())
    assert report == TopologyReport((), (f"exchange {names.work}",), (), ())
    noted.take()
    channel = await other.channel()
    await channel.exchange_delete(names.commands, timeout=30)
    await channel.exchange_delete(names.wakeups, timeout=30)
    report = await diagnostics.check_publisher(noted, names, written, read)
    missing = (f"exchange {names.commands}", f"exchange {names.wakeups}")
    assert report == TopologyReport((), missing, (), ())
    assert noted.take() == [look_at(names.commands), look_at(names.reports), look_at(names.wakeups)]


async def test_rights_are_found_by_what_changes_nothing(names: TopologyNames, noted: Any) -> None:
    """A user that may do everything has each of them; a queue that does not exist tells the right, too."""
    nothing = "taskherd-doctor.nothing"
    asked = (["gone"], [names.reports, "amq.default"], ["gone"])
    expected = ("configure gone", f"write {names.reports}", "write amq.default", "read gone")
    assert await excess_rights(noted, *asked) == expected
    assert noted.take() == [
        request("queue_delete", "gone"),
        request("exchange_unbind", names.reports, nothing, nothing),
        request("basic_publish", b"", routing_key=nothing),
        request("basic_get", "gone"),
    ]


@pytest.mark.parametrize(
    ("error", "words"),
    [(ConnectionResetError("reset"), "reset"), (TimeoutError(), "TimeoutError"), (ValueError("odd"), "odd")],
)
async def test_an_outage_ends_all_checks(names: TopologyNames, noted: Any, error: Exception, words: str) -> None:
    """It says at least what it was; the channel is closed."""
    looks = (look_at(names.reports), look_at(names.reports), request("queue_declare", "q", passive=True))
    checks = (
        diagnostics.check_topology(noted, names, 1),
        diagnostics.check_publisher(noted, names, (names.reports,), ()),
        diagnostics.queue_infos(noted, ["q"]),
    )
    for look, check in zip(looks, checks, strict=True):
        noted.failing.append((look, error))
        with pytest.raises(Unavailable) as raised:
            await check
        assert (str(raised.value), raised.value.__cause__) == (f"checking the topology: {words}", error)
        assert noted.take()[-1] == look


async def test_the_connection_of_the_doctor_is_closed_after_its_checks(amqp_url: str, free_port: int) -> None:
    """Also if one of them fails; if no broker answers, the reason is told."""
    used: list[aiormq.abc.AbstractConnection] = []

    async def fail() -> None:
        async with diagnostics.connect(amqp_url) as connection:
            used.append(connection)
            assert not connection.is_closed
            raise ValueError("found")

    with pytest.raises(ValueError, match="found"):
        await fail()
    assert used[0].is_closed
    with pytest.raises(Unavailable, match=f"127.0.0.1:{free_port}: Connection refused"):
        async with diagnostics.connect(f"amqp://127.0.0.1:{free_port}/"):
            raise AssertionError


async def test_a_close_that_is_not_answered_is_an_outage(
    proxied: tuple[TcpProxy, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Doctor does not wait for a broker that hangs meanwhile."""
    proxy, url = proxied

    async def use() -> None:
        async with diagnostics.connect(url):
            monkeypatch.setattr(diagnostics, "REQUEST_TIMEOUT", 0.05)
            proxy.freeze()

    with pytest.raises(Unavailable, match=r"^closing: no answer in time$"):
        await use()
