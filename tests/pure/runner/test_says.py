from __future__ import annotations

import pytest

from taskherd.core.reports import State
from taskherd.runner.agents.sse import EVENT_MOST, Event, Events
from taskherd.runner.agents.stdio import Said, said


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("::taskherd state=idle", Said(State.IDLE, "", "")),
        ("::taskherd state=working message=On it, uri soon", Said(State.WORKING, "On it, uri soon", "")),
        ('::taskherd state=complete message="a = b" uri=https://x.y/z', Said(State.COMPLETE, "a = b", "https://x.y/z")),
        ("::taskherd uri=file:///a message='x' state=failure", Said(State.FAILED, "x", "file:///a")),
        ("::taskherd state=dancing", None),
        ("::taskherd", None),
        ("::taskherds state=idle", None),
        (" ::taskherd state=idle", None),
        ("working", None),
    ],
)
def test_a_line_may_set_the_state(line: str, found: Said | None) -> None:
    """In any order, quoted or not; anything else is a line as any other."""
    assert said(line) == found


def test_events_do_not_depend_on_how_they_came() -> None:
    """Cut anywhere, with any end of line, comments and unknown fields left out."""
    stream = b": hi\n\nevent: a\r\ndata: 1\r\ndata:  2\r\nid: 7\r\n\r\ndata: 3\n\nevent: b\n\n"
    expected = [Event("a", "1\n 2"), Event("message", "3")]
    for size in range(1, len(stream)):
        cutter = Events()
        pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
        assert [event for piece in pieces for event in cutter.feed(piece)] == expected


def test_an_event_of_any_size_costs_no_memory() -> None:
    """One that is too large is dropped and counted, and the next one is taken."""
    cutter = Events()
    for _ in range(40):
        assert list(cutter.feed(b"data: " + b"x" * EVENT_MOST)) == []
        assert len(cutter._line) <= EVENT_MOST
    assert list(cutter.feed(b"\n\ndata: 1\n\n")) == [Event("message", "1")]
    assert cutter.dropped == 1
