from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskherd.domain import reports as domain
from taskherd.domain.outcome import DeadLetterReason
from taskherd.messages.decoding import InvalidMessage
from taskherd.messages.reports import Decoded, Element, decode_reports
from tests.pure.messages.samples import NOW, REPORTS, TASK, any_report, json_values

BEAT = {"type": "agent.heartbeat", "task_id": TASK}
STATUS = {"type": "app.status", "task_id": TASK, "state": "working"}
LOG = {"type": "task.log", "task_id": TASK}


def one(said: object) -> Element:
    """The verdict on a body that is one report."""
    found = decode_reports(json.dumps(said).encode(), NOW)
    assert len(found) == 1
    return found[0]


def good(said: object) -> Any:
    """The report of a body that must be good."""
    element = one(said)
    assert isinstance(element, Decoded), element
    return element.report


def bad(said: object) -> InvalidMessage:
    """The verdict on a body that must be bad."""
    element = one(said)
    assert isinstance(element, InvalidMessage), element
    return element


@pytest.mark.parametrize("said", REPORTS, ids=lambda said: str(said["type"]))
def test_every_type_is_read(said: dict[str, Any]) -> None:
    """Each report type of the contract comes out as its core value, with every field that was said."""
    plain = json.loads(domain.canonical_json(good(said)))
    assert plain["type"] == said["type"]
    assert set(said) <= set(plain)


@given(any_report)
def test_canonical_text_survives_a_round_trip(said: dict[str, Any]) -> None:
    """What was decoded once and is said again in its canonical form is the same report, with nothing to clean."""
    report = good(said)
    again = one(json.loads(domain.canonical_json(report)))
    assert isinstance(again, Decoded)
    assert domain.canonical_json(again.report) == domain.canonical_json(report)
    assert again.report == report
    assert again.notes == {}


@given(any_report, st.dictionaries(st.text("xyz", min_size=1), json_values))
def test_unknown_fields_change_nothing(said: dict[str, Any], more: dict[str, Any]) -> None:
    """A producer may be newer than we are: fields that we don't know are ignored."""
    assert good({**more, **said}) == good(said)


@given(any_report)
def test_null_counts_as_absent(said: dict[str, Any]) -> None:
    """An optional field that is null says no more than one that is left out."""
    optional = {"build_number", "seq", "observed_at", "agent_id"} - said.keys()
    assert good({**said, **dict.fromkeys(optional)}) == good(said)


@given(st.datetimes(timezones=st.just(UTC)))
def test_seq_defaults_to_the_earlier_clock(observed: datetime) -> None:
    """Without a seq it is the producer's time or ours, whichever is earlier, so that no fast clock freezes a facet."""
    report = good({**BEAT, "observed_at": domain.rfc3339(observed)})
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    micros = (min(observed, NOW) - epoch).total_seconds() * 1_000_000
    assert report.seq == pytest.approx(max(0, micros), abs=1)
    assert good(BEAT).seq == (NOW - epoch).total_seconds() * 1_000_000


@pytest.mark.parametrize(
    ("more", "field"),
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
        ({"agent_id": ""}, "agent_id"),
        ({"agent_id": 5}, "agent_id"),
        ({"task_id": "not a uuid"}, "task_id"),
        ({"task_id": None}, "task_id"),
    ],
)
def test_bounds_of_the_common_fields(more: dict[str, Any], field: str) -> None:
    """A number, time or id outside the contract is refused, and the detail names the field."""
    verdict = bad({**BEAT, **more})
    assert verdict.reason is DeadLetterReason.INVALID
    assert verdict.detail.startswith(f"{field}: ")


@pytest.mark.parametrize("more", [{"build_number": 1}, {"build_number": 2**31 - 1}, {"seq": 0}, {"seq": 2**53 - 1}])
def test_the_bounds_themselves_are_good(more: dict[str, Any]) -> None:
    """The least and the greatest number of the contract are part of it."""
    assert good({**BEAT, **more})


def test_a_year_9999_is_kept_for_show_only() -> None:
    """A far-future time orders nothing: the seq is our clock's."""
    report = good({**BEAT, "observed_at": "9999-12-31T23:59:59Z"})
    assert report.seq == good(BEAT).seq


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ({**STATUS, "state": "dancing"}, "state"),
        ({**STATUS, "message": 5}, "message"),
        ({**LOG}, "entries"),
        (
            {**LOG, "entries": [{"id": -1, "type": "input", "content": "", "time": "2026-03-01T12:00:00Z"}]},
            "entries.0.id",
        ),
        ({**LOG, "entries": [{}] * 1001}, "entries"),
        ({**REPORTS[0], "workspace": {"id": TASK, "name": "n" * 65}}, "workspace.name"),
        ({**REPORTS[0], "workspace": {"id": TASK, "name": "\x00"}}, "workspace.name"),
        ({**REPORTS[0], "app": {"id": TASK, "slug": ""}}, "app.slug"),
        ({**REPORTS[0], "runner": "Runner_1"}, "runner"),
        ({**REPORTS[7], "outcome": "lost"}, "outcome"),
    ],
)
def test_bounds_of_the_other_fields(said: dict[str, Any], field: str) -> None:
    """A field outside the contract is refused by name."""
    verdict = bad(said)
    assert verdict.reason is DeadLetterReason.INVALID
    assert f"{field}: " in verdict.detail


@pytest.mark.parametrize("said", [5, "text", None, True, {}, {"type": 7}, {"type": None}])
def test_what_is_no_report_is_invalid(said: object) -> None:
    """A body that is JSON but no object with a type is refused as invalid."""
    assert bad(said).reason in {DeadLetterReason.INVALID, DeadLetterReason.UNKNOWN_TYPE}


def test_an_unknown_type_has_its_own_reason() -> None:
    """The type is told, but not at any length and with nothing that a terminal would obey."""
    verdict = bad({"type": "agent.\x1b[31mdance" + "x" * 10_000})
    assert verdict.reason is DeadLetterReason.UNKNOWN_TYPE
    assert "agent.[31mdance" in verdict.detail
    assert len(verdict.detail) < 100


def test_details_echo_no_content() -> None:
    """What stood in a wrong field is not told: it may be a secret."""
    secret = "hunter2" * 3
    wrong = dict.fromkeys(("task_id", "seq", "build_number", "observed_at", "state", "agent_id"), secret)
    assert secret not in bad({"type": "app.status", **wrong}).detail
    assert len(bad({"type": "app.status", **wrong}).detail) <= 500
