"""Server-sent events as in the HTML standard, independent of the chunks they arrive in."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskherd.sse import MAX_EVENT_BYTES, Event, Parser

WORDS = st.sampled_from(
    [b"data", b"event", b"id", b"retry", b":", b" ", b"1", b"x\0", b"\xef\xbb\xbf", b"\xc3\xa9", b"\xff", b"word"]
)
LINE_ENDS = st.sampled_from([b"\n", b"\r", b"\r\n", b"\n\n", b"\r\r", b"\r\n\r\n"])
STREAMS = st.lists(st.one_of(WORDS, LINE_ENDS), max_size=60).map(b"".join)


def parse(*chunks: bytes, max_event_bytes: int = MAX_EVENT_BYTES) -> tuple[list[Event], Parser]:
    """Return the events in these chunks, and the parser."""
    parser = Parser(max_event_bytes=max_event_bytes)
    return [event for chunk in chunks for event in parser.feed(chunk)], parser


def state(parser: Parser) -> tuple[object, ...]:
    """Return a parser's state in addition to its events."""
    return parser.last_event_id, parser.retry_ms, parser.comments, parser.dropped


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: YHOO\ndata: +2\ndata: 10\n\n", [("message", "YHOO\n+2\n10", "")]),
        (
            b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n",
            [("message", "first event", "1"), ("message", "second event", ""), ("message", " third event", "")],
        ),
        (b"data\n\ndata\ndata\n\ndata:", [("message", "", ""), ("message", "\n", "")]),
        (b"data:test\n\ndata: test\n\n", [("message", "test", ""), ("message", "test", "")]),
        (b"event: add\ndata: 7\n\nevent: none\n\ndata: 8\n\n", [("add", "7", ""), ("message", "8", "")]),
        (b"\xef\xbb\xbfdata: 1\n\n\xef\xbb\xbfdata: 2\n\ndata: 3\n\n", [("message", "1", ""), ("message", "3", "")]),
        (b"\xef\xbb\xbf\ndata: 1\n\n", [("message", "1", "")]),
        (b"id: 4\n\nid: 5\0\ndata: 1\n\n", [("message", "1", "4")]),
        (b"id: 4\ndata: 1\n\ndata: 2\n\n", [("message", "1", "4"), ("message", "2", "4")]),
        (b"data: 1\rdata: 2\r\rdata: 3\r\n\r\n", [("message", "1\n2", ""), ("message", "3", "")]),
        (b"Data: 1\nother: 2\n data: 3\n\n", []),
        (b"data: \xff\xc3\xa9\n\n", [("message", "\ufffdé", "")]),
        (b"data: cut off\n", []),
    ],
)
def test_the_examples_of_the_standard(stream: bytes, events: list[tuple[str, str, str]]) -> None:
    """The standard's examples (section 9.2.6) and other rules give the same result for any size of chunk."""
    expected = [Event(*event) for event in events]
    for size in range(1, len(stream) + 1):
        assert parse(*(stream[at : at + size] for at in range(0, len(stream), size)))[0] == expected


@given(STREAMS, st.lists(st.integers(0, 300), max_size=20), st.sampled_from([3, 20, MAX_EVENT_BYTES]))
def test_events_do_not_depend_on_chunks(stream: bytes, cuts: list[int], limit: int) -> None:
    """Events and parser state are the same for any division into chunks, including empty ones."""
    offsets = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    chunks = [stream[start:end] for start, end in pairwise(offsets)]
    expected, expected_parser = parse(stream, max_event_bytes=limit)
    events, parser = parse(*chunks, max_event_bytes=limit)
    assert events == expected
    assert state(parser) == state(expected_parser)


@given(st.lists(st.tuples(st.text("ab:é ", min_size=1), st.text("xyz:é \n"), st.text("01ab")), max_size=5))
def test_a_written_event_is_parsed_unchanged(written: list[tuple[str, str, str]]) -> None:
    """An event with any type, data lines and id is parsed as it was written."""
    stream = b"".join(
        "".join(
            [f"event: {kind}\n", *(f"data: {line}\n" for line in data.split("\n")), f"id: {position}\n", "\n"]
        ).encode()
        for kind, data, position in written
    )
    assert parse(stream)[0] == [Event(*each) for each in written]


def test_the_last_event_id_changes_only_at_the_end_of_an_event() -> None:
    """An event without data is not dispatched but sets the id; an incomplete event does not."""
    parser = Parser(last_event_id="3")
    assert list(parser.feed(b"data: 1\n\n")) == [Event("message", "1", "3")]
    assert list(parser.feed(b"id: 4\n\nid: 5\n")) == []
    assert parser.last_event_id == "4"


@pytest.mark.parametrize(
    ("field", "expected"),
    [(b"retry: 250", 250), (b"retry: 2s", None), (b"retry: -1", None), (b"retry: " + b"9" * 99, None)],
)
def test_the_server_may_set_the_reconnection_time(field: bytes, expected: int | None) -> None:
    """Only a short sequence of digits is accepted."""
    assert parse(field + b"\n")[1].retry_ms == expected


def test_comments_are_counted() -> None:
    """A comment is not an event, but shows that the stream is alive."""
    events, parser = parse(b": hi\n:\n\n")
    assert events == []
    assert parser.comments == 2


@pytest.mark.parametrize("field", [b"data: ", b": ", b"", b"id: "])
def test_an_oversized_event_uses_no_memory(field: bytes) -> None:
    """An oversized event is dropped and counted, and the next one is parsed."""
    parser = Parser(max_event_bytes=1_000)
    for _ in range(40):
        assert list(parser.feed(field + b"x" * 1_000)) == []
        assert len(parser._line) <= 1_000
    assert list(parser.feed(b"\n\ndata: 1\n\n")) == [Event("message", "1", "")]
    assert parser.dropped == 1


def test_the_size_limit_applies_to_the_whole_event() -> None:
    """The sizes of an event's lines are added."""
    line = b"data: " + b"x" * 93 + b"\n"
    assert parse(line * 10 + b"\n", max_event_bytes=1_000)[1].dropped == 0
    events, parser = parse(line * 11 + b"\ndata: 1\n\n", max_event_bytes=1_000)
    assert events == [Event("message", "1", "")]
    assert parser.dropped == 1
