"""Agents that report through their output.

Lines become log entries and mean activity, silence means idle, and exit status 0 means success.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import astuple, dataclass
from datetime import UTC
from math import inf
from typing import TYPE_CHECKING, ClassVar

from taskherd.domain.reports import AgentState, ExitReason, Health, InterruptOutcome, LogSource
from taskherd.messages.limits import MAX_CONTENT_BYTES
from taskherd.runner.activity import LOOK_INTERVAL, ActivityWatch
from taskherd.runner.agents import output, stdin
from taskherd.runner.agents.context import ENTRIES_PER_REPORT, TAIL_BYTES, FollowerWithoutRequests, report_exit, shorten
from taskherd.runner.agents.final_room import LAST_BYTES
from taskherd.runner.agents.interrupting import (
    INTERRUPTED,
    REACTION_TIMEOUT,
    as_interrupted,
    end_agent,
    has_exited,
    mark_interrupted,
    send_interrupt,
)
from taskherd.runner.agents.log_budget import READ_COST
from taskherd.runner.agents.reaction import QUIET_TIME, InterruptReaction
from taskherd.runner.agents.status_pace import CHANGE_EVERY, STATUS_EVERY
from taskherd.runner.agents.words import last_with_words, last_words

if TYPE_CHECKING:
    from collections.abc import Iterator

    from taskherd.domain.reports import LogEntry, Report
    from taskherd.runner.agents.context import AgentContext, RecordAttempt
    from taskherd.runner.outbox import Checkpoint
    from taskherd.runner.workspaces.processes import ExitRecord

READ_BYTES = 64 * 1024
MAX_FINAL_BYTES = 1024 * 1024
"""Maximum number of bytes of remaining output read after the exit.

