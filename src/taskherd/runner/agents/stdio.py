"""Agents that speak by their output: lines are log entries and activity, silence is idleness, exit 0 is success."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from taskherd.domain.reports import AgentState, Lifecycle, LogSource
from taskherd.messages.limits import CONTENT_BYTES
from taskherd.runner.agents import output, stdin
from taskherd.runner.agents.context import report_exit, shorten

if TYPE_CHECKING:
    from collections.abc import Iterator

    from taskherd.domain.reports import LogEntry, Report
    from taskherd.runner.agents.context import AgentContext, Begin
    from taskherd.runner.outbox import Checkpoint
    from taskherd.runner.workspaces.processes import AgentExit

PIECE = 64 * 1024
RATE = 256 * 1024
"""Characters a second of one agent's output that become entries for long; a burst of `BURST` goes at once."""
BURST = 1024 * 1024
MAX_LAST = 1024 * 1024
"""Bytes that are still read of an agent that has ended; what is more, before these, is left out, and that is said."""
AT_ONCE = 4
"""Entries in one report: so few that it fits a message."""
STATUS_EVERY = 2.0
"""Seconds between two statuses that differ in nothing but the latest line."""
_POLL = 0.2
_KEYS = re.compile(r"(?:^|\s)(state|message|uri)=")
STATUS_PREFIX = "::taskherd "


@dataclass(frozen=True, slots=True)
class StatusLine:
    """What an agent says of itself in a line of its output."""

    state: AgentState
    message: str
    uri: str


def parse_status_line(line: str) -> StatusLine | None:
    """What the line `::taskherd state=… message=… uri=…` says; None for any other line. Values may be quoted."""
    if not line.startswith(STATUS_PREFIX):
        return None
    _, *parts = _KEYS.split(line.removeprefix(STATUS_PREFIX.rstrip()))
    values = {key: _unquoted(value.strip()) for key, value in zip(parts[::2], parts[1::2], strict=True)}
    try:
        state = AgentState(values.get("state", ""))
    except ValueError:
        return None
    return StatusLine(
        AgentState.FAILED if state is AgentState.FAILURE else state, values.get("message", ""), values.get("uri", "")
    )


def _unquoted(value: str) -> str:
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "\"'"
    return value[1:-1] if quoted else value


