"""Dead letters on a real broker: published, listed, replayed and purged."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from aiormq.exceptions import ChannelPreconditionFailed
from pamqp.commands import Basic
from pamqp.encode import field_table
from typer.testing import CliRunner, Result

from taskherd.broker import dead_letters
from taskherd.broker.connection import SupervisedConnection
from taskherd.broker.dead_letters import MAX_PRODUCER_HEADERS
from taskherd.broker.publisher import OutgoingMessage, Publisher
from taskherd.broker.reply_queues import DIRECT
from taskherd.broker.topology import TopologyNames
from taskherd.cli import dead as dead_cli
from taskherd.domain.outcome import DeadLetterReason
from taskherd.messages.dead_letters import MAX_DETAIL, DeadLetter, Origin, decode, encode, producer_headers
from tests.broker.conftest import ConnectTo, ConsumeReports

INVALID, FAULT, TOO_LARGE = DeadLetterReason.INVALID, DeadLetterReason.FAULT, DeadLetterReason.TOO_LARGE
ORIGIN = Origin("queue", "exchange", "key")

RunCommand = Callable[..., Coroutine[Any, Any, Result]]


@pytest.fixture
async def connection(amqp_url: str, connect_to: ConnectTo) -> SupervisedConnection:
    """Return a connection for reading the dead letters."""
    return connect_to(amqp_url, "dead letters")


@pytest.fixture
def run_command(names: TopologyNames, amqp_url: str, monkeypatch: pytest.MonkeyPatch) -> RunCommand:
    """Return a function that runs ``taskherd dead`` with arguments."""
    monkeypatch.setenv("TASKHERD_AMQP_URL", amqp_url)
    monkeypatch.setenv("TASKHERD_AMQP_PREFIX", names.prefix)

    async def run(*arguments: str, exit_code: int = 0) -> Result:
        result = await asyncio.to_thread(CliRunner().invoke, dead_cli.app, list(arguments))
        assert result.exit_code == exit_code, result.output
        return result

    return run


async def publish(
    publisher: Publisher,
    names: TopologyNames,
    body: bytes = b"x",
    reason: DeadLetterReason = INVALID,
    detail: str = "",
    *,
    origin: Origin = ORIGIN,
    headers: Mapping[str, Any] | None = None,
    content_type: str | None = None,
    index: int | None = None,
    length: int | None = None,
) -> None:
    """Publish a dead letter that has a reply queue and a correlation id."""
    body, own_headers = encode(body, reason, detail, origin, index=index, length=length)
    message = dead_letters.build_dead_letter(
        names,
        origin.routing_key,
        body,
        own_headers,
        producer_headers=producer_headers(headers or {}),
        content_type=content_type,
        reply_to="reply",
        correlation_id="corr",
    )
    assert await dead_letters.publish_dead_letters(publisher, [message]) == [None]


async def read(connection: SupervisedConnection, names: TopologyNames) -> list[DeadLetter]:
    """Return the first ten dead letters."""
    return [decode(message) for message in await dead_letters.read(connection, names, 10)]


async def test_a_dead_letter_keeps_the_body_and_states_the_reason(
    names: TopologyNames, publisher: Publisher, connection: SupervisedConnection
) -> None:
    """A dead letter contains the body unchanged, and reason, detail, origin and index as headers."""
    origin = Origin(names.reports, names.reports, "key")
    await publish(
        publisher, names, b"\xff\x00{", INVALID, "not JSON", origin=origin, headers={"mine": 1, "x-death": []}, index=3
    )
    [message] = await dead_letters.read(connection, names, 10)
    letter = decode(message)
    assert (letter.body, letter.reason, letter.detail, letter.index) == (b"\xff\x00{", "invalid", "not JSON", 3)
    assert letter.origin == origin
    assert (message.reply_to, message.correlation_id, message.content_type) == ("reply", "corr", None)
    assert letter.headers == {"mine": 1}
    assert await read(connection, names) == [letter]


async def test_oversized_parts_are_truncated(
    names: TopologyNames, publisher: Publisher, connection: SupervisedConnection
) -> None:
    """A body over 1 MiB is cut to 64 KiB, a detail to its limit, and large producer headers are dropped."""
    body = bytes(1024 * 1024 + 1)
    headers = {"big": "x" * 120_000}
    await publish(publisher, names, body, TOO_LARGE, "ä" * 5000, headers=headers)
    await publish(publisher, names, body[:-1], INVALID, headers=headers)
    truncated, complete = await read(connection, names)
    assert (len(truncated.body), truncated.length, truncated.truncated) == (64 * 1024, len(body), True)
    assert len(truncated.detail) == MAX_DETAIL
    assert truncated.detail.endswith("…")
    assert "big" not in truncated.headers
    assert (len(complete.body), complete.truncated) == (1024 * 1024, False)


async def test_producer_headers_are_kept_up_to_their_limit(
    names: TopologyNames, publisher: Publisher, connection: SupervisedConnection
) -> None:
    """A table of exactly the limit is kept, one of a byte more is dropped."""
    fitting = {"big": "x" * (MAX_PRODUCER_HEADERS - len(field_table({"big": ""})))}
    await publish(publisher, names, headers=fitting)
    await publish(publisher, names, headers={"big": f"{fitting['big']}x"})
    assert [letter.headers for letter in await read(connection, names)] == [fitting, {}]


async def test_a_dead_letter_has_nothing_that_the_broker_refuses(
    names: TopologyNames, publisher: Publisher, connection: SupervisedConnection
) -> None:
    """RabbitMQ closes the channel that publishes what it takes from an AMQP 1.0 client; the dead letter is stored."""
    body, own_headers = encode(b"x", INVALID, "", ORIGIN)
    cases: list[tuple[dict[str, Any], str | None]] = [
        ({"CC": "text"}, None), ({"BCC": 1}, None), ({}, DIRECT), ({}, None)
    ]  # fmt: skip
    for headers, reply_to in cases:
        as_it_came = OutgoingMessage(names.dead, "key", body, headers=headers, reply_to=reply_to)
        [outcome] = await publisher.publish_many([as_it_came])
        assert isinstance(getattr(outcome, "__cause__", None), ChannelPreconditionFailed) is bool(headers or reply_to)
        letter = dead_letters.build_dead_letter(
            names, "key", body, own_headers, producer_headers={**headers, "mine": 1}, reply_to=reply_to
        )
        assert await dead_letters.publish_dead_letters(publisher, [letter]) == [None]
    messages = await dead_letters.read(connection, names, 10)
    assert [(each.reply_to, each.headers.get("CC")) for each in messages] == [(None, None)] * 5


async def test_a_dead_letter_keeps_further_routing_keys(
    names: TopologyNames, publisher: Publisher, connection: SupervisedConnection
) -> None:
    """RabbitMQ takes any list, of which only texts count."""
    await publish(publisher, names, headers={"CC": ["a", 1, None, {"a": "b"}]})
    [letter] = await read(connection, names)
    assert letter.headers == {"CC": ["a", 1, None, {"a": "b"}]}


async def test_reading_never_uses_up_a_dead_letter(
    names: TopologyNames, publisher: Publisher, connection: SupervisedConnection
) -> None:
    """Reading the queue any number of times keeps the dead letters; no delivery limit applies."""
    await publish(publisher, names)
    for _ in range(30):
        assert len(await read(connection, names)) == 1


async def test_replay_publishes_to_the_origin(
    *,
    names: TopologyNames,
    publisher: Publisher,
    connection: SupervisedConnection,
    amqp_url: str,
    connect_to: ConnectTo,
    consume_reports: ConsumeReports,
    run_command: RunCommand,
) -> None:
    """A replayed message arrives at its origin unchanged and leaves the queue; the others stay."""
    reports = Origin(names.reports, names.reports, "key")
    unbound = Origin(names.events, names.events, "no binding")
    await publish(publisher, names, b"one", FAULT, origin=reports, headers={"mine": 1}, content_type="text/plain")
    await publish(publisher, names, b"two", INVALID, origin=reports)
    await publish(publisher, names, b"three", FAULT, origin=unbound)
    replayed = orjson.loads((await run_command("replay", "--reason", "fault", "-o", "json", exit_code=1)).stdout)
    assert replayed["replayed"] == 1
    assert list(replayed["stayed"].values()) == ["no queue is bound to its original exchange with its routing key"]
    [delivery] = await consume_reports(connect_to(amqp_url, "consume")).next_batch(10, 0.2)
    assert (delivery.body, delivery.routing_key, delivery.headers) == (b"one", "key", {"mine": 1})
    assert (delivery.reply_to, delivery.correlation_id) == ("reply", "corr")
    assert delivery.properties.content_type == "text/plain"
    assert sorted(each.body for each in await read(connection, names)) == [b"three", b"two"]


async def test_browsing_keeps_the_order(
    names: TopologyNames, publisher: Publisher, connection: SupervisedConnection
) -> None:
    """However many are looked at, all are there again at once, in their order."""
    for n in range(6):
        await publish(publisher, names, b"%d" % n)
    for limit in (1, 3, 6, 2, 5, 1) * 3:
        assert [each.body for each in await dead_letters.read(connection, names, limit)] == [
            b"%d" % n for n in range(limit)
        ]
    seen: list[bytes] = []
    left = await dead_letters.browse(
        connection, names, lambda each: seen.append(each.body), limit=5, more=lambda: len(seen) < 2
    )
    assert (seen, left) == ([b"0", b"1"], 4)


async def test_what_dies_again_is_replayed_once(
    names: TopologyNames, publisher: Publisher, connection: SupervisedConnection, run_command: RunCommand
) -> None:
    """A message that is dead-lettered again as soon as it is replayed is not replayed again by the same replay."""
    for n in range(3):
        await publish(publisher, names, b"%d" % n, origin=Origin(names.dead, names.dead, "key"))
    replayed = orjson.loads((await run_command("replay", "--reason", "invalid", "-o", "json")).stdout)
    assert replayed["replayed"] == 3
    assert sorted(each.body for each in await read(connection, names)) == [b"0", b"1", b"2"]


@pytest.mark.parametrize(
    ("origin", "length", "obstacle"),
    [
        (ORIGIN, 99, "only the beginning of its body was kept"),
        (Origin("queue", "", ""), None, "its origin is unknown"),
        (Origin("queue", "exchange", "k" * 256), None, "its routing key is too long to be sent"),
    ],
)
async def test_a_dead_letter_that_cannot_be_replayed_stays(
    *,
    names: TopologyNames,
    publisher: Publisher,
    connection: SupervisedConnection,
    run_command: RunCommand,
    origin: Origin,
    length: int | None,
    obstacle: str,
) -> None:
    """Replay keeps a dead letter with a truncated body or an unusable origin, and reports why."""
    await publish(publisher, names, b"begin", origin=origin, length=length)
    replayed = orjson.loads((await run_command("replay", "--all", "-o", "json", exit_code=1)).stdout)
    assert (replayed["replayed"], list(replayed["stayed"].values())) == (0, [obstacle])
    assert len(await read(connection, names)) == 1


@pytest.mark.parametrize("routing_key", ["key", ""])
async def test_a_message_dead_lettered_by_the_broker_is_listed_and_replayed(
    *,
    names: TopologyNames,
    publisher: Publisher,
    connection: SupervisedConnection,
    run_command: RunCommand,
    routing_key: str,
) -> None:
    """A message that the broker dead-lettered has its reason and origin from ``x-death``, and can be replayed."""
    await publisher.publish(names.reports, routing_key, b"body", headers={"mine": 1})
    channel = await connection.channel()
    message = await channel.basic_get(names.reports, timeout=30)
    await channel.basic_reject(message.delivery_tag or 0, requeue=False)
    await channel.close()
    letters: list[DeadLetter] = []
    while not letters:
        letters = await read(connection, names)
    [letter] = letters
    assert (letter.reason, letter.body) == ("rejected", b"body")
    assert letter.origin == Origin(names.reports, names.reports, routing_key)
    assert letter.time is not None
    assert abs(datetime.now(UTC) - letter.time) < timedelta(minutes=5)  # RabbitMQ's clock, in whole seconds
    assert orjson.loads((await run_command("replay", letter.id, "-o", "json")).stdout)["replayed"] == 1
    channel = await connection.channel()
    replayed = await channel.basic_get(names.reports, no_ack=True, timeout=30)
    assert (replayed.body, replayed.header.properties.headers) == (b"body", {"mine": 1})


@pytest.mark.parametrize("forged", ["taskherd", "x-death", "x-last-death"])
async def test_a_forged_origin_does_not_count(
    *,
    names: TopologyNames,
    publisher: Publisher,
    connection: SupervisedConnection,
    run_command: RunCommand,
    forged: str,
) -> None:
    """A claim that expires cannot become a command: its origin and reason are what RabbitMQ wrote, not its producer."""
    deletion = b'{"type": "task.delete"}'
    deaths: list[Any] = [
        {"queue": queue, "reason": "expired", "exchange": names.commands, "routing-keys": ["task.delete"], "count": 1}
        for queue in (names.commands, names.claims)
    ]
    headers: dict[str, dict[str, Any]] = {
        "taskherd": {
            "x-taskherd-reason": "fault", "x-taskherd-exchange": names.commands, "x-taskherd-queue": names.commands,
            "x-taskherd-routing-key": "task.delete", "x-taskherd-index": 7,
        },
        "x-death": {"x-death": deaths},
        "x-last-death": {"x-last-death-exchange": names.commands, "x-last-death-queue": names.commands},
    }  # fmt: skip
    await publisher.publish(names.claims, "build.claim", deletion, headers=headers[forged], expiration=0.001)
    letters: list[DeadLetter] = []
    while not letters:
        letters = await read(connection, names)
    [letter] = letters
    replayed = orjson.loads((await run_command("replay", "--all", "-o", "json", exit_code=1)).stdout)
    assert list(replayed["stayed"].values()) == [
        "no worker has checked its sender; if you trust what it asks for, name its id"
    ]
    assert letter.origin == Origin(names.claims, names.claims, "build.claim")
    assert (letter.reason, letter.index, letter.length, letter.headers) == ("expired", None, len(deletion), {})
    assert orjson.loads((await run_command("replay", letter.id, "-o", "json")).stdout)["replayed"] == 1
    channel = await connection.channel()
    assert isinstance((await channel.basic_get(names.commands, no_ack=True, timeout=30)).delivery, Basic.GetEmpty)
    assert (await channel.basic_get(names.claims, no_ack=True, timeout=30)).body == deletion


async def test_purge_removes_the_selected_or_all(
    names: TopologyNames, publisher: Publisher, connection: SupervisedConnection, run_command: RunCommand
) -> None:
    """Purge removes exactly the dead letters with the given ids, the given reason or both, or all of them."""
    for n in range(3):
        await publish(publisher, names, b"%d" % n)
    await publish(publisher, names, b"bug", FAULT)
    letters = await read(connection, names)
    both = await run_command("purge", letters[0].id, "--reason", "fault", "-o", "json", exit_code=1)
    assert orjson.loads(both.stdout) == {"purged": 0}
    assert orjson.loads((await run_command("purge", "--reason", "fault", "-o", "json")).stdout) == {"purged": 1}
    assert [each.body for each in await read(connection, names)] == [b"0", b"1", b"2"]
    await run_command("purge", "--reason", "fault", "--all", exit_code=2)
    await run_command("purge", exit_code=2)
    assert orjson.loads((await run_command("purge", letters[1].id, "-o", "json")).stdout) == {"purged": 1}
    assert [each.body for each in await read(connection, names)] == [b"0", b"2"]
    assert orjson.loads((await run_command("purge", "--all", "-o", "json")).stdout) == {"purged": 2}
    assert await read(connection, names) == []


async def test_publishing_without_a_dead_letter_queue_says_so(
    names: TopologyNames, publisher: Publisher, connection: SupervisedConnection
) -> None:
    """A dead letter that was not routed to any queue is not confirmed, and the reason says what to do."""
    await (await connection.channel()).queue_delete(names.dead)
    message = dead_letters.build_dead_letter(names, "x", b"x", {})
    (obstacle,) = await dead_letters.publish_dead_letters(publisher, [message])
    assert obstacle == f"no queue is bound for dead letters; `taskherd topology apply` declares {names.dead}"


async def test_the_command_lists_and_shows_dead_letters(
    names: TopologyNames, publisher: Publisher, run_command: RunCommand
) -> None:
    """``taskherd dead list`` and ``show`` print dead letters without control characters."""
    await publish(publisher, names, b"\x1b[2Jbody", INVALID, "why")
    [listed] = orjson.loads((await run_command("list", "-o", "json")).stdout)
    assert (listed["reason"], listed["detail"], listed["queue"]) == ("invalid", "why", "queue")
    table = (await run_command("list")).stdout
    assert listed["id"] in table
    shown = (await run_command("show", listed["id"])).stdout
    assert r"\x1b[2Jbody" in shown
    assert "\x1b[2J" not in shown + table
