"""Dead letters: the headers that are written are the headers that are read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskherd.domain.outcome import DeadLetterReason
from taskherd.messages.dead_letters import (
    MAX_DETAIL,
    DeadLetter,
    DeadLetterHeaders,
    Origin,
    decode,
    encode,
    producer_headers,
)


@dataclass(frozen=True, slots=True)
class Stored:
    """A message in the dead-letter queue."""

    body: bytes
    headers: Mapping[str, Any]
    exchange: str = "dead"
    routing_key: str = "key"
    message_id: str | None = "id"
    sender: str | None = None


@given(
    body=st.binary(max_size=50),
    reason=st.sampled_from(DeadLetterReason),
    detail=st.text(max_size=2 * MAX_DETAIL),
    origin=st.builds(Origin, st.text("ab.", max_size=5), st.text("ab.", max_size=5), st.text("ab.é", max_size=300)),
    index=st.none() | st.integers(0, 2000),
    time=st.none() | st.datetimes(timezones=st.just(UTC)),
)
def test_decoding_returns_what_was_encoded(
    *, body: bytes, reason: DeadLetterReason, detail: str, origin: Origin, index: int | None, time: datetime | None
) -> None:
    """Body, reason, origin, index and time come back unchanged, and the headers obey the contract."""
    encoded, headers = encode(body, reason, detail, origin, index=index, time=time)
    letter = decode(Stored(encoded, {**headers, "mine": 1, "x-delivery-count": 4}))
    assert (letter.body, letter.reason, letter.origin, letter.index) == (body, reason, origin, index)
    assert letter.headers == {"mine": 1}
    assert letter.time == time
    assert not letter.truncated
    DeadLetterHeaders.model_validate(headers)


def test_headers_of_taskherd_and_the_broker_are_not_the_producers() -> None:
    """A producer cannot forge the index or reason of a dead letter, and the broker's counters are not replayed."""
    foreign = dict.fromkeys(("x-taskherd-index", "x-taskherd-reason", "x-death", "x-first-death-queue", "x-opt-a"), 1)
    assert producer_headers({**foreign, "x-mine": 2}) == {"x-mine": 2}


def test_the_headers_of_a_dead_letter() -> None:
    """They have the names and forms of the contract, and what is not known is left out."""
    origin, time = Origin("claims", "taskherd.claims", "r1"), datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    bare = {
        "x-taskherd-reason": "invalid",
        "x-taskherd-detail": "seq: too low",
        "x-taskherd-exchange": "taskherd.claims",
        "x-taskherd-routing-key": "r1",
        "x-taskherd-queue": "claims",
    }
    assert encode(b"x", DeadLetterReason.INVALID, "seq: too low", origin) == (b"x", bare)
    _, headers = encode(
        b"x", DeadLetterReason.INVALID, "seq: too low", origin, index=0, length=7, time=time, sender="eve"
    )
    assert headers == {
        **bare,
        "x-taskherd-index": 0,
        "x-taskherd-length": 7,
        "x-taskherd-time": "2026-01-02T03:04:05.000000Z",
        "x-taskherd-sender": "eve",
    }


def test_a_dead_letter_of_a_worker_is_read_as_it_was_written() -> None:
    """Its origin, detail and sender too; the worker has checked the sender."""
    origin = Origin("claims", "taskherd.claims", "r1")
    body, headers = encode(b"x", DeadLetterReason.INVALID, "seq: too low", origin, index=0, sender="eve")
    letter = decode(Stored(body, {**headers, "mine": 1}, sender="taskherd"))
    assert letter == DeadLetter(letter.id, "invalid", "seq: too low", origin, 0, 1, b"x", {"mine": 1}, None, "eve")
    assert letter.sender_checked
    for unknown in ({}, {"x-taskherd-sender": 7}):
        headers = {"x-taskherd-reason": "invalid", **unknown}
        letter = decode(Stored(b"x", headers, sender="taskherd"))
        assert (letter.sender, letter.detail, letter.origin) == (None, "", Origin("", "", ""))


