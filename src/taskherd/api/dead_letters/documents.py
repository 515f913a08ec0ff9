"""The JSON document of a dead letter, in which nothing is as large as its producer likes."""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from taskherd.domain.reports import format_rfc3339
from taskherd.messages import texts
from taskherd.messages.dead_letters import MAX_DETAIL, MEANINGS

if TYPE_CHECKING:
    from taskherd.messages.dead_letters import DeadLetter

MAX_BODY: Final = 4 * 1024
"""Number of bytes of a body that are shown."""
_MAX_NAME: Final = 255
"""Maximum length of a shown name of RabbitMQ, in characters."""

_MEANINGS: Final[Mapping[str, str]] = {reason.value: meaning for reason, meaning in MEANINGS.items()}


def meaning_of(reason: str) -> str | None:
    """Return the reason in words, or None if this release does not know it."""
    return _MEANINGS.get(reason)


def letter_json(letter: DeadLetter) -> dict[str, Any]:
    """Return the document of a dead letter."""
    origin, cut = letter.origin, len(letter.body) > MAX_BODY
    text = getincrementaldecoder("utf-8")("backslashreplace").decode(letter.body[:MAX_BODY], not cut)
    return {
        "id": letter.id,
        "reason": _shortened(letter.reason),
        "meaning": meaning_of(letter.reason),
        "detail": _shortened(letter.detail, MAX_DETAIL),
        "time": None if letter.time is None else format_rfc3339(letter.time),
        "queue": _shortened(origin.queue),
        "exchange": _shortened(origin.exchange),
        "routing_key": _shortened(origin.routing_key),
        "sender": None if letter.sender is None else _shortened(letter.sender),
        "index": letter.index,
        "length": letter.length,
        "body": texts.sanitize_detail(text, {}),
        "body_cut": cut or letter.truncated,
        "replay_obstacle": letter.replay_obstacle,
        "only_by_id": letter.doubt is not None,
    }


def _shortened(text: str, length: int = _MAX_NAME) -> str:
    clean = texts.sanitize_detail(text[:length], {})
    return clean if len(text) <= length else f"{clean}…"
