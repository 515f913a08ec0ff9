"""What ``taskherd doctor`` asks of a broker, and what it makes of the answers; without a broker."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiormq.exceptions import ChannelAccessRefused, ChannelNotFoundEntity, ChannelPreconditionFailed

from taskherd.broker import diagnostics
from taskherd.broker.connection import Socket
from taskherd.broker.diagnostics import QueueInfo, TopologyReport
from taskherd.broker.excess_rights import excess_rights
from taskherd.broker.topology import TopologyNames
from taskherd.errors import Unavailable
from tests.harness.noted_channel import NotedChannel

NAMES = TopologyNames("p")
KEY = "'taskherd.doctor.binds.nothing'"
DEAD_LETTERED = "'x-queue-type': 'quorum', 'x-delivery-limit': 200, 'x-dead-letter-exchange': 'p.dead'"


class Connection:
    """A connection whose channels have these answers; all are to be closed afterwards."""

    def __init__(self, **answers: Any) -> None:
        self.requests: list[str] = []
        self.answers = answers
        self.channels: list[NotedChannel] = []
        self.failure: Exception | None = None
        self.answering = asyncio.Event()
        self.answering.set()

    async def channel(self) -> NotedChannel:
        """Open a channel."""
        await self.answering.wait()
        if self.failure is not None:
            raise self.failure
        assert all(channel.is_closed for channel in self.channels), "one at a time"
        self.channels.append(NotedChannel(self.requests, self.answers))
        return self.channels[-1]


def connection_with(**answers: Any) -> Any:
    """Return a connection with these answers by request."""
    return Connection(**answers)


def exchange_requests(name: str) -> list[str]:
    """Return the requests that check an exchange."""
    other = "work" if name == "events" else "events"
    return [
        f"exchange_declare('p.{name}', passive=True)",
        f"exchange_declare('p.{name}', exchange_type='topic', durable=True)",
        f"exchange_unbind('p.{name}', 'p.{other}', {KEY})",
    ]


def queue_requests(name: str, arguments: str = DEAD_LETTERED) -> list[str]:
    """Return the requests that check a queue."""
    return [
        f"queue_declare('p.{name}', passive=True)",
        f"queue_declare('p.{name}', durable=True, arguments={{{arguments}}})",
    ]


EXCHANGES = ("dead", "reports", "commands", "claims", "events", "wakeups", "work")
SHARED = [
    *queue_requests("dead", "'x-queue-type': 'quorum', 'x-delivery-limit': -1"),
    *queue_requests("reports"),
    *queue_requests("commands"),
    *queue_requests("claims"),
]


@pytest.mark.parametrize(("partitions", "others"), [(1, ()), (2, ("reports.0", "reports.1"))])
async def test_all_exchanges_and_queues_are_looked_at(partitions: int, others: tuple[str, ...]) -> None:
    """Each on a channel of its own, with the arguments that it should have; nothing is created."""
    connection = connection_with(
        **{
            "queue_declare('p.reports', passive=True)": {"message_count": 7, "consumer_count": 2},
            "queue_declare('p.claims', passive=True)": {"message_count": None, "consumer_count": None},
        }
    )
    report = await diagnostics.check_topology(connection, NAMES, partitions)
    expected = [request for name in EXCHANGES for request in exchange_requests(name)] + SHARED
    for queue in others:
        expected += queue_requests(queue, f"{DEAD_LETTERED}, 'x-single-active-consumer': True")
    assert connection.requests == expected
    queues = [QueueInfo("p.dead", 0, 0), QueueInfo("p.reports", 7, 2)]
    queues += [QueueInfo(f"p.{name}", 0, 0) for name in ("commands", "claims", *others)]
    assert repr(report) == repr(TopologyReport(tuple(queues), (), (), ())), "unknown is 0, which is shown as a number"
    assert len(connection.channels) == len(EXCHANGES) + 4 + len(others)
    assert all(channel.is_closed for channel in connection.channels)


async def test_each_problem_of_the_topology_is_told() -> None:
    """One does not hide the next."""
    missing = ChannelNotFoundEntity("no such thing")
    different, forbidden = ChannelPreconditionFailed("inequivalent"), ChannelAccessRefused("refused")
    connection = connection_with(
        **{
            exchange_requests("reports")[0]: missing,
            exchange_requests("claims")[1]: different,
            exchange_requests("events")[2]: forbidden,
            "queue_declare('p.dead', passive=True)": missing,
            queue_requests("reports")[1]: different,
            queue_requests("commands")[1]: forbidden,
        }
    )
    assert await diagnostics.check_topology(connection, NAMES, 1) == TopologyReport(
        (QueueInfo("p.claims", 0, 0),),
        ("exchange p.reports", "queue p.dead"),
        (f"exchange p.claims ({different})", f"queue p.reports ({different})"),
        (f"exchange p.events ({forbidden})", f"queue p.commands ({forbidden})"),
    )


async def test_queues_are_counted_without_any_right() -> None:
    """Each once; those that do not exist are left out."""
    looks = [f"queue_declare('{name}', passive=True)" for name in ("a", "gone", "b")]
    answers = {
        looks[0]: {"message_count": 3, "consumer_count": 1},
        looks[1]: ChannelNotFoundEntity("no such queue"),
        looks[2]: {"message_count": None, "consumer_count": None},
    }
    connection = connection_with(**answers)
    found = await diagnostics.queue_infos(connection, ["a", "gone", "b", "a"])
    assert repr(found) == repr({"a": QueueInfo("a", 3, 1), "b": QueueInfo("b", 0, 0)}), "unknown is 0, as above"
    assert connection.requests == looks
    assert all(channel.is_closed for channel in connection.channels)


def look_at(name: str) -> str:
    """Return the request that looks for an exchange."""
    return f"exchange_declare('p.{name}', passive=True)"


def unbind(name: str, source: str = "wakeups") -> str:
    """Return the request that needs the right to write an exchange and to read another."""
    return f"exchange_unbind('p.{name}', 'p.{source}', {KEY})"


async def test_a_publisher_needs_its_exchanges_and_the_right_to_write_them() -> None:
    """And to read another one; each exchange is looked at once."""
    connection = connection_with()
    report = await diagnostics.check_publisher(
        connection, NAMES, ("p.commands", "p.reports", "p.commands"), ("p.wakeups",)
    )
    assert report == TopologyReport((), (), (), ())
    looks = [look_at("commands"), look_at("reports"), look_at("wakeups")]
    assert connection.requests == [*looks, unbind("commands"), unbind("reports"), unbind("commands")]
    unread = connection_with()
    await diagnostics.check_publisher(unread, NAMES, ("p.reports",), ())
    assert unread.requests == [look_at("reports"), unbind("reports", "work")]


async def test_what_a_publisher_lacks_is_told() -> None:
    """Without an exchange no right is tried; the refusal of an exchange that was not asked about is none."""
    missing = ChannelNotFoundEntity("no such exchange")
    connection = connection_with(**{look_at("commands"): missing, look_at("wakeups"): missing})
    asked = (connection, NAMES, ("p.commands", "p.reports"), ("p.wakeups",))
    report = await diagnostics.check_publisher(*asked)
    assert report == TopologyReport((), ("exchange p.commands", "exchange p.wakeups"), (), ())
    assert connection.requests == [look_at("commands"), look_at("reports"), look_at("wakeups")]
    own, read, other = (
        ChannelAccessRefused(f"access to exchange 'p.{name}' refused") for name in ("reports", "wakeups", "other")
    )
    connection.answers = {unbind("commands"): read, unbind("reports"): own}
    report = await diagnostics.check_publisher(*asked)
    assert report == TopologyReport((), (), (), (f"exchange p.commands ({read})", f"exchange p.reports ({own})"))
    connection.answers = {unbind("commands"): other, unbind("reports"): own}
    report = await diagnostics.check_publisher(*asked)
    assert report == TopologyReport((), (), (), (f"exchange p.reports ({own})",))
    connection.answers = {unbind("commands", "work"): missing, unbind("reports", "work"): missing}
    report = await diagnostics.check_publisher(connection, NAMES, ("p.commands", "p.reports"), ())
    assert report == TopologyReport((), ("exchange p.work",), (), ())


async def test_the_rights_of_a_user_are_those_that_are_not_refused() -> None:
    """What does not exist is an answer as well; a refusal of something else comes after the right was checked."""
    nothing = "taskherd-doctor.nothing"
    requests = {
        "configure": [f"queue_delete('{name}')" for name in ("gone", "refused")],
        "write": [
            *(f"exchange_unbind('{name}', '{nothing}', '{nothing}')" for name in ("there", "refused", "unread")),
            f"basic_publish(b'', routing_key='{nothing}')",
        ],
        "read": [f"basic_get('{name}')" for name in ("gone", "refused")],
    }
    missing = ChannelNotFoundEntity("no such thing")
    refused = ChannelAccessRefused("access to 'refused' in vhost '/' refused")
    answers: dict[str, Any] = {
        requests["configure"][0]: missing,
        requests["configure"][1]: refused,
        requests["write"][1]: refused,
        requests["write"][2]: ChannelAccessRefused(f"access to '{nothing}' in vhost '/' refused"),
        requests["write"][3]: ChannelAccessRefused("access to exchange '' in vhost '/' refused"),
        requests["read"][0]: missing,
        requests["read"][1]: refused,
    }
    connection = connection_with(**answers)
    asked = (["gone", "refused"], ["there", "refused", "unread", "amq.default"], ["gone", "refused"])
    assert await excess_rights(connection, *asked) == ("configure gone", "write there", "write unread", "read gone")
    assert connection.requests == [*requests["configure"], *requests["write"], *requests["read"]]
    assert all(channel.is_closed for channel in connection.channels)
    connection.answers = {}
    assert await excess_rights(connection, [], ["amq.default"], []) == ("write amq.default",)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionResetError("reset"), "checking the topology: reset"),
        (TimeoutError(), "checking the topology: TimeoutError"),
        (ValueError("odd"), "checking the topology: odd"),
    ],
)
async def test_an_outage_ends_all_checks(error: Exception, words: str) -> None:
    """It says at least what it was; the channel is closed."""
    connection = connection_with(**{look_at("reports"): error, "queue_declare('q', passive=True)": error})
    for check in (
        diagnostics.check_topology(connection, NAMES, 1),
        diagnostics.check_publisher(connection, NAMES, ("p.reports",), ()),
        diagnostics.queue_infos(connection, ["q"]),
    ):
        with pytest.raises(Unavailable) as raised:
            await check
        assert (str(raised.value), raised.value.__cause__) == (words, error)
    assert all(channel.is_closed for channel in connection.channels)


async def test_a_channel_that_is_not_opened_or_closed_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    """In time."""
    connection = connection_with()
    connection.failure = ConnectionResetError("reset")
    with pytest.raises(Unavailable, match=r"^opening a channel: reset$"):
        await diagnostics.queue_infos(connection, ["q"])
    connection.failure = None

    async def fail(_: NotedChannel) -> None:
        raise ConnectionResetError("reset")

    async def hang(_: NotedChannel) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(NotedChannel, "close", fail)
    with pytest.raises(Unavailable, match=r"^closing a channel: reset$"):
        await diagnostics.queue_infos(connection, ["q"])
    monkeypatch.setattr(diagnostics, "REQUEST_TIMEOUT", 0.01)
    monkeypatch.setattr(NotedChannel, "close", hang)
    connection.channels.clear()
    with pytest.raises(Unavailable, match=r"^closing a channel: no answer in time$"):
        async with asyncio.timeout(30), diagnostics.open_channel(connection):
            pass
    connection.answering.clear()
    with pytest.raises(Unavailable, match=r"^opening a channel: no answer in time$"):
        async with asyncio.timeout(30):
            await diagnostics.queue_infos(connection, ["q"])


class Dialled:
    """A connection of aiormq to one host of several, the first of which refuses."""

    made: list[Dialled]
    closes: bool

    def __init__(self, url: str, *, transport_factory: Socket) -> None:
        self.url = url
        self.address = transport_factory.endpoint.host.name
        self.properties: object = None
        self.is_closed = False
        self.made.append(self)

    async def connect(self, properties: object) -> None:
        """Connect, if this is not the first host."""
        self.properties = properties
        if len(self.made) == 1:
            raise ConnectionRefusedError("refused")

    async def close(self) -> None:
        """Close it."""
        if not self.closes:
            await asyncio.Event().wait()
        self.is_closed = True


async def test_the_doctor_has_a_connection_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the first host that answers, which is closed afterwards, also if a check fails."""
    Dialled.made, Dialled.closes = [], True
    monkeypatch.setattr("taskherd.broker.diagnostics.aiormq.Connection", Dialled)
    url = "amqp://u:p@127.0.0.1:1,127.0.0.2:2/v"

    async def fail() -> None:
        async with diagnostics.connect(url) as connection:
            assert [id(connection)] == [id(each) for each in Dialled.made[1:]]
            assert not connection.is_closed
            raise ValueError("found")

    with pytest.raises(ValueError, match="found"):
        await fail()
    refused, answering = Dialled.made
    assert (refused.url, refused.address) == ("amqp://u:p@127.0.0.1:1/v", "127.0.0.1")
    assert (answering.url, answering.address) == ("amqp://u:p@127.0.0.2:2/v", "127.0.0.2")
    assert answering.properties == {"connection_name": "taskherd doctor"}
    assert answering.is_closed
    Dialled.closes = False
    monkeypatch.setattr(diagnostics, "REQUEST_TIMEOUT", 0.01)
    with pytest.raises(Unavailable, match=r"^closing: no answer in time$"):
        async with asyncio.timeout(30), diagnostics.connect(url):
            pass
    Dialled.made = []
    with pytest.raises(Unavailable, match="refused"):
        async with diagnostics.connect("amqp://127.0.0.1:1"):
            pass
