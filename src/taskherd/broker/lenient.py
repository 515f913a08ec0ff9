r"""Makes pamqp's decoding lenient, so that one undecodable AMQP property never costs a connection.

pamqp decodes a message's properties while it reads the frame, and aiormq gives the whole connection up when that
fails. A timestamp in microseconds or an `app_id` in Latin-1, both valid on the wire, so take down every
delivery in the prefetch window, again and again, until the broker dead-letters them all. Two things are replaced:

- `pamqp.header.ContentHeader.unmarshal`: where any property can't be decoded, the message counts as having none. What
  the broker itself wrote, `x-delivery-count`, is kept where it was read before the failure.
- `pamqp.decode.METHODS["shortstr"]`, which decodes the names in method frames (an exchange, a routing key): bytes that
  are not UTF-8 come out as `\xNN`.

What can be decoded is decoded by pamqp's own functions, exactly as before.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from pamqp import commands, decode
from pamqp.header import ContentHeader

if TYPE_CHECKING:
    from collections.abc import Callable

DELIVERY_COUNT = "x-delivery-count"
"""The header in which quorum queues count the deliveries of a message that came back."""

_UNDECODABLE = (ValueError, TypeError, LookupError, ArithmeticError, OSError, RecursionError, struct.error)
_PREFIX = struct.Struct(">HHQ")
_STRICT: dict[str, Callable[..., tuple[int, Any]]] = dict(decode.METHODS)
_PROPERTIES = tuple(
    (name, commands.Basic.Properties.flags[name], _STRICT[getattr(commands.Basic.Properties, f"_{name}")])
    for name in commands.Basic.Properties.__slots__
)


def install() -> None:
    """Replace pamqp's decoders with the lenient ones, for the whole process; doing it again changes nothing."""
    ContentHeader.unmarshal = _unmarshal  # type: ignore[method-assign, assignment]
    decode.METHODS["shortstr"] = _short_string


def _unmarshal(header: ContentHeader, data: bytes) -> None:
    header.class_id, header.weight, header.body_size = _PREFIX.unpack_from(data)
    properties = header.properties
    try:
        _read(properties, data[_PREFIX.size :])
    except _UNDECODABLE:
        header.properties = _without_properties(properties)


def _read(properties: commands.Basic.Properties, data: bytes) -> None:
    consumed, flags = ContentHeader._get_flags(data)  # noqa: SLF001 - the other half of the method replaced here
    data = data[consumed:]
    for name, flag, read in _PROPERTIES:
        if flags & flag:
            consumed, value = read(data)
            if consumed > len(data):
                message = f"{name} is cut short"
                raise ValueError(message)
            setattr(properties, name, value)
            data = data[consumed:]


def _without_properties(read: commands.Basic.Properties) -> commands.Basic.Properties:
    count = (read.headers or {}).get(DELIVERY_COUNT)
    return commands.Basic.Properties(headers={DELIVERY_COUNT: count} if isinstance(count, int) else None)


def _short_string(value: bytes) -> tuple[int, str]:
    length = value[0]
    return length + 1, value[1 : length + 1].decode("utf-8", "backslashreplace")
