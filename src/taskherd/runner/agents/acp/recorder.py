"""Report what follows from an agent's lines: one record of the outbox holds it together with the checkpoint after it.

Only when that is saved are the lines submitted that it causes.
"""

from __future__ import annotations

import asyncio
import errno
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import orjson

from taskherd.domain.reports import AgentState
from taskherd.observability.failpoints import Failpoint
from taskherd.runner.agents.context import shorten
from taskherd.runner.agents.status_pace import STATUS_EVERY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from taskherd.domain.reports import Report
    from taskherd.runner.agents.acp.connection import Connection
    from taskherd.runner.agents.acp.conversation import Conversation
    from taskherd.runner.agents.acp.requests import AgentRequests
    from taskherd.runner.agents.acp.usage import UsageMeter
    from taskherd.runner.agents.context import AgentContext

FLUSH_EVERY: Final = 0.5
"""Seconds for which what an agent tells is collected."""
_GUESSED_FROM: Final = "the protocol (ACP), in which {}"
_IN_FLIGHT: Final = _GUESSED_FROM.format("its turn is open")
_ENDED: Final = _GUESSED_FROM.format("its turn has ended")
_ASKS: Final = _GUESSED_FROM.format("it waits for an answer to its request")


class Recorder:
    """The records of one agent, and the state that is reported."""

    def __init__(
        self,
        context: AgentContext,
        connection: Connection,
        conversation: Conversation,
        requests: AgentRequests,
        usage: UsageMeter,
        *,
        earlier: Mapping[str, Any],
        checkpoint: Callable[[], dict[str, Any]],
    ) -> None:
        """``earlier`` is the checkpoint to go on from, ``checkpoint`` returns the follower's part of the next."""
        self._context = context
        self._connection = connection
        self._conversation = conversation
        self._requests = requests
        self._usage = usage
        self._checkpoint = checkpoint
        self.state: str = earlier.get("state", "")
        """The state while no request is open; empty if there is none yet."""
        self._message: str = earlier.get("message", "")
        self._reported = self._current
        self._state_at = self._flushed_at = 0.0
        self._offset: int | None = connection.reader.offset
        """The offset in the last record; None if that is not on disk, so that it is made again."""
        self._gathered: list[Report] | None = None
        """The reports of the record that is put off, None if none is."""
        self._is_due = False
        """Whether that record was asked for."""

    @contextmanager
    def gather(self) -> Iterator[None]:
        """Make one record of all that is committed within, at its end; no other task may run meanwhile.

        A record costs as much as all that is open. Raise ``OSError`` as ``commit`` does.
        """
        self._gathered, self._is_due = [], False
        try:
            yield
        finally:
            reports, self._gathered = self._gathered, None
        if self._is_due or self._conversation.has_many_changes:
            self.commit(*reports)

    def report_state(self, *, in_turn: bool) -> None:
        """Report the state that the protocol shows now, and record what has changed."""
        if in_turn:
            self.state, self._message = AgentState.WORKING, shorten(self._conversation.activity)
        self._report_current()

    def set_state(self, state: AgentState, message: str) -> None:
        """Set the state outside of a turn, report the one that is shown now, and record what has changed."""
        self.state, self._message = state, shorten(message)
        self._report_current()

    @property
    def _current(self) -> tuple[str, str]:
        """The state and its message: an open request is idle with its title, also between two turns."""
        if titles := self._requests.titles:
            return AgentState.IDLE, shorten(titles[0])
        return self.state, self._message

    def _report_current(self) -> None:
        """Report the state unless it is the last one, and record what has changed."""
        state, message = self._current
        if not state or (state, message) == self._reported:
            self.commit()
            return
        self._reported = state, message
        self._state_at = asyncio.get_running_loop().time()
        turn = _IN_FLIGHT if state == AgentState.WORKING else _ENDED
        source = _ASKS if self._requests.titles else turn
        self.commit(self._context.reporter.status_report(AgentState(state), message, guessed_from=source))

    def flush(self, *, in_turn: bool) -> None:
        """Record what has changed, at intervals, and what the agent is doing now."""
        now = asyncio.get_running_loop().time()
        if now - self._flushed_at < FLUSH_EVERY:
            return
        is_new = in_turn and not self._requests.titles and shorten(self._conversation.activity) != self._message
        if is_new and now - self._state_at >= STATUS_EVERY:
            self.report_state(in_turn=in_turn)
        elif self._has_changes:
            self.commit()

    @property
    def _has_changes(self) -> bool:
        """Whether there is something to record, or to record or submit again because an attempt has failed."""
        is_read = self._connection.reader.offset != self._offset
        return is_read or self._conversation.has_changes or self._connection.has_recorded

    def commit(self, *reports: Report) -> None:
        """Report entries and ``reports`` with a checkpoint after them, then submit the lines that were recorded.

        Within ``gather`` that is put off. Lines whose record is not on disk are not submitted, and output is not
        deleted: the next runner reads it again. Raise ``OSError`` if lines cannot be submitted.
        """
        if self._gathered is not None:
            self._gathered += reports
            self._is_due = True
            return
        reporter = self._context.reporter
        entries = self._context.log_all_but_last(self._conversation.take_entries(reporter))
        checkpoint = {
            "build": reporter.build_number,
            "state": str(self.state),
            "message": self._message,
            "connection": self._connection.checkpoint(),
            "conversation": self._conversation.checkpoint(),
            "requests": self._requests.checkpoint(),
            **self._checkpoint(),
        }
        frozen = orjson.loads(orjson.dumps(checkpoint))  # what it refers to changes before the next one
        requests = self._requests.take_reports()
        others = [*reports, *requests, *self._usage.take_reports(reporter)]
        self._context.log_budget.spend(len(others), 0)
        reporter.log(entries, *others, checkpoint=frozen)
        if requests:
            self._context.failpoint(Failpoint.REQUEST_RECORD)
        is_saved = self._context.outbox.is_saved
        self._offset = self._connection.reader.offset if is_saved else None
        self._flushed_at = asyncio.get_running_loop().time()
        if self._connection.has_recorded:
            if not is_saved:
                raise OSError(errno.ENOSPC, "what the agent is to be given cannot be recorded")
            self._context.failpoint(Failpoint.LINE_RECORD)
            self._connection.submit()
            self._context.failpoint(Failpoint.LINE_SUBMIT)
        if is_saved:  # else the next runner reads it again
            self._connection.reader.discard_read()
