from __future__ import annotations

from uuid import UUID, uuid4

import orjson
import pytest

from taskherd.domain.claims import BuildClaim, ClaimDecision, ClaimOutcome, Ownership
from taskherd.domain.command_results import CommandRefused
from taskherd.domain.outcome import DeadLetterReason
from taskherd.errors import Malformed
from taskherd.messages import claims, replies
from taskherd.messages.decoding import InvalidMessage

TASK = uuid4()
OTHER = UUID("0d4f7a0e-5a6c-4c59-8f0e-3f1f6f1c2b77")


def test_each_message_is_decoded_as_it_was_encoded() -> None:
    """Both directions of each type agree."""
    claim = BuildClaim(TASK, 3, "r1")
    query = claims.OwnershipQuery((TASK, uuid4()), "r1")
    hello = claims.RunnerHello("r1", "default")
    assert claims.decode_runner_message(claims.encode_claim(claim)) == claim
    assert claims.decode_runner_message(claims.encode_ownership_query(query)) == query
    assert claims.decode_runner_message(claims.encode_hello(hello)) == hello


def test_the_messages_of_runners_have_these_fields() -> None:
    """Runners and workers of different releases understand each other: the names are part of the contract."""
    claim = claims.encode_claim(BuildClaim(OTHER, 3, "r1"))
    query = claims.encode_ownership_query(claims.OwnershipQuery((OTHER,), "r2"))
    hello = claims.encode_hello(claims.RunnerHello("r3", "gpu"))
    assert orjson.loads(claim) == {"type": "build.claim", "task_id": str(OTHER), "build_number": 3, "runner": "r1"}
    assert orjson.loads(query) == {"type": "task.owned", "task_ids": [str(OTHER)], "runner": "r2"}
    assert orjson.loads(hello) == {"type": "runner.hello", "runner": "r3", "pool": "gpu"}
    assert claims.ownership_reply({OTHER: Ownership.OWNED}) == b'{"tasks":{"%s":"owned"}}' % str(OTHER).encode()
    unknown = {"tasks": {str(OTHER): "gone"}, "unknown": [str(OTHER)]}
    assert orjson.loads(claims.ownership_reply({OTHER: None})) == unknown


def test_a_question_names_up_to_1000_tasks() -> None:
    """A longer one is invalid as a whole; the runner asks in parts."""
    ids = tuple(UUID(int=number) for number in range(1001))
    fits = claims.OwnershipQuery(ids[:1000], "r1")
    assert claims.decode_runner_message(claims.encode_ownership_query(fits)) == fits
    invalid = claims.decode_runner_message(claims.encode_ownership_query(claims.OwnershipQuery(ids, "r1")))
    assert isinstance(invalid, InvalidMessage)
    assert invalid.detail.startswith("task_ids: ")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", DeadLetterReason.NOT_JSON),
        (b"[]", DeadLetterReason.INVALID),
        (b'{"type": "build.claim"}', DeadLetterReason.INVALID),
        (b'{"type": "x"}', DeadLetterReason.UNKNOWN_TYPE),
        (b" " * 2**20, DeadLetterReason.NOT_JSON),
        (b" " * (2**20 + 1), DeadLetterReason.TOO_LARGE),
    ],
)
def test_an_invalid_message_is_a_value(body: bytes, reason: DeadLetterReason) -> None:
    """Nothing that arrives raises; the dead letter has the reason, and the body as far as it keeps that."""
    invalid = claims.decode_runner_message(body)
    assert isinstance(invalid, InvalidMessage)
    assert (invalid.reason, invalid.body) == (reason, body if len(body) <= 2**20 else body[: 64 * 1024])


@pytest.mark.parametrize(
    ("decision", "body"),
    [
        (ClaimDecision(ClaimOutcome.GRANTED), b'{"granted":true}'),
        (ClaimDecision(ClaimOutcome.TAKEN, "r2"), b'{"granted":false,"by":"r2"}'),
        (ClaimDecision(ClaimOutcome.GONE), b'{"granted":false,"gone":true}'),
    ],
)
def test_replies_to_claims(decision: ClaimDecision, body: bytes) -> None:
    """A reply has only the fields that say something; a repeated grant looks like the first one."""
    assert claims.claim_reply(decision) == body
    assert claims.decode_claim_reply(body) == decision
    assert claims.claim_reply(ClaimDecision(ClaimOutcome.REPEATED)) == b'{"granted":true}'


def test_a_refused_claim_says_why() -> None:
    """It is no decision, and not to be confused with a reply that cannot be read."""
    refused = replies.invalid_message_reply(InvalidMessage(None, DeadLetterReason.UNTRUSTED_SENDER, "No.", b""))
    with pytest.raises(Malformed, match=r"^refused: The sender is not trusted. untrusted_sender: No\.$"):
        claims.decode_claim_reply(refused)


def test_replies_to_questions_and_hellos() -> None:
    """What the worker answers is what the runner reads."""
    for ownership in (*Ownership, None):
        assert claims.decode_ownership_reply(claims.ownership_reply({TASK: ownership})) == {TASK: ownership}
    assert claims.decode_hello_reply(claims.hello_reply()) is None
    assert claims.decode_hello_reply(replies.refused_reply(CommandRefused(409, "No."))) == "No."
    assert claims.decode_hello_reply(replies.refused_reply(CommandRefused(409, "No.", "Ever."))) == "No. Ever."
    mixed = {TASK: None, uuid4(): Ownership.OWNED, uuid4(): Ownership.GONE}
    assert claims.decode_ownership_reply(claims.ownership_reply(mixed)) == mixed


@pytest.mark.parametrize(
    "decode", [claims.decode_claim_reply, claims.decode_ownership_reply, claims.decode_hello_reply]
)
def test_another_reply_is_malformed(decode: object) -> None:
    """A runner does not take the refusal of an invalid message for an answer."""
    assert callable(decode)
    for body in (b"x", b"{}", b"[]"):
        with pytest.raises(Malformed, match="not_a_reply") as raised:
            decode(body)
        assert raised.value.reason == "not_a_reply"


def test_the_reply_to_a_hello_is_no_reply_to_a_claim() -> None:
    """Neither a grant nor a refusal is read from it, and the detail says what was expected."""
    with pytest.raises(Malformed) as raised:
        claims.decode_claim_reply(claims.hello_reply())
    assert raised.value.reason == "not_a_reply"
    assert "granted" in raised.value.detail
