"""Decode one JSON message with a pydantic model: on a fast path, and on a slow path if that rejects it.

The slow path describes the error, and accepts JSON that the fast parser rejects, such as lone surrogates.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from pydantic import ValidationError

from taskherd.domain.outcome import DeadLetterReason
from taskherd.messages.dead_letters import MAX_DETAIL
from taskherd.messages.limits import MAX_BODY_BYTES, TRUNCATED_BYTES
from taskherd.messages.texts import CONTROL, add_count

if TYPE_CHECKING:
    from pydantic import TypeAdapter

    from taskherd.messages.texts import SanitizeCounts

T = TypeVar("T")

TOO_DEEP = "nested too deeply"

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_MAX_ERRORS = 3
_MAX_TAG = 64


@dataclass(frozen=True, slots=True)
class InvalidMessage:
    """An invalid message or array element, with the reason; to be published as a dead letter.

    Attributes:
        index: the position in the array, or None for a complete body.
        reason: the reason code of the dead letter.
        detail: a description of the error, up to ``MAX_DETAIL`` characters.
        body: the original bytes, truncated if ``length`` is set.
        length: the original length of a truncated body.
    """

    index: int | None
    reason: DeadLetterReason
    detail: str
    body: bytes
    length: int | None = None


class Undecodable(Exception):  # noqa: N818 - control flow within the parser; never leaves this package
    """A message cannot be decoded."""

    def __init__(self, reason: DeadLetterReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail

    def to_invalid_message(self, body: bytes, index: int | None = None) -> InvalidMessage:
        """Return the message or element as an ``InvalidMessage`` with this reason."""
        return InvalidMessage(index, self.reason, self.detail, body)


def decode(adapter: TypeAdapter[T], body: bytes, counts: SanitizeCounts) -> T:
    """Decode a body. Removed lone surrogates are added to ``counts``. Raises ``Undecodable``."""
    if not may_hold_nan(body):
        try:
            return adapter.validate_json(body)
        except ValidationError as error:
            if _is_json(error):
                raise Undecodable(*_describe(error)) from None
    parsed = parse(body, counts)
    try:
        return adapter.validate_python(parsed)
    except ValidationError as error:
        raise Undecodable(*_describe(error)) from None


def too_large(body: bytes, original_length: int | None = None) -> InvalidMessage:
    """Return a body that exceeds ``MAX_BODY_BYTES``, or did before it was truncated, as an ``InvalidMessage``."""
    length = len(body) if original_length is None else original_length
    detail = f"{length} bytes; expected at most {MAX_BODY_BYTES}"
    return InvalidMessage(None, DeadLetterReason.TOO_LARGE, detail, body[:TRUNCATED_BYTES], length)


def may_hold_nan(body: bytes) -> bool:
    """Return whether pydantic's parser may accept a body that is not JSON: it accepts NaN in ignored fields."""
    return b"NaN" in body or b"Infinity" in body


def parse(body: bytes, counts: SanitizeCounts) -> Any:
    """Parse JSON with Python's own parser, which accepts deeper nesting, and lone surrogates; these are removed.

    Raises ``Undecodable``.
    """
    try:
        text = body.decode()
        parsed = json.loads(text, parse_constant=_reject_constant)
        if not _ESCAPED_SURROGATE.search(text):
            return parsed
        sanitized, removed = _LONE_SURROGATE.subn("", json.dumps(parsed, ensure_ascii=False))
        if removed:
            add_count(counts, CONTROL, removed)
        return json.loads(sanitized)
    except UnicodeDecodeError as error:
        raise Undecodable(DeadLetterReason.NOT_JSON, f"not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        detail = f"{error.msg} at line {error.lineno} column {error.colno}"
        raise Undecodable(DeadLetterReason.NOT_JSON, detail) from None
    except RecursionError:
        raise Undecodable(DeadLetterReason.NOT_JSON, TOO_DEEP) from None
    except ValueError:  # the only remaining cause: a number with more digits than Python converts
        raise Undecodable(DeadLetterReason.INVALID, "a number has too many digits") from None


def _reject_constant(name: str) -> NoReturn:
    raise Undecodable(DeadLetterReason.NOT_JSON, f"{name} is not JSON")


def _is_json(error: ValidationError) -> bool:
    return error.errors(include_url=False, include_context=False, include_input=False)[0]["type"] != "json_invalid"


def _describe(error: ValidationError) -> tuple[DeadLetterReason, str]:
    """Describe the first invalid fields and what was expected; of the values only an unknown ``type`` is quoted."""
    errors = error.errors(include_url=False, include_input=False)
    first = errors[0]
    if first["type"] == "union_tag_invalid":
        tag = "".join(letter for letter in str(first["ctx"]["tag"])[:_MAX_TAG] if letter.isprintable())
        return DeadLetterReason.UNKNOWN_TYPE, f"type: {tag!r} is not known"
    if first["type"] == "union_tag_not_found":
        return DeadLetterReason.INVALID, "type: a string was expected"
    if not first["loc"]:
        return DeadLetterReason.INVALID, "an object was expected"
    descriptions = [
        f"{'.'.join(map(str, each['loc'][1:]))}: {each['msg'].removeprefix('Value error, ')}"
        for each in errors[:_MAX_ERRORS]
    ]
    if len(errors) > _MAX_ERRORS:
        descriptions.append(f"and {len(errors) - _MAX_ERRORS} more")
    return DeadLetterReason.INVALID, "; ".join(descriptions)[:MAX_DETAIL]
