"""Reports: decoding of each type, the limits of its fields, and the details of errors."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskherd.domain import reports as domain
from taskherd.domain.outcome import DeadLetterReason
from taskherd.domain.report_json import canonical_json
from taskherd.messages.decoding import InvalidMessage
from taskherd.messages.reports import DecodedReport, DecodeResult, decode_reports, encode_report
from tests.pure.messages.samples import NOW, OTHER, REPORT_OF, REPORTS, TASK, any_report, json_values

HEARTBEAT = {"type": "agent.heartbeat", "task_id": TASK}
STATUS = {"type": "app.status", "task_id": TASK, "state": "working"}
LOG = {"type": "task.log", "task_id": TASK}


def one(value: object) -> DecodeResult:
    """Return the result for a body with one report."""
    (element,) = decode_reports(json.dumps(value).encode(), NOW)
    return element


def valid(value: object) -> Any:
    """Return the report of a body that must be valid."""
    element = one(value)
    assert isinstance(element, DecodedReport), element
    return element.report


def invalid(value: object) -> InvalidMessage:
    """Return the error of a body that must be invalid."""
    element = one(value)
    assert isinstance(element, InvalidMessage), element
    return element


@pytest.mark.parametrize("fields", REPORTS, ids=lambda fields: str(fields["type"]))
def test_every_type_is_decoded(fields: dict[str, Any]) -> None:
    """Each report type of the contract is decoded as its domain value, with every field."""
    decoded = json.loads(canonical_json(valid(fields)))
    assert decoded["type"] == fields["type"]
    assert set(fields) <= set(decoded)


@pytest.mark.parametrize("more", [0, 1])
def test_the_size_limit_of_a_message(more: int) -> None:
    """A report of 1 MiB is decoded; of a larger one the dead letter has the first 64 KiB and the length."""
    body = json.dumps(HEARTBEAT).encode().ljust(2**20 + more)
    (element,) = decode_reports(body, NOW)
    if more:
        detail = "1048577 bytes; expected at most 1048576"
        assert element == InvalidMessage(None, DeadLetterReason.TOO_LARGE, detail, body[: 64 * 1024], 2**20 + 1)
    else:
        assert isinstance(element, DecodedReport)


@pytest.mark.parametrize("is_slow", [False, True])
def test_reports_in_an_array_keep_their_order(*, is_slow: bool) -> None:
    """Without a seq each gets one more than the one before it, in microseconds; a seq of its own stays as it is."""
    numbered = {**HEARTBEAT, "seq": 7}
    reports = [HEARTBEAT, numbered, HEARTBEAT, numbered, *(["no report"] if is_slow else [])]
    decoded = [
        each.report.seq for each in decode_reports(json.dumps(reports).encode(), NOW) if isinstance(each, DecodedReport)
    ]
    now = (NOW - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    assert decoded == [now, 7, now + 2, 7]


@pytest.mark.parametrize("junk", [HEARTBEAT, "no report"])
def test_the_limit_of_reports_in_a_message(junk: object) -> None:
    """A message has up to 1,000; one with more is invalid as a whole, whatever its elements are."""
    elements = [*[HEARTBEAT] * 998, {**HEARTBEAT, "seq": 1}, junk]
    results = decode_reports(json.dumps(elements).encode(), NOW)
    assert [isinstance(each, DecodedReport) for each in results] == [*[True] * 999, junk is HEARTBEAT]
    body = json.dumps([*elements, HEARTBEAT]).encode()
    detail = "1001 reports in one message; expected at most 1000"
    assert decode_reports(body, NOW) == [InvalidMessage(None, DeadLetterReason.TOO_MANY, detail, body)]


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity"])
def test_an_array_with_a_word_that_json_lacks_is_invalid(word: str) -> None:
    """Even in a field that nobody reads: the array is no JSON, and what other parsers make of it is unknown."""
    bad = json.dumps(HEARTBEAT)[:-1] + f', "x": {word}}}'
    body = f"[{json.dumps(HEARTBEAT)},{bad}]".encode()
    detail = f"element 1: {word} is not JSON"
    assert decode_reports(body, NOW) == [InvalidMessage(None, DeadLetterReason.NOT_JSON, detail, body)]
    (element,) = decode_reports(json.dumps([{**STATUS, "message": word}]).encode(), NOW)
    assert isinstance(element, DecodedReport)
    assert isinstance(element.report, domain.AppStatus)
    assert element.report.message == word, "in a text it is a word like others"


@pytest.mark.parametrize(
    ("observed", "microseconds"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T00:00:00.000001Z", 1),
        ("1970-01-03T00:00:02.000003Z", 2 * 86_400_000_000 + 2_000_003),
        ("2026-03-01T11:59:59.999999Z", 1_772_366_399_999_999),
        ("2026-03-01T12:00:00Z", 1_772_366_400_000_000),
        ("2026-03-01T12:00:00.000001Z", 1_772_366_400_000_000),
    ],
)
def test_a_seq_counts_the_microseconds_since_1970(observed: str, microseconds: int) -> None:
    """Those until the report was observed, or until it was received if that is earlier."""
    assert valid({**HEARTBEAT, "observed_at": observed}).seq == microseconds


def test_an_encoded_report_has_its_seq_unless_it_is_left_to_the_worker() -> None:
    """The texts are those that runners send."""
    report = valid({**STATUS, "seq": 7, "message": "Reading é"})
    fields = {"type": "app.status", "task_id": TASK, "state": "working", "message": "Reading é"}
    without = json.loads(encode_report(report, with_seq=False))
    assert without == {**fields, **{name: without[name] for name in without.keys() - fields.keys()}}
    assert "seq" not in without
    assert json.loads(encode_report(report)) == {**without, "seq": 7}
    assert encode_report(report) == canonical_json(report).encode()


@given(any_report)
def test_canonical_json_survives_a_round_trip(fields: dict[str, Any]) -> None:
    """A decoded report, encoded as canonical JSON and decoded again, is equal and needs no sanitizing."""
    report = valid(fields)
    again = one(json.loads(canonical_json(report)))
    assert isinstance(again, DecodedReport)
    assert canonical_json(again.report) == canonical_json(report)
    assert again.report == report
    assert again.sanitize_counts == {}


@given(any_report, st.dictionaries(st.text("xyz", min_size=1), json_values))
def test_unknown_fields_change_nothing(fields: dict[str, Any], changes: dict[str, Any]) -> None:
    """Unknown fields are ignored, because producers may be newer than the worker."""
    assert valid({**changes, **fields}) == valid(fields)


@given(any_report)
def test_null_counts_as_absent(fields: dict[str, Any]) -> None:
    """An optional field that is null is treated as absent."""
    optional = {"build_number", "seq", "observed_at", "agent_id"} - fields.keys()
    assert valid({**fields, **dict.fromkeys(optional)}) == valid(fields)


@given(st.datetimes(timezones=st.just(UTC)))
def test_seq_defaults_to_the_earlier_clock(observed: datetime) -> None:
    """The default seq is the earlier of the producer's and the worker's time, so that a fast clock freezes no facet."""
    report = valid({**HEARTBEAT, "observed_at": domain.format_rfc3339(observed)})
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    assert report.seq == max(0, (min(observed, NOW) - epoch) // timedelta(microseconds=1))
    assert valid(HEARTBEAT).seq == (NOW - epoch).total_seconds() * 1_000_000


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"build_number": 0}, "build_number"),
        ({"build_number": 2**31}, "build_number"),
        ({"build_number": True}, "build_number"),
        ({"build_number": "1"}, "build_number"),
        ({"build_number": 1.0}, "build_number"),
        ({"seq": -1}, "seq"),
        ({"seq": 2**53}, "seq"),
        ({"seq": 2**64 - 1}, "seq"),
        ({"seq": False}, "seq"),
        ({"observed_at": "2026-03-01T12:00:00"}, "observed_at"),
        ({"observed_at": "2026-03-01"}, "observed_at"),
        ({"observed_at": "1772366400"}, "observed_at"),
        ({"observed_at": 1772366400}, "observed_at"),
        ({"observed_at": "2026-02-30T12:00:00Z"}, "observed_at"),
        ({"observed_at": "0001-01-01T00:00:00+23:59"}, "observed_at"),
        ({"observed_at": "9999-12-31T23:59:59-23:59"}, "observed_at"),
        ({"observed_at": "2026-03-01T12:00:00+24:00"}, "observed_at"),
        ({"observed_at": f"2026-03-01T12:00:00.{'1' * 44}Z"}, "observed_at"),
        ({"agent_id": ""}, "agent_id"),
        ({"agent_id": 5}, "agent_id"),
        ({"task_id": "not a uuid"}, "task_id"),
        ({"task_id": None}, "task_id"),
    ],
)
def test_limits_of_the_common_fields(changes: dict[str, Any], field: str) -> None:
    """A number, time or id that violates the contract is invalid, and the detail names the field."""
    error = invalid({**HEARTBEAT, **changes})
    assert error.reason is DeadLetterReason.INVALID
    assert error.detail.startswith(f"{field}: ")


@pytest.mark.parametrize(
    "changes",
    [
        {"build_number": 1},
        {"build_number": 2**31 - 1},
        {"seq": 0},
        {"seq": 2**53 - 1},
        {"observed_at": f"2026-03-01T12:00:00.{'1' * 43}Z"},
    ],
)
def test_the_limits_themselves_are_valid(changes: dict[str, Any]) -> None:
    """The minimum and maximum numbers of the contract are valid, and a time of 64 characters."""
    assert valid({**HEARTBEAT, **changes})


def test_a_time_in_the_future_does_not_raise_the_seq() -> None:
    """With a time in the far future the default seq is the worker's time."""
    report = valid({**HEARTBEAT, "observed_at": "9999-12-31T23:59:59Z"})
    assert report.seq == valid(HEARTBEAT).seq


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({**STATUS, "state": "dancing"}, "state"),
        ({**STATUS, "message": 5}, "message"),
        ({**LOG}, "entries"),
        (
            {**LOG, "entries": [{"id": -1, "type": "input", "content": "", "time": "2026-03-01T12:00:00Z"}]},
            "entries.0.id",
        ),
        ({**LOG, "entries": [{}] * 1001}, "entries"),
        ({**REPORT_OF["workspace.build"], "workspace": {"id": TASK, "name": "n" * 65}}, "workspace.name"),
        ({**REPORT_OF["workspace.build"], "workspace": {"id": TASK, "name": "\x00"}}, "workspace.name"),
        ({**REPORT_OF["workspace.build"], "app": {"id": TASK, "slug": ""}}, "app.slug"),
        ({**REPORT_OF["workspace.build"], "runner": "Runner_1"}, "runner"),
        ({**REPORT_OF["task.input"], "outcome": "lost"}, "outcome"),
    ],
)
def test_limits_of_the_other_fields(fields: dict[str, Any], field: str) -> None:
    """The detail names the field that violates the contract."""
    error = invalid(fields)
    assert error.reason is DeadLetterReason.INVALID
    assert f"{field}: " in error.detail


