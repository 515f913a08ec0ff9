"""Bytes in, core values out: what came from the queue is judged element by element, and nothing here raises.

The common case is parsed and checked in one go. Only what that refuses is looked at again, slowly: to say what is
wrong with it, to cut the one bad element out of an array, and to take JSON that the fast parser is too strict for.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeAlias

from pydantic import ValidationError

from taskherd.wire import split
from taskherd.wire.bounds import BODY_BYTES, ELEMENTS, KEPT_BYTES
from taskherd.wire.commands import COMMAND
from taskherd.wire.dead import MOST_DETAIL, Reason
from taskherd.wire.reports import REPORT, REPORTS
from taskherd.wire.texts import CONTROL, note

if TYPE_CHECKING:
    from datetime import datetime

    from pydantic import TypeAdapter

    from taskherd.core.commands import Command
    from taskherd.core.reports import Report
    from taskherd.wire.reports import ReportIn
    from taskherd.wire.texts import Notes

_SPACE = b" \t\n\r"
_LONE = re.compile("[\ud800-\udfff]")
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_TICK = timedelta(microseconds=1)
_ERRORS_TOLD = 3
_TAG_TOLD = 64


class Decoded(NamedTuple):
    """A report that can be folded, and what was done to its texts."""

    report: Report
    notes: Notes


@dataclass(frozen=True, slots=True)
class Bad:
    """What goes to the dead letters, and why.

    ``index`` is the place in the array, None for a whole body; ``body`` its bytes as they came; ``length`` is set when
    the body was cut, to the length it had.
    """

    index: int | None
    reason: Reason
    detail: str
    body: bytes
    length: int | None = None


Element: TypeAlias = Decoded | Bad


class _Unread(Exception):  # noqa: N818 - not an error, the way out of a parser; never leaves this module
    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def decode_reports(body: bytes, now: datetime) -> list[Element]:
    """The reports of a body, one or an array of them, each judged alone.

    ``now`` (UTC) is the default of a seq, a microsecond more for each element, so that they keep their order.
    """
    if len(body) > BODY_BYTES:
        return [_too_large(body)]
    if body.lstrip(_SPACE).startswith(b"["):
        return _array(body, now)
    return [_alone(None, body, now)]


def decode_command(body: bytes, notes: Notes | None = None) -> Command | Bad:
    """The command of a body; what was done to its texts is added to ``notes``."""
    notes = {} if notes is None else notes
    if len(body) > BODY_BYTES:
        return _too_large(body)
    try:
        if not _may_hold_nan(body):
            return COMMAND.validate_json(body).to_core(notes)
    except ValidationError as error:
        if _is_json(error):
            return _invalid(None, body, error)
    try:
        command: Command = _validated(COMMAND, _parsed(body, notes)).to_core(notes)
    except _Unread as why:
        return Bad(None, why.reason, why.detail, body)
    return command


def _alone(index: int | None, body: bytes, now: datetime) -> Element:
    """One report by itself."""
    if _may_hold_nan(body):
        return _again(index, body, now)
    try:
        read = REPORT.validate_json(body)
    except ValidationError as error:
        return _invalid(index, body, error) if _is_json(error) else _again(index, body, now)
    return _decoded(read, now)


def _array(body: bytes, now: datetime) -> list[Element]:
    """An array in one go, in three quarters of the time; where anything is wrong with it, each element alone."""
    if not _may_hold_nan(body):
        with suppress(ValidationError):
            return [
                _decoded(read, now if read.seq is not None else now + index * _TICK)
                for index, read in enumerate(REPORTS.validate_json(body))
            ]
    pieces = split.elements(body)
    if pieces is None:
        return [Bad(None, Reason.NOT_JSON, _parser_says(body), body)]
    if len(pieces) > ELEMENTS:
        return [_too_many(len(pieces), body)]
    found: list[Element] = []
    for index, piece in enumerate(pieces):
        element = _alone(index, piece, now + index * _TICK)
        if isinstance(element, Bad) and element.reason is Reason.NOT_JSON and element.detail != _TOO_DEEP:
            return [Bad(None, Reason.NOT_JSON, f"element {index}: {element.detail}", body)]
        found.append(element)
    return found


def _decoded(read: ReportIn, now: datetime) -> Decoded:
    notes: Notes = {}
    return Decoded(read.to_core(now, notes), notes)


def _again(index: int | None, body: bytes, now: datetime) -> Element:
    notes: Notes = {}
    try:
        return Decoded(_validated(REPORT, _parsed(body, notes)).to_core(now, notes), notes)
    except _Unread as why:
        return Bad(index, why.reason, why.detail, body)


def _parsed(body: bytes, notes: Notes) -> Any:
    """What Python's own parser reads: it takes lone surrogates, which are removed here, and nests more deeply."""
    try:
        text = body.decode()
        parsed = json.loads(text, parse_constant=_refuse_constant)
        if not _ESCAPED_SURROGATE.search(text):
            return parsed
        fit, removed = _LONE.subn("", json.dumps(parsed, ensure_ascii=False))
        if removed:
            note(notes, CONTROL, removed)
        return json.loads(fit)
    except UnicodeDecodeError as error:
        raise _Unread(Reason.NOT_JSON, f"not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise _Unread(Reason.NOT_JSON, f"{error.msg} at line {error.lineno} column {error.colno}") from None
    except RecursionError:
        raise _Unread(Reason.NOT_JSON, _TOO_DEEP) from None
    except ValueError:  # the one left: more digits than Python reads
        raise _Unread(Reason.INVALID, "a number has too many digits") from None


_TOO_DEEP = "nested too deeply"


def _refuse_constant(name: str) -> NoReturn:
    raise _Unread(Reason.NOT_JSON, f"{name} is not JSON")


def _validated(adapter: TypeAdapter[Any], parsed: Any) -> Any:
    try:
        return adapter.validate_python(parsed)
    except ValidationError as error:
        raise _Unread(*_verdict(error)) from None


def _parser_says(body: bytes) -> str:
    try:
        _parsed(body, {})
    except _Unread as why:
        return why.detail
    return "not an array"


def _may_hold_nan(body: bytes) -> bool:
    # pydantic's parser takes these where the field is ignored; JSON has no such numbers.
    return b"NaN" in body or b"Infinity" in body


def _is_json(error: ValidationError) -> bool:
    return error.errors(include_url=False, include_context=False, include_input=False)[0]["type"] != "json_invalid"


def _invalid(index: int | None, body: bytes, error: ValidationError) -> Bad:
    reason, detail = _verdict(error)
    return Bad(index, reason, detail, body)


def _verdict(error: ValidationError) -> tuple[Reason, str]:
    """Which field is wrong and what was expected of it; of what was there instead only the ``type`` is told."""
    errors = error.errors(include_url=False, include_input=False)
    first = errors[0]
    if first["type"] == "union_tag_invalid":
        tag = "".join(letter for letter in str(first["ctx"]["tag"])[:_TAG_TOLD] if letter.isprintable())
        return Reason.UNKNOWN_TYPE, f"type: {tag!r} is not known"
    if first["type"] == "union_tag_not_found":
        return Reason.INVALID, "type: a string was expected"
    if not first["loc"]:
        return Reason.INVALID, "an object was expected"
    told = [
        f"{'.'.join(map(str, each['loc'][1:]))}: {each['msg'].removeprefix('Value error, ')}"
        for each in errors[:_ERRORS_TOLD]
    ]
    if len(errors) > _ERRORS_TOLD:
        told.append(f"and {len(errors) - _ERRORS_TOLD} more")
    return Reason.INVALID, "; ".join(told)[:MOST_DETAIL]


def _too_large(body: bytes) -> Bad:
    detail = f"{len(body)} bytes, at most {BODY_BYTES} are read"
    return Bad(None, Reason.TOO_LARGE, detail, body[:KEPT_BYTES], len(body))


def _too_many(count: int, body: bytes) -> Bad:
    return Bad(None, Reason.TOO_MANY, f"{count} reports, at most {ELEMENTS} are read at once", body)
