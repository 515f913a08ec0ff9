r"""Decode AMQP properties leniently, so that an undecodable property does not close the connection.

Library: pamqp, in the range ``SUPPORTED``.

Why: pamqp decodes a message's properties while it reads the frame, and aiormq closes the connection if that fails.
A timestamp in microseconds or an ``app_id`` in Latin-1, both valid on the wire, thus makes every delivery in the
prefetch window fail again and again, until the broker dead-letters all of them.

Replaced:

- ``pamqp.header.ContentHeader.unmarshal``: a message with an undecodable property has no properties, except
  ``x-delivery-count``, which the broker wrote, if it was decoded before the failure.
- ``pamqp.decode.METHODS["shortstr"]``, which decodes names in method frames (an exchange, a routing key): bytes that
  are not UTF-8 are decoded to ``\xNN``.

pamqp's own functions decode everything else, so decodable messages are unchanged.

Gain, measured by ``python -m benchmarks patches`` with one undecodable property among 11 messages: all of them can be
listed as dead letters instead of none; and with aiormq's own reader, all 11 are consumed instead of none, with a limit
of 4 deliveries. (``FrameReader`` alone makes consuming safe too, because it does not decode properties.)
"""

from __future__ import annotations

import struct
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from pamqp import decode
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from taskherd.library_versions import VersionRange, is_supported

if TYPE_CHECKING:
    from collections.abc import Callable

SUPPORTED: Final = VersionRange("pamqp", first=(4, 0, 1), end=(4, 1))
LOSS: Final = (
    "dead letters behind one with an undecodable AMQP property cannot be read, and without the patch of aiormq such a "
    "message closes its consumer's connection each time it is delivered"
)

DELIVERY_COUNT = "x-delivery-count"
"""The header in which quorum queues count failed deliveries of a message."""

UNDECODABLE: Final = (ValueError, TypeError, LookupError, ArithmeticError, OSError, RecursionError, struct.error)
"""The exceptions that pamqp's decoders raise for undecodable bytes."""

_PREFIX = struct.Struct(">HHQ")


def install() -> None:
    """Replace pamqp's decoders for the whole process, if its version is supported; idempotent."""
    if is_supported(SUPPORTED, LOSS):
        _property_decoders()  # caches the strict decoder of short strings, which is replaced next
        ContentHeader.unmarshal = _unmarshal  # type: ignore[method-assign, assignment]
        decode.METHODS["shortstr"] = _short_string


@cache
def _property_decoders() -> tuple[tuple[str, int, Callable[..., tuple[int, Any]]], ...]:
    """Return the name, flag and decoder of each AMQP property, in encoding order."""
    return tuple(
        (name, Basic.Properties.flags[name], decode.METHODS[getattr(Basic.Properties, f"_{name}")])
        for name in Basic.Properties.__slots__
    )


def _unmarshal(header: ContentHeader, data: bytes) -> None:
    header.class_id, header.weight, header.body_size = _PREFIX.unpack_from(data)
    properties = header.properties
    try:
        _read(properties, data[_PREFIX.size :])
    except UNDECODABLE:
        header.properties = _without_properties(properties)


def _read(properties: Basic.Properties, data: bytes) -> None:
    consumed, flags = ContentHeader._get_flags(data)  # noqa: SLF001 - the other half of the method replaced here
    data = data[consumed:]
    for name, flag, read in _property_decoders():
        if flags & flag:
            consumed, value = read(data)
            if consumed > len(data):
                message = f"{name} is truncated"
                raise ValueError(message)
            setattr(properties, name, value)
            data = data[consumed:]


def _without_properties(read: Basic.Properties) -> Basic.Properties:
    count = (read.headers or {}).get(DELIVERY_COUNT)
    return Basic.Properties(headers={DELIVERY_COUNT: count} if isinstance(count, int) else None)


def _short_string(value: bytes) -> tuple[int, str]:
    length = value[0]
    return length + 1, value[1 : length + 1].decode("utf-8", "backslashreplace")
