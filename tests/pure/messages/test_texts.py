"""Sanitized texts: control characters, truncation and URIs."""

from __future__ import annotations

import unicodedata

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskherd.domain import names
from taskherd.domain.commands import Create
from taskherd.domain.reports import AppStatus, TaskLog, WorkspaceBuild
from taskherd.messages import texts
from taskherd.messages.commands import decode_command
from taskherd.messages.decoding import InvalidMessage
from taskherd.messages.limits import MAX_CONTENT_BYTES
from taskherd.messages.reports import DecodedReport, decode_reports
from taskherd.messages.texts import SanitizeCounts
from tests.pure.messages.samples import COMMANDS, NOW, TASK

BIDI_CLASSES = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}

any_text = st.text(st.characters(), max_size=50) | st.text("\x00\n\t\x7f\x9f\ud800\udfffa", max_size=50)


@given(any_text)
def test_sanitize_removes_control_characters_and_nothing_else(text: str) -> None:
    """All control characters but newline and tab, and lone surrogates, are removed and counted; it is idempotent."""
    counts: SanitizeCounts = {}
    sanitized = texts.sanitize(text, counts)
    expected = [letter for letter in text if letter in "\n\t" or unicodedata.category(letter) not in {"Cc", "Cs"}]
    assert sanitized == "".join(expected)
    assert counts.get("control", 0) == len(text) - len(sanitized)
    assert texts.sanitize(sanitized, {}) == sanitized


@given(st.integers(1990, 2010), st.sampled_from("aé…😀"))
def test_messages_are_truncated_at_2000_characters(length: int, letter: str) -> None:
    """A message of 2,000 characters is unchanged, a longer one gets an ellipsis as its 2,000th; it is idempotent."""
    counts: SanitizeCounts = {}
    cut = texts.sanitize_message(letter * length, counts)
    assert len(cut) == min(length, 2000)
    assert cut.endswith("…" if length > 2000 else letter)
    assert counts == ({"cut": 1} if length > 2000 else {})
    assert texts.sanitize_message(cut, {}) == cut


