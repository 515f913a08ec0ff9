"""Dead letters: the headers that are written are the headers that are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from taskherd.domain.outcome import DeadLetterReason
from taskherd.messages.dead_letters import MAX_DETAIL, DeadLetterHeaders, Origin, decode, encode, producer_headers


@dataclass(frozen=True, slots=True)
class Stored:
    """A message in the dead-letter queue."""

    body: bytes
    headers: Mapping[str, Any]
    exchange: str = "dead"
    routing_key: str = "key"
    message_id: str | None = "id"


@given(
    body=st.binary(max_size=50),
    reason=st.sampled_from(DeadLetterReason),
    detail=st.text(max_size=2 * MAX_DETAIL),
    origin=st.builds(Origin, st.text("ab.", max_size=5), st.text("ab.", max_size=5), st.text("ab.é", max_size=300)),
    index=st.none() | st.integers(0, 2000),
)
def test_decoding_returns_what_was_encoded(
    body: bytes, reason: DeadLetterReason, detail: str, origin: Origin, index: int | None
) -> None:
    """Body, reason, origin and index come back unchanged, and the headers obey the contract."""
    encoded, headers = encode(body, reason, detail, origin, index=index)
    letter = decode(Stored(encoded, {**headers, "mine": 1, "x-delivery-count": 4}))
    assert (letter.body, letter.reason, letter.origin, letter.index) == (body, reason, origin, index)
    assert letter.headers == {"mine": 1}
    assert not letter.truncated
    DeadLetterHeaders.model_validate(headers)


def test_headers_of_taskherd_and_the_broker_are_not_the_producers() -> None:
    """A producer cannot forge the index or reason of a dead letter, and the broker's counters are not replayed."""
    foreign = dict.fromkeys(("x-taskherd-index", "x-taskherd-reason", "x-death", "x-first-death-queue", "x-opt-a"), 1)
    assert producer_headers({**foreign, "x-mine": 2}) == {"x-mine": 2}


def test_the_id_is_stable_and_depends_on_the_message() -> None:
    """The broker's counters do not change the id; another body or message id does."""
    body, headers = encode(b"x", DeadLetterReason.INVALID, "", Origin("q", "e", "k"))
    letter = decode(Stored(body, headers))
    assert decode(Stored(body, {**headers, "x-acquired-count": 7})).id == letter.id
    assert decode(Stored(b"y", headers)).id != letter.id
    assert decode(Stored(body, headers, message_id="other")).id != letter.id
