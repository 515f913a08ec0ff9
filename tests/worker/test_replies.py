"""Replies reach only queues that a sender may choose: the attacks are played on a real broker."""

from __future__ import annotations

import asyncio
import json
import uuid
from base64 import b64decode, b64encode
from typing import TYPE_CHECKING, Any

import aio_pika
import pytest
from pamqp.commands import Basic

from taskherd.broker.connection import SupervisedConnection
from taskherd.broker.publisher import Publisher, PublishOutcome
from taskherd.broker.reply_queues import DIRECT, may_reply_to
from taskherd.broker.topology import TopologyNames
from tests.harness.worker import TIMEOUT, WorkerHarness, make_command

if TYPE_CHECKING:
    from aiormq.abc import DeliveredMessage

pytestmark = [pytest.mark.timeout(120)]

UNDECODABLE = f"{DIRECT}.g1h3AAA.yyy=="
"""A name like those of direct replies; a message to it costs its publisher the connection."""


async def _send(harness: WorkerHarness, exchange: str, body: dict[str, Any], reply_to: str) -> None:
    target = await harness.channel.get_exchange(f"{harness.prefix}.{exchange}", ensure=False)
    await target.publish(aio_pika.Message(json.dumps(body).encode(), reply_to=reply_to), "any", timeout=30)


async def test_a_reply_cannot_become_a_request_or_a_command(harness: WorkerHarness) -> None:
    """A reply to a queue of ours is dropped, and its message is treated as one without reply_to."""
    await harness.ask({"type": "runner.hello", "runner": "victim", "pool": "other"})
    queues = [f"{harness.prefix}.{name}" for name in ("work.other", "work.victim", "commands", "reports", "dead")]
    unknown = uuid.uuid4()
    claim = {"type": "build.claim", "task_id": str(unknown), "build_number": 1, "runner": "thief"}
    for queue in (*queues, UNDECODABLE):
        await _send(harness, "claims", claim, queue)
        await _send(harness, "claims", {"type": "nonsense"}, queue)
        await _send(harness, "commands", make_command("task.pause", unknown), queue)
    await harness.until(lambda: len(harness.dead_letters) == 2 * len(queues) + 2)
    assert sorted(set(harness.reasons())) == ["command_refused", "unknown_type"]
    assert (await harness.queue_counts("work.other"))[0] == (await harness.queue_counts("work.victim"))[0] == 0
    assert harness.metric("taskherd_commands_total", type="unknown", outcome="invalid") == 0
    assert harness.metric("taskherd_reconnects_total", connection="publish") == 0


async def test_direct_replies_arrive_and_forged_ones_do_no_harm(amqp_url: str, amqp_prefix: str) -> None:
    """A name that RabbitMQ gave may be replied to; altered ones are refused or cost the publisher nothing."""
    names = TopologyNames(amqp_prefix)
    received: asyncio.Queue[DeliveredMessage] = asyncio.Queue()
    connection = SupervisedConnection(amqp_url, "replies")
    connection.start()
    try:
        async with await aio_pika.connect(amqp_url, timeout=30) as client:
            channel = await (await client.channel()).get_underlay_channel()
            queue = (await channel.queue_declare(exclusive=True, timeout=30)).queue or ""

            async def receive(message: DeliveredMessage) -> None:
                received.put_nowait(message)

            await channel.basic_consume(DIRECT, receive, no_ack=True, timeout=30)
            await channel.basic_publish(b"?", routing_key=queue, properties=Basic.Properties(reply_to=DIRECT))
            question = await channel.basic_get(queue, no_ack=True, timeout=30)
            direct = question.header.properties.reply_to or ""
            publisher = Publisher(connection)
            for name in (*_altered(direct), direct):
                if may_reply_to(names, name):
                    assert await publisher.publish("", name, name.encode()) is PublishOutcome.CONFIRMED
            async with asyncio.timeout(TIMEOUT):
                assert (await received.get()).body == direct.encode()
            assert may_reply_to(names, queue)
            assert may_reply_to(names, "replies-of-my-own-program")
            assert not any(may_reply_to(names, name) for name in (UNDECODABLE, DIRECT, f"{DIRECT}.", "amq.topic"))
            await publisher.close()
    finally:
        await connection.close()


def _altered(direct: str) -> list[str]:
    """Return names like this one, with other nodes, processes and keys, and broken ones."""
    _, process, key = direct.rsplit(".", 2)
    raw = b64decode(process)
    variants = [
        raw[:-12] + bytes(12),
        raw[:-12] + b"\xff" * 12,
        raw[:-4] + b"\x00\x00\x00\x01",
        raw.replace(b"reply@", b"relay@"),
        raw.replace(raw[11:12], b"0", 1),
        b"\x83Xw\x07reply@1" + raw[-12:],
        b"\x83Xv\x00\x1areply@" + b"9" * 20 + raw[-12:],
        raw[:-1],
        raw + b"\x00",
        b"\x83" + bytes(20),
        b"\x83h\x00",
        b"",
    ]
    keys = (key, b64encode(bytes(16)).decode(), b64encode(bytes(15)).decode(), "", "====")
    return [f"{DIRECT}.{b64encode(each).decode()}.{k}" for each in variants for k in keys] + [
        f"{direct}.x",
        direct[:-3],
    ]
