"""The properties of a message that can be decoded, and what is left of those that cannot; without a broker."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Any

import pytest
from pamqp import decode
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from taskherd.broker.patches import pamqp_patches
from tests.broker import raw
from tests.library_versions import pretended

COUNTED = raw.headers(b"\x10x-delivery-countl\x00\x00\x00\x00\x00\x00\x00\x04")
NOT_COUNTED = raw.headers(b"\x10x-delivery-countS\x00\x00\x00\x014")
PROPERTIES: dict[str, Any] = {
    "content_type": "text/plain", "content_encoding": "gzip", "headers": {"a": 1}, "delivery_mode": 2, "priority": 3,
    "correlation_id": "c", "reply_to": "r", "expiration": "10", "message_id": "m",
    "timestamp": dt.datetime(2026, 1, 2, tzinfo=dt.UTC), "message_type": "t", "user_id": "u", "app_id": "ä",
}  # fmt: skip


@pytest.fixture(autouse=True)
def installed() -> Iterator[None]:
    """Have the patch installed."""
    with pretended("pamqp", "4.0.1"):
        pamqp_patches.install()
        yield


def decoded(payload: bytes) -> tuple[ContentHeader, dict[str, Any]]:
    """Return a decoded header, and the properties that it has."""
    header = ContentHeader()
    header.unmarshal(payload)
    return header, {name: value for name, value in header.properties if value not in (None, "")}


@pytest.mark.parametrize("name", PROPERTIES)
def test_each_property_is_decoded_by_itself(name: str) -> None:
    """And after all those before it."""
    before = dict(list(PROPERTIES.items())[: list(PROPERTIES).index(name) + 1])
    for properties in ({name: PROPERTIES[name]}, before):
        payload = ContentHeader(0, 7, Basic.Properties(**properties)).marshal()
        header, found = decoded(payload[:2] + b"\x00\x05" + payload[4:])
        assert found == properties
        assert [header.class_id, header.weight, header.body_size] == [60, 5, 7]


@pytest.mark.parametrize("cut", range(1, 5))
def test_a_property_that_is_cut_off_leaves_none(cut: int) -> None:
    """Neither its beginning nor those before it."""
    whole = ContentHeader(0, 0, Basic.Properties(content_type="a", message_id="cdef")).marshal()
    assert decoded(whole)[1] == {"content_type": "a", "message_id": "cdef"}
    assert decoded(whole[:-cut])[1] == {}


@pytest.mark.parametrize(
    ("headers", "left"),
    [(COUNTED, {"headers": {"x-delivery-count": 4}}), (NOT_COUNTED, {}), (raw.headers(b"\x01at\x01"), {})],
)
def test_of_undecodable_properties_the_brokers_count_is_left(headers: tuple[int, bytes], left: dict[str, Any]) -> None:
    """If it is a number and came before what cannot be decoded."""
    (flag, encoded), (bad_flag, bad) = headers, raw.app_id(b"\xff")
    header, found = decoded(raw.header_payload(9, flag | bad_flag, encoded + bad))
    assert (found, header.body_size) == (left, 9)
    assert decoded(raw.header_payload(9, bad_flag, bad))[1] == {}
    assert decoded(raw.header_payload(9, flag, encoded[:-1]))[1] == {}


def test_a_name_that_is_not_utf8_is_escaped() -> None:
    """Its length is that of its bytes."""
    assert decode.METHODS["shortstr"](b"\x03a\xff\xe9more") == (4, r"a\xff\xe9")
    assert decode.METHODS["shortstr"](b"\x02\xc3\xa4") == (3, "ä")
    assert decode.METHODS["shortstr"](b"\x00rest") == (1, "")


def test_outside_its_range_the_library_decodes_by_itself() -> None:
    """It refuses what it cannot decode."""
    flag, bad = raw.app_id(b"\xff")
    with pretended("pamqp", "4.1.0"):
        with pytest.warns(RuntimeWarning, match="pamqp"):
            pamqp_patches.install()
        with pytest.raises(UnicodeDecodeError):
            ContentHeader().unmarshal(raw.header_payload(9, flag, bad))
