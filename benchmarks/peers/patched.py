"""taskherd's consumer alone, its publisher, or arrays for PostgreSQL, with all patches of libraries or without some."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
import warnings
from datetime import UTC, datetime
from importlib import metadata
from typing import TYPE_CHECKING, Final
from uuid import UUID

import asyncpg
import uvloop
from pamqp import commands, frame
from pamqp.body import ContentBody
from pamqp.header import ContentHeader

from benchmarks.harness import backlog, meter
from benchmarks.harness.backlog import Backlog
from benchmarks.harness.workload import PREFIX
from taskherd.broker import dead_letters
from taskherd.broker.connection import SupervisedConnection
from taskherd.broker.consumer import Consumer
from taskherd.broker.publisher import OutgoingMessage, Publisher, PublishOutcome
from taskherd.broker.subscription import Source
from taskherd.broker.topology import TopologyNames
from taskherd.errors import Unavailable
from taskherd.store import patches

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiormq.abc import AbstractChannel
    from pamqp.common import FieldTable

VALID_MESSAGES: Final = 5
"""Valid messages before the one with an undecodable property, and after it."""

MESSAGES: Final = 2 * VALID_MESSAGES + 1
DELIVERY_LIMIT: Final = 4
PREFETCH: Final = 100
BATCH_DELAY: Final = 0.1
"""Seconds that a batch waits for deliveries, so that the undecodable one arrives before the first ack."""

TIMEOUT: Final = 60.0

GROUP: Final = 64
GROUPS: Final = 200
"""Number of messages that are published together, and how often."""
BODY: Final = 400
"""Bytes of such a message."""
ARRAYS: Final = 60
ELEMENTS: Final = 100
STATEMENTS: Final = 100
"""Number of arrays in a statement, of elements in each, and of statements."""
_QUEUE = f"{PREFIX}.undecodable"
_REJECTED = f"{PREFIX}.undecodable.rejected"

done = 0


def unpatch(libraries: Sequence[str]) -> None:
    """Pretend that the installed versions of ``libraries`` are not supported, before any patch is installed."""
    actual = metadata.version

    def version(distribution_name: str) -> str:
        return "0" if distribution_name in libraries else actual(distribution_name)

    metadata.version = version
    warnings.simplefilter("ignore", RuntimeWarning)
    logging.disable()


async def drain(url: str) -> None:
    """Consume the queue as the worker does, until killed."""
    global done  # noqa: PLW0603 - read by the meter's thread

    async def prepare(_: AbstractChannel) -> Sequence[Source]:
        return [Source(os.environ["BENCH_QUEUE"])]

    connection = SupervisedConnection(url, "bench")
    consumer = Consumer(connection, prepare, prefetch=int(os.environ["BENCH_PREFETCH"]))
    connection.start()
    consumer.start()
    while True:
        batch = await consumer.next_batch(500, 0)
        for delivery in batch:
            if delivery.possible_poison or delivery.may_have_trace:
                message = "unexpected delivery: possible poison or traced"
                raise AssertionError(message)
        await consumer.ack(batch)
        done += len(batch)


async def publish(url: str) -> dict[str, float]:
    """Publish messages in groups with confirms; return the µs of CPU that each takes in this process."""
    connection = SupervisedConnection(url, "bench")
    connection.start()
    publisher = Publisher(connection)
    names = TopologyNames(PREFIX)
    group = [OutgoingMessage(names.work, "unbound", bytes(BODY), correlation_id="c" * 32) for _ in range(GROUP)]
    await publisher.publish_many(group)
    began = time.process_time()
    for _ in range(GROUPS):
        outcomes = await publisher.publish_many(group)
        assert all(outcome is PublishOutcome.CONFIRMED for outcome in outcomes)
    cpu = (time.process_time() - began) / (GROUP * GROUPS)
    await connection.close()
    return {"cpu": cpu * 1e6}


async def encode(database_url: str) -> dict[str, float]:
    """Send arrays to PostgreSQL; return the µs of CPU of this process for a statement with ``ARRAYS`` of them."""
    patches.install()
    kinds = {"uuid": UUID(int=7), "text": "some text", "bigint": 7, "timestamptz": datetime.now(UTC)}
    columns = [list(kinds.items())[number % len(kinds)] for number in range(ARRAYS)]
    counts = ", ".join(f"cardinality(${number}::{kind}[])" for number, (kind, _) in enumerate(columns, 1))
    values = [[value] * ELEMENTS for _, value in columns]
    connection = await asyncpg.connect(database_url, timeout=10, command_timeout=TIMEOUT)
    await connection.fetch(f"SELECT {counts}", *values)
    began = time.process_time()
    for _ in range(STATEMENTS):
        await connection.fetch(f"SELECT {counts}", *values)
    cpu = (time.process_time() - began) / STATEMENTS
    await connection.close()
    return {"cpu": cpu * 1e6}


async def count_handled(url: str) -> dict[str, int]:
    """Return the numbers of messages handled, rejected, and read as dead letters, with one undecodable among them."""
    async with asyncio.timeout(TIMEOUT):
        connection = SupervisedConnection(url, "bench")
        connection.start()
        outcome = {**await _consumed(connection, url), "read": await _read(connection, url)}
        await connection.close()
        return outcome


async def _consumed(connection: SupervisedConnection, url: str) -> dict[str, int]:
    async def prepare(channel: AbstractChannel) -> Sequence[Source]:
        limits: FieldTable = {
            "x-queue-type": "quorum",
            "x-delivery-limit": DELIVERY_LIMIT,
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": _REJECTED,
        }
        await channel.queue_declare(_REJECTED, durable=True, arguments={"x-queue-type": "quorum"})
        await channel.queue_declare(_QUEUE, durable=True, arguments=limits)
        return [Source(_QUEUE)]

    await prepare(await connection.channel())
    await backlog.publish(url, _messages(_QUEUE))
    handled = rejected = 0
    consumer = Consumer(connection, prepare, prefetch=PREFETCH)
    consumer.start()
    counting = SupervisedConnection(url, "bench counts")  # not closed because of the undecodable message
    counting.start()
    channel = await counting.channel()
    while handled + rejected < MESSAGES:
        receiving = asyncio.create_task(consumer.next_batch(PREFETCH, BATCH_DELAY))
        await asyncio.wait({receiving}, timeout=1)
        if receiving.done() and await consumer.ack(receiving.result()):
            handled += len(receiving.result())
        receiving.cancel()
        rejected = (await channel.queue_declare(_REJECTED, passive=True)).message_count or 0
    await consumer.close()
    for queue in (_QUEUE, _REJECTED):
        await channel.queue_delete(queue)
    await counting.close()
    return {"handled": handled, "rejected": rejected}


async def _read(connection: SupervisedConnection, url: str) -> int:
    names = TopologyNames(PREFIX)
    await (await connection.channel()).queue_purge(names.dead)
    await backlog.publish(url, _messages(names.dead))
    try:
        return len(await dead_letters.read(connection, names, MESSAGES))
    except Unavailable:
        return 0
    finally:
        await (await connection.channel()).queue_purge(names.dead)


def _messages(queue: str) -> Backlog:
    valid = backlog.marshal("", [(queue, b"{}")] * VALID_MESSAGES).frames
    undecodable = (
        commands.Basic.Publish(exchange="", routing_key=queue),
        ContentHeader(body_size=2, properties=commands.Basic.Properties(app_id="caf?")),
        ContentBody(b"{}"),
    )
    encoded = b"".join(frame.marshal(each, backlog.CHANNEL) for each in undecodable).replace(b"caf?", b"caf\xe9")
    return Backlog(MESSAGES, valid + encoded + valid)


def main() -> None:
    """Consume the queue with a meter, or print what publishing or encoding costs or the counts of handled messages."""
    unpatch(os.environ.get("BENCH_UNPATCHED", "").split())
    url = os.environ["BENCH_AMQP_URL"]
    if "count" in sys.argv:
        print(json.dumps(uvloop.run(count_handled(url))))
    elif "publish" in sys.argv:
        print(json.dumps(uvloop.run(publish(url))))
    elif "encode" in sys.argv:
        print(json.dumps(uvloop.run(encode(os.environ["BENCH_ADMIN_URL"]))))
    else:
        meter.watch(lambda: (done, 0))
        uvloop.run(drain(url))


if __name__ == "__main__":
    main()
