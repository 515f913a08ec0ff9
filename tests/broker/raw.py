"""Publish messages with properties that no client library encodes, as raw AMQP frames."""

from __future__ import annotations

import struct

from aiormq.abc import ChannelFrame
from aiormq.channel import Channel
from pamqp import frame
from pamqp.body import ContentBody
from pamqp.commands import Basic

HEADERS_FLAG, TIMESTAMP_FLAG, APP_ID_FLAG = 1 << 13, 1 << 6, 1 << 3
_BASIC, _HEADER_FRAME, _FRAME_END = 60, 2, b"\xce"


def header_payload(size: int, flags: int, properties: bytes) -> bytes:
    """Return the payload of a content header frame for a body of ``size`` bytes."""
    return struct.pack(">HHQH", _BASIC, 0, size, flags) + properties


def table(entries: bytes) -> bytes:
    """Return an AMQP field table with the encoded ``entries``."""
    return struct.pack(">I", len(entries)) + entries


def app_id(value: bytes) -> tuple[int, bytes]:
    """Return the flag and encoding of the property."""
    return APP_ID_FLAG, bytes([len(value)]) + value


def timestamp(value: int) -> tuple[int, bytes]:
    """Return the flag and encoding of the property."""
    return TIMESTAMP_FLAG, struct.pack(">Q", value)


def headers(entries: bytes) -> tuple[int, bytes]:
    """Return the flag and encoding of the property."""
    return HEADERS_FLAG, table(entries)


def nested_arrays(depth: int, innermost: bytes = b"V") -> bytes:
    """Return a table entry with arrays nested ``depth`` levels deep around an encoded value."""
    value = innermost
    for _ in range(depth):
        value = b"A" + struct.pack(">I", len(value)) + value
    return b"\x01n" + value


async def publish(
    channel: Channel, exchange: str, routing_key: bytes, body: bytes, properties: tuple[int, bytes]
) -> None:
    """Publish ``body`` with ``properties`` as encoded by the caller, on a channel without confirms."""
    payload = header_payload(len(body), *properties)
    method = frame.marshal(Basic.Publish(exchange=exchange, routing_key="?" * len(routing_key)), channel.number)
    frames = (
        method.replace(b"?" * len(routing_key), routing_key, 1) if routing_key else method,
        struct.pack(">BHI", _HEADER_FRAME, channel.number, len(payload)) + payload + _FRAME_END,
        frame.marshal(ContentBody(body), channel.number),
    )
    await channel.write_queue.put(ChannelFrame(payload=b"".join(frames), should_close=False))