def test_the_origin_of_what_the_broker_dead_lettered() -> None:
    """Queue and exchange are those of the last death; a letter without a queue was published straight to its queue."""
    deaths = {"x-last-death-queue": "claims", "x-last-death-exchange": "taskherd.claims"}
    letter = decode(Stored(b"x", deaths, routing_key="r1"))
    assert letter.origin == Origin("claims", "taskherd.claims", "r1")
    del deaths["x-last-death-exchange"]
    assert decode(Stored(b"x", deaths, routing_key="r1")).origin == Origin("claims", "", "r1")


@pytest.mark.parametrize(
    ("headers", "doubt"),
    [
        ({"x-taskherd-reason": "invalid"}, None),
        ({"x-taskherd-reason": "untrusted_sender"}, "it came from no trusted sender"),
        ({"x-last-death-queue": "q", "x-last-death-reason": "expired"}, "no worker has checked its sender"),
        ({"x-last-death-queue": "q", "x-last-death-reason": "untrusted_sender"}, "it came from no trusted sender"),
        ({}, "no worker has checked its sender"),
    ],
)
def test_a_letter_whose_sender_nobody_trusts_is_doubtful(headers: dict[str, str], doubt: str | None) -> None:
    """Only who names such a letter replays it."""
    said = decode(Stored(b"x", headers)).doubt
    assert said == (None if doubt is None else f"{doubt}; if you trust what it asks for, name its id")


def test_the_id_is_the_same_in_every_release() -> None:
    """Twelve digits, the beginning of a digest of the message id, reason, queue, routing key and body."""
    headers = {"x-taskherd-reason": "invalid", "x-taskherd-queue": "q", "x-taskherd-routing-key": "k"}
    letter = decode(Stored(b"x", headers, message_id="m"))
    assert letter.id == hashlib.sha256(b"m\0invalid\0q\0k\0x").hexdigest()[:12]
    nameless = decode(Stored(b"x", headers, message_id=None))
    assert nameless.id == hashlib.sha256(b"\0invalid\0q\0k\0x").hexdigest()[:12]


def test_the_id_is_stable_and_depends_on_the_message() -> None:
    """The broker's counters do not change the id; another body or message id does."""
    body, headers = encode(b"x", DeadLetterReason.INVALID, "", Origin("q", "e", "k"))
    letter = decode(Stored(body, headers))
    assert decode(Stored(body, {**headers, "x-acquired-count": 7})).id == letter.id
    assert decode(Stored(b"y", headers)).id != letter.id
    assert decode(Stored(body, headers, message_id="other")).id != letter.id


def test_an_unreadable_time_is_unknown() -> None:
    """A time that is missing, of another type, not RFC 3339 or out of range is None."""
    body, headers = encode(b"x", DeadLetterReason.INVALID, "", Origin("q", "e", "k"))
    for wrong in (None, 7, "", "yesterday", b"2026-01-01", "0001-01-01T00:00:00+14:00"):
        assert decode(Stored(body, {**headers, "x-taskherd-time": wrong})).time is None


@pytest.mark.parametrize("deaths", [[], "no list", [1], {"reason": "expired"}])
def test_deaths_that_the_broker_does_not_write_are_ignored(deaths: object) -> None:
    """A header of the broker's name that a producer set does not prevent a dead letter from being shown."""
    letter = decode(Stored(b"x", {"x-death": deaths}))
    assert (letter.reason, letter.origin) == (DeadLetterReason.UNKNOWN, Origin("", "", ""))


def test_what_was_published_straight_to_the_dead_letters_is_not_replayed() -> None:
    """Published to where it came from, it would only come back, and be reported as replayed."""
    letter = decode(Stored(b"x", {}, exchange="taskherd.dead", routing_key="taskherd.dead"))
    assert letter.replay_obstacle == "its origin is unknown"


