"""Fields of incoming messages: times as UTC, within the years that PostgreSQL's driver and other programs can hold."""

from __future__ import annotations

from datetime import UTC, datetime

import orjson
import pytest

from taskherd.messages.fields import parse_instant
from taskherd.messages.reports import DecodedReport, decode_reports
from tests.pure.messages.samples import NOW, OTHER, TASK

LAST = datetime(2999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("1970-01-01T00:00:00Z", datetime(1970, 1, 1, tzinfo=UTC)),
        ("1970-01-01T00:00:00.000001Z", datetime(1970, 1, 1, 0, 0, 0, 1, tzinfo=UTC)),
        ("1969-12-31T23:59:59.999999Z", datetime(1970, 1, 1, tzinfo=UTC)),
        ("1970-01-01T00:59:59+01:00", datetime(1970, 1, 1, tzinfo=UTC)),
        ("2999-12-31T23:59:59.999998Z", LAST.replace(microsecond=999998)),
        ("2999-12-31T23:59:59.999999Z", LAST),
        ("3000-01-01T00:00:00Z", LAST),
        ("2999-12-31T23:59:59-01:00", LAST),
        ("2026-03-01t14:00:00.123456789+02:00", NOW.replace(microsecond=123456)),
        ("2026-03-01 12:00:00z", NOW),
    ],
)
def test_a_time_is_the_nearest_one_in_utc(text: str, time: datetime) -> None:
    """One before 1970 or after 2999 becomes the first or last time of these years, others are themselves."""
    parsed = parse_instant(text)
    assert parsed == time
    assert parsed.tzinfo is UTC


@pytest.mark.parametrize("text", ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"])
def test_a_time_outside_of_the_calendar_is_no_time(text: str) -> None:
    """In UTC it would be in the year 0 or 10000: a ValueError, as for other texts that are no time."""
    with pytest.raises(ValueError, match=r"^out of range$"):
        parse_instant(text)


@pytest.mark.parametrize(
    ("name", "least", "most"), [("build_number", 1, 2**31 - 1), ("seq", 0, 2**53 - 1)], ids=["build_number", "seq"]
)
def test_the_least_and_the_greatest_numbers_of_a_field(name: str, least: int, most: int) -> None:
    """Both are kept, and the next ones are invalid."""
    for number, is_valid in ((least - 1, False), (least, True), (most, True), (most + 1, False)):
        fields = {"type": "agent.heartbeat", "task_id": TASK, name: number}
        (element,) = decode_reports(orjson.dumps(fields), NOW)
        assert isinstance(element, DecodedReport) is is_valid
        if isinstance(element, DecodedReport):
            assert getattr(element.report, name) == number


@pytest.mark.parametrize("name", ["status", "signal"])
@pytest.mark.parametrize(
    ("number", "is_valid"), [(-(2**31) - 1, False), (-(2**31), True), (2**32 - 1, True), (2**32, False)]
)
def test_the_least_and_the_greatest_status_of_an_exit(name: str, number: int, *, is_valid: bool) -> None:
    """Any that fits into 32 bits, with a sign or without one, as systems give it."""
    fields = {"type": "agent.exit", "task_id": TASK, "why": "exited", name: number}
    (element,) = decode_reports(orjson.dumps(fields), NOW)
    assert isinstance(element, DecodedReport) is is_valid
    if isinstance(element, DecodedReport):
        assert getattr(element.report, name) == number


@pytest.mark.parametrize(
    ("name", "is_valid"),
    [("r", True), ("rack-1", True), ("r" * 64, True), ("r" * 65, False), ("", False), ("Rack", False), ("r\n", False)],
)
def test_which_names_a_runner_may_have(name: str, *, is_valid: bool) -> None:
    """Up to 64 small letters, digits and hyphens."""
    build = {"type": "workspace.build", "task_id": TASK, "transition": "start", "job_status": "running"}
    (element,) = decode_reports(orjson.dumps({**build, "runner": name}), NOW)
    assert isinstance(element, DecodedReport) is is_valid


@pytest.mark.parametrize(
    ("name", "is_valid"), [("n", True), ("n" * 64, True), ("n" * 65, False), ("", False), ("\u202e\x07", False)]
)
def test_which_names_a_workspace_may_have(name: str, *, is_valid: bool) -> None:
    """Up to 64 characters, of which one must remain when control characters are removed."""
    build = {"type": "workspace.build", "task_id": TASK, "transition": "start", "job_status": "running"}
    (element,) = decode_reports(orjson.dumps({**build, "workspace": {"id": OTHER, "name": name}}), NOW)
    assert isinstance(element, DecodedReport) is is_valid
