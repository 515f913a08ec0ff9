"""Reports of agents' requests: the bounds of their fields, what is cut and cleaned, and default options."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import orjson
import pytest

from taskherd.domain import commands as domain_commands
from taskherd.domain.outcome import DeadLetterReason
from taskherd.domain.report_json import canonical_json
from taskherd.domain.reports import AgentRequest
from taskherd.domain.request_values import DEFAULT_OPTIONS, OptionKind, RequestKind, RequestOption, RequestState
from taskherd.domain.value import replace
from taskherd.messages.commands import decode_command
from taskherd.messages.decoding import InvalidMessage
from taskherd.messages.reports import DecodedReport, decode_reports, decode_stored_report, encode_report
from tests.pure.messages.samples import AGENT, NOW, OTHER, TASK

REQUEST: dict[str, Any] = {
    "type": "agent.request",
    "task_id": TASK,
    "build_number": 1,
    "seq": 1,
    "request_id": OTHER,
    "kind": "question",
    "title": "Which package?",
    "state": "open",
}
OPTION = {"id": "a", "label": "A", "kind": "other"}


def element(fields: dict[str, Any]) -> DecodedReport | InvalidMessage:
    """Return the only element of a body, decoded."""
    (decoded,) = decode_reports(json.dumps({**REQUEST, **fields}).encode(), NOW)
    return decoded


def valid(fields: dict[str, Any]) -> AgentRequest:
    """Return the report of a body that must be valid."""
    decoded = element(fields)
    assert isinstance(decoded, DecodedReport), decoded
    assert isinstance(decoded.report, AgentRequest)
    return decoded.report


def options(count: int) -> list[dict[str, Any]]:
    """Return that many options."""
    return [{**OPTION, "id": str(number)} for number in range(count)]


def nested(levels: int) -> Any:
    """Return JSON with that many levels."""
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"request_id": "7"}, "request_id"),
        ({"request_id": None}, "request_id"),
        ({"kind": "form"}, "kind"),
        ({"title": ""}, "title"),
        ({"title": " \n\x00"}, "title"),
        ({"title": None}, "title"),
        ({"detail": 3}, "detail"),
        ({"tool": {"kind": "shell"}}, "tool.kind"),
        ({"tool": {"name": "Bash"}}, "tool.kind"),
        ({"tool": {"kind": "read", "input": "x" * 16 * 1024}}, "tool.input"),
        ({"tool": {"kind": "read", "input": nested(101)}}, "tool.input"),
        ({"tool": {"kind": "execute", "input": {"command": "rm -rf /", "comm\x00and": "ls"}}}, "tool.input"),
        ({"tool": {"kind": "execute", "input": [{"a\u202eb": "rm -rf /", "a\\u202eb": "ls"}]}}, "tool.input"),
        ({"options": options(17)}, "options"),
        ({"options": [OPTION, OPTION]}, "options"),
        ({"options": [{**OPTION, "id": ""}]}, "options.0.id"),
        ({"options": [{**OPTION, "id": "a" * 65}]}, "options.0.id"),
        ({"options": [{**OPTION, "id": "a\u202eb"}]}, "options.0.id"),
        ({"options": [{**OPTION, "label": "a" * 65}]}, "options.0.label"),
        ({"options": [{**OPTION, "label": "\x00"}]}, "options.0.label"),
        ({"options": [{**OPTION, "kind": "allow"}]}, "options.0.kind"),
        ({"state": "closed"}, "state"),
        ({"state": None}, "state"),
        ({"option_id": "a" * 65}, "option_id"),
        ({"text": "a" * (256 * 1024 + 1)}, "text"),
        ({"expires_at": "tomorrow"}, "expires_at"),
        ({"pull": 1}, "pull"),
    ],
)
def test_bounds(fields: dict[str, Any], named: str) -> None:
    """A field outside the contract makes the report invalid, and the detail names the field."""
    decoded = element(fields)
    assert isinstance(decoded, InvalidMessage)
    assert decoded.reason is DeadLetterReason.INVALID
    assert f"{named}: " in decoded.detail


def test_the_bounds_themselves_are_valid() -> None:
    """The largest values of the contract are kept as they are."""
    given = {"kind": "read", "name": "n" * 200, "input": "x" * (16 * 1024 - 2)}
    report = valid(
        {
            "title": "t" * 200,
            "detail": "d" * 16 * 1024,
            "tool": given,
            "options": [*options(15), {**OPTION, "id": "i" * 64, "label": "l" * 64}],
            "state": "answered",
            "text": "a" * 256 * 1024,
        }
    )
    assert (len(report.title), len(report.detail), len(report.options)) == (200, 16 * 1024, 16)
    assert report.tool is not None
    assert report.tool.name == "n" * 200
    assert json.loads(report.tool.input or "") == given["input"]
    assert valid({"tool": {"kind": "read", "input": nested(100)}}).tool is not None


def test_the_shortest_texts_are_valid() -> None:
    """A title and the id of an option may have one character."""
    report = valid({"title": "?", "options": [{"id": "y", "label": "Y", "kind": "other"}]})
    assert report.title == "?"
    assert report.options == (RequestOption("y", "Y", OptionKind.OTHER),)


def test_long_texts_are_cut() -> None:
    """A title of more than 200 characters and a detail of more than 16 KiB end in an ellipsis, and that is counted."""
    decoded = element({"title": "t" * 201, "detail": "é" * 8 * 1024 + "d"})
    assert isinstance(decoded, DecodedReport)
    assert isinstance(decoded.report, AgentRequest)
    assert decoded.report.title == "t" * 199 + "…"
    assert decoded.report.detail.endswith("é…")
    assert len(decoded.report.detail.encode()) <= 16 * 1024
    assert decoded.sanitize_counts == {"cut": 2}


def test_what_a_person_decides_by_shows_every_character() -> None:
    """Control characters are removed, and those for the direction of text are shown by their numbers."""
    report = valid(
        {
            "title": "run\n\u202els",
            "detail": "a\x00\u2066b\n",
            "tool": {"kind": "execute", "name": "Ba\u202esh", "input": {"com\u202emand": "rm\u202e -rf\x1b"}},
            "options": [{**OPTION, "label": "\u202eNo"}],
        }
    )
    assert report.title == "run \\u202els"
    assert report.detail == "a\\u2066b\n"
    assert report.tool is not None
    assert report.tool.name == "Ba\\u202esh"
    assert json.loads(report.tool.input or "") == {"com\\u202emand": "rm\\u202e -rf"}
    assert report.options[0].label == "No"
    for nameless in ({}, {"name": None}, {"name": " \x00"}):
        tool = valid({"tool": {"kind": "execute", **nameless}}).tool
        assert tool is not None
        assert (tool.name, tool.input) == (None, None)


def test_every_option_can_be_read() -> None:
    """A label is one line, and a blank one is replaced by the option's id: people must see what a button does."""
    for label, shown in ((" \t", "a"), ("Allow\n\nnext: taskherd task answer", "Allow next: taskherd task answer")):
        assert [option.label for option in valid({"options": [{**OPTION, "label": label}]}).options] == [shown]


