"""What a message says, from its frames or as aiormq has decoded it, and to which queues a reply may go."""

from __future__ import annotations

from base64 import b64encode
from types import SimpleNamespace
from typing import Any

import pytest
from pamqp import frame
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from taskherd.broker.delivery import DecodedDelivery, Delivery, RawDelivery
from taskherd.broker.diagnostics import server_version
from taskherd.broker.reply_queues import DIRECT, is_direct, may_reply_to
from taskherd.broker.topology import TopologyNames


def raw(headers: dict[str, Any] | None = None, *, redelivered: bool = False, **properties: Any) -> RawDelivery:
    """Return a delivery from its frames."""
    deliver = Basic.Deliver("tag-ä", 7, redelivered, "exchange", "key.ü")
    header = ContentHeader(body_size=4, properties=Basic.Properties(headers=headers, **properties))
    return RawDelivery(frame.marshal(deliver, 1), frame.marshal(header, 1), b"body")


def decoded(headers: dict[str, Any] | None = None, *, redelivered: bool = False, **properties: Any) -> DecodedDelivery:
    """Return a delivery as aiormq has decoded it."""
    message: Any = SimpleNamespace(
        body=b"body", delivery_tag=7, redelivered=redelivered, exchange="exchange", routing_key="key.ü",
        header=ContentHeader(properties=Basic.Properties(headers=headers, **properties)),
    )  # fmt: skip
    return DecodedDelivery(message)


@pytest.mark.parametrize("make", [raw, decoded])
def test_a_delivery_says_what_its_message_said(make: Any) -> None:
    """And how it came here."""
    delivery: Delivery = make({"h": 1}, reply_to="replies", correlation_id="c", user_id="alice", redelivered=True)
    assert (delivery.body, delivery.delivery_tag, delivery.redelivered) == (b"body", 7, True)
    assert (delivery.exchange, delivery.routing_key, delivery.headers) == ("exchange", "key.ü", {"h": 1})
    assert (delivery.reply_to, delivery.correlation_id, delivery.sender) == ("replies", "c", "alice")
    assert (delivery.epoch, delivery.settled, delivery.queue, delivery.original_length) == (0, False, "", None)
    plain: Delivery = make()
    assert (plain.redelivered, plain.headers, plain.may_have_trace) == (False, {}, False)
    assert (plain.reply_to, plain.correlation_id, plain.sender) == (None, None, None)
    assert make({"traceparent": "00"}).may_have_trace


def test_a_delivery_without_names_has_empty_ones() -> None:
    """As a message in the default exchange has them."""
    message: Any = SimpleNamespace(
        body=b"", delivery_tag=1, redelivered=None, exchange=None, routing_key=None, header=ContentHeader()
    )
    delivery = DecodedDelivery(message)
    assert (delivery.exchange, delivery.routing_key, delivery.redelivered) == ("", "", False)


@pytest.mark.parametrize("make", [raw, decoded])
@pytest.mark.parametrize(
    ("count", "redelivered", "failed", "is_poison"),
    [(3, True, 3, True), (2, True, 2, False), (3, False, 3, False), ("9", True, 0, False), (None, True, 0, False)],
)
def test_a_message_that_has_failed_three_times_may_be_poison(
    make: Any, count: object, *, redelivered: bool, failed: int, is_poison: bool
) -> None:
    """As far as the broker has counted it."""
    headers = {} if count is None else {"x-delivery-count": count}
    delivery: Delivery = make(headers, redelivered=redelivered)
    assert (delivery.delivery_count, delivery.possible_poison) == (failed, is_poison)


def test_the_frames_of_a_delivery_take_room() -> None:
    """Its header is kept, too; what cannot be decoded has no properties."""
    delivery = raw({"h": "x" * 100})
    assert delivery.size == 4 + len(delivery._header)
    assert delivery.consumer_tag == "tag-ä".encode()
    assert decoded().size == 4
    broken = RawDelivery(delivery._deliver, delivery._header[:20] + delivery._header[-1:], b"", 5_000)
    assert (broken.headers, broken.original_length) == ({}, 5_000)


PROCESS = b"\x83Xw" + bytes((len(b"reply@123"),)) + b"reply@123" + b"0" * 12
"""A process of Erlang that takes replies."""
LONG = b"\x83Xv\x00" + bytes((len(b"reply@123"),)) + b"reply@123" + b"0" * 12


def name(process: bytes = PROCESS, key: bytes = b"k" * 16) -> str:
    """Return the name of a queue for direct replies."""
    return f"{DIRECT}.{b64encode(process).decode()}.{b64encode(key).decode()}"


@pytest.mark.parametrize(
    ("queue", "is_one"),
    [
        (name(), True),
        (name(LONG), True),
        (name(key=b"k" * 15), False),
        (name(key=b"k" * 17), False),
        (name(PROCESS[:-1]), False),
        (name(PROCESS + b"0"), False),
        (name(PROCESS.replace(b"\x09", b"\x08")), False),
        (name(PROCESS.replace(b"reply@", b"other@")), False),
        (name(b"\x82" + PROCESS[1:]), False),
        (name() + "=", False),
        (name() + ".x", False),
        (name()[:-4], False),
        (f"{DIRECT}.a.b", False),
        (DIRECT, False),
        ("x" + name(), False),
    ],
)
def test_only_names_that_rabbitmq_can_decode_are_direct(queue: str, *, is_one: bool) -> None:
    """Any other costs the connection."""
    assert is_direct(queue) is is_one
    assert may_reply_to(TopologyNames("p"), queue) is (is_one or not queue.startswith("amq."))


@pytest.mark.parametrize(
    ("queue", "may"),
    [("p.work.r", False), ("p.", False), ("p", True), ("px.a", True), ("amq.gen-a", True), ("amq.topic", False)],
)
def test_no_reply_goes_to_a_queue_of_the_installation(queue: str, *, may: bool) -> None:
    """A runner could put requests into it; nor to a name that is reserved."""
    assert may_reply_to(TopologyNames("p"), queue) is may


@pytest.mark.parametrize(
    ("version", "numbers"),
    [(b"4.0.5", (4, 0, 5)), ("4.1.0-rc.1", (4, 1, 0)), ("x.1", ()), ("", ()), (b"\xff", ()), (None, ())],
)
def test_the_version_of_a_broker(version: Any, numbers: tuple[int, ...]) -> None:
    """As far as it is one."""
    connection: Any = SimpleNamespace(server_properties={} if version is None else {"version": version})
    assert server_version(connection) == numbers
    nothing: Any = SimpleNamespace()
    assert server_version(nothing) == ()
