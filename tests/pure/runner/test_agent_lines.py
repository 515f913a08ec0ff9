from __future__ import annotations

import pytest

from taskherd.domain.reports import State
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
