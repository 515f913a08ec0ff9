from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskherd.domain.outcome import DeadLetterReason
from taskherd.domain.reports import AppStatus
from taskherd.domain.value import replace
from taskherd.messages.commands import decode_command
from taskherd.messages.decoding import InvalidMessage
from taskherd.messages.json_array import split_json_array
from taskherd.messages.reports import Decoded, Element, decode_reports, encode, join
from tests.pure.messages.samples import NOW, REPORTS, TASK, any_report, json_values

BEAT = orjson.dumps({"type": "agent.heartbeat", "task_id": TASK, "seq": 1})
DEEP = 20_000
HOSTILE = {
    "empty": b"",
    "blank": b" \n",
    "cut short": BEAT[:-1],
    "two": BEAT + BEAT,
    "not utf-8": BEAT.replace(b"agent", b"ag\xffnt"),
    "utf-16": BEAT.decode().encode("utf-16"),
    "a bom": b"\xef\xbb\xbf" + BEAT,
    "nan": BEAT[:-1] + b',"x":NaN}',
    "infinity": BEAT[:-1] + b',"x":-Infinity}',
    "single quotes": BEAT.replace(b'"', b"'"),
    "trailing comma": BEAT[:-1] + b",}",
    "deep arrays": b"[" * DEEP,
    "deep objects": b'{"a":' * DEEP,
    "deep and closed": BEAT[:-1] + b',"x":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "array cut short": b"[" + BEAT,
    "array not closed well": b"[" + BEAT + b"}",
    "array with a trailing comma": b"[" + BEAT + b",]",
    "array with rubbish": b"[" + BEAT + b",rubbish]",
    "array with rubbish behind": b"[" + BEAT + b"] x",
    "array with nan": b"[" + BEAT + b',{"x":NaN}]',
    "array not utf-8": b"[" + BEAT + b',"\xff"]',
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE.keys())
def test_what_is_not_json_is_bad_as_a_whole(body: bytes) -> None:
    """A body that is not JSON, or too deep to read, gets one verdict for all of it, and its bytes are kept."""
    assert [
        (each.reason, each.index, each.body) for each in decode_reports(body, NOW) if isinstance(each, InvalidMessage)
    ] == [(DeadLetterReason.NOT_JSON, None, body)]
    assert len(decode_reports(body, NOW)) == 1


@given(st.binary(max_size=200) | st.binary(max_size=50).map(lambda junk: b"[" + BEAT + b"," + junk + b"]"))
def test_no_bytes_make_it_raise(body: bytes) -> None:
    """Whatever comes is answered with elements, never with an exception."""
    for element in decode_reports(body, NOW):
        assert isinstance(element, Decoded) or len(element.detail) <= 500
    assert decode_command(body) is not None


@given(json_values, st.lists(any_report | json_values, max_size=5))
def test_any_json_is_judged(alone: Any, several: list[Any]) -> None:
    """Any JSON value is read or refused, and an array gives exactly one verdict for each of its elements."""
    decode_reports(orjson.dumps(alone, option=orjson.OPT_NON_STR_KEYS) if fits(alone) else b"0", NOW)
    if fits(several):
        assert len(decode_reports(orjson.dumps(several), NOW)) == len(several)


def fits(value: Any) -> bool:
    """Whether orjson writes this value: it has no integers beyond 64 bits."""
    try:
        orjson.dumps(value)
    except orjson.JSONEncodeError:
        return False
    return True


