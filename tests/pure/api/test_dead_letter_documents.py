"""How a dead letter is shown, how many of them a page has, and why they cannot be read."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import orjson
import pytest

from taskherd.api.dead_letters import documents, handlers
from taskherd.api.dead_letters.queue import BusyError
from taskherd.api.http import query_parameters
from taskherd.api.http.errors import HTTPError
from taskherd.broker.dead_letters import MayNotRead
from taskherd.errors import Unavailable
from taskherd.messages.dead_letters import DeadLetter, Origin

NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)


def letter(number: int = 1, **fields: Any) -> DeadLetter:
    """Return a dead letter."""
    body = b"x" * 10
    defaults = {"id": f"letter-{number}", "reason": "fault", "detail": "", "origin": Origin("q", "e", "k")}
    return DeadLetter(**{**defaults, "index": None, "length": 10, "body": body, "time": NOON, **fields})


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (BusyError(), 503, "Another request reads or replays dead letters."),
        (MayNotRead("p.dead"), 403, "The API's RabbitMQ user may not read the dead letters."),
        (Unavailable("no broker"), 503, "The broker is unavailable."),
    ],
)
def test_why_dead_letters_cannot_be_read(error: Exception, status: int, message: str) -> None:
    """Each reason has an answer, and a bug none."""
    with pytest.raises(HTTPError) as raised, handlers._explained():
        raise error
    assert (raised.value.response.status, orjson.loads(raised.value.response.body)["message"]) == (status, message)
    with pytest.raises(KeyError), handlers._explained():
        raise KeyError


@pytest.mark.parametrize(
    ("text", "limit"), [(None, 50), ("1", 1), ("100", 100), ("0", None), ("101", None), ("", None)]
)
def test_a_page_has_up_to_100_dead_letters(text: str | None, limit: int | None) -> None:
    """A request asks for 1 to 100, for 50 if it does not say, and for those of all reasons."""
    query = {} if text is None else {"limit": text}
    if limit is not None:
        found = query_parameters.validate(handlers.DeadLettersQuery, query)
        assert (found.limit, found.reason) == (limit, "")
    else:
        with pytest.raises(HTTPError):
            query_parameters.validate(handlers.DeadLettersQuery, query)


def test_a_dead_letter_is_shown_with_all_that_is_known() -> None:
    """Its reason in words, if this release knows it."""
    assert documents.letter_json(letter(1, detail="no field", index=3, sender="runner")) == {
        "id": "letter-1",
        "reason": "fault",
        "meaning": "Processing failed because of a bug in taskherd; replay it once that is fixed.",
        "detail": "no field",
        "time": "2026-11-27T12:00:00.000000Z",
        "queue": "q",
        "exchange": "e",
        "routing_key": "k",
        "sender": "runner",
        "index": 3,
        "length": 10,
        "body": "x" * 10,
        "body_cut": False,
        "replay_obstacle": None,
        "only_by_id": False,
    }
    plain = documents.letter_json(letter(1, time=None, reason="of tomorrow", sender_checked=False, length=11))
    assert (plain["time"], plain["sender"], plain["meaning"], plain["only_by_id"]) == (None, None, None, True)
    assert (plain["body_cut"], plain["length"], plain["replay_obstacle"] is None) == (True, 11, False)


@pytest.mark.parametrize(
    ("body", "text", "cut"),
    [
        (b"x" * 4_096, "x" * 4_096, False),
        (b"x" * 4_097, "x" * 4_096, True),
        (b"x" * 4_095 + "ä".encode(), "x" * 4_095, True),
        (b"\xff\xc3", "\\xff\\xc3", False),
        (b"a\0b\n", "ab\n", False),
    ],
)
def test_a_body_is_shown_in_part(body: bytes, text: str, *, cut: bool) -> None:
    """What is no text is visible as that, but not a character that the part ends in."""
    found = documents.letter_json(letter(1, body=body, length=len(body)))
    assert (found["body"], found["body_cut"]) == (text, cut)


def test_what_a_producer_named_is_shown_in_part() -> None:
    """Names have 255 characters, and a detail 500."""
    for length, ending in ((255, ""), (256, "…")):
        name = "n" * length
        found = documents.letter_json(letter(1, reason=name, origin=Origin(name, name, name), sender=name))
        names = {found[each] for each in ("reason", "queue", "exchange", "routing_key", "sender")}
        assert names == {"n" * 255 + ending}
    assert documents.letter_json(letter(1, detail="d" * 500))["detail"] == "d" * 500
    assert documents.letter_json(letter(1, detail="d" * 501))["detail"] == "d" * 500 + "…"