@pytest.mark.parametrize("value", [5, "text", None, True, {}, {"type": 7}, {"type": None}])
def test_json_that_is_not_a_report_is_invalid(value: object) -> None:
    """A body that is JSON but not an object with a type is invalid."""
    assert invalid(value).reason in {DeadLetterReason.INVALID, DeadLetterReason.UNKNOWN_TYPE}


def test_an_unknown_type_is_quoted_safely() -> None:
    """The detail quotes an unknown type, truncated and without control characters, and it has its own reason."""
    error = invalid({"type": "agent.\x1b[31mdance" + "x" * 10_000})
    assert error.reason is DeadLetterReason.UNKNOWN_TYPE
    assert "agent.[31mdance" in error.detail
    assert len(error.detail) < 100


def test_details_do_not_quote_values() -> None:
    """The detail does not contain the value of an invalid field, which may be a secret."""
    secret = "hunter2" * 3
    wrong = dict.fromkeys(("task_id", "seq", "build_number", "observed_at", "state", "agent_id"), secret)
    assert secret not in invalid({"type": "app.status", **wrong}).detail
    assert len(invalid({"type": "app.status", **wrong}).detail) <= 500


def test_the_title_and_data_of_a_log_entry_are_bounded() -> None:
    """A title is cut to one line of 200 characters; data above 16 KiB, or that are no object, are rejected."""
    entry = {"id": 1, "type": "output", "content": "", "time": "2026-03-01T12:00:00Z"}
    report = valid({**LOG, "entries": [{**entry, "title": "a\nb" + "x" * 300, "data": {"b": [1], "a": "\u0007é"}}]})
    assert report.entries[0].title == "a b" + "x" * 196 + "…"
    assert report.entries[0].data == '{"a":"é","b":[1]}'
    for data in ({"a": "x" * 16_384}, ["a"], "a"):
        assert invalid({**LOG, "entries": [{**entry, "data": data}]}).reason is DeadLetterReason.INVALID