@given(st.lists(any_report, max_size=8), st.data())
def test_each_element_is_judged_alone(said: list[dict[str, Any]], data: st.DataObject) -> None:
    """A report in an array is read as it would be by itself, whatever stands beside it; a bad one names its place."""
    place = data.draw(st.integers(0, len(said)))
    junk = data.draw(
        st.sampled_from([b"7", b'{"type":"nope"}', b'{ "type" : "agent.heartbeat" }', b'"]"', b'{"a":[1,{}]}'])
    )
    parts = [orjson.dumps(each) for each in said]
    body = b" [ " + b" , ".join([*parts[:place], junk, *parts[place:]]) + b" ] "
    found = decode_reports(body, NOW)
    element = found.pop(place)
    assert isinstance(element, InvalidMessage)
    assert (element.index, element.body) == (place, junk)
    places = [NOW + index * timedelta(microseconds=1) for index in range(len(parts) + 1) if index != place]
    assert found == [alone for part, now in zip(parts, places, strict=True) for alone in decode_reports(part, now)]


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
def test_what_the_fast_parser_cannot_read_spoils_no_neighbour(junk: bytes, reason: DeadLetterReason) -> None:
    """Depth, endless numbers and lone surrogates in one element leave the others alone."""
    first, middle, last = decode_reports(b"[" + BEAT + b"," + junk + b"," + BEAT + b"]", NOW)
    assert isinstance(first, Decoded)
    assert isinstance(last, Decoded)
    assert isinstance(middle, InvalidMessage)
    assert (middle.index, middle.reason, middle.body) == (1, reason, junk)
    alone = decode_reports(junk, NOW)
    assert all(isinstance(each, InvalidMessage) for each in alone)


@pytest.mark.parametrize("wrap", [b"%s", b"[%s]"], ids=["alone", "in an array"])
def test_lone_surrogates_and_nul_are_taken_out_of_texts(wrap: bytes) -> None:
    """Text that PostgreSQL can't hold is cleaned and counted, not refused; a pair of surrogates is a character."""
    said = (
        b'{"type":"app.status","task_id":"%s","state":"idle","message":"a\\u0000\\ud83d\\ude00\\ud800b"}'
        % TASK.encode()
    )
    (element,) = decode_reports(wrap % said, NOW)
    assert isinstance(element, Decoded)
    assert isinstance(element.report, AppStatus)
    assert element.report.message == "a😀b"
    assert element.notes == {"control": 2}


def test_the_bound_of_a_body() -> None:
    """1 MiB is read; of a larger body 64 KiB are kept, and its length."""
    most = BEAT[:-1] + b',"x":"' + b"x" * (2**20 - len(BEAT) - 7) + b'"}'
    assert len(most) == 2**20
    assert isinstance(decode_reports(most, NOW)[0], Decoded)
    (element,) = decode_reports(most + b" ", NOW)
    assert isinstance(element, InvalidMessage)
    assert (element.reason, element.index, element.length) == (DeadLetterReason.TOO_LARGE, None, 2**20 + 1)
    assert element.body == most[: 64 * 1024]
    refused = decode_command(most + b" ")
    assert isinstance(refused, InvalidMessage)
    assert refused.reason is DeadLetterReason.TOO_LARGE


def test_the_bound_of_an_array() -> None:
    """1,000 reports are read at once; one more makes the whole body bad, also where the fast parser gives up."""
    beats = [BEAT] * 1000
    assert len(decode_reports(b"[" + b",".join(beats) + b"]", NOW)) == 1000
    for more in (BEAT, b'"\\ud800"'):
        body = b"[" + b",".join([*beats, more]) + b"]"
        (element,) = decode_reports(body, NOW)
        assert isinstance(element, InvalidMessage)
        assert (element.reason, element.index, element.body) == (DeadLetterReason.TOO_MANY, None, body)


@pytest.mark.parametrize("body", [b"[]", b" [ \n] "])
def test_an_empty_array_says_nothing(body: bytes) -> None:
    """An empty array has no elements, and is no fault."""
    assert decode_reports(body, NOW) == []


def test_space_around_a_report_is_json() -> None:
    """White space before and after a report is part of JSON."""
    assert decode_reports(b" \r\n\t" + BEAT + b"\n", NOW) == decode_reports(BEAT, NOW)


