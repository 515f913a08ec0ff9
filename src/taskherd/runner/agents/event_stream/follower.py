"""The follower of an agent through its own stream of events, and of Claude Code through messages on its stdin, too.

Rules:

- The state is what the stream says: ``working`` from the beginning of a turn to its end. No timer takes part.
- What follows from a group of lines is one record of the outbox, with the offset after the last line, so the next
  runner continues at a line boundary and tells nothing twice.
- An input is one message on stdin, which the shim acknowledges once it has written all of it.
"""

from __future__ import annotations

import asyncio
import errno
import time
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from math import inf
from typing import TYPE_CHECKING, Any, ClassVar, Final

import orjson

from taskherd.domain.reports import AgentState, Health, InterruptOutcome, LogKind, LogSource
from taskherd.messages.limits import MAX_CONTENT_BYTES
from taskherd.runner.agents import output
from taskherd.runner.agents.acp.lines import LineReader, LineWriter
from taskherd.runner.agents.context import (
    NOT_FOLLOWED,
    NOT_RUNNING,
    TAIL_BYTES,
    DeliveryUnknown,
    FollowerWithoutRequests,
    NotDelivered,
    report_exit,
    shorten,
)
from taskherd.runner.agents.event_stream.claude import ClaudeStream
from taskherd.runner.agents.event_stream.codex import CodexStream
from taskherd.runner.agents.event_stream.stream import MAX_TEXT
from taskherd.runner.agents.final_room import LAST_BYTES
from taskherd.runner.agents.interrupting import (
    REACTION_TIMEOUT,
    as_interrupted,
    end_agent,
    has_exited,
    send_interrupt,
    settle_interrupt,
)
from taskherd.runner.agents.log_budget import LINE_COST, LOG_SHARE, READ_COST
from taskherd.runner.agents.status_pace import CHANGE_EVERY, STATUS_EVERY
from taskherd.runner.agents.words import last_with_words, last_words

if TYPE_CHECKING:
    from collections.abc import Mapping

    from taskherd.directory_file.run import OutputKind
    from taskherd.domain.reports import Report
    from taskherd.runner.agents.context import AgentContext, RecordAttempt
    from taskherd.runner.workspaces.processes import ExitRecord

POLL_INTERVAL: Final = 0.1
"""Seconds between two looks at what the agent wrote."""
GROUP_TIME: Final = 0.05
"""Seconds after which a group ends with the line that is just read: other tasks run between two groups."""
MAX_LINES: Final = 8_192
"""Maximum number of lines in a group."""
MAX_SHOWN: Final = 256
"""Number of additions and changes to the log with which a group ends, too."""
MAX_FINAL_PLAIN: Final = 1024 * 1024
"""Maximum number of bytes of remaining lines that are no events that are logged after the exit; events all count."""
MIN_PLAIN: Final = 1024
"""Number of bytes that an entry of such lines counts for at least."""
RETRY_EVERY: Final = 0.5
"""Seconds after which a record is made again that could not be written to disk."""
WRITE_TIMEOUT: Final = 60.0
"""Seconds within which the agent must take an input from its stdin."""
_IN_TURN: Final = "The agent ended with exit status 0 in the middle of its turn."
_MALFORMED: Final = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


STREAMS: Final[Mapping[OutputKind, type[ClaudeStream | CodexStream]]] = {
    "claude-stream-json": ClaudeStream,
    "codex-json": CodexStream,
}
"""The streams of events, by the ``output`` of the template."""


