"""Decoding of any bytes: JSON or not, alone or in arrays, within the limits or beyond them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskherd.broker import delivery
from taskherd.domain.outcome import DeadLetterReason
from taskherd.domain.reports import AppStatus, Workspace, WorkspaceBuild
from taskherd.domain.value import replace
from taskherd.messages import limits
from taskherd.messages.claims import decode_runner_message
from taskherd.messages.commands import decode_command
from taskherd.messages.decoding import InvalidMessage
from taskherd.messages.json_array import split_json_array
from taskherd.messages.reports import (
    DecodedReport,
    DecodeResult,
    decode_reports,
    decode_stored_report,
    encode_report,
    join_reports,
)
from tests.pure.messages.samples import NOW, REPORTS, TASK, any_report, json_values

HEARTBEAT = orjson.dumps({"type": "agent.heartbeat", "task_id": TASK, "seq": 1})
DEEP = 20_000
HOSTILE = {
    "empty": b"",
    "blank": b" \n",
    "cut short": HEARTBEAT[:-1],
    "two": HEARTBEAT + HEARTBEAT,
    "not utf-8": HEARTBEAT.replace(b"agent", b"ag\xffnt"),
    "utf-16": HEARTBEAT.decode().encode("utf-16"),
    "a bom": b"\xef\xbb\xbf" + HEARTBEAT,
    "nan": HEARTBEAT[:-1] + b',"x":NaN}',
    "infinity": HEARTBEAT[:-1] + b',"x":-Infinity}',
    "single quotes": HEARTBEAT.replace(b'"', b"'"),
    "trailing comma": HEARTBEAT[:-1] + b",}",
    "deep arrays": b"[" * DEEP,
    "deep objects": b'{"a":' * DEEP,
    "deep and closed": HEARTBEAT[:-1] + b',"x":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "array cut short": b"[" + HEARTBEAT,
    "array not closed well": b"[" + HEARTBEAT + b"}",
    "array with a trailing comma": b"[" + HEARTBEAT + b",]",
    "array with rubbish": b"[" + HEARTBEAT + b",rubbish]",
    "array with rubbish behind": b"[" + HEARTBEAT + b"] x",
    "array with nan": b"[" + HEARTBEAT + b',{"x":NaN}]',
    "array not utf-8": b"[" + HEARTBEAT + b',"\xff"]',
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_body_that_is_not_json_is_invalid_as_a_whole(body: bytes) -> None:
    """A body that is not JSON, or nested too deeply, has one result, with all its bytes."""
    assert [
        (each.reason, each.index, each.body) for each in decode_reports(body, NOW) if isinstance(each, InvalidMessage)
    ] == [(DeadLetterReason.NOT_JSON, None, body)]
    assert len(decode_reports(body, NOW)) == 1


@given(st.binary(max_size=200) | st.binary(max_size=50).map(lambda junk: b"[" + HEARTBEAT + b"," + junk + b"]"))
def test_no_body_raises(body: bytes) -> None:
    """Any bytes give results, never an exception."""
    for element in decode_reports(body, NOW):
        assert isinstance(element, DecodedReport) or len(element.detail) <= 500
    assert decode_command(body) is not None


@given(json_values | any_report, st.lists(any_report | json_values, max_size=5))
def test_every_element_of_any_json_has_a_result(alone: Any, several: list[Any]) -> None:
    """Any JSON value has one result, and an array exactly one for each of its elements; only reports are decoded."""
    for value, elements in ((alone, alone if isinstance(alone, list) else [alone]), (several, several)):
        results = decode_reports(json.dumps(value).encode(), NOW)
        assert [isinstance(each, DecodedReport) for each in results] == [is_report(each) for each in elements]


def is_report(value: Any) -> bool:
    """Return whether a generated value is a report: the other ones are objects without a type, or no objects."""
    return isinstance(value, dict) and "task_id" in value


@given(st.lists(any_report, max_size=8), st.data())
def test_each_element_is_decoded_by_itself(reports: list[dict[str, Any]], data: st.DataObject) -> None:
    """A report in an array is decoded as if it were alone; an invalid element has its index."""
    position = data.draw(st.integers(0, len(reports)))
    junk = data.draw(
        st.sampled_from([b"7", b'{"type":"nope"}', b'{ "type" : "agent.heartbeat" }', b'"]"', b'{"a":[1,{}]}'])
    )
    parts = [orjson.dumps(each) for each in reports]
    body = b" [ " + b" , ".join([*parts[:position], junk, *parts[position:]]) + b" ] "
    elements = decode_reports(body, NOW)
    element = elements.pop(position)
    assert isinstance(element, InvalidMessage)
    assert (element.index, element.body) == (position, junk)
    times = [NOW + index * timedelta(microseconds=1) for index in range(len(parts) + 1) if index != position]
    assert elements == [alone for part, now in zip(parts, times, strict=True) for alone in decode_reports(part, now)]


@pytest.mark.parametrize(
    ("junk", "reason"),
    [
        (b'{"a":' * DEEP + b"1" + b"}" * DEEP, DeadLetterReason.NOT_JSON),
        (b"[" * DEEP + b"]" * DEEP, DeadLetterReason.NOT_JSON),
        (
            b'{"type":"agent.heartbeat","task_id":"' + TASK.encode() + b'","seq":' + b"9" * 5000 + b"}",
            DeadLetterReason.INVALID,
        ),
        (
            b'{"type":"agent.heartbeat","task_id":"' + TASK.encode() + b'","seq":' + b"9" * 30 + b"}",
            DeadLetterReason.INVALID,
        ),
        (b'{"type":"\\ud800"}', DeadLetterReason.UNKNOWN_TYPE),
    ],
    ids=["deep objects", "deep arrays", "a number of 5,000 digits", "a number of 30 digits", "a lone surrogate"],
)
def test_an_element_that_the_fast_parser_rejects_affects_no_other(junk: bytes, reason: DeadLetterReason) -> None:
    """Deep nesting, long numbers and lone surrogates in one element do not affect the others."""
    first, middle, last = decode_reports(b"[" + HEARTBEAT + b"," + junk + b"," + HEARTBEAT + b"]", NOW)
    assert isinstance(first, DecodedReport)
    assert isinstance(last, DecodedReport)
    assert isinstance(middle, InvalidMessage)
    assert (middle.index, middle.reason, middle.body) == (1, reason, junk)
    alone = decode_reports(junk, NOW)
    assert all(isinstance(each, InvalidMessage) for each in alone)


def test_a_number_of_too_many_digits_is_said_to_be_that() -> None:
    """Who looks at the dead letter reads what is wrong with it."""
    (alone,) = decode_reports(b'{"type":"agent.heartbeat","task_id":"%s","seq":%s}' % (TASK.encode(), b"9" * 5000), NOW)
    assert isinstance(alone, InvalidMessage)
    assert alone.detail == "a number has too many digits"


@pytest.mark.parametrize("wrap", [b"%s", b"[%s]"], ids=["alone", "in an array"])
def test_lone_surrogates_and_nul_are_removed_from_texts(wrap: bytes) -> None:
    """Characters that PostgreSQL rejects are removed and counted; a pair of surrogates is one character."""
    body = (
        b'{"type":"app.status","task_id":"%s","state":"idle","message":"a\\u0000\\ud83d\\ude00\\ud800b"}'
        % TASK.encode()
    )
    (element,) = decode_reports(wrap % body, NOW)
    assert isinstance(element, DecodedReport)
    assert isinstance(element.report, AppStatus)
    assert element.report.message == "a😀b"
    assert element.sanitize_counts == {"control": 2}


def test_a_lone_surrogate_in_a_name_is_removed() -> None:
    """A name with one is as good as without it, and the removal is counted; a pair of surrogates is a character."""
    body = (
        b'{"type":"workspace.build","task_id":"%s","transition":"start","job_status":"running",'
        b'"workspace":{"id":"%s","name":"ma\\ud800in \\ud83d\\ude00"}}'
    )
    element = one(body % (TASK.encode(), TASK.encode()))
    assert isinstance(element, DecodedReport)
    assert isinstance(element.report, WorkspaceBuild)
    assert element.report.workspace == Workspace(UUID(TASK), "main 😀")
    assert element.sanitize_counts == {"control": 1}


def test_the_size_limit_of_a_body() -> None:
    """A body of 1 MiB is decoded; a larger one is truncated to 64 KiB, with its original length."""
    largest = HEARTBEAT[:-1] + b',"x":"' + b"x" * (2**20 - len(HEARTBEAT) - 7) + b'"}'
    assert len(largest) == 2**20
    assert isinstance(decode_reports(largest, NOW)[0], DecodedReport)
    (element,) = decode_reports(largest + b" ", NOW)
    assert isinstance(element, InvalidMessage)
    assert (element.reason, element.index, element.length) == (DeadLetterReason.TOO_LARGE, None, 2**20 + 1)
    assert element.body == largest[: 64 * 1024]
    refused = decode_command(largest + b" ")
    assert isinstance(refused, InvalidMessage)
    assert refused.reason is DeadLetterReason.TOO_LARGE


def test_the_length_limit_of_an_array() -> None:
    """An array of 1,000 reports is decoded; one of 1,001 is invalid as a whole, also on the slow path."""
    heartbeats = [HEARTBEAT] * 1000
    assert len(decode_reports(b"[" + b",".join(heartbeats) + b"]", NOW)) == 1000
    for more in (HEARTBEAT, b'"\\ud800"'):
        body = b"[" + b",".join([*heartbeats, more]) + b"]"
        (element,) = decode_reports(body, NOW)
        assert isinstance(element, InvalidMessage)
        assert (element.reason, element.index, element.body) == (DeadLetterReason.TOO_MANY, None, body)


@pytest.mark.parametrize("body", [b"[]", b" [ \n] "])
def test_an_empty_array_is_valid(body: bytes) -> None:
    """An empty array has no elements and is not an error."""
    assert decode_reports(body, NOW) == []


def test_white_space_around_a_report_is_ignored() -> None:
    """JSON allows white space before and after a report."""
    assert decode_reports(b" \r\n\t" + HEARTBEAT + b"\n", NOW) == decode_reports(HEARTBEAT, NOW)


@given(st.lists(json_values, max_size=6), st.booleans())
def test_an_array_is_split_into_its_elements(values: list[Any], wide: bool) -> None:  # noqa: FBT001 - drawn
    """The parts of an array are its elements, even if their strings contain brackets and commas."""
    parts = split_json_array(json.dumps(values, indent=2 if wide else None).encode())
    assert parts is not None
    assert [json.loads(part) for part in parts] == values


@pytest.mark.parametrize("body", [b"", b"1]", b"{1]", b'"a"]', b"[1", b"[1}", b"[1] 2]", b"[1]]"])
def test_what_has_no_form_of_an_array_is_not_split(body: bytes) -> None:
    """Both brackets are needed, and nothing may follow the last one."""
    assert split_json_array(body) is None


@pytest.mark.parametrize("fields", REPORTS, ids=lambda fields: str(fields["type"]))
def test_a_type_may_contain_escapes(fields: dict[str, Any]) -> None:
    """Escape sequences in strings make no difference."""
    body = orjson.dumps(fields)
    assert decode_reports(body.replace(b'"type":"', b'"\\u0074ype":"', 1), NOW) == decode_reports(body, NOW)


def one(body: bytes) -> DecodeResult:
    """Return the result for a body with one report."""
    (element,) = decode_reports(body, NOW)
    return element


@pytest.mark.parametrize(
    "more",
    [
        b'"x":"\xff"',
        b'"\xff":1',
        b'"x":NaN',
        b'"x":[-Infinity]',
        b'"x":"\x01"',
        b'"x":01',
        b'"x":tru',
        b'"x":{"y":1,}',
        b'"x":"\\q"',
    ],
)
def test_ignored_fields_must_be_json_too(more: bytes) -> None:
    """A body with an ignored field that is not JSON in UTF-8 is invalid."""
    element = one(HEARTBEAT[:-1] + b"," + more + b"}")
    assert isinstance(element, InvalidMessage)
    assert element.reason is DeadLetterReason.NOT_JSON


@pytest.mark.parametrize(
    ("text", "observed_at"),
    [
        ("2026-03-01T12:00:00Z", NOW),
        ("2026-03-01t12:00:00z", NOW),
        ("2026-03-01 12:00:00-00:00", NOW),
        ("2026-03-01T14:00:00+02:00", NOW),
        ("2026-03-01T12:00:00.0000009Z", NOW),
        ("2026-03-01T11:59:59.999999999+00:00", NOW - timedelta(microseconds=1)),
        ("9999-12-31T23:59:59.9999999Z", datetime(2999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)),
        ("3000-01-01T00:59:59+02:00", datetime(2999, 12, 31, 22, 59, 59, tzinfo=UTC)),
        ("1969-12-31T23:59:59.999999Z", datetime(1970, 1, 1, tzinfo=UTC)),
        ("0001-01-01T00:00:00Z", datetime(1970, 1, 1, tzinfo=UTC)),
        ("2026-03-01T12:00:00+0000", None),
        ("2026-03-01T14:00:00+0200", None),
        ("2026-03-01T24:00:00Z", None),
        ("2026-03-01T23:59:60Z", None),
        ("2026-W09-7T12:00:00Z", None),
        ("2026-03-01T12:00Z", None),
        ("2026-03-01T12:00:00,5Z", None),
        ("2026-03-01T12:00:00." + "0" * 50 + "Z", None),
    ],
)
def test_which_times_are_valid(text: str, observed_at: datetime | None) -> None:
    """Times are RFC 3339 with an offset, decoded as UTC to the microsecond; other forms of ISO 8601 are invalid.

    One outside the years 1970 to 2999 becomes the nearest time within them.
    """
    element = one(HEARTBEAT[:-1] + b',"observed_at":"' + text.encode() + b'"}')
    if observed_at is None:
        assert isinstance(element, InvalidMessage)
        assert element.detail == "observed_at: A time as in RFC 3339, with an offset, was expected"
    else:
        assert isinstance(element, DecodedReport)
        assert element.report.observed_at == observed_at
        assert element.report.observed_at.tzinfo is UTC


@pytest.mark.parametrize(
    ("text", "good"),
    [
        (TASK.upper(), True),
        (TASK.replace("-", ""), True),
        ("{" + TASK + "}", True),
        ("urn:uuid:" + TASK, True),
        (TASK.replace("-", "", 1), False),
        (" " + TASK, False),
        ("uuid:" + TASK, False),
        ("urn:uuid:" + TASK.replace("-", ""), False),
    ],
)
def test_which_notations_of_a_uuid_are_valid(text: str, good: bool) -> None:  # noqa: FBT001 - a parameter
    """UUIDs may have hyphens or none, braces or the form of a URN, and digits in upper or lower case."""
    element = one(HEARTBEAT.replace(TASK.encode(), text.encode()))
    assert isinstance(element, DecodedReport) is good
    if isinstance(element, DecodedReport):
        assert element.report.task_id == UUID(TASK)


@pytest.mark.parametrize(("twice", "seq"), [(b'"seq":5', 5), (b'"seq":"x","seq":7', 7)])
def test_the_last_of_repeated_fields_counts(twice: bytes, seq: int) -> None:
    """If an object contains a name twice the last one counts, as in most JSON parsers."""
    element = one(HEARTBEAT[:-1] + b"," + twice + b"}")
    assert isinstance(element, DecodedReport)
    assert element.report.seq == seq


def test_up_to_three_errors_are_described() -> None:
    """A detail describes the first three invalid fields, and contains the number of the others."""
    wrong = {"task_id": 1, "seq": "1", "build_number": 0, "agent_id": "x", "observed_at": 5}
    element = one(orjson.dumps({"type": "app.status", "state": "dancing", **wrong}))
    assert isinstance(element, InvalidMessage)
    assert [part.split(":")[0] for part in element.detail.split("; ")] == [
        "task_id",
        "build_number",
        "seq",
        "and 3 more",
    ]


@given(any_report)
def test_a_report_survives_a_round_trip(fields: dict[str, Any]) -> None:
    """An encoded and decoded report is equal to the original; without its seq it gets the default one."""
    element = one(orjson.dumps(fields))
    assert isinstance(element, DecodedReport)
    again, unnumbered = decode_reports(
        join_reports([encode_report(element.report), encode_report(element.report, with_seq=False)]), NOW
    )
    assert isinstance(again, DecodedReport)
    assert isinstance(unnumbered, DecodedReport)
    assert again.report == element.report
    assert replace(unnumbered.report, seq=element.report.seq) == element.report


def test_a_stored_report_without_a_seq_gets_that_of_the_given_time() -> None:
    """So that one stored by a release that did not write it is still read."""
    element = one(HEARTBEAT)
    assert isinstance(element, DecodedReport)
    stored = encode_report(element.report, with_seq=False).decode()
    assert decode_reports(stored.encode(), NOW) == [DecodedReport(decode_stored_report(stored, NOW), {})]


def test_the_broker_truncates_what_is_too_large() -> None:
    """It keeps complete what is decoded, and of the rest what a dead letter keeps."""
    assert delivery.MAX_BODY_BYTES == limits.MAX_BODY_BYTES
    assert delivery.TRUNCATED_BYTES == limits.TRUNCATED_BYTES


def test_a_truncated_body_is_too_large_whatever_it_says() -> None:
    """A beginning that is valid by itself is not taken for the message."""
    beginning, length = HEARTBEAT.ljust(limits.TRUNCATED_BYTES), limits.MAX_BODY_BYTES + 1
    results = [
        *decode_reports(beginning, NOW, length),
        decode_command(beginning, length),
        decode_runner_message(beginning, length),
    ]
    for result in results:
        assert isinstance(result, InvalidMessage)
        assert (result.reason, result.body, result.length) == (DeadLetterReason.TOO_LARGE, beginning, length)
        assert result.detail == "1048577 bytes; expected at most 1048576"


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b"", "Expecting value at line 1 column 1"),
        (b'{\n"a" 1}', "Expecting ':' delimiter at line 2 column 5"),
        (b'{"a":"\xff"}', "not UTF-8 at byte 6"),
        (b'{"a":NaN}', "NaN is not JSON"),
        (b'{"a":-Infinity}', "-Infinity is not JSON"),
        (b'{"a":' * DEEP, "nested too deeply"),
        (b"[1", "Expecting ',' delimiter at line 1 column 3"),
        (b"[" * DEEP, "nested too deeply"),
        (b"[{},tru]", "element 1: Expecting value at line 1 column 1"),
        (b'[{},"\xff"]', "element 1: not UTF-8 at byte 1"),
    ],
)
def test_a_dead_letter_says_where_a_body_stops_being_json(body: bytes, detail: str) -> None:
    """The detail has the parser's words and the place, of an array the element."""
    element = one(body)
    assert isinstance(element, InvalidMessage)
    assert (element.reason, element.detail) == (DeadLetterReason.NOT_JSON, detail)


