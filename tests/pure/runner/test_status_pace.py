"""How soon a status line is reported after another one."""

from __future__ import annotations

import asyncio
from pathlib import Path

from taskherd.runner.agents.status_pace import CHANGE_EVERY, STATUS_EVERY
from taskherd.runner.agents.stdio import StdioFollower
from taskherd.runner.segments import SegmentWriter
from tests.pure.runner.contexts import make_context, reports_of


class Told:
    """An agent's output and what is reported of it, at times that the test sets."""

    def __init__(self, folder: Path) -> None:
        self.context = make_context(folder)
        self.context.folder.output.mkdir()
        self.output = SegmentWriter(str(self.context.folder.output), 2**20, 2)
        self.follower = StdioFollower(self.context)

    def say(self, now: float, *statuses: str) -> None:
        """Let the agent write status lines, read at this time."""
        self.output.write("".join(f"::taskherd {status}\n" for status in statuses).encode())
        self.follower._read_chunk(now)

    def look(self, now: float) -> list[str]:
        """Let the follower look again without new output, and return the messages that were reported so far."""
        self.follower._report_latest_line(now)
        return [each["message"] for each in reports_of(self.context.outbox, "app.status")]


async def test_a_message_alone_waits_longer_than_a_change(tmp_path: Path) -> None:
    """Two reports that differ only in their message are further apart than two with different states."""
    told = Told(tmp_path)
    told.say(10.0, "state=working message=one")
    told.say(10.01, "state=working message=two")
    assert told.look(10.0 + CHANGE_EVERY + 0.01) == ["one"]
    assert told.look(10.0 + STATUS_EVERY) == ["one", "two"]
    told.say(12.01, "state=idle message=three")
    assert told.look(12.05) == ["one", "two"]
    assert told.look(12.0 + CHANGE_EVERY + 0.01) == ["one", "two", "three"]


async def test_a_state_that_was_left_out_in_between_is_a_change(tmp_path: Path) -> None:
    """An agent that takes an input and is idle again within a moment has its answer told as soon as a change."""
    told = Told(tmp_path)
    told.say(10.0, "state=idle message=one")
    told.say(10.02, "state=working message=busy")
    told.say(10.04, "state=idle message=two")
    assert told.look(10.0 + CHANGE_EVERY + 0.01) == ["one", "two"]
    told.say(10.2, "state=idle message=three")
    assert told.look(10.4) == ["one", "two"], "from then on only the message differs"


async def test_a_restarted_runner_tells_what_was_untold(tmp_path: Path) -> None:
    """What waited is in the checkpoint."""
    told = Told(tmp_path)
    told.say(10.0, "state=idle message=one")
    told.say(10.01, "state=idle message=two")
    assert told.look(10.02) == ["one"]
    told.follower = StdioFollower(told.context)
    assert told.look(asyncio.get_running_loop().time() + STATUS_EVERY) == ["one", "two"]
