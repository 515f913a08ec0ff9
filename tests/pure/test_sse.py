"""Server-sent events as the HTML standard has them, whatever chunks they come in."""

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


def parsed(*chunks: bytes, max_event_bytes: int = MAX_EVENT_BYTES) -> tuple[list[Event], Parser]:
    """The events in these chunks, and the parser that found them."""
    parser = Parser(max_event_bytes=max_event_bytes)
    return [event for chunk in chunks for event in parser.feed(chunk)], parser


def state(parser: Parser) -> tuple[object, ...]:
    """What a parser shows beside its events."""
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
def test_the_standard_s_examples(stream: bytes, events: list[tuple[str, str, str]]) -> None:
    """Examples of the standard, section 9.2.6, and its other rules: the result is the same for any size of chunk."""
    expected = [Event(*event) for event in events]
    for size in range(1, len(stream) + 1):
        assert parsed(*(stream[at : at + size] for at in range(0, len(stream), size)))[0] == expected


@given(STREAMS, st.lists(st.integers(0, 300), max_size=20), st.sampled_from([3, 20, MAX_EVENT_BYTES]))
def test_events_do_not_depend_on_chunks(stream: bytes, cuts: list[int], bound: int) -> None:
    """However a stream is cut, empty chunks included, its events and the parser's state are the same."""
    places = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    chunks = [stream[start:end] for start, end in pairwise(places)]
    whole, once = parsed(stream, max_event_bytes=bound)
    cut, often = parsed(*chunks, max_event_bytes=bound)
    assert cut == whole
    assert state(often) == state(once)


@given(st.lists(st.tuples(st.text("ab:é ", min_size=1), st.text("xyz:é \n"), st.text("01ab")), max_size=5))
def test_what_is_written_is_read(written: list[tuple[str, str, str]]) -> None:
    """An event with any type, lines of data and id comes back as it was written."""
    stream = b"".join(
        "".join(
            [f"event: {kind}\n", *(f"data: {line}\n" for line in data.split("\n")), f"id: {position}\n", "\n"]
        ).encode()
        for kind, data, position in written
    )
    assert parsed(stream)[0] == [Event(*each) for each in written]


def test_the_position_moves_without_data_and_only_at_the_end_of_an_event() -> None:
    """An event without data is not dispatched, but its id holds; one that is cut off sets none."""
    parser = Parser(last_event_id="3")
    assert list(parser.feed(b"data: 1\n\n")) == [Event("message", "1", "3")]
    assert list(parser.feed(b"id: 4\n\nid: 5\n")) == []
    assert parser.last_event_id == "4"


@pytest.mark.parametrize(
    ("field", "found"),
    [(b"retry: 250", 250), (b"retry: 2s", None), (b"retry: -1", None), (b"retry: " + b"9" * 99, None)],
)
def test_the_server_may_set_the_reconnection_time(field: bytes, found: int | None) -> None:
    """Only digits count, and only so many."""
    assert parsed(field + b"\n")[1].retry_ms == found


def test_comments_are_counted() -> None:
    """A comment is no event; that it came shows that the stream lives."""
    events, parser = parsed(b": hi\n:\n\n")
    assert events == []
    assert parser.comments == 2


@pytest.mark.parametrize("field", [b"data: ", b": ", b"", b"id: "])
def test_an_event_of_any_size_costs_no_memory(field: bytes) -> None:
    """One that is too large is dropped and counted, and the next one is taken."""
    parser = Parser(max_event_bytes=1_000)
    for _ in range(40):
        assert list(parser.feed(field + b"x" * 1_000)) == []
        assert len(parser._line) <= 1_000
    assert list(parser.feed(b"\n\ndata: 1\n\n")) == [Event("message", "1", "")]
    assert parser.dropped == 1


def test_many_lines_count_together() -> None:
    """The bound is on the event, not on its lines."""
    line = b"data: " + b"x" * 93 + b"\n"
    assert parsed(line * 10 + b"\n", max_event_bytes=1_000)[1].dropped == 0
    events, parser = parsed(line * 11 + b"\ndata: 1\n\n", max_event_bytes=1_000)
    assert events == [Event("message", "1", "")]
    assert parser.dropped == 1