@pytest.mark.parametrize(
    ("fields", "detail"),
    [
        ({"task_id": TASK}, "type: a string was expected"),
        ({"type": 7}, "type: '7' is not known"),
        (7, "an object was expected"),
        ({"type": "agent.dance" + "x" * 100}, f"type: 'agent.dance{'x' * 53}' is not known"),
        ({"type": "agent.heartbeat", "task_id": TASK, "seq": -1}, "seq: Input should be greater than or equal to 0"),
        ({"type": "task.log", "task_id": TASK, "entries": 7}, "entries: Input should be a valid array"),
        (
            {
                "type": "workspace.build",
                "task_id": TASK,
                "transition": "start",
                "job_status": "running",
                "workspace": "main",
            },
            "workspace: Input should be an object",
        ),
    ],
)
def test_a_dead_letter_says_what_was_expected(fields: object, detail: str) -> None:
    """The detail names the field and what was expected instead."""
    element = one(orjson.dumps(fields))
    assert isinstance(element, InvalidMessage)
    assert element.detail == detail


def test_exactly_three_errors_are_described_without_a_rest() -> None:
    """Only errors beyond the third are summed up."""
    element = one(orjson.dumps({"type": "agent.heartbeat", "task_id": 1, "seq": "1", "build_number": 0}))
    assert isinstance(element, InvalidMessage)
    assert [part.split(":")[0] for part in element.detail.split("; ")] == ["task_id", "build_number", "seq"]
