from __future__ import annotations

import time

import pytest

from taskherd.domain.reports import AgentState
from taskherd.runner.agents.stdio import StatusLine, as_told, parse_status_line


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("::taskherd state=idle", StatusLine(AgentState.IDLE, "", "")),
        ("::taskherd state=working message=On it, uri soon", StatusLine(AgentState.WORKING, "On it, uri soon", "")),
        (
            '::taskherd state=complete message="a = b" uri=https://x.y/z',
            StatusLine(AgentState.COMPLETE, "a = b", "https://x.y/z"),
        ),
        ("::taskherd uri=file:///a message='x' state=failure", StatusLine(AgentState.FAILED, "x", "file:///a")),
        (
            '::taskherd state=working message="set uri=x and state=idle" uri=https://x.y',
            StatusLine(AgentState.WORKING, "set uri=x and state=idle", "https://x.y"),
        ),
        ("::taskherd message='' state=idle", StatusLine(AgentState.IDLE, "", "")),
        ('::taskherd state=idle message="a "b" c"', StatusLine(AgentState.IDLE, 'a "b" c', "")),
        ('::taskherd state=idle message="open', StatusLine(AgentState.IDLE, '"open', "")),
        ("::taskherd state=idle message='it's open", StatusLine(AgentState.IDLE, "'it's open", "")),
        ("::taskherd message=\"a' uri='b\" state=idle uri='c'", StatusLine(AgentState.IDLE, "a' uri='b", "c")),
        ('::taskherd message="a uri="b" state=idle', StatusLine(AgentState.IDLE, 'a uri="b', "")),
        ('::taskherd message=" uri=" state=idle', StatusLine(AgentState.IDLE, "uri=", "")),
        ("::taskherd so state=working  state=idle \tmessage= a  b ", StatusLine(AgentState.IDLE, "a  b", "")),
        ('::taskherd state=idle message="a"         uri=b', StatusLine(AgentState.IDLE, '"a"', "b")),
        ("::taskherd state=dancing", None),
        ("::taskherd", None),
        ("::taskherds state=idle", None),
        (" ::taskherd state=idle", None),
        ("working", None),
    ],
)
def test_status_lines_are_parsed(line: str, status: StatusLine | None) -> None:
    """Fields may come in any order, quoted or not; any other line is not a status line."""
    assert parse_status_line(line) == status


@pytest.mark.parametrize("name", ["state", "message", "uri"])
@pytest.mark.parametrize("value", ['"x', "'x", "x", '"', "'", '"x" uri="x', "\"x uri='x", '"x"' + " " * 9, "=", ""])
def test_a_status_line_takes_no_longer_than_its_length_explains(name: str, value: str) -> None:
    """An agent that prints thousands of fields that do not end must not stop the runner."""
    line = f"::taskherd {f'{name}={value} ' * 65_536}"[:65_536]
    began = time.thread_time()
    assert parse_status_line(f"{line}x") is None
    assert time.thread_time() - began < 0.3


def test_the_message_of_a_status_line_takes_its_place() -> None:
    """Last words are for people, who are told the message and not the line that carries it."""
    text = 'one\n::taskherd state=failed message="No space left"\n::taskherd state=dancing\n\nlast'
    assert as_told(text) == "one\nNo space left\n::taskherd state=dancing\n\nlast"
    assert as_told("") == ""