class StdioFollower:
    """The follower of one such agent. Its mark says how far its output was read, and what came of that."""

    def __init__(self, context: AgentContext) -> None:
        self._context = context
        mark = context.checkpoint
        self._fresh = not mark
        self._offset: int = mark.get("offset", 0)
        self._lines = output.LineSplitter(mark.get("skipped", 0))
        self._entries: int = mark.get("entries", 0)
        self._state: str = mark.get("state", "")
        self._own: bool = mark.get("own", False)
        """Whether the agent tells its state itself; then its lines and its silence say nothing."""
        self._last_line: str = mark.get("last", "")
        self._status_at = 0.0
        self._allowed = float(BURST)

    async def follow(self) -> None:
        """Report what it writes, until cancelled."""
        loop = asyncio.get_running_loop()
        if self._fresh:
            self._begin()
        if not self._context.journal.ready:
            self._context.reporter.lifecycle(Lifecycle.READY)
            self._context.journal.ready = True
            await self._context.save()
        heard = refilled = loop.time()
        while True:
            await self._context.outbox.wait_room()
            now = loop.time()
            self._allowed = min(BURST, self._allowed + (now - refilled) * RATE)
            refilled = now
            if self._allowed > 0 and self._read_chunk(now):
                heard = now
                await asyncio.sleep(0)
                continue
            if now - heard >= self._context.run.idle_after:
                self._fall_silent()
            await asyncio.sleep(_POLL)

    async def deliver(self, text: str, begin: Begin) -> None:
        """Write it to the agent's stdin; raises `Undelivered` or `Unclear`."""
        await stdin.write(self._context.folder.input, text, begin)
        self._report([self._entry(LogSource.INPUT, text)])

    def conclude(self, exit_: AgentExit) -> None:
        """Report the last of what it wrote, and how it ended."""
        left = output.size(self._context.folder.output) - self._offset
        if left > MAX_LAST:
            self._lines = output.LineSplitter()
            self._offset += left - MAX_LAST
            self._miss(left - MAX_LAST)
        while self._read_chunk(self._status_at):
            pass
        if self._lines.pending or self._lines.skipped:
            self._write_down([self._lines.flush()], [])
        if exit_.dropped:
            self._context.metrics.runner_output_lost.inc(exit_.dropped)
        report_exit(self._context, exit_, self._state if self._own else "", shorten(self._last_line))

    def _begin(self) -> None:
        """The conversation begins with the prompt, and the agent with its work."""
        prompt = self._context.journal.start.prompt if self._context.journal.start else ""
        self._state = AgentState.WORKING
        entries = [self._entry(LogSource.INPUT, prompt)] if prompt else []
        self._report(entries, self._context.reporter.status_report(AgentState.WORKING, "The agent has started."))

    def _read_chunk(self, now: float) -> int:
        """Take one piece of what it wrote; how many bytes that moved us on."""
        piece = output.read(self._context.folder.output, self._offset, PIECE)
        if piece.end == self._offset:
            return 0
        if piece.missing:
            if self._lines.pending:
                self._write_down([self._lines.flush()], [])
            self._offset += piece.missing
            self._miss(piece.missing)
        moved = piece.missing + piece.end - self._offset
        self._offset = piece.end
        lines: list[str] = []
        reports: list[Report] = []
        for line in self._lines.feed(piece.data):
            of_itself = parse_status_line(line)
            if of_itself is None:
                lines.append(line)
                continue
            self._own, self._state = True, of_itself.state
            reports = [self._context.reporter.status_report(of_itself.state, of_itself.message, of_itself.uri)]
        self._last_line = next((line.strip() for line in reversed(lines) if line.strip()), self._last_line)
        if piece.data and not self._own:
            reports = self._active(now)
        self._write_down(lines, reports)
        return moved

    def _active(self, now: float) -> list[Report]:
        """What its activity says of its state."""
        if self._state == AgentState.WORKING and now - self._status_at < STATUS_EVERY:
            return []
        self._state, self._status_at = AgentState.WORKING, now
        return [self._context.reporter.status_report(AgentState.WORKING, shorten(self._last_line))]

    def _fall_silent(self) -> None:
        lines = [self._lines.flush()] if self._lines.pending else []  # a prompt, perhaps, that waits for an answer
        self._last_line = next((line.strip() for line in lines if line.strip()), self._last_line)
        reports = []
        if not self._own and self._state == AgentState.WORKING:
            self._state = AgentState.IDLE
            reports = [self._context.reporter.status_report(AgentState.IDLE, shorten(self._last_line))]
        if lines or reports:
            self._write_down(lines, reports)

    def _miss(self, count: int) -> None:
        self._context.metrics.runner_output_lost.inc(count)
        self._report([self._entry(LogSource.OUTPUT, f"… ({count} bytes of output were not kept)")])

    def _write_down(self, lines: list[str], reports: list[Report]) -> None:
        texts = list(_joined(lines))
        self._allowed -= sum(map(len, texts))
        while len(texts) > AT_ONCE:
            self._report([self._entry(LogSource.OUTPUT, text) for text in texts[:AT_ONCE]], settled=False)
            texts = texts[AT_ONCE:]
        self._report([self._entry(LogSource.OUTPUT, text) for text in texts], *reports)

    def _report(self, entries: list[LogEntry], *reports: Report, settled: bool = True) -> None:
        """Report, together with how far we are; not `settled`: more of the same piece follows."""
        self._context.reporter.log(entries, *reports, mark=self._checkpoint() if settled else None)

    def _entry(self, speaker: LogSource, text: str) -> LogEntry:
        self._entries += 1
        return self._context.reporter.entry(self._entries - 1, speaker, text)

    def _checkpoint(self) -> Checkpoint:
        return {
            "build": self._context.reporter.build_number,
            "offset": self._offset - self._lines.pending,
            "skipped": self._lines.skipped,
            "entries": self._entries,
            "state": str(self._state),
            "own": self._own,
            "last": shorten(self._last_line),
        }


def _joined(lines: list[str]) -> Iterator[str]:
    """Lines that came together, joined as long as they fit one entry."""
    together: list[str] = []
    size = 0
    for line in lines:
        length = len(line.encode(errors="replace")) + 1
        if together and size + length > CONTENT_BYTES:
            yield "\n".join(together)
            together, size = [], 0
        together.append(line)
        size += length
    if any(together):
        yield "\n".join(together)
