from __future__ import annotations

import unicodedata

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskherd.domain.reports import AppStatus, TaskLog
from taskherd.messages import texts
from taskherd.messages.limits import CONTENT_BYTES
from taskherd.messages.reports import Decoded, decode_reports
from taskherd.messages.texts import SanitizeCounts
from tests.pure.messages.samples import NOW, TASK

any_text = st.text(st.characters(), max_size=50) | st.text("\x00\n\t\x7f\x9f\ud800\udfffa", max_size=50)


@given(any_text)
def test_clean_takes_out_control_characters_and_nothing_else(text: str) -> None:
    """Newline and tab stay, other control characters and lone surrogates go, and are counted; once is enough."""
    notes: SanitizeCounts = {}
    cleaned = texts.sanitize(text, notes)
    keeps = [letter for letter in text if letter in "\n\t" or unicodedata.category(letter) not in {"Cc", "Cs"}]
    assert cleaned == "".join(keeps)
    assert notes.get("control", 0) == len(text) - len(cleaned)
    assert texts.sanitize(cleaned, {}) == cleaned


@given(st.integers(1990, 2010), st.sampled_from("aé…😀"))
def test_messages_are_cut_at_2000_characters(length: int, letter: str) -> None:
    """A message of 2,000 characters is kept, a longer one gets an ellipsis as its 2,000th; once is enough."""
    notes: SanitizeCounts = {}
    cut = texts.message(letter * length, notes)
    assert len(cut) == min(length, 2000)
    assert cut.endswith("…" if length > 2000 else letter)
    assert notes == ({"cut": 1} if length > 2000 else {})
    assert texts.message(cut, {}) == cut


@given(st.integers(-8, 8), st.sampled_from("aé…😀"))
def test_contents_are_cut_at_64_kib(more: int, letter: str) -> None:
    """A log entry's content has at most 64 KiB of UTF-8 with its ellipsis, and no half character."""
    text = letter * (CONTENT_BYTES // len(letter.encode()) + more)
    notes: SanitizeCounts = {}
    cut = texts.content(text, notes)
    assert len(cut.encode()) <= CONTENT_BYTES
    assert (cut == text) is (notes == {}) is (len(text.encode()) <= CONTENT_BYTES)
    assert cut == text or text.startswith(cut.removesuffix("…"))
    assert texts.content(cut, {}) == cut


@pytest.mark.parametrize(
    ("uri", "kept"),
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
def test_addresses_are_of_known_schemes_and_short(uri: str, kept: bool) -> None:  # noqa: FBT001 - a parameter
    """A URI of another scheme, or over 2,048 characters, is emptied and counted."""
    notes: SanitizeCounts = {}
    assert texts.address(uri, notes) == (uri if kept else "")
    assert notes.get("uri", 0) == (0 if kept else 1)


def test_what_was_done_is_told_with_the_report() -> None:
    """A report whose texts needed care is taken, and its notes say how much."""
    said = {
        "type": "app.status",
        "task_id": TASK,
        "state": "idle",
        "message": "a\x00b\x07" + "x" * 3000,
        "uri": "ftp://example.com",
    }
    element = decode_reports(orjson.dumps(said), NOW)[0]
    assert isinstance(element, Decoded)
    assert isinstance(element.report, AppStatus)
    assert element.report.uri == ""
    assert element.report.message.startswith("abx")
    assert element.notes == {"control": 2, "cut": 1, "uri": 1}


def test_every_entry_of_a_log_is_looked_at() -> None:
    """Entries are cleaned and cut one by one."""
    entry = {"id": 1, "type": "output", "content": "\x00" + "é" * CONTENT_BYTES, "time": "2026-03-01T12:00:00Z"}
    body = orjson.dumps({"type": "task.log", "task_id": TASK, "entries": [entry, entry]})
    element = decode_reports(body, NOW)[0]
    assert isinstance(element, Decoded)
    assert isinstance(element.report, TaskLog)
    assert element.notes == {"control": 2, "cut": 2}
    assert {len(kept.content.encode()) for kept in element.report.entries} <= {CONTENT_BYTES, CONTENT_BYTES - 1}
