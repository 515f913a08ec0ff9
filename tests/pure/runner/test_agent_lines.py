from __future__ import annotations

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


def test_the_message_of_a_status_line_takes_its_place() -> None:
    """Last words are for people, who are told the message and not the line that carries it."""
    text = 'one\n::taskherd state=failed message="No space left"\n::taskherd state=dancing\n\nlast'
    assert as_told(text) == "one\nNo space left\n::taskherd state=dancing\n\nlast"
    assert as_told("") == ""