def test_an_approval_without_options_gets_two() -> None:
    """An approval can always be allowed or rejected; a question without options wants text."""
    assert [(option.id, option.kind) for option in DEFAULT_OPTIONS] == [
        ("allow", OptionKind.ALLOW_ONCE),
        ("reject", OptionKind.REJECT_ONCE),
    ]
    absent: list[dict[str, Any]] = [{}, {"options": None}, {"options": []}]
    for none in absent:
        assert valid({"kind": "approval", **none}).options == DEFAULT_OPTIONS
        assert valid({"kind": "question", **none}).options == ()
    assert [option.id for option in valid({"kind": "approval", "options": [OPTION]}).options] == ["a"]


def test_options_say_what_choosing_them_means() -> None:
    """The kinds of options are those of ACP, and one more for answers to questions."""
    kinds = ["allow_once", "allow_always", "reject_once", "reject_always", "other"]
    given = [{**OPTION, "id": kind, "kind": kind} for kind in kinds]
    assert [option.kind for option in valid({"options": given}).options] == [
        OptionKind.ALLOW_ONCE,
        OptionKind.ALLOW_ALWAYS,
        OptionKind.REJECT_ONCE,
        OptionKind.REJECT_ALWAYS,
        OptionKind.OTHER,
    ]


@pytest.mark.parametrize("state", [RequestState.OPEN, RequestState.WITHDRAWN, RequestState.EXPIRED])
def test_only_an_answered_request_has_an_answer(state: str) -> None:
    """What a report says of an answer that there is not is dropped, so that it decides nothing."""
    given = {"option_id": "a", "text": "b"}
    assert valid({**given, "state": state}) == valid({"state": state})
    assert valid({**given, "state": "answered"}).option_id == "a"


def test_a_report_can_be_changed_and_comes_back_from_its_canonical_json() -> None:
    """A runner builds on the value: it replaces fields, and what it sends is what the worker stores."""
    tool = {"kind": "other", "input": [1, {"b": None, "a": 0.5}]}
    opened = valid({"tool": tool, "options": [OPTION], "expires_at": "2026-03-01T13:00:00Z", "detail": ""})
    assert opened.kind is RequestKind.QUESTION
    answered = replace(opened, state=RequestState.ANSWERED, option_id="a", seq=2, pull=True)
    assert (opened.state, answered.state, hash(opened) == hash(answered)) == ("open", "answered", False)
    for report in (opened, answered):
        assert decode_stored_report(canonical_json(report), NOW) == report
        (again,) = decode_reports(encode_report(report), NOW)
        assert isinstance(again, DecodedReport)
        assert again.report == report
    assert "detail" not in orjson.loads(canonical_json(opened))


def test_an_answer_is_a_command() -> None:
    """An answer names the request; its text is sanitized, and a long one is invalid."""
    fields = {"type": "task.answer", "command_id": OTHER, "task_id": TASK, "actor_id": AGENT, "request_id": OTHER}
    answer = decode_command(orjson.dumps({**fields, "text": "a\x00b"}))
    assert isinstance(answer, domain_commands.Answer)
    assert (answer.request_id, answer.option_id, answer.text) == (UUID(OTHER), None, "ab")
    assert isinstance(decode_command(orjson.dumps({**fields, "text": "a" * (256 * 1024 + 1)})), InvalidMessage)
    assert isinstance(decode_command(orjson.dumps({**fields, "option_id": 7})), InvalidMessage)
    del fields["request_id"]
    assert isinstance(decode_command(orjson.dumps(fields)), InvalidMessage)
