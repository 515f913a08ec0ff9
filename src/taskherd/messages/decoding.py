"""From bytes to one message: in one go where all is well, with a second, slow look at what the fast parser refuses.

The second look says what is wrong, and takes JSON that the fast parser is too strict for.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from pydantic import ValidationError

from taskherd.domain.outcome import DeadLetterReason
from taskherd.messages.dead_letters import MAX_DETAIL
from taskherd.messages.limits import BODY_BYTES, TRUNCATED_BYTES
from taskherd.messages.texts import CONTROL, add_count

if TYPE_CHECKING:
    from pydantic import TypeAdapter

    from taskherd.messages.texts import SanitizeCounts

T = TypeVar("T")

TOO_DEEP = "nested too deeply"

_LONE = re.compile("[\ud800-\udfff]")
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_ERRORS_TOLD = 3
_TAG_TOLD = 64


@dataclass(frozen=True, slots=True)
class InvalidMessage:
    """What goes to the dead letters, and why.

    ``index`` is the place in the array, None for a whole body; ``body`` its bytes as they came; ``length`` is set when
    the body was cut, to the length it had.
    """

    index: int | None
    reason: DeadLetterReason
    detail: str
    body: bytes
    length: int | None = None


class Unread(Exception):  # noqa: N818 - not an error, the way out of a parser; never leaves this package
    """Why a message can't be read."""

    def __init__(self, reason: DeadLetterReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail

    def bad(self, body: bytes, index: int | None = None) -> InvalidMessage:
        """Return the message as what goes to the dead letters."""
        return InvalidMessage(index, self.reason, self.detail, body)


def decode(adapter: TypeAdapter[T], body: bytes, notes: SanitizeCounts) -> T:
    """Return the message of a body; what is removed from its texts is added to ``notes``. Raises Unread."""
    if not may_hold_nan(body):
        try:
            return adapter.validate_json(body)
        except ValidationError as error:
            if _is_json(error):
                raise Unread(*_verdict(error)) from None
    parsed = parse(body, notes)
    try:
        return adapter.validate_python(parsed)
    except ValidationError as error:
        raise Unread(*_verdict(error)) from None


def too_large(body: bytes) -> InvalidMessage:
    """Return what is kept of a body that is longer than ``BODY_BYTES``."""
    detail = f"{len(body)} bytes, at most {BODY_BYTES} are read"
    return InvalidMessage(None, DeadLetterReason.TOO_LARGE, detail, body[:TRUNCATED_BYTES], len(body))


def may_hold_nan(body: bytes) -> bool:
    """Return True if pydantic's parser may take something that is not JSON: it takes NaN where a field is ignored."""
    return b"NaN" in body or b"Infinity" in body


def parse(body: bytes, notes: SanitizeCounts) -> Any:
    """Return what Python's own parser reads: it takes lone surrogates, which are removed here, and nests more deeply.

    Raises Unread.
    """
    try:
        text = body.decode()
        parsed = json.loads(text, parse_constant=_refuse_constant)
        if not _ESCAPED_SURROGATE.search(text):
            return parsed
        fit, removed = _LONE.subn("", json.dumps(parsed, ensure_ascii=False))
        if removed:
            add_count(notes, CONTROL, removed)
        return json.loads(fit)
    except UnicodeDecodeError as error:
        raise Unread(DeadLetterReason.NOT_JSON, f"not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise Unread(DeadLetterReason.NOT_JSON, f"{error.msg} at line {error.lineno} column {error.colno}") from None
    except RecursionError:
        raise Unread(DeadLetterReason.NOT_JSON, TOO_DEEP) from None
    except ValueError:  # the one left: more digits than Python reads
        raise Unread(DeadLetterReason.INVALID, "a number has too many digits") from None


def _refuse_constant(name: str) -> NoReturn:
    raise Unread(DeadLetterReason.NOT_JSON, f"{name} is not JSON")


def _is_json(error: ValidationError) -> bool:
    return error.errors(include_url=False, include_context=False, include_input=False)[0]["type"] != "json_invalid"


def _verdict(error: ValidationError) -> tuple[DeadLetterReason, str]:
    """Which field is wrong and what was expected of it; of what was there instead only the ``type`` is told."""
    errors = error.errors(include_url=False, include_input=False)
    first = errors[0]
    if first["type"] == "union_tag_invalid":
        tag = "".join(letter for letter in str(first["ctx"]["tag"])[:_TAG_TOLD] if letter.isprintable())
        return DeadLetterReason.UNKNOWN_TYPE, f"type: {tag!r} is not known"
    if first["type"] == "union_tag_not_found":
        return DeadLetterReason.INVALID, "type: a string was expected"
    if not first["loc"]:
        return DeadLetterReason.INVALID, "an object was expected"
    told = [
        f"{'.'.join(map(str, each['loc'][1:]))}: {each['msg'].removeprefix('Value error, ')}"
        for each in errors[:_ERRORS_TOLD]
    ]
    if len(errors) > _ERRORS_TOLD:
        told.append(f"and {len(errors) - _ERRORS_TOLD} more")
    return DeadLetterReason.INVALID, "; ".join(told)[:MAX_DETAIL]
