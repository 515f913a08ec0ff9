"""Encoding and decoding of reports, alone or in an array.

A message contains one report or an array of them. Each element of an array is decoded by itself, so an invalid one
does not affect the others.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Annotated, NamedTuple, TypeAlias

import orjson
from pydantic import Field, TypeAdapter, ValidationError

from taskherd.domain.outcome import DeadLetterReason
from taskherd.domain.report_json import canonical_json
from taskherd.domain.reports import Report
from taskherd.messages import json_array
from taskherd.messages.decoding import TOO_DEEP, InvalidMessage, Undecodable, decode, may_hold_nan, parse, too_large
from taskherd.messages.limits import MAX_BODY_BYTES, MAX_ELEMENTS
from taskherd.messages.report_models import (
    AgentDisconnectedIn,
    AgentExitIn,
    AgentHeartbeatIn,
    AgentInterruptedIn,
    AgentLifecycleIn,
    AgentRequestIn,
    AgentUsageIn,
    AppHealthIn,
    AppStatusIn,
    TaskInputIn,
    TaskLogIn,
    WorkspaceBuildIn,
)
from taskherd.messages.texts import SanitizeCounts

_SPACE = b" \t\n\r"
_TICK = timedelta(microseconds=1)


ReportIn: TypeAlias = Annotated[
    WorkspaceBuildIn
    | AgentLifecycleIn
    | AgentHeartbeatIn
    | AgentDisconnectedIn
    | AgentExitIn
    | AppHealthIn
    | AppStatusIn
    | TaskLogIn
    | TaskInputIn
    | AgentUsageIn
    | AgentInterruptedIn
    | AgentRequestIn,
    Field(discriminator="type"),
]

_REPORT: TypeAdapter[ReportIn] = TypeAdapter(ReportIn)

_REPORTS: TypeAdapter[list[ReportIn]] = TypeAdapter(Annotated[list[ReportIn], Field(max_length=MAX_ELEMENTS)])


class DecodedReport(NamedTuple):
    """A decoded report, and the changes that sanitizing made to its texts."""

    report: Report
    sanitize_counts: SanitizeCounts


DecodeResult: TypeAlias = DecodedReport | InvalidMessage
"""The result for one element: a report, or why it is invalid."""


def encode_report(report: Report, *, with_seq: bool = True) -> bytes:
    """Encode a report as canonical JSON; without a seq the worker derives it from ``observed_at``."""
    text = canonical_json(report)
    if with_seq:
        return text.encode()
    fields = orjson.loads(text)
    del fields["seq"]
    return orjson.dumps(fields)


def join_reports(reports: Iterable[bytes]) -> bytes:
    """Return the body of one message with these encoded reports."""
    return b"[" + b",".join(reports) + b"]"


def decode_stored_report(text: str, now: datetime) -> Report:
    """Decode a stored report from its canonical JSON. Raises ValueError if the text is invalid."""
    return _REPORT.validate_json(text).to_domain(now, {})


def decode_reports(body: bytes, now: datetime, original_length: int | None = None) -> list[DecodeResult]:
    """Decode a body with one report or an array of them. Invalid input is returned, not raised.

    ``now`` (UTC) is the default of a seq, one microsecond later for each further element, to keep their order.
    ``original_length`` is the size of a body of which only the beginning was received.
    """
    if original_length is not None or len(body) > MAX_BODY_BYTES:
        return [too_large(body, original_length)]
    if body.lstrip(_SPACE).startswith(b"["):
        return _decode_array(body, now)
    return [_decode_one(None, body, now)]


def _decode_one(index: int | None, body: bytes, now: datetime) -> DecodeResult:
    counts: SanitizeCounts = {}
    try:
        return DecodedReport(decode(_REPORT, body, counts).to_domain(now, counts), counts)
    except Undecodable as error:
        return error.to_invalid_message(body, index)


def _decode_array(body: bytes, now: datetime) -> list[DecodeResult]:
    """Decode an array at once, which takes three quarters of the time, or element by element if that fails."""
    if not may_hold_nan(body):
        with suppress(ValidationError):
            return [
                _to_decoded(model, now if model.seq is not None else now + index * _TICK)
                for index, model in enumerate(_REPORTS.validate_json(body))
            ]
    parts = json_array.split_json_array(body)
    if parts is None:
        return [InvalidMessage(None, DeadLetterReason.NOT_JSON, _parser_error(body), body)]
    if len(parts) > MAX_ELEMENTS:
        detail = f"{len(parts)} reports in one message; expected at most {MAX_ELEMENTS}"
        return [InvalidMessage(None, DeadLetterReason.TOO_MANY, detail, body)]
    elements: list[DecodeResult] = []
    for index, part in enumerate(parts):
        element = _decode_one(index, part, now + index * _TICK)
        if (
            isinstance(element, InvalidMessage)
            and element.reason is DeadLetterReason.NOT_JSON
            and element.detail != TOO_DEEP
        ):
            return [InvalidMessage(None, DeadLetterReason.NOT_JSON, f"element {index}: {element.detail}", body)]
        elements.append(element)
    return elements


def _to_decoded(model: ReportIn, now: datetime) -> DecodedReport:
    counts: SanitizeCounts = {}
    return DecodedReport(model.to_domain(now, counts), counts)


def _parser_error(body: bytes) -> str:
    try:
        parse(body, {})
    except Undecodable as error:
        return error.detail
    return "not an array"
