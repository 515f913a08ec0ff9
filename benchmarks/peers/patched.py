"""taskherd's consuming without a worker, with all patches of libraries or without some of them."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import warnings
from importlib import metadata
from typing import TYPE_CHECKING, Final

import uvloop
from pamqp import commands, frame
from pamqp.body import ContentBody
from pamqp.header import ContentHeader

from benchmarks.harness import backlog, meter
from benchmarks.harness.backlog import Backlog
from benchmarks.harness.workload import PREFIX
from taskherd.broker import dead_letters
from taskherd.broker.connection import SupervisedConnection
from taskherd.broker.consume import Consumer, Source
from taskherd.broker.topology import TopologyNames
from taskherd.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiormq.abc import AbstractChannel
    from pamqp.common import FieldTable

AROUND: Final = 5
"""Good messages before the one with an undecodable property, and after it."""

MESSAGES: Final = 2 * AROUND + 1
DELIVERY_LIMIT: Final = 4
PREFETCH: Final = 100
GATHER: Final = 0.1
"""Seconds that a batch gathers deliveries, so that the bad one comes before the first ack."""

TIMEOUT: Final = 60.0
_GUARDED = f"{PREFIX}.bad"
_REJECTED = f"{PREFIX}.bad.rejected"

done = 0


def unpatch(libraries: Sequence[str]) -> None:
    """Pretend that the installed versions of ``libraries`` are not supported, before any patch is installed."""
    actual = metadata.version
    metadata.version = lambda name: "0" if name in libraries else actual(name)
    warnings.simplefilter("ignore", RuntimeWarning)
    logging.disable()


async def drain(url: str) -> None:
    """Consume the queue as the worker does, until killed."""
    global done  # noqa: PLW0603 - read by the meter's thread

    async def prepare(_: AbstractChannel) -> Sequence[Source]:
        return [Source(os.environ["BENCH_QUEUE"])]

    link = SupervisedConnection(url, "bench")
    intake = Consumer(link, prepare, prefetch=int(os.environ["BENCH_PREFETCH"]))
    link.start()
    intake.start()
    while True:
        batch = await intake.batch(500, 0)
        for delivery in batch:
            if delivery.possible_poison or delivery.traced:
                message = "a message of the benchmark is neither"
                raise AssertionError(message)
        await intake.ack(batch)
        done += len(batch)


async def survive(url: str) -> dict[str, int]:
    """Return how many of some messages, one of them bad, were handled, dead-lettered, and read as dead letters."""
    async with asyncio.timeout(TIMEOUT):
        link = SupervisedConnection(url, "bench")
        link.start()
        outcome = {**await _consumed(link, url), "read": await _read(link, url)}
        await link.close()
        return outcome


async def _consumed(link: SupervisedConnection, url: str) -> dict[str, int]:
    async def prepare(channel: AbstractChannel) -> Sequence[Source]:
        limits: FieldTable = {
            "x-queue-type": "quorum",
            "x-delivery-limit": DELIVERY_LIMIT,
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": _REJECTED,
        }
        await channel.queue_declare(_REJECTED, durable=True, arguments={"x-queue-type": "quorum"})
        await channel.queue_declare(_GUARDED, durable=True, arguments=limits)
        return [Source(_GUARDED)]

    await prepare(await link.channel())
    await backlog.publish(url, _messages(_GUARDED))
    handled = rejected = 0
    intake = Consumer(link, prepare, prefetch=PREFETCH)
    intake.start()
    counting = SupervisedConnection(url, "bench counts")  # not cut by the bad message
    counting.start()
    channel = await counting.channel()
    while handled + rejected < MESSAGES:
        taking = asyncio.create_task(intake.batch(PREFETCH, GATHER))
        await asyncio.wait({taking}, timeout=1)
        if taking.done() and await intake.ack(taking.result()):
            handled += len(taking.result())
        taking.cancel()
        rejected = (await channel.queue_declare(_REJECTED, passive=True)).message_count or 0
    await intake.close()
    for queue in (_GUARDED, _REJECTED):
        await channel.queue_delete(queue)
    await counting.close()
    return {"handled": handled, "rejected": rejected}


async def _read(link: SupervisedConnection, url: str) -> int:
    names = TopologyNames(PREFIX)
    await (await link.channel()).queue_purge(names.dead)
    await backlog.publish(url, _messages(names.dead))
    try:
        return len(await dead_letters.read(link, names, MESSAGES))
    except Unavailable:
        return 0
    finally:
        await (await link.channel()).queue_purge(names.dead)


def _messages(queue: str) -> Backlog:
    good = backlog.marshal("", [(queue, b"{}")] * AROUND).frames
    bad = (
        commands.Basic.Publish(exchange="", routing_key=queue),
        ContentHeader(body_size=2, properties=commands.Basic.Properties(app_id="caf?")),
        ContentBody(b"{}"),
    )
    encoded = b"".join(frame.marshal(each, backlog.CHANNEL) for each in bad).replace(b"caf?", b"caf\xe9")
    return Backlog(MESSAGES, good + encoded + good)


def main() -> None:
    """Drain the queue with a meter on it, or print what survives as JSON."""
    unpatch(os.environ.get("BENCH_UNPATCHED", "").split())
    url = os.environ["BENCH_AMQP_URL"]
    if "survive" in sys.argv:
        print(json.dumps(uvloop.run(survive(url))))
    else:
        meter.watch(lambda: (done, 0))
        uvloop.run(drain(url))


if __name__ == "__main__":
    main()