Earlier output is skipped, and the log marks the gap.
"""
IDLE_LOOK_INTERVAL = 5.0
"""Seconds between two looks at the processes of an agent that counts as idle."""
_POLL_INTERVAL = 0.2
"""Seconds between two reads of output while there is none."""
_START = re.compile(r"\s(state|message|uri)=")
"""Where a field of a status line begins; a quoted value may contain what looks like another field."""
_END = r"(?=\s{1,8}(?:state|message|uri)=|$)"
_VALUE_END = re.compile(_END)
_CLOSING = {quote: re.compile(quote + _END) for quote in "\"'"}
STATUS_PREFIX = "::taskherd "


@dataclass(frozen=True, slots=True)
class StatusLine:
    """The status that an agent reports in a line of its output."""

    state: AgentState
    message: str
    uri: str


def parse_status_line(line: str) -> StatusLine | None:
    """Parse a line ``::taskherd state=… message=… uri=…``, values quoted or not. Return None for any other line."""
    if not line.startswith(STATUS_PREFIX):
        return None
    values = dict(_fields(line.removeprefix(STATUS_PREFIX.rstrip()).rstrip()))
    try:
        state = AgentState(values.get("state", ""))
    except ValueError:
        return None
    return StatusLine(
        AgentState.FAILED if state is AgentState.FAILURE else state, values.get("message", ""), values.get("uri", "")
    )


def _fields(text: str) -> Iterator[tuple[str, str]]:
    """Yield names and values of a status line, in a time that is proportional to its length."""
    closing = dict(_CLOSING)
    position = 0
    while (start := _START.search(text, position)) is not None:
        begin = start.end()
        quote = text[begin : begin + 1]
        end = closing[quote].search(text, begin + 1) if quote in closing else None
        if end is None:
            closing.pop(quote, None)  # no later value has an end that this one has not
            end = _VALUE_END.search(text, begin)
        else:
            begin += 1
        assert end is not None, "the end of the line is one"
        yield start[1], text[begin : end.start()].strip()
        position = end.end()


def as_told(text: str) -> str:
    """Return output with the message of each status line in its place, as people are told it."""
    lines = text.split("\n")
    return "\n".join(line if (status := parse_status_line(line)) is None else status.message for line in lines)


class StdioFollower(FollowerWithoutRequests):
    """The follower of an agent's output; its checkpoint contains the offset read so far and the derived state."""

    needs_port: ClassVar[bool] = False
    initial_health: ClassVar[Health] = Health.HEALTHY
    start_outcome: str | None = ""

    def __init__(self, context: AgentContext) -> None:
        self._context = context
        checkpoint = context.checkpoint
        self._is_new = not checkpoint
        self._offset: int = checkpoint.get("offset", 0)
        self._lines = output.LineSplitter(checkpoint.get("skipped", 0))
        self._entries: int = checkpoint.get("entries", 0)
        self._state: str = checkpoint.get("state", "")
        self._self_reported: bool = checkpoint.get("self_reported", False)
        """True once the agent has reported its state; other lines and silence then no longer change the state."""
        self._last_line: str = checkpoint.get("last", "")
        self._reported_line: str = checkpoint.get("reported", "")
        self._status_at = 0.0
        self._told_state: str = self._state
        """The state that was reported last."""
        self._told_uri = ""
        untold = checkpoint.get("untold")
        self._untold = StatusLine(AgentState(untold[0]), *untold[1:]) if untold else None
        """What the agent has said of itself last, as long as it is not reported."""
        self._has_changed = False
        """Whether the agent has named another state or link since the last report, though perhaps not any more."""
        self._activity = ActivityWatch(context.processes, context.folder)
        self._look_at = 0.0
        self._input_at = -inf
        """When the agent was given its last input, in seconds of the event loop."""
        self._read_at = context.reporter.now()
        """When output was last read: what is missing before the next output was written since."""

    async def follow(self) -> None:
        """Report what the agent writes, until cancelled."""
        loop = asyncio.get_running_loop()
        self._report_start()
        if not self._context.journal.ready_reported:
            self._context.reporter.ready()
            self._context.journal.ready_reported = True
            await self._context.save()
        last_output_at = loop.time()
        while True:
            await self._context.outbox.wait_room()
            now = loop.time()
            if self._context.log_budget.has_room and self._read_chunk(now):
                last_output_at = now
                self._activity.reset()
                await asyncio.sleep(0)
                continue
            self._report_latest_line(now)
            await self._handle_silence(now - last_output_at)
            await asyncio.sleep(_POLL_INTERVAL)

    @property
    def is_at_work(self) -> bool:
        """Whether the agent counts as working, or was just given an input."""
        now = asyncio.get_running_loop().time()
        return self._state == AgentState.WORKING or now - self._input_at < self._context.run.idle_after

    async def interrupt(self) -> InterruptOutcome:
        """Send SIGINT, and wait for silence; end an agent that does not react. Raise ``NotInterrupted``."""
        context = self._context
        if not self.is_at_work:
            return InterruptOutcome.ENDED
        reaction = InterruptReaction(context)
        await send_interrupt(context)
        if not await reaction.wait(min(context.run.idle_after, QUIET_TIME), REACTION_TIMEOUT):
            return await end_agent(context)
        if not has_exited(context):
            await mark_interrupted(context, interrupted=False)
            self._state, self._input_at, self._untold = AgentState.IDLE, -inf, None
            self._report_lines([], [self._guess(AgentState.IDLE, "its silence after an interrupt", INTERRUPTED)])
        return InterruptOutcome.STOPPED

    async def deliver(self, text: str, record_attempt: RecordAttempt) -> None:
        """Write an input to the agent's stdin. Raise ``NotDelivered`` or ``DeliveryUnknown``."""
        await stdin.deliver(self._context, text, record_attempt)
        self._input_at = asyncio.get_running_loop().time()
        self._report([self._entry(LogSource.INPUT, text)])

    async def conclude(self, agent_exit: ExitRecord) -> None:
        """Report the remaining output and the exit."""
        agent_exit = as_interrupted(self._context, agent_exit)
        if agent_exit.why is not ExitReason.NOT_STARTED:
            self._report_start()
        await self._read_rest()
        if self._lines.pending or self._lines.skipped:
            self._report_incomplete_line()
        if self._untold is not None:
            self._report_lines([], self._tell(self._untold, self._status_at))
        if agent_exit.dropped:
            self._context.metrics.runner_output_lost.inc(agent_exit.dropped)
        words = last_words(as_told(output.tail(self._context.folder.output, TAIL_BYTES)))
        state = self._state if self._self_reported else ""
        report_exit(self._context, agent_exit, state, shorten(self._last_line), words)

    async def _read_rest(self) -> None:
        """Read the end of what is left of the output."""
        room = self._context.final_room()
        self._leave_out(MAX_FINAL_BYTES)
        while True:
            if not await room.wait():
                self._leave_out(LAST_BYTES)
            if not self._read_chunk(self._status_at):
                break
            await asyncio.sleep(0)

    def _leave_out(self, kept: int) -> None:
        """Go on with the last ``kept`` bytes of the output if more is left."""
        unread = output.size(self._context.folder.output) - self._offset
        if unread > kept:
            self._lines = output.LineSplitter()
            self._offset += unread - kept
            self._report_gap(unread - kept)

    def _report_start(self) -> None:
        """Log the prompt and report ``working``, unless that was done: no runner may have followed the agent."""
        if not self._is_new:
            return
        self._is_new, prompt = False, self._context.prompt
        self._state = AgentState.WORKING
        entries = [self._entry(LogSource.INPUT, prompt)] if prompt else []
        self._report(entries, self._context.reporter.status_report(AgentState.WORKING, "The agent has started."))

    def _read_chunk(self, now: float) -> int:
        """Read and report one chunk of output, and return the number of bytes that it advanced the offset."""
        chunk = output.read(self._context.folder.output, self._offset, READ_BYTES)
        if chunk.end == self._offset:
            return 0
        if chunk.missing:
            if self._lines.pending:
                self._report_incomplete_line()
            self._offset += chunk.missing
            self._report_gap(chunk.missing)
        self._read_at = self._context.reporter.now()
        advanced = chunk.missing + chunk.end - self._offset
        self._offset = chunk.end
        lines: list[str] = []
        reports: list[Report] = []
        size = self._lines.pending + len(chunk.data)
        for line in self._lines.feed(chunk.data):
            status = parse_status_line(line)
            if status is None:
                lines.append(line)
                continue
            self._self_reported, self._state, self._untold = True, status.state, status
            self._has_changed |= (status.state, status.uri) != (self._told_state, self._told_uri)
        self._last_line = last_with_words(lines, self._last_line)
        if self._self_reported:
            reports = self._due_status(now)
        elif chunk.data:
            reports = self._activity_status(now)
        shown = self._report_lines(lines, reports)
        size = max(size - self._lines.pending, READ_COST)
        self._context.log_budget.spend(0, max(0, size - shown))  # shown or not, it was read
        return advanced

    def _due_status(self, now: float) -> list[Report]:
        """Return a report of what the agent has said of itself last; none if it is reported, or came too soon."""
        status = self._untold
        if status is None:
            return []
        if now - self._status_at < (CHANGE_EVERY if self._has_changed else STATUS_EVERY):
            return []
        return self._tell(status, now)

    def _tell(self, status: StatusLine, now: float) -> list[Report]:
        self._untold, self._status_at, self._has_changed = None, now, False
        self._told_state, self._told_uri = status.state, status.uri
        return [self._context.reporter.status_report(status.state, status.message, status.uri)]

    def _activity_status(self, now: float) -> list[Report]:
        """Return the status report that new output causes; none if one was made less than ``STATUS_EVERY`` ago."""
        if self._state == AgentState.WORKING and now - self._status_at < STATUS_EVERY:
            return []
        self._state, self._status_at = AgentState.WORKING, now
        return [self._guess(AgentState.WORKING, "its output")]

    def _report_latest_line(self, now: float) -> None:
        """Report the latest line or status, now that there is no more output, if it came too soon after another one."""
        if self._self_reported:
            if reports := self._due_status(now):
                self._report_lines([], reports)
            return
        is_told = shorten(self._last_line) == self._reported_line
        if not is_told and self._state == AgentState.WORKING and now - self._status_at >= STATUS_EVERY:
            self._status_at = now
            self._report_lines([], [self._guess(AgentState.WORKING, "its output")])

    async def _handle_silence(self, silence: float) -> None:
        """Look at the agent's processes, and report ``idle`` if none is working, and an incomplete line as an entry.

        The first look comes before ``idle_after`` is over, because CPU use is measured from look to look.
        """
        idle_after = self._context.run.idle_after
        now = asyncio.get_running_loop().time()
        if silence >= idle_after and self._lines.pending:
            self._report_incomplete_line()  # perhaps a prompt that waits for an answer
        if self._self_reported or not self._can_wait or silence < idle_after - LOOK_INTERVAL or now < self._look_at:
            return
        is_working = await self._activity.is_working()
        self._look_at = now + (IDLE_LOOK_INTERVAL if self._state == AgentState.IDLE else LOOK_INTERVAL / 2)
        if is_working is None or silence < idle_after:
            return
        state = AgentState.WORKING if is_working else AgentState.IDLE
        if state != self._state:
            reason = "a process that runs or uses CPU"
            if not is_working:
                reason = f"{idle_after:g} s without output, while no process of it ran or used CPU"
            self._state = state
            self._report_lines([], [self._guess(state, reason)])

    @property
    def _can_wait(self) -> bool:
        """True if the agent can wait for a person: one that takes no inputs works until it ends."""
        return self._context.run.stdin_kind == "pipe"

    def _guess(self, state: AgentState, guessed_from: str, message: str = "") -> Report:
        if not message:
            message = self._reported_line = shorten(self._last_line)
        self._told_state, self._told_uri = state, ""
        return self._context.reporter.status_report(state, message, guessed_from=guessed_from)

    def _report_gap(self, count: int) -> None:
        self._context.metrics.runner_output_lost.inc(count)
        text = f"… ({count} bytes of output were dropped since {self._read_at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ})"
        self._report([self._entry(LogSource.OUTPUT, text)])

    def _report_incomplete_line(self) -> None:
        """Report an incomplete line as if it ended here."""
        line = self._lines.flush()
        self._last_line = last_with_words([line], self._last_line)
        self._report_lines([line], [])

    def _report_lines(self, lines: list[str], reports: list[Report]) -> int:
        """Report lines as log entries, followed by other reports; all of them count against the log's budget.

        Return the size of the entries, in bytes.
        """
        texts = list(output.joined_lines(lines, MAX_CONTENT_BYTES))
        size = sum(len(text.encode(errors="replace")) for text in texts)
        self._context.log_budget.spend(len(texts) + len(reports), size)
        while len(texts) > ENTRIES_PER_REPORT:
            self._report([self._entry(LogSource.OUTPUT, text) for text in texts[:ENTRIES_PER_REPORT]], complete=False)
            texts = texts[ENTRIES_PER_REPORT:]
        self._report([self._entry(LogSource.OUTPUT, text) for text in texts], *reports)
        return size

    def _report(self, entries: list[LogEntry], *reports: Report, complete: bool = True) -> None:
        """Append reports to the outbox with a checkpoint, unless more reports from the same chunk follow."""
        self._context.reporter.log(entries, *reports, checkpoint=self._checkpoint() if complete else None)

    def _entry(self, source: LogSource, text: str) -> LogEntry:
        self._entries += 1
        return self._context.reporter.entry(self._entries - 1, source, text)

    def _checkpoint(self) -> Checkpoint:
        return {
            "build": self._context.reporter.build_number,
            "offset": self._offset - self._lines.pending,
            "skipped": self._lines.skipped,
            "entries": self._entries,
            "state": str(self._state),
            "self_reported": self._self_reported,
            "last": shorten(self._last_line),
            "reported": self._reported_line,
            "untold": None if self._untold is None else astuple(self._untold),
        }
