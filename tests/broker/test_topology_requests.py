"""What is asked of the broker to declare, find and delete exchanges and queues, and how its refusals are explained."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiormq.abc import AbstractChannel
from aiormq.exceptions import ChannelAccessRefused, ChannelPreconditionFailed

from taskherd.broker import topology
from taskherd.broker.topology import TopologyNames
from taskherd.errors import Misconfigured, Unavailable
from tests.broker.conftest import ConnectTo
from tests.harness.noted_channel import Request, noted, request

Requests = list[Request]


@pytest.fixture
async def channel(names: TopologyNames, amqp_url: str, connect_to: ConnectTo) -> AsyncIterator[AbstractChannel]:
    """Yield a channel; partitions and the queue of a pool are deleted afterwards."""
    connection = connect_to(amqp_url, "topology")
    yield await connection.channel()
    last = await connection.channel()
    for queue in (names.partition(0), names.partition(1), names.work_queue("pool")):
        await last.queue_delete(queue, timeout=30)
    await last.exchange_delete(names.report_hash, timeout=30)


def exchanges(names: TopologyNames) -> Requests:
    """Return the requests that declare the exchanges."""
    return [request("exchange_declare", name, exchange_type="topic", durable=True) for name in names.exchanges]


def hash_exchange(names: TopologyNames) -> Request:
    """Return the request that declares the exchange of the partitions."""
    return request("exchange_declare", names.report_hash, exchange_type="x-consistent-hash", durable=True)


def quorum(queue: str, **arguments: Any) -> Request:
    """Return the request that declares a quorum queue; dashes of its arguments are underscores here."""
    given = {name.replace("_", "-"): value for name, value in arguments.items()}
    return request("queue_declare", queue, durable=True, arguments={"x-queue-type": "quorum", **given})


def dead(names: TopologyNames) -> Requests:
    """Return the requests that declare and bind the queue of the dead letters."""
    return [quorum(names.dead, x_delivery_limit=-1), request("queue_bind", names.dead, names.dead, "#")]


def shared(names: TopologyNames, name: str) -> Requests:
    """Return the requests that declare and bind a shared queue with dead letters."""
    queue = f"{names.prefix}.{name}"
    declaring = quorum(queue, x_delivery_limit=200, x_dead_letter_exchange=names.dead)
    return [declaring, request("queue_bind", queue, queue, "#")]


def partition(names: TopologyNames, index: int) -> Requests:
    """Return the requests that declare and bind a partition."""
    queue = f"{names.reports}.{index}"
    arguments = {"x_delivery_limit": 200, "x_dead_letter_exchange": names.dead, "x_single_active_consumer": True}
    return [quorum(queue, **arguments), request("queue_bind", queue, names.report_hash, "1")]


def work(names: TopologyNames) -> Requests:
    """Return the requests that declare and bind the queue of a pool."""
    queue = f"{names.work}.pool"
    return [
        request("exchange_declare", names.work, passive=True),
        quorum(queue, x_delivery_limit=200),
        request("queue_bind", queue, names.work, "*.*.pool"),
    ]


def look_at(queue: str) -> Request:
    """Return the request that looks for a queue."""
    return request("queue_declare", queue, passive=True)


async def test_all_exchanges_and_shared_queues_are_declared(names: TopologyNames, channel: AbstractChannel) -> None:
    """Without partitions, a binding that partitions would have had is removed."""
    noting, requests = noted(channel)
    await topology.declare(noting, names)
    unbound = request("exchange_unbind", names.report_hash, names.reports, "#")
    expected = [*exchanges(names), *dead(names), *shared(names, "reports"), unbound]
    assert requests == [*expected, *shared(names, "commands"), *shared(names, "claims")]


async def test_partitions_have_their_reports_from_an_exchange_of_their_own(
    names: TopologyNames, channel: AbstractChannel
) -> None:
    """It gets the reports once all are declared, and only then the queue without partitions gets no more."""
    noting, requests = noted(channel)
    await topology.declare(noting, names, 2)
    assert requests == [
        *exchanges(names), *dead(names), shared(names, "reports")[0], *shared(names, "commands"),
        *shared(names, "claims"), hash_exchange(names), *partition(names, 0), *partition(names, 1),
        request("exchange_bind", names.report_hash, names.reports, "#"),
        request("queue_unbind", names.reports, names.reports, "#"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "partitions", "expected"),
    [
        ("dead", 2, dead),
        ("claims", 2, lambda names: shared(names, "claims")),
        ("commands", 1, lambda names: shared(names, "commands")),
        (
            "reports",
            1,
            lambda names: [
                *shared(names, "reports"),
                request("exchange_unbind", names.report_hash, names.reports, "#"),
            ],
        ),
        ("reports", 2, lambda names: shared(names, "reports")[:1]),
        ("reports.1", 2, lambda names: partition(names, 1)),
    ],
)
async def test_a_single_queue_is_declared_as_among_all(
    names: TopologyNames,
    channel: AbstractChannel,
    name: str,
    partitions: int,
    expected: Callable[[TopologyNames], Requests],
) -> None:
    """A queue that one process declares again has the arguments and the binding that all others give it."""
    await topology.declare(channel, names, 2)
    noting, requests = noted(channel)
    await topology.declare_queue(noting, names, f"{names.prefix}.{name}", partitions)
    assert requests == expected(names)


async def test_only_a_work_queue_without_consumers_is_deleted(names: TopologyNames, channel: AbstractChannel) -> None:
    """It is declared first, so that one which does not exist is no error."""
    noting, requests = noted(channel)
    queue = names.work_queue("pool")
    assert await topology.delete_idle_work_queue(noting, names, "pool")
    assert requests == [*work(names), look_at(queue), request("queue_delete", queue)]
    assert await topology.declare_work_queue(channel, names, "pool") == queue
    await channel.basic_consume(queue, lambda _: None, timeout=30)  # type: ignore[arg-type, return-value]
    requests.clear()
    assert not await topology.delete_idle_work_queue(noting, names, "pool")
    assert requests == [*work(names), look_at(queue)]
    assert await topology.consumer_count(channel, queue) == 1


async def test_an_exclusive_queue_has_the_name_that_the_broker_gives_it(
    names: TopologyNames, channel: AbstractChannel
) -> None:
    """It drops the oldest of more messages than it may have, and is bound only where that is wanted."""
    limits = {"x-queue-type": "classic", "x-max-length": 7, "x-overflow": "drop-head"}
    declaring = request("queue_declare", exclusive=True, arguments=limits)
    noting, requests = noted(channel)
    assert (await topology.declare_exclusive_queue(noting, length=7)).startswith("amq.gen-")
    assert requests == [declaring]
    requests.clear()
    keys = ("a.*", "b")
    queue = await topology.declare_exclusive_queue(noting, length=7, exchange=names.events, routing_keys=keys)
    assert requests == [declaring, *(request("queue_bind", queue, names.events, key) for key in keys)]


@pytest.mark.parametrize("missing", [None, 0, 1, 2, 3])
async def test_what_exists_is_found_without_declaring_it(
    names: TopologyNames, amqp_url: str, connect_to: ConnectTo, missing: int | None
) -> None:
    """The first exchange or queue that does not exist ends it."""
    connection = connect_to(amqp_url, "look")
    looked_for = [names.events, names.work, names.reports, names.claims]
    if missing is not None:
        looked_for[missing] = "no such thing"
    asked = [request("exchange_declare", each, passive=True) for each in looked_for[:2]]
    asked += [look_at(each) for each in looked_for[2:]]
    if missing is not None:
        del asked[missing + 1 :]
    noting, requests = noted(await connection.channel())
    assert await topology.exist(noting, looked_for[:2], looked_for[2:]) is (missing is None)
    assert requests == asked
    noting, requests = noted(await connection.channel())
    if missing is None:
        await topology.check(noting, looked_for[:2], looked_for[2:])
    else:
        with pytest.raises(Unavailable, match=r"no such thing.*; `taskherd topology apply` or a worker declares it"):
            await topology.check(noting, looked_for[:2], looked_for[2:])
    assert requests == asked


Ask = Callable[[AbstractChannel, TopologyNames], Awaitable[Any]]


async def declare(channel: AbstractChannel, names: TopologyNames) -> None:
    """Declare all with two partitions."""
    await topology.declare(channel, names, 2)


REFUSALS: list[tuple[Ask, Callable[[TopologyNames], Request], str, str]] = [
    (declare, lambda names: exchanges(names)[-1], "declaring the topology", "PREFIX"),
    (declare, lambda names: shared(names, "claims")[1], "declaring the topology", "PREFIX"),
    (declare, hash_exchange, "declaring the partitions", "PARTITIONS"),
    (declare, lambda names: partition(names, 1)[1], "declaring the partitions", "PARTITIONS"),
    (
        declare,
        lambda names: request("queue_unbind", names.reports, names.reports, "#"),
        "declaring the partitions",
        "PARTITIONS",
    ),
    (
        lambda channel, names: topology.declare_queue(channel, names, names.dead, 1),
        lambda names: dead(names)[0],
        "declaring {prefix}.dead",
        "PREFIX",
    ),
    (
        lambda channel, names: topology.declare_queue(channel, names, names.partition(0), 2),
        lambda names: partition(names, 0)[0],
        "declaring {prefix}.reports.0",
        "PREFIX",
    ),
    (
        lambda channel, names: topology.declare_work_queue(channel, names, "pool"),
        lambda names: work(names)[0],
        "declaring {prefix}.work.pool",
        "PREFIX",
    ),
    (
        lambda channel, names: topology.delete_idle_work_queue(channel, names, "pool"),
        lambda names: request("queue_delete", names.work_queue("pool")),
        "deleting {prefix}.work.pool",
        "PREFIX",
    ),
    (
        lambda channel, _: topology.consumer_count(channel, "q"),
        lambda _: look_at("q"),
        "counting the consumers of q",
        "PREFIX",
    ),
    (lambda channel, _: topology.has_consumer(channel, "q"), lambda _: look_at("q"), "checking q", "PREFIX"),
    (
        lambda channel, _: topology.declare_exclusive_queue(channel, length=7, exchange="e", routing_keys=("k",)),
        lambda _: request(
            "queue_declare",
            exclusive=True,
            arguments={"x-queue-type": "classic", "x-max-length": 7, "x-overflow": "drop-head"},
        ),
        "declaring an exclusive queue",
        "PREFIX",
    ),
    (
        lambda channel, _: topology.exist(channel, queues=["q"]),
        lambda _: look_at("q"),
        "checking the topology",
        "PREFIX",
    ),
    (
        lambda channel, _: topology.check(channel, ["e"]),
        lambda _: request("exchange_declare", "e", passive=True),
        "checking the topology",
        "PREFIX",
    ),
]


@pytest.mark.parametrize(("ask", "refused", "action", "setting"), REFUSALS)
async def test_a_refusal_is_explained(
    *,
    names: TopologyNames,
    channel: AbstractChannel,
    ask: Ask,
    refused: Callable[[TopologyNames], Request],
    action: str,
    setting: str,
) -> None:
    """Other properties and a missing right are errors of settings, and say which; an outage says what was tried."""

    async def explanation(error: Exception) -> tuple[type[Exception], str]:
        failing = [(refused(names), error)]
        with pytest.raises((Misconfigured, Unavailable)) as raised:
            await ask(noted(channel, failing)[0], names)
        assert not failing
        return type(raised.value), str(raised.value)

    expected = (
        "expected a prefix that no other application uses"
        if setting == "PREFIX"
        else "expected 1, or the plugin rabbitmq_consistent_hash_exchange"
    )
    name = "TASKHERD_AMQP_PREFIX" if setting == "PREFIX" else "TASKHERD_REPORT_PARTITIONS"
    different, forbidden = ChannelPreconditionFailed("inequivalent"), ChannelAccessRefused("refused")
    assert await explanation(different) == (Misconfigured, f"{name}: {different}; {expected}")
    advice = "expected a user with the permission for this"
    assert await explanation(forbidden) == (Misconfigured, f"TASKHERD_AMQP_URL: {forbidden}; {advice}")
    tried = action.format(prefix=names.prefix)
    assert await explanation(ConnectionResetError("reset")) == (Unavailable, f"{tried}: reset")