@pytest.mark.parametrize("levels", [100, 101, 1_500, 5_000])
def test_the_data_of_a_log_entry_has_at_most_100_levels(levels: int) -> None:
    """Data with more are rejected, whatever the stack allows; what stands beside them in an array counts."""
    data = '{"a":' * levels + "1" + "}" * levels
    entry = f'{{"id":1,"type":"output","content":"","time":"2026-03-01T12:00:00Z","data":{data}}}'
    body = f'{{"type":"task.log","task_id":"{TASK}","entries":[{entry}]}}'
    alone = decode_reports(body.encode(), NOW)
    in_array = decode_reports(f"[{json.dumps(HEARTBEAT)},{body}]".encode(), NOW)
    assert isinstance(in_array[0], DecodedReport)
    for element in (alone[0], in_array[1]):
        assert isinstance(element, DecodedReport) == (levels == 100)


BUILD = {"type": "workspace.build", "task_id": TASK, "transition": "stop", "job_status": "failed"}
EXIT = {"type": "agent.exit", "task_id": TASK, "why": "signalled"}
INPUT = {"type": "task.input", "task_id": TASK, "input_id": OTHER, "outcome": "failed"}
INTERRUPTED = {"type": "agent.interrupted", "task_id": TASK, "interrupt_id": OTHER, "outcome": "failed"}


