"""What is asked of the broker to declare, find and delete exchanges and queues, and how its refusals are explained."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest
from aiormq.abc import AbstractChannel
from aiormq.exceptions import ChannelAccessRefused, ChannelNotFoundEntity, ChannelPreconditionFailed

from taskherd.broker import topology
from taskherd.broker.topology import TopologyNames
from taskherd.errors import Misconfigured, Unavailable
from tests.harness.noted_channel import NotedChannel

NAMES = TopologyNames("p")
QUORUM = "'x-queue-type': 'quorum'"
DEAD_LETTERED = f"{QUORUM}, 'x-delivery-limit': 200, 'x-dead-letter-exchange': 'p.dead'"
EXCHANGES = [
    f"exchange_declare('p.{name}', exchange_type='topic', durable=True)"
    for name in ("dead", "reports", "commands", "claims", "events", "wakeups", "work")
]
HASH = "exchange_declare('p.reports.hash', exchange_type='x-consistent-hash', durable=True)"
DEAD = [
    f"queue_declare('p.dead', durable=True, arguments={{{QUORUM}, 'x-delivery-limit': -1}})",
    "queue_bind('p.dead', 'p.dead', '#')",
]
WORK = [
    "exchange_declare('p.work', passive=True)",
    f"queue_declare('p.work.pool', durable=True, arguments={{{QUORUM}, 'x-delivery-limit': 200}})",
    "queue_bind('p.work.pool', 'p.work', '*.*.pool')",
]


def shared(name: str) -> list[str]:
    """Return the requests that declare and bind a shared queue with dead letters."""
    return [
        f"queue_declare('p.{name}', durable=True, arguments={{{DEAD_LETTERED}}})",
        f"queue_bind('p.{name}', 'p.{name}', '#')",
    ]


def partition(index: int) -> list[str]:
    """Return the requests that declare and bind a partition."""
    arguments = f"{{{DEAD_LETTERED}, 'x-single-active-consumer': True}}"
    return [
        f"queue_declare('p.reports.{index}', durable=True, arguments={arguments})",
        f"queue_bind('p.reports.{index}', 'p.reports.hash', '1')",
    ]


def channel_with(**answers: Any) -> tuple[Any, list[str]]:
    """Return a channel with these answers by request, and its requests."""
    requests: list[str] = []
    return NotedChannel(requests, answers), requests


def test_all_names_have_the_prefix() -> None:
    """So several installations can share a broker."""
    assert NAMES.exchanges == ("p.dead", "p.reports", "p.commands", "p.claims", "p.events", "p.wakeups", "p.work")
    assert NAMES.queues == ("p.dead", "p.reports", "p.commands", "p.claims")
    assert (NAMES.report_hash, NAMES.partition(7)) == ("p.reports.hash", "p.reports.7")
    assert NAMES.work_queue("r") == "p.work.r"
    assert NAMES.report_queues() == NAMES.report_queues(1) == ("p.reports",)
    assert NAMES.report_queues(2) == ("p.reports", "p.reports.0", "p.reports.1")
    assert TopologyNames().reports == "taskherd.reports"


@pytest.mark.parametrize(
    ("partitions", "channels"), [(1, 1), (8, 1), (9, 2), (16, 2), (17, 3), (64, 8), (65, 8), (1_000, 8)]
)
def test_eight_partitions_are_worth_a_channel(partitions: int, channels: int) -> None:
    """There are 8 channels at most."""
    assert topology.channels_for(partitions) == channels


async def test_all_exchanges_and_shared_queues_are_declared() -> None:
    """Without partitions, a binding that partitions would have had is removed."""
    channel, requests = channel_with()
    await topology.declare(channel, NAMES)
    unbound = "exchange_unbind('p.reports.hash', 'p.reports', '#')"
    assert requests == [*EXCHANGES, *DEAD, *shared("reports"), unbound, *shared("commands"), *shared("claims")]


async def test_partitions_have_their_reports_from_an_exchange_of_their_own() -> None:
    """It gets the reports once all are declared, and only then the queue without partitions gets no more."""
    channel, requests = channel_with()
    await topology.declare(channel, NAMES, 2)
    reports, bound = shared("reports")
    assert requests == [
        *EXCHANGES, *DEAD, reports, *shared("commands"), *shared("claims"), HASH, *partition(0), *partition(1),
        "exchange_bind('p.reports.hash', 'p.reports', '#')", bound.replace("bind", "unbind"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("queue", "partitions", "expected"),
    [
        ("p.dead", 2, DEAD),
        ("p.claims", 2, shared("claims")),
        ("p.commands", 1, shared("commands")),
        ("p.reports", 1, [*shared("reports"), "exchange_unbind('p.reports.hash', 'p.reports', '#')"]),
        ("p.reports", 2, shared("reports")[:1]),
        ("p.reports.1", 2, partition(1)),
    ],
)
async def test_a_single_queue_is_declared_as_among_all(queue: str, partitions: int, expected: list[str]) -> None:
    """It is bound, too."""
    channel, requests = channel_with()
    await topology.declare_queue(channel, NAMES, queue, partitions)
    assert requests == expected


async def test_the_queue_of_a_pool_is_bound_to_an_exchange_that_exists() -> None:
    """Its requests are not dead-lettered."""
    channel, requests = channel_with()
    assert await topology.declare_work_queue(channel, NAMES, "pool") == "p.work.pool"
    assert requests == WORK


@pytest.mark.parametrize(("consumers", "deleted"), [(0, True), (None, True), (1, False), (2, False)])
async def test_only_a_work_queue_without_consumers_is_deleted(consumers: int | None, *, deleted: bool) -> None:
    """It is declared first, so that one which does not exist is no error."""
    look = "queue_declare('p.work.pool', passive=True)"
    channel, requests = channel_with(**{look: {"consumer_count": consumers}})
    assert await topology.delete_idle_work_queue(channel, NAMES, "pool") is deleted
    assert requests == [*WORK, look, *(["queue_delete('p.work.pool')"] if deleted else [])]


async def test_an_exclusive_queue_has_the_name_that_the_broker_gives_it() -> None:
    """It drops the oldest of more messages than it may have, and is bound only where that is wanted."""
    declaring = (
        "queue_declare(exclusive=True, arguments="
        "{'x-queue-type': 'classic', 'x-max-length': 7, 'x-overflow': 'drop-head'})"
    )
    channel, requests = channel_with(**{declaring: {"queue": "amq.gen-1"}})
    assert await topology.declare_exclusive_queue(channel, length=7) == "amq.gen-1"
    assert requests == [declaring]
    requests.clear()
    queue = await topology.declare_exclusive_queue(channel, length=7, exchange="e", routing_keys=("a.*", "b"))
    assert (queue, requests) == (
        "amq.gen-1",
        [declaring, "queue_bind('amq.gen-1', 'e', 'a.*')", "queue_bind('amq.gen-1', 'e', 'b')"],
    )


async def test_what_exists_is_found_without_declaring_it() -> None:
    """The first exchange or queue that does not exist ends it."""
    asked = ["exchange_declare('e', passive=True)", "exchange_declare('f', passive=True)"]
    asked += ["queue_declare('q', passive=True)", "queue_declare('r', passive=True)"]
    for missing in (None, *asked):
        answers = {} if missing is None else {missing: ChannelNotFoundEntity("no such thing")}
        channel, requests = channel_with(**answers)
        assert await topology.exist(channel, ["e", "f"], ["q", "r"]) is (missing is None)
        assert requests == (asked if missing is None else asked[: asked.index(missing) + 1])
        requests.clear()
        if missing is None:
            await topology.check(channel, ["e", "f"], ["q", "r"])
        else:
            with pytest.raises(
                Unavailable, match=r"no such thing.*; `taskherd topology apply` or a worker declares it"
            ):
                await topology.check(channel, ["e", "f"], ["q", "r"])
        assert requests == (asked if missing is None else asked[: asked.index(missing) + 1])


async def test_the_consumers_of_a_queue_are_counted() -> None:
    """A queue that does not exist has none, but is an error for who wants to know the number."""
    look = "queue_declare('q', passive=True)"
    for answer, number in ({"consumer_count": 2}, 2), ({"consumer_count": 0}, 0), ({"consumer_count": None}, 0):
        channel, requests = channel_with(**{look: answer})
        assert repr(await topology.consumer_count(channel, "q")) == repr(number), "unknown is 0, not False"
        assert await topology.has_consumer(channel, "q") is (number > 0)
        assert requests == [look] * 2
    channel, _ = channel_with(**{look: ChannelNotFoundEntity("no such queue")})
    assert not await topology.has_consumer(channel, "q")
    with pytest.raises(Unavailable, match="no such queue"):
        await topology.consumer_count(channel, "q")


Ask = Callable[[Any], Awaitable[Any]]

REQUESTS: list[tuple[Ask, str, str, str]] = [
    (lambda channel: topology.declare(channel, NAMES, 2), EXCHANGES[-1], "declaring the topology", "PREFIX"),
    (lambda channel: topology.declare(channel, NAMES, 2), shared("claims")[1], "declaring the topology", "PREFIX"),
    (lambda channel: topology.declare(channel, NAMES, 2), HASH, "declaring the partitions", "PARTITIONS"),
    (lambda channel: topology.declare(channel, NAMES, 2), partition(1)[1], "declaring the partitions", "PARTITIONS"),
    (
        lambda channel: topology.declare(channel, NAMES, 2),
        "queue_unbind('p.reports', 'p.reports', '#')",
        "declaring the partitions",
        "PARTITIONS",
    ),
    (lambda channel: topology.declare_queue(channel, NAMES, "p.dead", 1), DEAD[0], "declaring p.dead", "PREFIX"),
    (
        lambda channel: topology.declare_queue(channel, NAMES, "p.reports.0", 2),
        partition(0)[0],
        "declaring p.reports.0",
        "PREFIX",
    ),
    (lambda channel: topology.declare_work_queue(channel, NAMES, "pool"), WORK[0], "declaring p.work.pool", "PREFIX"),
    (
        lambda channel: topology.delete_idle_work_queue(channel, NAMES, "pool"),
        "queue_delete('p.work.pool')",
        "deleting p.work.pool",
        "PREFIX",
    ),
    (
        lambda channel: topology.consumer_count(channel, "q"),
        "queue_declare('q', passive=True)",
        "counting the consumers of q",
        "PREFIX",
    ),
    (lambda channel: topology.has_consumer(channel, "q"), "queue_declare('q', passive=True)", "checking q", "PREFIX"),
    (
        lambda channel: topology.exist(channel, queues=["q"]),
        "queue_declare('q', passive=True)",
        "checking the topology",
        "PREFIX",
    ),
    (
        lambda channel: topology.check(channel, ["e"]),
        "exchange_declare('e', passive=True)",
        "checking the topology",
        "PREFIX",
    ),
]


@pytest.mark.parametrize(("ask", "refused", "action", "setting"), REQUESTS)
async def test_a_refusal_is_explained(ask: Ask, refused: str, action: str, setting: str) -> None:
    """Other properties and a missing right are errors of settings, and say which; an outage says what was tried."""

    async def explanation(error: Exception) -> tuple[type[Exception], str]:
        channel = NotedChannel([], {refused: error})
        with pytest.raises((Misconfigured, Unavailable)) as raised:
            await ask(cast("AbstractChannel", channel))
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
    assert await explanation(ConnectionResetError("reset")) == (Unavailable, f"{action}: reset")