@given(st.integers(-8, 8), st.sampled_from("aé…😀"))
def test_contents_are_truncated_at_64_kib(more: int, letter: str) -> None:
    """The content of a log entry has at most 64 KiB of UTF-8 with its ellipsis, and no partial character."""
    text = letter * (64 * 1024 // len(letter.encode()) + more)
    counts: SanitizeCounts = {}
    cut = texts.sanitize_content(text, counts)
    assert len(cut.encode()) <= 64 * 1024
    assert cut == text or len(cut.encode()) > 64 * 1024 - len(letter.encode())
    assert (cut == text) is (counts == {}) is (len(text.encode()) <= 64 * 1024)
    assert cut == text or text.startswith(cut.removesuffix("…"))
    assert texts.sanitize_content(cut, {}) == cut


@pytest.mark.parametrize(
    ("uri", "valid"),
    [
        ("https://example.com/a?b#c", True),
        ("HTTP://example.com", True),
        ("file:///home/x", True),
        ("", True),
        ("javascript:alert(1)", False),
        ("java\x00script:alert(1)", False),
        (" https://example.com", False),
        ("data:text/html,x", False),
        ("example.com", False),
        ("https://" + "x" * 2040, True),
        ("https://" + "x" * 2041, False),
    ],
)
def test_uris_with_other_schemes_or_too_long_are_cleared(uri: str, valid: bool) -> None:  # noqa: FBT001 - a parameter
    """A URI with another scheme, or longer than 2,048 characters, is cleared and counted."""
    counts: SanitizeCounts = {}
    assert texts.sanitize_uri(uri, counts) == (uri if valid else "")
    assert counts.get("uri", 0) == (0 if valid else 1)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_json_lacks_are_no_data(number: float) -> None:
    """What is stored can be read by every parser."""
    for visible in (False, True):
        with pytest.raises(ValueError, match="not JSON compliant"):
            texts.canonical_data({"a": [number]}, {}, visible=visible)


def test_only_data_that_people_decide_by_must_keep_every_name_apart() -> None:
    """In the data of a log entry names that become one have the last value; in a tool's input they are refused."""
    data = {"command": "ls", "comm\x00and": "make", "b\u202e": 1}
    counts: SanitizeCounts = {}
    assert texts.canonical_data(data, counts) == '{"b\u202e":1,"command":"make"}'
    assert counts == {"control": 1}
    with pytest.raises(ValueError, match=r"^names that differ without their control characters were expected$"):
        texts.canonical_data([data], {}, visible=True)
    assert texts.canonical_data({"b\u202e": "\u202e"}, counts, visible=True) == '{"b\\\\u202e":"\\\\u202e"}'
    assert counts == {"control": 3}


@pytest.mark.parametrize(
    ("uri", "sanitized", "removed"),
    [
        ("https://exam\x00ple.com/a", "https://example.com/a", 1),
        ("file:///home/\x1b[31mx\x7f\x9f", "file:///home/[31mx", 3),
        ("\x07https://example.com", "https://example.com", 1),
        ("https://example.com/\ud800", "https://example.com/", 1),
    ],
)
def test_control_characters_are_removed_from_a_uri(uri: str, sanitized: str, removed: int) -> None:
    """A URI that is good without its control characters is kept without them, and they are counted."""
    counts: SanitizeCounts = {}
    assert texts.sanitize_uri(uri, counts) == sanitized
    assert counts == {"control": removed}


BIDI_CONTROLS = [
    *"\u061c\u200e\u200f",  # the marks, which have the classes of letters
    *(chr(code) for code in range(0x10000) if unicodedata.bidirectional(chr(code)) in BIDI_CLASSES),
]


def test_bidirectional_controls_are_removed_from_names_and_escaped_in_messages() -> None:
    """A text cannot look like another one by changing the direction of what follows; contents are unchanged."""
    assert len(BIDI_CONTROLS) == 12
    for letter in BIDI_CONTROLS:
        counts: SanitizeCounts = {}
        assert texts.sanitize_name(f"a{letter}b\x00", counts) == "ab"
        shown = texts.sanitize_message(f"safe{letter}exe", counts)
        assert shown == f"safe\\u{ord(letter):04x}exe"
        assert texts.sanitize_message(shown, {}) == shown
        assert texts.sanitize_uri(f"https://a.example/{letter}x", counts) == ""
        assert counts == {"control": 3, "uri": 1}
        assert texts.sanitize_content(f"a{letter}b", {}) == f"a{letter}b"
    assert len(texts.sanitize_message("\u202e" * 2000, {})) == 2000


def test_names_in_messages_have_no_bidirectional_controls() -> None:
    """Workspace names, slugs and display names lose them; a workspace name or slug that consists of them is invalid."""
    app = {"id": TASK, "slug": "cc\u202ew"}
    workspace = {"id": TASK, "name": "\u2066main\u2069"}
    build = {"type": "workspace.build", "task_id": TASK, "transition": "start", "job_status": "running"}
    element = decode_reports(orjson.dumps({**build, "app": app, "workspace": workspace}), NOW)[0]
    assert isinstance(element, DecodedReport)
    assert isinstance(element.report, WorkspaceBuild)
    assert element.report.workspace
    assert element.report.app
    assert (element.report.workspace.name, element.report.app.slug) == ("main", "ccw")
    assert element.sanitize_counts == {"control": 3}
    for fields in ({"app": {**app, "slug": "\u202e"}}, {"workspace": {**workspace, "name": "\u200f\x00"}}):
        assert isinstance(decode_reports(orjson.dumps({**build, **fields}), NOW)[0], InvalidMessage)
    command = decode_command(orjson.dumps({**COMMANDS[0], "display_name": "Pay \u202e100"}))
    assert isinstance(command, Create)
    assert command.display_name == "Pay 100"
    assert names.display_name("fix \u202eit") == "Fix it"


def test_changes_to_texts_are_counted() -> None:
    """A report with texts that had to be changed is valid, and contains the number of changes."""
    fields = {
        "type": "app.status",
        "task_id": TASK,
        "state": "idle",
        "message": "a\x00b\x07" + "x" * 3000,
        "uri": "ftp://example.com",
    }
    element = decode_reports(orjson.dumps(fields), NOW)[0]
    assert isinstance(element, DecodedReport)
    assert isinstance(element.report, AppStatus)
    assert element.report.uri == ""
    assert element.report.message.startswith("abx")
    assert element.sanitize_counts == {"control": 2, "cut": 1, "uri": 1}


def test_every_log_entry_is_sanitized() -> None:
    """Entries are sanitized and truncated one by one."""
    entry = {"id": 1, "type": "output", "content": "\x00" + "é" * MAX_CONTENT_BYTES, "time": "2026-03-01T12:00:00Z"}
    body = orjson.dumps({"type": "task.log", "task_id": TASK, "entries": [entry, entry]})
    element = decode_reports(body, NOW)[0]
    assert isinstance(element, DecodedReport)
    assert isinstance(element.report, TaskLog)
    assert element.sanitize_counts == {"control": 2, "cut": 2}
    assert {len(each.content.encode()) for each in element.report.entries} <= {MAX_CONTENT_BYTES, MAX_CONTENT_BYTES - 1}