@pytest.mark.parametrize(
    ("fields", "name", "absent"),
    [
        (BUILD, "error", None),
        (BUILD, "reason", None),
        (EXIT, "words", None),
        (STATUS, "message", ""),
        (STATUS, "guessed_from", ""),
        (INPUT, "detail", None),
        (INTERRUPTED, "detail", None),
    ],
)
def test_every_message_in_a_report_is_sanitized(fields: dict[str, Any], name: str, absent: str | None) -> None:
    """A text that people read has no control characters and is cut; an empty one stays empty, an absent one absent."""
    element = one({**fields, name: "rm\x00 \u202efdp" + "x" * 2000})
    assert isinstance(element, DecodedReport)
    text = getattr(element.report, name)
    assert text.startswith("rm \\u202efdpxx")
    assert (len(text), text[-1]) == (2000, "…")
    assert element.sanitize_counts == {"control": 2, "cut": 1}
    assert getattr(valid({**fields, name: ""}), name) == ""
    for none in (fields, {**fields, name: None}):
        assert getattr(valid(none), name) == absent


def test_what_a_build_leaves_out_is_none() -> None:
    """Names in a build are sanitized and an app's bad URL is cleared; what is left out stays out."""
    bare = valid(BUILD)
    assert (bare.workspace, bare.app, bare.runner, bare.restart) == (None, None, None, False)
    app = {"id": OTHER, "slug": "c\u202ec"}
    element = one({**BUILD, "app": {**app, "url": "javascript:1"}, "workspace": {"id": TASK, "name": "m\x00ain"}})
    assert isinstance(element, DecodedReport)
    assert isinstance(element.report, domain.WorkspaceBuild)
    assert element.report.app == domain.App(UUID(OTHER), "cc", None, None)
    assert element.report.workspace == domain.Workspace(UUID(TASK), "main")
    assert element.sanitize_counts == {"control": 2, "uri": 1}
    for url in ("", None):
        element = one({**BUILD, "app": {**app, "url": url}})
        assert isinstance(element, DecodedReport)
        assert isinstance(element.report, domain.WorkspaceBuild)
        assert element.report.app == domain.App(UUID(OTHER), "cc", None, None)
        assert element.sanitize_counts == {"control": 1}


ENTRY = {"id": 1, "type": "output", "content": "", "time": "2026-03-01T12:00:00Z"}


@pytest.mark.parametrize(
    ("fields", "name", "least", "most"),
    [(EXIT, "status", -(2**31), 2**32 - 1), (EXIT, "signal", -(2**31), 2**32 - 1), (LOG, "id", 0, 2**63 - 1)],
)
def test_the_limits_of_numbers_themselves_are_valid(fields: dict[str, Any], name: str, least: int, most: int) -> None:
    """The least and greatest numbers are kept, the next ones invalid."""

    def report(number: int) -> dict[str, Any]:
        changed = {name: number}
        return {**fields, "entries": [{**ENTRY, **changed}]} if name == "id" else {**fields, **changed}

    for number in (least, most):
        kept = valid(report(number))
        assert getattr(kept.entries[0] if name == "id" else kept, name) == number
    for number in (least - 1, most + 1):
        assert f"{name}: " in invalid(report(number)).detail


def test_what_a_log_entry_leaves_out_is_none() -> None:
    """A title without characters is none, and so are data that are absent or null; empty data are data."""
    for more in ({}, {"title": None, "data": None}, {"title": " \x00"}):
        (entry,) = valid({**LOG, "entries": [{**ENTRY, **more}]}).entries
        assert (entry.title, entry.data, entry.kind, entry.status) == (None, None, None, None)
    (entry,) = valid({**LOG, "entries": [{**ENTRY, "data": {}}]}).entries
    assert entry.data == "{}"
