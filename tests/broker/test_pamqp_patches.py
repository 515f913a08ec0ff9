"""Lenient decoding of AMQP properties."""

from __future__ import annotations

import datetime as dt

import pytest
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from taskherd.broker.delivery import Delivery
from taskherd.broker.patches import pamqp_patches
from taskherd.broker.publisher import Publisher
from taskherd.broker.topology import TopologyNames
from tests.broker import raw
from tests.broker.conftest import ConnectTo, ConsumeReports

UNDECODABLE = {
    "timestamp in microseconds": raw.timestamp(1_760_000_000_000_000),
    "timestamp before 1970": raw.timestamp(2**64 - 5),
    "app_id in Latin-1": raw.app_id(b"caf\xe9"),
    "table key in Latin-1": raw.headers(b"\x02\xe9\xe9t\x01"),
    "timestamp in a table": raw.headers(b"\x01aT\xff\xff\xff\xff\xff\xff\xff\xff"),
    "arrays 2,000 deep": raw.headers(raw.nested_arrays(2000)),
}


@pytest.mark.parametrize("undecodable", UNDECODABLE.values(), ids=UNDECODABLE.keys())
async def test_an_undecodable_property_affects_no_other_message(
    *,
    undecodable: tuple[int, bytes],
    names: TopologyNames,
    publisher: Publisher,
    amqp_url: str,
    connect_to: ConnectTo,
    consume_reports: ConsumeReports,
) -> None:
    """A message with an undecodable property arrives without properties, and the messages around it unchanged."""
    connection = connect_to(amqp_url, "consume")
    channel = await connect_to(amqp_url, "raw").channel()
    await publisher.publish(names.reports, "before", b"1", headers={"a": "b"}, correlation_id="c")
    await raw.publish(channel, names.reports, b"bad", b"2", undecodable)
    await channel.close()  # a clean close, so that the broker has received the message
    await publisher.publish(names.reports, "after", b"3")
    consumer = consume_reports(connection)
    deliveries: list[Delivery] = []
    while len(deliveries) < 3:
        deliveries += await consumer.next_batch(10, 0)
    assert [each.body for each in deliveries] == [b"1", b"2", b"3"]
    assert not any(each.redelivered for each in deliveries)
    assert deliveries[0].headers == {"a": "b"}
    assert deliveries[0].correlation_id == "c"
    assert deliveries[1].headers == {}
    assert deliveries[1].properties.app_id is None
    assert await consumer.ack(deliveries)


async def test_a_routing_key_that_is_not_utf8_is_escaped(
    names: TopologyNames, amqp_url: str, connect_to: ConnectTo, consume_reports: ConsumeReports
) -> None:
    """A name in a method frame that is not UTF-8 arrives with its bytes escaped."""
    channel = await connect_to(amqp_url, "raw").channel()
    await raw.publish(channel, names.reports, b"\xff\xfe", b"{}", (0, b""))
    await channel.close()
    consumer = consume_reports(connect_to(amqp_url, "consume"))
    [delivery] = await consumer.next_batch(10, 0)
    assert delivery.routing_key == r"\xff\xfe"
    assert await consumer.ack([delivery])


def test_decodable_properties_are_unchanged() -> None:
    """Lenient decoding returns valid properties exactly as they were encoded."""
    pamqp_patches.install()
    pamqp_patches.install()
    properties = Basic.Properties(
        content_type="application/json",
        headers={"s": "ä", "n": 1, "t": {"a": [1, None, True]}},
        delivery_mode=2,
        priority=3,
        correlation_id="c",
        reply_to="r",
        expiration="10",
        message_id="m",
        timestamp=dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC),
        message_type="t",
        user_id="u",
        app_id="a",
    )
    header = ContentHeader()
    header.unmarshal(ContentHeader(body_size=7, properties=properties).marshal())
    assert header.body_size == 7
    assert header.properties == properties


def test_the_delivery_count_survives_an_undecodable_property() -> None:
    """The broker's delivery count is kept, so that a possible poison message is still recognized."""
    pamqp_patches.install()
    flag, encoded = raw.headers(b"\x10x-delivery-countl\x00\x00\x00\x00\x00\x00\x00\x04\x01at\x01")
    bad_flag, bad = raw.app_id(b"\xff")
    header = ContentHeader()
    header.unmarshal(raw.header_payload(0, flag | bad_flag, encoded + bad))
    assert header.properties.headers == {"x-delivery-count": 4}
    assert header.properties.app_id is None