def test_the_last_death_counts() -> None:
    """The origin, reason and time are those of RabbitMQ's last dead-lettering; other entries may be forged."""
    time = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    forged = {"queue": "commands", "reason": "rejected", "exchange": "commands", "routing-keys": ["forged"], "time": 1}
    own = {"queue": "claims", "reason": "expired", "exchange": "commands", "routing-keys": ["forged"], "time": time}
    last = {"x-last-death-queue": "claims", "x-last-death-reason": "expired", "x-last-death-exchange": "claims"}
    for deaths in ([forged, own], [own, forged], [7, own]):
        letter = decode(Stored(b"x", {"x-death": deaths, "x-taskherd-reason": "fault", **last}, sender="eve"))
        assert (letter.origin, letter.reason, letter.time) == (Origin("claims", "claims", "key"), "expired", time)
        assert (letter.sender_checked, letter.detail) == (False, "dead-lettered by the broker, sent by the user 'eve'")
    assert decode(Stored(b"x", {"x-death": "text", **last})).time is None


def test_a_detail_is_truncated_to_500_characters() -> None:
    """A longer one ends with an ellipsis."""
    for length, written in ((500, "d" * 500), (501, "d" * 499 + "…")):
        _, headers = encode(b"x", DeadLetterReason.INVALID, "d" * length, Origin("q", "e", "k"))
        assert headers["x-taskherd-detail"] == written


def test_a_routing_key_of_up_to_255_bytes_is_sent_again() -> None:
    """AMQP cannot carry a longer one (https://www.rabbitmq.com/resources/specs/amqp0-9-1.pdf, short strings)."""
    for key, obstacle in (("é" * 127 + "k", None), ("é" * 128, "its routing key is too long to be sent")):
        body, headers = encode(b"x", DeadLetterReason.INVALID, "", Origin("q", "e", key))
        assert decode(Stored(body, headers)).replay_obstacle == obstacle


@pytest.mark.parametrize(
    ("exchange", "key", "obstacle"),
    [("reports", "", None), ("", "claims", None), ("", "", "its origin is unknown")],
)
def test_an_exchange_or_a_routing_key_is_origin_enough(exchange: str, key: str, obstacle: str | None) -> None:
    """A message without a routing key is sent again to its exchange, one without an exchange to its queue."""
    body, headers = encode(b"x", DeadLetterReason.INVALID, "", Origin("q", exchange, key))
    assert decode(Stored(body, headers)).replay_obstacle == obstacle


@pytest.mark.parametrize(
    ("headers", "sender", "detail"),
    [
        ({}, "eve", "no reason was given"),
        ({"x-last-death-queue": "q"}, None, "dead-lettered by the broker, sent by a user that is not known"),
        ({"x-last-death-queue": "q"}, "e" * 65, f"dead-lettered by the broker, sent by the user '{'e' * 64}'"),
    ],
)
def test_a_letter_that_no_worker_wrote_says_who_wrote_it(
    headers: dict[str, Any], sender: str | None, detail: str
) -> None:
    """The detail says whether RabbitMQ dead-lettered the message, and which user sent it, as far as that is known."""
    letter = decode(Stored(b"x", headers, message_id=None, sender=sender))
    assert (letter.detail, letter.length, letter.truncated) == (detail, 1, False)


def test_the_original_length_of_a_truncated_body_is_kept() -> None:
    """Whoever truncated it: the encoding, or the one who received only its beginning."""
    origin = Origin("q", "e", "k")
    for length, expected in ((None, 2**20 + 1), (2**30, 2**30)):
        body, headers = encode(b"x" * (2**20 + 1), DeadLetterReason.TOO_LARGE, "", origin, length=length)
        letter = decode(Stored(body, headers))
        assert (len(body), letter.length, letter.truncated) == (64 * 1024, expected, True)
        assert letter.replay_obstacle == "only the beginning of its body was kept"
    body, headers = encode(b"x" * 2**20, DeadLetterReason.INVALID, "", origin)
    assert (len(body), decode(Stored(body, headers)).truncated) == (2**20, False)


def test_numbers_of_another_type_are_ignored() -> None:
    """An index that is no number is none, and a length that is no number that of the body."""
    body, headers = encode(b"xyz", DeadLetterReason.INVALID, "", Origin("q", "e", "k"))
    letter = decode(Stored(body, {**headers, "x-taskherd-index": "1", "x-taskherd-length": "9"}))
    assert (letter.index, letter.length) == (None, 3)