@given(st.lists(json_values, max_size=6), st.booleans())
def test_split_finds_every_element(values: list[Any], wide: bool) -> None:  # noqa: FBT001 - drawn
    """The pieces of an array are its elements, whatever brackets and commas their strings hold."""
    fitting = [value for value in values if fits(value)]
    pieces = split_json_array(orjson.dumps(fitting, option=orjson.OPT_INDENT_2 if wide else 0))
    assert pieces is not None
    assert [orjson.loads(piece) for piece in pieces] == fitting


@pytest.mark.parametrize("said", REPORTS, ids=lambda said: str(said["type"]))
def test_escapes_in_a_type_are_json(said: dict[str, Any]) -> None:
    """How a producer writes its strings makes no difference."""
    body = orjson.dumps(said)
    assert decode_reports(body.replace(b'"type":"', b'"\\u0074ype":"', 1), NOW) == decode_reports(body, NOW)


def one(body: bytes) -> Element:
    """The verdict on a body that is one report."""
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
def test_a_field_that_is_ignored_is_json_nevertheless(more: bytes) -> None:
    """What is not JSON in UTF-8 is refused also where nobody looks at it."""
    element = one(BEAT[:-1] + b"," + more + b"}")
    assert isinstance(element, InvalidMessage)
    assert element.reason is DeadLetterReason.NOT_JSON


@pytest.mark.parametrize(
    ("said", "observed_at"),
    [
        ("2026-03-01T12:00:00Z", NOW),
        ("2026-03-01t12:00:00z", NOW),
        ("2026-03-01 12:00:00-00:00", NOW),
        ("2026-03-01T14:00:00+02:00", NOW),
        ("2026-03-01T12:00:00.0000009Z", NOW),
        ("2026-03-01T11:59:59.999999999+00:00", NOW - timedelta(microseconds=1)),
        ("9999-12-31T23:59:59.9999999Z", datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)),
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
def test_which_times_are_read(said: str, observed_at: datetime | None) -> None:
    """RFC 3339 with an offset, as UTC to the microsecond, and nothing else that ISO 8601 knows."""
    element = one(BEAT[:-1] + b',"observed_at":"' + said.encode() + b'"}')
    if observed_at is None:
        assert isinstance(element, InvalidMessage)
        assert element.detail == "observed_at: A time as in RFC 3339, with an offset, was expected"
    else:
        assert isinstance(element, Decoded)
        assert element.report.observed_at == observed_at
        assert element.report.observed_at.tzinfo is UTC


@pytest.mark.parametrize(
    ("said", "good"),
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
def test_which_notations_of_a_uuid_are_read(said: str, good: bool) -> None:  # noqa: FBT001 - a parameter
    """With hyphens, without any, in braces or as a URN, whatever the case of its digits."""
    element = one(BEAT.replace(TASK.encode(), said.encode()))
    assert isinstance(element, Decoded) is good
    if isinstance(element, Decoded):
        assert element.report.task_id == UUID(TASK)


@pytest.mark.parametrize(("twice", "seq"), [(b'"seq":5', 5), (b'"seq":"x","seq":7', 7)])
def test_the_last_of_a_repeated_field_counts(twice: bytes, seq: int) -> None:
    """Of a name that stands twice in an object the last one counts, as in most parsers of JSON."""
    element = one(BEAT[:-1] + b"," + twice + b"}")
    assert isinstance(element, Decoded)
    assert element.report.seq == seq


def test_up_to_three_faults_are_named() -> None:
    """A detail names the first three fields that are wrong, and how many more there are."""
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
def test_a_report_comes_back_as_it_was_sent(said: dict[str, Any]) -> None:
    """Encoding a report and decoding it gives the same value; without its seq the worker gives it one."""
    element = one(orjson.dumps(said))
    assert isinstance(element, Decoded)
    again, unnumbered = decode_reports(join([encode(element.report), encode(element.report, with_seq=False)]), NOW)
    assert isinstance(again, Decoded)
    assert isinstance(unnumbered, Decoded)
    assert again.report == element.report
    assert replace(unnumbered.report, seq=element.report.seq) == element.report
