"""Handle what an agent writes: each message changes the parts, and what follows is recorded with its group."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import structlog
from acp import schema
from pydantic import ValidationError

from taskherd.domain.reports import AgentState
from taskherd.runner.agents.acp.client import ClientMethods
from taskherd.runner.agents.acp.connection import (
    AUTH_REQUIRED,
    INTERNAL_ERROR,
    AgentCall,
    AgentResponse,
    BadLine,
    Notification,
)
from taskherd.runner.agents.acp.sizes import has_few_parts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from taskherd.runner.agents.acp.connection import Incoming
    from taskherd.runner.agents.acp.parts import Parts

log = structlog.get_logger(__name__)

MAX_BAD_LINES: Final = 100
"""Number of lines in a row that are no messages of the protocol, after which the agent is ended."""


UNEXPECTED: Final = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""The errors that one message may cause, whose next reading would cause them too."""


class MessageHandler:
    """The handler of one agent's messages."""

    def __init__(self, parts: Parts, checkpoint: Mapping[str, Any], fail: Callable[[str], None]) -> None:
        """``fail`` gives the agent up, for a reason."""
        self._parts = parts
        self._fail = fail
        self._client = ClientMethods(parts.context, parts.turn, parts.requests, parts.terminals, parts.connection)
        self._bad_lines: int = checkpoint.get("bad_lines", 0)
        self._bad_line_logged: bool = checkpoint.get("bad_line_logged", False)

    def checkpoint(self) -> dict[str, Any]:
        """Return what the next runner needs."""
        return {"bad_lines": self._bad_lines, "bad_line_logged": self._bad_line_logged}

    def handle(self, message: Incoming) -> None:
        """Handle a message; one that causes an unexpected error is a bad line, or its next reading would fail too.

        What it asks is refused, and what it answers has failed: nothing else would end that.
        """
        try:
            self._handle(message)
        except UNEXPECTED:
            log.exception("message of an agent failed", task_id=str(self._parts.context.journal.task_id))
            self._handle_bad_line(BadLine("it could not be handled", str(message)[:200]))
            if isinstance(message, AgentResponse):
                self._fail_call(message)

    def _handle(self, message: Incoming) -> None:
        """Handle one message; the record of its group holds what follows from it, and the lines that it causes."""
        if not isinstance(message, BadLine):
            self._bad_lines = 0
        match message:
            case AgentCall():
                self._handle_call(message)
            case Notification():
                self._handle_notification(message)
            case AgentResponse():
                self._handle_response(message)
            case BadLine():
                self._handle_bad_line(message)

    def _handle_call(self, call: AgentCall) -> None:
        if self._parts.requests.has(call.id):
            self._handle_bad_line(BadLine("its id is that of an open request", str(call.id)))
            return
        try:
            if not self._carry_out(call):
                self._count_bad()
        finally:
            self._parts.report_state()

    def _carry_out(self, call: AgentCall) -> bool:
        """Carry out a request of the agent; if that fails before it is answered or open, it is refused."""
        connection = self._parts.connection
        first_line = connection.next_line
        try:
            return self._client.handle(call, self._parts.opening.session)
        except UNEXPECTED:
            if not self._parts.requests.has(call.id) and not connection.has_answered(call.id, first_line):
                connection.refuse(call.id, INTERNAL_ERROR, "taskherd could not handle this request")
            raise

    def _handle_notification(self, message: Notification) -> None:
        parts = self._parts
        if not has_few_parts(message.params):
            self._count_bad()
        elif message.method == "$/cancel_request":
            parts.requests.cancel_call(message.params.get("requestId"))
            parts.report_state()
        elif message.method == "session/update" and parts.usage.handle(
            message.params, parts.opening.session, in_turn=parts.turn.is_open
        ):
            return  # reported with the next record
        elif message.method == "session/update" and parts.opening.session is not None:
            try:
                notification = schema.SessionNotification.model_validate(message.params)
            except ValidationError:
                self._count_bad()  # or it is of a newer version
                return
            if notification.session_id == parts.opening.session:
                parts.conversation.apply(notification.update)

    def _handle_response(self, response: AgentResponse) -> None:
        parts = self._parts
        if response.method == "session/prompt":
            if response.number == parts.turn.number:
                self._end_turn(response)
            return
        parts.opening.handle(response)
        if parts.opening.session is not None:
            parts.usage.open(parts.opening.session)
        parts.recorder.commit()
        if parts.opening.failure is not None:
            self._fail(parts.opening.failure)

    def _fail_call(self, response: AgentResponse) -> None:
        """End a call of ours as failed, whose response could not be handled; if that fails, too, give the agent up."""
        if response.method != "session/prompt" and self._parts.opening.session is not None:
            return
        error = {"code": INTERNAL_ERROR, "message": "taskherd could not handle the answer"}
        try:
            self._handle_response(response._replace(result=None, error=error))
        except UNEXPECTED:
            log.exception("call of an agent could not be ended", task_id=str(self._parts.context.journal.task_id))
            self._fail("An answer of the agent could not be handled.")

    def _end_turn(self, response: AgentResponse) -> None:
        parts = self._parts
        parts.requests.cancel_all()
        parts.conversation.end_turn()
        parts.usage.end_turn(response.result)
        state, message = parts.turn.state_after(
            response.result,
            response.error,
            completes=parts.context.run.complete_after_turn,
            last_words=parts.conversation.last_words,
            sign_in=parts.opening.sign_in,
        )
        if state is AgentState.FAILED and (response.error or {}).get("code") == AUTH_REQUIRED:
            parts.conversation.add_notice(message)  # the whole of it; a state's message is cut
        parts.turn.end()
        parts.terminals.end_turn()
        parts.recorder.set_state(state, message)

    def _count_bad(self) -> None:
        """Count a message that shows nothing; in full against the log's budget, or it would cost an agent nothing."""
        context = self._parts.context
        context.metrics.runner_agent_events_bad.inc()
        context.log_budget.spend(0, self._parts.connection.reader.line_bytes)

    def _handle_bad_line(self, line: BadLine) -> None:
        """Count a line that is no message of the protocol, and log the first; many in a row end the agent."""
        self._parts.context.metrics.runner_agent_events_bad.inc()
        self._bad_lines += 1
        if not self._bad_line_logged:
            self._bad_line_logged = True
            self._parts.conversation.add_notice(
                f"a line of the agent is ignored, because {line.reason}: {line.excerpt} (others are only counted)"
            )
        if self._bad_lines >= MAX_BAD_LINES:
            self._fail(f"The agent does not speak the protocol: {MAX_BAD_LINES} lines in a row are no messages of it.")
