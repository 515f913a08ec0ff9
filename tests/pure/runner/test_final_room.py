"""What an ended agent has left is read only as far as the outbox has room, and a stop does not wait for that."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from taskherd.runner.agents import final_room
from taskherd.runner.agents.acp.lines import READ_BYTES, LineReader
from taskherd.runner.agents.context import AgentContext, Follower
from taskherd.runner.agents.final_room import LAST_BYTES, FinalRoom
from taskherd.runner.outbox import Budget, Outbox
from taskherd.runner.segments import SegmentWriter
from taskherd.runner.workspaces.folders import RunFolder
from taskherd.runner.workspaces.processes import ExitRecord
from tests.pure.runner.acp_life import AcpLife
from tests.pure.runner.contexts import reports_of
from tests.pure.runner.test_stdio import Printing
from tests.pure.runner.test_stream_life import DONE, StreamLife, said

MOST = 64 * 1024
"""Bytes that the outboxes may hold."""
GROUP = 384 * 1024
"""Bytes by which one more group of what was read may exceed them, with its states and its frames."""
LINES = 1_600
"""Number of lines of some 600 bytes that an agent has left."""
EXITED = ExitRecord("exited", code=0)


class Ended:
    """An agent that has ended and left much output, in an outbox that has no room."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.budget = Budget(MOST)
        self.outbox = Outbox(folder / "reports.jsonl", self.budget, lambda _: None)
        self.sent: list[dict[str, Any]] = []
        self.most = 0
        self.kind = kind
        self.folder = folder

    async def make(self) -> None:
        """Let the agent end."""
        make = {"stream": self._stream, "acp": self._acp, "stdio": self._stdio}[self.kind]
        self.context, self.follower = await make(self.folder)
        filler = json.dumps({"type": "filler", "filler": "x" * MOST})
        self.outbox.append([filler])

    async def _stream(self, folder: Path) -> tuple[AgentContext, Follower]:
        life = StreamLife(folder)
        life.change(outbox=self.outbox, reporter=self._reporter(life.context))
        life.write(*(said(f"line {number} {'x' * 500}") for number in range(LINES)), DONE)
        return life.context, life.follower

    async def _acp(self, folder: Path) -> tuple[AgentContext, Follower]:
        life = AcpLife(folder)
        life.change(outbox=self.outbox, reporter=self._reporter(life.context))
        await life.open()
        for number in range(LINES):
            life.update("tool_call", toolCallId=str(number), title=f"line {number} {'x' * 500}", status="completed")
        return life.context, life.follower

    async def _stdio(self, folder: Path) -> tuple[AgentContext, Follower]:
        agent = Printing(folder)
        context = replace(agent.context, outbox=self.outbox, reporter=self._reporter(agent.context))
        agent.output.write("".join(f"line {number} {'x' * 600}\n" for number in range(LINES)).encode())
        return context, type(agent.follower)(context)

    def _reporter(self, context: AgentContext) -> Any:
        context.reporter._outbox = self.outbox
        return context.reporter

    @property
    def left(self) -> str:
        """All that the log was told."""
        reports = [*self.sent, *reports_of(self.outbox)]
        return json.dumps([each for each in reports if each["type"] == "task.log"])

    def send(self) -> None:
        """Confirm all reports, as a broker does that is back."""
        self.sent += reports_of(self.outbox)
        self.outbox.confirm(len(self.outbox))

    async def let_run(self) -> None:
        """Let the follower do what it can without a broker."""
        for _ in range(50):
            await asyncio.sleep(0)
        self.most = max(self.most, self.budget.used)


@pytest.fixture(params=["stream", "acp", "stdio"])
async def ended(request: pytest.FixtureRequest, tmp_path: Path) -> Ended:
    """Return an agent of each kind whose output the runner reads."""
    return await make_ended(tmp_path, request.param)


async def make_ended(folder: Path, kind: str) -> Ended:
    """Return an agent of this kind that has ended."""
    agent = Ended(folder, kind)
    await agent.make()
    return agent


