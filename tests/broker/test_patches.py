"""Outside the version range of a patch, the library's own code runs."""

from __future__ import annotations

import inspect
import warnings

import aiormq.connection
import pytest
from pamqp.header import ContentHeader

from taskherd.broker.connection import SupervisedConnection
from taskherd.broker.delivery import DecodedDelivery, Delivery, RawDelivery
from taskherd.broker.patches import frame_reader, pamqp_patches
from taskherd.broker.publisher import Publisher, PublishOutcome
from taskherd.broker.topology import TopologyNames
from tests.broker import raw
from tests.broker.conftest import ConnectTo, ConsumeReports
from tests.library_versions import pretended, unsupported


@pytest.mark.parametrize(
    ("library", "version", "loss"),
    [
        ("aiormq", "7.2.3", frame_reader.LOSS),
        ("aiormq", "7.3.0rc1", frame_reader.LOSS),
        ("aiormq", "8", frame_reader.LOSS),
        ("pamqp", "4.0.0", pamqp_patches.LOSS),
        ("pamqp", "4.1.0", pamqp_patches.LOSS),
        ("pamqp", "not a number", pamqp_patches.LOSS),
    ],
)
def test_a_version_outside_the_range_warns_once(library: str, version: str, loss: str) -> None:
    """One warning per process names the library, its version, the range and the loss; the other patch applies."""
    with pretended(library, version):
        with pytest.warns(RuntimeWarning) as warned:
            SupervisedConnection("amqp://unused", "first")
        [warning] = warned
        assert str(warning.message).startswith(f"{library} {version} is outside {library}>=")
        assert str(warning.message).endswith(loss)
        SupervisedConnection("amqp://unused", "second")
        assert _patched() == {"aiormq", "pamqp"} - {library}


@pytest.mark.parametrize(("library", "version"), [("aiormq", "7.2.4"), ("aiormq", "7.2.99"), ("pamqp", "4.0.1")])
def test_a_version_in_the_range_is_patched_silently(library: str, version: str) -> None:
    """For all versions in the range, both patches apply without a warning."""
    with pretended(library, version), warnings.catch_warnings():
        warnings.simplefilter("error")
        SupervisedConnection("amqp://unused", "patched")
        assert _patched() == {"aiormq", "pamqp"}


def _patched() -> set[str]:
    replaced = {"aiormq": aiormq.connection.FrameReceiver, "pamqp": ContentHeader.unmarshal}
    return {library for library, part in replaced.items() if part.__module__.startswith("taskherd.")}


async def test_both_kinds_of_delivery_have_the_same_content(
    names: TopologyNames, publisher: Publisher, amqp_url: str, connect_to: ConnectTo, consume_reports: ConsumeReports
) -> None:
    """A delivery that aiormq decoded has the same attributes as one from ``FrameReader``, and can be acknowledged."""
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

    async def delivered() -> Delivery:
        published = await publisher.publish(
            names.reports, "a key", b"x" * 200_000, headers={"traceparent": traceparent}, reply_to="r", mandatory=True
        )
        assert published is PublishOutcome.CONFIRMED
        consumer = consume_reports(connect_to(amqp_url, "consume"))
        [delivery] = await consumer.next_batch(10, 0)
        assert await consumer.ack([delivery])
        await consumer.close()
        return delivery

    from_reader = await delivered()
    with unsupported("aiormq"):
        from_aiormq = await delivered()
    assert isinstance(from_reader, RawDelivery)
    assert isinstance(from_aiormq, DecodedDelivery)
    for name, _ in inspect.getmembers(Delivery, inspect.isdatadescriptor):
        if name not in {"epoch", "properties", "size", "__weakref__"}:
            assert getattr(from_aiormq, name) == getattr(from_reader, name), name
    assert from_aiormq.size == 200_000 < from_reader.size  # which has the header too
    assert from_reader.may_have_trace
    assert from_aiormq.properties.delivery_mode == from_reader.properties.delivery_mode


def test_an_undecodable_property_reads_as_none_without_the_patch() -> None:
    """With pamqp's own decoder, a message with an undecodable property has no properties; reading them never raises."""
    with unsupported("pamqp"):
        flag, encoded = raw.app_id(b"caf\xe9")
        payload = raw.header_payload(0, flag, encoded)
        deliver = b"\x01\x00\x01" + bytes(4) + bytes(4) + b"\x01t" + (7).to_bytes(8) + b"\x00\x00\x01k\xce"
        delivery = RawDelivery(deliver, bytes(7) + payload + b"\xce", b"")
        assert (delivery.delivery_tag, delivery.routing_key) == (7, "k")
        assert delivery.headers == {}
        assert delivery.properties.app_id is None