class EventStreamFollower(FollowerWithoutRequests):
    """The follower of an agent that writes a stream of events."""

    needs_port: ClassVar[bool] = False
    initial_health: ClassVar[Health] = Health.HEALTHY
    start_outcome: str | None = ""

    def __init__(self, context: AgentContext) -> None:
        self._context = context
        checkpoint: dict[str, Any] = context.checkpoint
        self._is_new = not checkpoint
        self._reader = LineReader(
            context.folder, checkpoint.get("offset", 0), skipping=checkpoint.get("skipping", False)
        )
        self._writer = LineWriter(context.folder)
        earlier = {} if checkpoint else context.outbox.checkpoint.get("stream", {})
        self._stream = STREAMS[context.run.output](checkpoint.get("stream", {}), earlier)
        self._line: int | None = checkpoint.get("line")
        """The line of the input that the agent may not have been given yet."""
        self._next_line: int = checkpoint.get("next_line", 0)
        self._was_given: bool = checkpoint.get("was_given", self._next_line > 0)  # absent: of an earlier release
        """Whether the agent was given a message on its stdin, of which the prompt is the first."""
        self._reported: tuple[str, str] = tuple(checkpoint.get("reported", ("", "")))
        self._status_at = 0.0
        self._is_saved, self._recorded_at = self._is_new, 0.0
        """Whether the last record is on disk and the output before it deleted, and when that record was made."""
        self._plain_room = inf
        """Number of bytes of plain lines that are still logged."""
        self._dropped = 0
        """Number of bytes of plain lines that were not."""
        self._delivery = asyncio.Lock()
        self._awaited: int | None = None
        """The line whose writing a caller awaits."""
        self._found: tuple[bool | None, bool] = None, False
        """What became of it by the end of ``follow``: whether it was written, None if not yet, or is taken back."""
        self._is_detached = False
        """True once ``follow`` has ended: another follower may go on from the checkpoint."""
        self._is_concluded = False
        """True once it is being reported how the agent ended."""
        self._has_begun = asyncio.Event()
        """Set once the agent was given its prompt, if there is one for it."""

    async def follow(self) -> None:
        """Report what the agent does, until cancelled."""
        try:
            await self._follow()
        finally:
            self._detach()

    async def _follow(self) -> None:
        context, loop = self._context, asyncio.get_running_loop()
        self._recover()
        self._report_start()
        if not context.journal.ready_reported:
            if context.prompt and not self._stream.state:  # before the task is active, or it would be sent inputs
                self._stream.state = AgentState.WORKING
                self._commit()
            context.reporter.ready()
            context.journal.ready_reported = True
            await context.save()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._give_prompt())
            while True:
                await context.outbox.wait_room()
                has_read = context.log_budget.has_room and self._read()
                if not has_read and (self._is_due(loop.time()) or self._is_to_repeat(loop.time())):
                    self._commit()
                if self._note_session():
                    await context.save()
                await asyncio.sleep(0 if has_read else POLL_INTERVAL)

    async def deliver(self, text: str, record_attempt: RecordAttempt) -> None:
        """Give the agent a message. Raise ``NotDelivered``, ``DeliveryUnknown``, or ``OSError``: it is not given."""
        if self._context.run.stdin_kind != "pipe":
            kind = self._context.run.stdin_kind
            raise NotDelivered(f"The agent takes no inputs: its template has `stdin: {kind}`.")
        async with self._delivery:
            await record_attempt()
            if self._is_over:
                raise NotDelivered(NOT_RUNNING)
            self._line, self._next_line = self._next_line, self._next_line + 1
            line = self._line
            self._stream.begin_turn(text)
            self._commit()
            try:
                self._submit(line, text)
            except OSError:  # the disk is full, for example
                self._line, self._stream.in_turn, self._stream.state = None, False, AgentState.IDLE
                self._commit()
                raise
            await self._wait_written(line)

    @property
    def is_at_work(self) -> bool:
        """Whether a turn has begun and not ended, or the prompt is still to be given."""
        return self._stream.in_turn or not self._has_begun.is_set()

    async def interrupt(self) -> InterruptOutcome:
        """Send SIGINT, which ends the agent; a resume continues its session. Raise ``NotInterrupted``.

        The turn of a prompt that is just given counts, too.
        """
        context = self._context
        with suppress(TimeoutError):
            await asyncio.wait_for(self._has_begun.wait(), REACTION_TIMEOUT)
        if not self.is_at_work:
            return InterruptOutcome.ENDED
        await send_interrupt(context)
        if not await self._turn_ends():
            return await end_agent(context)
        await settle_interrupt(context)
        return InterruptOutcome.STOPPED

    async def _turn_ends(self) -> bool:
        """Wait until the turn or the agent has ended; return False if neither does in time."""
        try:
            async with asyncio.timeout(REACTION_TIMEOUT):
                while self._stream.in_turn and not has_exited(self._context):  # noqa: ASYNC110 - files send no notification
                    await asyncio.sleep(POLL_INTERVAL)
        except TimeoutError:
            return False
        return True

    async def conclude(self, agent_exit: ExitRecord) -> None:
        """Report the agent's last output, and how it ended."""
        self._is_concluded = True
        self._has_begun.set()
        if self._was_given or (self._line is not None and self._writer.endings().get(self._line, False)):
            self._context.conclude_prompt()
        agent_exit = as_interrupted(self._context, agent_exit)
        self._report_start()
        await self._read_rest()
        self._note_session()  # saved together with the exit
        self._stream.close_calls()
        words = last_words(output.tail(self._context.folder.log, TAIL_BYTES))
        if words and agent_exit.reason not in {"stopped", "interrupted"} and not agent_exit.succeeded:
            self._stream.add_last_output(words)
        if self._stream.in_turn and agent_exit.succeeded:
            agent_exit = replace(agent_exit, ended_because=_IN_TURN)
        state = self._stream.state
        self._record(*([] if self._status[0] in {"", self._reported[0]} else [self._take_status()]))
        self._stream.in_turn = False  # not on disk: a next runner that repeats this must judge the exit alike
        last = shorten(self._stream.last_words or words.rpartition("\n")[2])
        report_exit(self._context, agent_exit, state, last, words)

    async def _read_rest(self) -> None:
        """Read what is left of the agent's output; of plain lines the first."""
        self._plain_room, room = MAX_FINAL_PLAIN, self._context.final_room()
        while self._reader.has_more:
            if not await room.wait() and (size := self._reader.leave_out(LAST_BYTES)):
                text = f"taskherd: {self._context.note_left_out(size)}"
                self._stream.add(LogSource.OUTPUT, text, LogKind.NOTICE)
            if not self._read():
                break
            await asyncio.sleep(0)
        if self._dropped:
            self._context.metrics.runner_output_lost.inc(self._dropped)
            text = f"taskherd: {self._dropped} bytes of output that are no events were left out"
            self._stream.add(LogSource.OUTPUT, text, LogKind.NOTICE)

    def _recover(self) -> None:
        """Deal with an input that an earlier runner recorded: if it did not submit it, it began no turn."""
        if self._line is not None:
            is_given = self._line in self._writer.known() and self._writer.endings().get(self._line, True)
            self._was_given |= is_given
            if not is_given:
                self._stream.in_turn = False
                if self._context.unsettled_prompt is None:
                    self._stream.state = AgentState.IDLE
                else:  # it is given again
                    self._stream.take_back_turn()
            ended, self._line = self._line, None
            self._commit()
            if self._context.outbox.is_saved:
                self._writer.forget(ended)
        if self._context.run.stdin_kind == "pipe":
            self._context.recover_prompt(is_given=self._was_given)

    def _report_start(self) -> None:
        """Log the prompt of an agent that was given it at its start, and is working from then on."""
        if self._is_new and self._context.run.stdin_kind != "pipe":
            self._is_new = False
            if self._context.prompt:
                self._stream.begin_turn(self._context.prompt)
            self._stream.state = AgentState.WORKING
            self._commit()

    async def _give_prompt(self) -> None:
        """Give the agent the prompt as its first message."""
        context = self._context
        if context.run.stdin_kind != "pipe":
            self._has_begun.set()
            return
        error = await context.post_prompt()
        self._has_begun.set()
        if error:
            self._stream.add(LogSource.OUTPUT, f"taskherd: prompt delivery failed: {error}", LogKind.NOTICE)
        if not self._stream.in_turn and self._stream.state in {"", AgentState.WORKING}:
            self._stream.state = AgentState.IDLE
        self._commit()

    def _note_session(self) -> bool:
        """Put the session into the journal, to be continued, and return whether it is another one."""
        journal, session = self._context.journal, self._stream.session
        if session is None or session == journal.stream_session:
            return False
        journal.stream_session = session
        return True

    def _read(self) -> bool:
        """Read and report a group of lines, or a part of one, and return whether there was any output."""
        stream, before, ends_at = self._stream, self._reader.position, time.monotonic() + GROUP_TIME
        shown, spent, plain = stream.shown, 0, list[str]()
        for line in islice(self._reader.read(), MAX_LINES):
            if line is None:
                stream.add(LogSource.OUTPUT, "taskherd: a line of the agent is too long", LogKind.NOTICE)
            elif line.strip():
                spent += self._apply(line, plain)
            spent += LINE_COST
            if stream.shown - shown >= MAX_SHOWN or time.monotonic() >= ends_at:
                break
        self._add_plain(plain)
        size = self._reader.position - before
        if not size:
            return False
        self._context.log_budget.spend(0, max(spent + size // LOG_SHARE, READ_COST))
        if self._is_due(asyncio.get_running_loop().time()):
            self._commit()
        else:
            self._record()
        return True

    def _apply(self, line: bytes, plain: list[str]) -> int:
        """Apply an event, after the ``plain`` lines before it; what is none, such as an error in words, is one more.

        Return the extra cost of an event that shows nothing, which an agent could otherwise print almost for free.
        """
        try:
            event = orjson.loads(line)
        except orjson.JSONDecodeError:
            plain.append(output.rendered_line(line.decode(errors="replace")))
            return 0
        self._add_plain(plain)
        shown = self._stream.shown
        try:
            self._stream.apply(event)
        except _MALFORMED:
            self._context.metrics.runner_agent_events_bad.inc()  # or of a newer version
        return len(line) if self._stream.shown == shown else 0

    def _add_plain(self, lines: list[str]) -> None:
        """Add lines that are no events, and came together, to the log as far as there is room; clear the list."""
        if lines:
            self._stream.last_words = last_with_words(lines, self._stream.last_words)
        for text in output.joined_lines(lines, MAX_TEXT):
            size = len(text.encode(errors="replace"))
            self._plain_room -= max(min(size, MAX_CONTENT_BYTES), MIN_PLAIN)  # a longer entry is shortened
            if self._plain_room >= 0:
                self._stream.add(LogSource.OUTPUT, text)
            else:
                self._dropped += size
        lines.clear()

    @property
    def _status(self) -> tuple[str, str]:
        """The state and its message; an agent that takes no inputs works until it ends."""
        stream, state = self._stream, self._stream.state
        message = stream.activity if stream.in_turn else stream.last_words
        if state == AgentState.IDLE and self._context.run.stdin_kind != "pipe":
            state = AgentState.WORKING
        return state, shorten(message)

    def _is_due(self, now: float) -> bool:
        """Whether to report the status that follows from what the agent wrote, in seconds of the event loop."""
        status = self._status
        every = STATUS_EVERY if status[0] == self._reported[0] else CHANGE_EVERY
        return bool(status[0]) and status != self._reported and now - self._status_at >= every

    def _is_to_repeat(self, now: float) -> bool:
        """Whether to make the last record again: until it is on disk, what was read keeps an agent from writing on."""
        return not self._is_saved and now - self._recorded_at >= RETRY_EVERY

    def _commit(self) -> None:
        """Record what has changed, and the state if it is another one or due."""
        now, status = asyncio.get_running_loop().time(), self._status
        is_new = bool(status[0]) and status[0] != self._reported[0]
        if not is_new and not self._is_due(now):
            self._record()
            return
        self._status_at = now
        self._record(self._take_status())

    def _take_status(self) -> Report:
        """Return a report of the state and its message, which counts as reported from now on."""
        self._reported = state, message = self._status
        return self._context.reporter.status_report(AgentState(state), message, guessed_from=self._stream.guessed_from)

    def _record(self, *reports: Report) -> None:
        reporter = self._context.reporter
        others = [*reports, *self._stream.take_usage(reporter)]
        self._context.log_budget.spend(len(others), 0)
        entries = self._context.log_all_but_last(self._stream.take_entries(reporter))
        checkpoint = {
            "build": reporter.build_number,
            "state": str(self._stream.state),
            "offset": self._reader.offset,
            "skipping": self._reader.skipping,
            "stream": self._stream.checkpoint(),
            "line": self._line,
            "next_line": self._next_line,
            "was_given": self._was_given,
            "reported": self._reported,
        }
        frozen = orjson.loads(orjson.dumps(checkpoint))  # what it refers to changes before the next one
        reporter.log(entries, *others, checkpoint=frozen)
        self._is_saved, self._recorded_at = self._context.outbox.is_saved, asyncio.get_running_loop().time()
        if self._is_saved:  # else the next runner reads it again
            self._reader.discard_read()

    def _submit(self, line: int, text: str) -> None:
        """Hand an input to the shim. Raise ``OSError`` if it, or before that its record, cannot be written to disk."""
        if not self._context.outbox.is_saved:  # or the next runner would use the number of the line again
            raise OSError(errno.ENOSPC, "what the agent is to be given cannot be recorded")
        message = {"type": "user", "message": {"role": "user", "content": text}}
        self._writer.submit(line, orjson.dumps(message))

    def _detach(self) -> None:
        """Find out what became of an input before another follower does; what can be taken back is."""
        self._is_detached = True
        if self._awaited is not None:
            was_written = self._ending_of(self._awaited)
            self._found = was_written, was_written is None and self._writer.take_back(self._awaited)
            if was_written is False or self._found[1]:
                self._line, self._stream.in_turn, self._stream.state = None, False, AgentState.IDLE

    async def _wait_written(self, line: int) -> None:
        """Wait until the agent was given an input. Raise ``NotDelivered`` or ``DeliveryUnknown`` if it was not."""
        self._awaited = line
        try:
            words, was_written, is_back = await self._outcome_of(line)
        finally:
            self._awaited = None
        if was_written is None and not is_back:
            raise DeliveryUnknown(f"{words} It may have received a part of the input.")
        if not self._is_detached:
            self._line = None
            if was_written:
                self._was_given = True
            else:
                self._stream.in_turn, self._stream.state = False, AgentState.IDLE
            self._commit()
            if self._context.outbox.is_saved:  # else the next runner looks again
                self._writer.forget(line)
        if not was_written:
            raise NotDelivered(words)

    async def _outcome_of(self, line: int) -> tuple[str, bool | None, bool]:
        """Return why an input was not written in time, whether it was, None if that is not known, or is taken back."""
        words, was_written = NOT_RUNNING, None
        try:
            async with asyncio.timeout(WRITE_TIMEOUT):
                while (was_written := self._ending_of(line)) is None and not self._is_over:  # noqa: ASYNC110 - files send no notification
                    await asyncio.sleep(POLL_INTERVAL)
        except TimeoutError:
            words = f"The agent did not read the input from its stdin within {WRITE_TIMEOUT:g} s."
        if self._is_detached:
            was_written, is_back = self._found
            words = NOT_FOLLOWED if was_written is None and not self._has_exited else NOT_RUNNING
            return words, was_written, is_back
        return words, was_written, was_written is None and self._writer.take_back(line)

    def _ending_of(self, line: int) -> bool | None:
        """Return whether the agent was given a line; None if that is not known yet, or cannot be found out now."""
        with suppress(OSError):
            return self._writer.endings().get(line)
        return None

    @property
    def _has_exited(self) -> bool:
        return self._is_concluded or self._context.folder.exit.exists()

    @property
    def _is_over(self) -> bool:
        """Whether the agent is not given anything any more by this follower."""
        return self._is_detached or self._has_exited