async def test_the_last_output_waits_for_room(ended: Ended) -> None:
    """With the broker away, a hundred agents that end would fill the runner's memory; nothing is left out."""
    concluding = asyncio.create_task(ended.follower.conclude(EXITED))
    rounds = 0
    async with asyncio.timeout(60):
        while not concluding.done():
            await ended.let_run()
            assert ended.most < MOST + GROUP
            ended.send()
            rounds += 1
    await concluding
    assert rounds > 2
    assert f"line {LINES - 1} " in ended.left
    assert "left out" not in ended.left
    assert [each["type"] for each in ended.sent if each["type"] == "agent.exit"] == ["agent.exit"]


async def test_a_stop_does_not_wait_for_room(ended: Ended, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while the rest is left out, but for the end; the log says so."""
    monkeypatch.setattr(final_room, "STOP_WAIT", 0)
    concluding = asyncio.create_task(ended.follower.conclude(EXITED))
    await ended.let_run()
    assert not concluding.done()
    assert "line 0 " not in ended.left
    ended.context.stopping.set()
    await asyncio.wait_for(concluding, 30)
    assert f"line {LINES - 1} " in ended.left
    assert "line 9 " not in ended.left
    assert ended.budget.used < MOST + LAST_BYTES + GROUP
    lost = int(ended.context.metrics.runner_output_lost._value.get())
    assert LINES * 500 - LAST_BYTES < lost < LINES * 700
    assert f"{lost} bytes of output were" in ended.left


async def test_a_stop_waits_for_room_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From when it is first known on; once that is over, it is over."""
    ended = await make_ended(tmp_path, "stdio")
    stopping = asyncio.Event()
    room = FinalRoom(ended.outbox, stopping)
    stopping.set()
    waiting = asyncio.create_task(room.wait())
    await ended.let_run()
    assert not waiting.done()
    ended.send()
    assert await asyncio.wait_for(waiting, 30)
    assert await room.wait()
    ended.outbox.append([json.dumps({"type": "filler", "filler": "x" * MOST})])
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: 1e12, raising=False)
    assert not await room.wait()
    ended.send()
    assert not await room.wait()


@pytest.fixture
def reader(tmp_path: Path) -> LineReader:
    """Return a reader of output in segments of 100 bytes: three lines of 70."""
    folder = RunFolder(tmp_path)
    folder.output.mkdir()
    SegmentWriter(str(folder.output), 100, 9).write(b"".join(bytes([97 + n]) * 69 + b"\n" for n in range(3)))
    return LineReader(folder, 0, skipping=False)


@pytest.mark.parametrize(
    ("kept", "left_out", "lines"),
    [
        (210, 0, [b"a", b"b", b"c"]),
        (300, 0, [b"a", b"b", b"c"]),
        (209, 70, [b"b", b"c"]),
        (141, 70, [b"b", b"c"]),
        (139, 140, [b"c"]),
        (71, 140, [b"c"]),
        (3, 210, []),
    ],
)
def test_what_is_left_out_ends_with_a_line(reader: LineReader, kept: int, left_out: int, lines: list[bytes]) -> None:
    """The next one may be in another segment; none is told as too long."""
    assert reader.leave_out(kept) == left_out
    assert reader.offset == reader.position == left_out
    assert reader.leave_out(kept) == 0
    found = list[bytes | None]()
    while reader.has_more:
        found += reader.read()
    assert [line and line[:1] for line in found] == lines


def test_a_line_that_was_read_in_part_is_left_out_as_a_whole(reader: LineReader) -> None:
    """So is one that never ends."""
    assert [line and line[:1] for line in reader.read()] == [b"a"]
    assert (reader.offset, reader.position) == (70, 100)
    assert reader.leave_out(110) == 0
    assert reader.leave_out(80) == 70
    assert [line and line[:1] for line in reader.read()] == []
    assert [line and line[:1] for line in reader.read()] == [b"c"]
    with (reader._folder.output / f"{200:020d}").open("ab") as file:
        file.write(b"x" * 3 * READ_BYTES)
    assert reader.leave_out(2 * READ_BYTES) == 3 * READ_BYTES
    assert not reader.has_more
