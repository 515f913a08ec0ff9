"""The follower of an agent that speaks the Agent Client Protocol (ACP) over stdin and stdout.

Rules:

- The state is what the protocol says: ``working`` while a prompt is in flight, ``idle`` while a request to a person is
  open, and after the response what that says (``turns``). No screen and no timer takes part.
- What follows from a line is recorded, with the reports, in one record of the outbox; only then are the lines submitted
  that it causes. The next runner continues at a line boundary, tells nothing twice, and knows all that is open.
- Every request of ours has a deadline. What does not end is cancelled, interrupted (SIGINT), stopped (SIGTERM) and
  killed; how it ended is told by our own record.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, TypeAlias

from acp import schema
from pydantic import ValidationError

from taskherd.domain.reports import AgentState, Health
from taskherd.runner.agents import output
from taskherd.runner.agents.acp import handshake, turns
from taskherd.runner.agents.acp.client import ClientMethods
from taskherd.runner.agents.acp.connection import (
    AUTH_REQUIRED,
    INTERNAL_ERROR,
    AgentCall,
    AgentResponse,
    BadLine,
    Connection,
    Notification,
)
from taskherd.runner.agents.acp.conversation import Conversation
from taskherd.runner.agents.acp.requests import OpenRequests
from taskherd.runner.agents.context import (
    NOT_RUNNING,
    TAIL_BYTES,
    DeliveryUnknown,
    NotDelivered,
    report_exit,
    shorten,
)
from taskherd.runner.agents.words import last_words

if TYPE_CHECKING:
    from uuid import UUID

    from taskherd.domain.reports import Report
    from taskherd.runner.agents.acp.connection import Incoming, RpcId
    from taskherd.runner.agents.context import AgentContext, RecordAttempt
    from taskherd.runner.outbox import Checkpoint
    from taskherd.runner.workspaces.processes import ExitRecord

InterruptOutcome: TypeAlias = Literal["stopped", "ended", "failed"]
"""What an interrupt did: it stopped a turn, or none ran any more, or the agent's processes could not be ended."""

POLL_INTERVAL: Final = 0.1
"""Seconds between two looks at what the agent wrote and at what is due."""
FLUSH_EVERY: Final = 0.5
"""Seconds for which what an agent tells is collected."""
STATUS_EVERY: Final = 2.0
"""Minimum number of seconds between two statuses that differ only in their message."""
ENTRIES_PER_REPORT: Final = 4
"""Maximum number of entries in one report, so that it fits a message."""
WRITE_TIMEOUT: Final = 60.0
"""Seconds within which the agent must take a line from its stdin."""
READY_TIMEOUT: Final = 300.0
"""Seconds for which an input waits until no turn is in flight."""
CANCEL_TIMEOUT: Final = 10.0
"""Seconds within which a cancelled turn must end; then the agent is interrupted with SIGINT."""
INTERRUPT_TIMEOUT: Final = 5.0
"""Seconds within which the turn must end after SIGINT; then the agent is stopped with SIGTERM and SIGKILL."""
END_TIMEOUT: Final = 45.0
"""Seconds after the template's ``grace`` within which an agent must have ended that is stopped and killed."""
MAX_BAD_LINES: Final = 100
"""Number of lines in a row that are no messages of the protocol, after which the agent is ended."""
_GUESSED_FROM: Final = "the protocol (ACP), in which {}"
_IN_FLIGHT: Final = _GUESSED_FROM.format("its turn is open")
_ENDED: Final = _GUESSED_FROM.format("its turn has ended")
_ASKS: Final = _GUESSED_FROM.format("it waits for an answer to its request")


class AcpFollower:
    """The follower of an agent that speaks ACP."""

    needs_port: ClassVar[bool] = False
    initial_health: ClassVar[Health] = Health.HEALTHY

    def __init__(self, context: AgentContext) -> None:
        self._context = context
        checkpoint: dict[str, Any] = context.checkpoint
        self._connection = Connection(context.folder, checkpoint.get("connection", {}))
        self._conversation = Conversation(checkpoint.get("conversation", {}))
        self._requests = OpenRequests(
            checkpoint.get("requests", {}),
            respond=self,
            conversation=self._conversation,
            approvals=context.run.approvals,
            people=context.people,
            now=context.reporter.now,
        )
        self._client = ClientMethods(context, self._requests, self)
        self._state: str = checkpoint.get("state", "")
        self._sign_in: str = checkpoint.get("sign_in", "")
        """What to do if the agent wants its user to sign in."""
        self._session: str | None = checkpoint.get("session")
        self._turn: int | None = checkpoint.get("turn")
        """The id of the prompt in flight."""
        self._cancelled: bool = checkpoint.get("cancelled", False)
        self._bad_lines: int = checkpoint.get("bad_lines", 0)
        self._bad_line_logged: bool = checkpoint.get("bad_line_logged", False)
        self._status = ""
        self._status_at = self._flushed_at = 0.0
        self._committed = self._connection.reader.offset
        self._failure: str | None = None
        self._is_ending = False
        self._changed = asyncio.Condition()
        self._written: dict[int, bool] = {}
        self._delivery = asyncio.Lock()
        self._exited = asyncio.Event()

    @property
    def start_outcome(self) -> str | None:
        """Why the agent could not be started, "" once its session is open, None as long as that is not known."""
        if self._failure is not None:
            return self._failure
        return "" if self._session is not None else None

    async def follow(self) -> None:
        """Report what the agent does, until cancelled."""
        self._recover()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._read())
            group.create_task(self._watch())
            group.create_task(self._begin())

    async def deliver(self, text: str, record_attempt: RecordAttempt) -> None:
        """Give the agent a prompt once no turn is in flight. Raise ``NotDelivered`` or ``DeliveryUnknown``."""
        async with self._delivery:
            try:
                async with asyncio.timeout(READY_TIMEOUT):
                    await self._until(lambda: self._session is not None and self._turn is None)
            except TimeoutError:
                raise NotDelivered(f"The agent did not end its turn within {READY_TIMEOUT:g} s.") from None
            await record_attempt()
            turn = self._send_prompt(text)
            await self._wait_written(turn)

    async def interrupt(self) -> InterruptOutcome:
        """End the turn in flight, in the end by ending the agent. Return when that is done.

        What the agent claims about it does not count.
        """
        if self._turn is None:
            return "ended"
        self._cancel_turn()
        if await self._turn_ends(CANCEL_TIMEOUT):
            return "stopped"
        self._context.journal.interrupted = True
        await self._context.save()
        self._context.interrupt_agent()
        if await self._turn_ends(INTERRUPT_TIMEOUT) and not self._has_exited:
            self._context.journal.interrupted = False
            await self._context.save()
            return "stopped"
        self._context.stop_agent()
        ended = await self._turn_ends(self._context.run.grace + END_TIMEOUT)
        return "stopped" if ended else "failed"

    async def answer_request(self, request_id: UUID, option_id: str | None, text: str | None = None) -> None:
        """Give the agent a person's answer. Return once it was written; raise ``RequestClosed`` if that cannot be."""
        line = self._requests.answer(request_id, option_id, text)
        self._report_state()
        await self._until(lambda: line in self._written)

    def answer(self, request: RpcId, result: dict[str, Any] | None) -> int:
        """Record the result of a request of the agent, and return its line."""
        return self._connection.answer(request, result, self._in(WRITE_TIMEOUT))

    def refuse(self, request: RpcId, code: int, message: str) -> None:
        """Record an error as the answer to a request of the agent."""
        self._connection.refuse(request, code, message, self._in(WRITE_TIMEOUT))

    def conclude(self, agent_exit: ExitRecord) -> None:
        """Report what the agent told last, and how it ended."""
        while self._connection.reader.has_more:
            before = self._connection.reader.offset
            for message in self._connection.receive():
                self._handle(message)
            if self._connection.reader.offset == before:
                break
        turn, self._turn = self._turn, None
        self._requests.withdraw_all()
        self._conversation.end_turn()
        words = last_words(output.tail(self._context.folder.log, TAIL_BYTES))
        agent_exit = self._judge(agent_exit, in_turn=turn is not None)
        if words and agent_exit.reason not in {"stopped", "interrupted"} and not agent_exit.succeeded:
            self._conversation.add_notice(f"the agent's last output:\n{words}")
        self._commit()
        self._failure = self._failure or f"{agent_exit.describe()} {words}".strip()
        last = shorten(self._conversation.last_words or words.rpartition("\n")[2])
        report_exit(self._context, agent_exit, self._state, last, words)
        self._exited.set()

    def _judge(self, agent_exit: ExitRecord, *, in_turn: bool) -> ExitRecord:
        """Return how the agent ended, with what only this side knows."""
        journal = self._context.journal
        if self._session is None:
            return replace(agent_exit, reason="not started", detail=self._failure or agent_exit.describe())
        if journal.interrupted:
            return replace(agent_exit, reason="interrupted")
        if journal.ended_because is not None:
            return replace(agent_exit, reason="exited", ended_because=journal.ended_because)
        if in_turn and agent_exit.succeeded:
            return replace(agent_exit, ended_because="The agent ended with exit status 0 in the middle of its turn.")
        return agent_exit

    def _recover(self) -> None:
        """Deal with what an earlier runner recorded and did not submit."""
        for line, lost in self._connection.lost_lines().items():
            request = lost.get("answers")
            if request is not None and not self._requests.answer_again(line):
                self.refuse(request, INTERNAL_ERROR, "taskherd was restarted while it handled this request")
        if self._turn is not None and self._turn not in self._connection.calls:
            self._turn = None
            self._set_state(AgentState.IDLE, "")
        self._commit()

    async def _read(self) -> None:
        """Handle what the agent writes."""
        while True:
            await self._context.outbox.wait_room()
            before = self._connection.reader.offset
            if self._context.log_budget.has_room or self._cancelled:
                for message in self._connection.receive():
                    self._handle(message)
                    await self._notify()
            is_idle = self._connection.reader.offset == before
            await asyncio.sleep(POLL_INTERVAL if is_idle else 0)

    async def _watch(self) -> None:
        """Look regularly at what is due: acknowledgements, deadlines, and entries to report."""
        while True:
            ended = self._connection.acknowledged()
            if ended:
                for line, is_written in ended.items():
                    self._requests.acknowledge(line, written=is_written)
                self._commit()
                for line in ended:
                    self._connection.writer.forget(line)
                self._written |= ended
                if not all(ended.values()):
                    await self._end("The agent has closed its stdin.")
            if self._requests.expire():
                self._report_state()
            self._flush()
            await self._check_deadlines()
            await self._notify()
            await asyncio.sleep(POLL_INTERVAL)

    async def _check_deadlines(self) -> None:
        now = self._in(0)
        if any(line["deadline"] < now for line in self._connection.lines.values()):
            await self._end(f"The agent did not read from its stdin for {WRITE_TIMEOUT:g} s.")
        late = [(number, call) for number, call in self._connection.calls.items() if call["deadline"] < now]
        for number, call in late:
            if number == self._turn:
                call["deadline"] = self._in(
                    CANCEL_TIMEOUT + INTERRUPT_TIMEOUT
                )  # for the case that this is the last word
                if self._cancelled:
                    await self._end(
                        "The agent did not end its turn in time (`turn_timeout`), nor when it was cancelled."
                    )
                self._conversation.add_notice("the turn exceeded its time limit (`turn_timeout`) and is cancelled")
                self._cancel_turn()
            elif call["method"] != "session/prompt":
                self._fail(f"The agent did not answer `{call['method']}` within {self._context.run.start_timeout:g} s.")
                del self._connection.calls[number]

    async def _begin(self) -> None:
        """Open a session, then give the agent its prompt."""
        context = self._context
        if self._session is None and not self._connection.calls:
            params = handshake.initialize_params(context.run.client_files, asks_people=context.people is not None)
            self._call("initialize", params, context.run.start_timeout)
        await self._until(lambda: self._session is not None)
        if not context.journal.ready_reported:
            context.reporter.ready()
            context.journal.ready_reported = True
            await context.save()
        error = await context.post_prompt()
        if error:
            self._conversation.add_notice(f"prompt delivery failed: {error}")
        elif not self._state:
            self._set_state(AgentState.IDLE, "")
        self._commit()

    def _handle(self, message: Incoming) -> None:
        """Handle one message, record what follows from it, and submit the lines that it causes."""
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
        if self._requests.has(call.id):
            self._handle_bad_line(BadLine("its id is that of an open request", str(call.id)))
            return
        self._client.handle(call, self._session)
        self._report_state()

    def _handle_notification(self, message: Notification) -> None:
        if message.method == "$/cancel_request":
            self._requests.cancel_call(message.params.get("requestId"))
            self._report_state()
        elif message.method == "session/update" and self._session is not None:
            try:
                notification = schema.SessionNotification.model_validate(message.params)
            except ValidationError:
                self._context.metrics.runner_agent_events_bad.inc()  # or of a newer version
                return
            if notification.session_id == self._session:
                self._conversation.apply(notification.update)

    def _handle_response(self, response: AgentResponse) -> None:
        match response.method:
            case "initialize":
                self._handle_initialized(response)
            case "session/prompt":
                if response.number == self._turn:
                    self._end_turn(response)
            case _:
                self._handle_session(response)

    def _handle_initialized(self, response: AgentResponse) -> None:
        parsed = response.error or handshake.parse_initialized(response.result or {})
        if isinstance(parsed, dict):
            self._fail(f"The agent refused `initialize`: {handshake.describe_error(parsed)}")
        elif isinstance(parsed, str):
            self._fail(parsed)
        else:
            self._sign_in = handshake.authentication_needed(response.result or {})
            self._open_session(handshake.continuation(parsed, self._context.journal.acp_session))

    def _open_session(self, method: handshake.Continuation) -> None:
        """Request a session, or the continuation of the earlier one."""
        earlier = self._context.journal.acp_session if method != "session/new" else None
        if earlier is None and self._context.journal.acp_session is not None:
            self._conversation.add_notice("the agent cannot continue its earlier conversation, so it begins a new one")
        params = handshake.session_params(str(self._context.workdir), self._context.mcp_servers, earlier)
        self._call(method, params, self._context.run.start_timeout)

    def _handle_session(self, response: AgentResponse) -> None:
        """Take the session that was opened. What was replayed of a continued one came before, and is not told again."""
        error, journal = response.error, self._context.journal
        if error is not None and error.get("code") == AUTH_REQUIRED:
            self._fail(self._sign_in)
        elif error is not None and response.method != "session/new":
            words = handshake.describe_error(error)
            self._conversation.add_notice(f"the agent cannot continue its earlier conversation: {words}")
            journal.acp_session = None
            self._open_session("session/new")
        elif error is not None:
            self._fail(f"The agent refused `{response.method}`: {handshake.describe_error(error)}")
        else:
            session = (
                journal.acp_session if response.method != "session/new" else (response.result or {}).get("sessionId")
            )
            if not isinstance(session, str) or not session:
                self._fail("The agent's answer to `session/new` has no `sessionId`.")
                return
            self._session = journal.acp_session = session
            self._sign_in = ""
            self._commit()

    def _send_prompt(self, text: str) -> int:
        """Begin a turn, and return its id."""
        block = {"type": "text", "text": text}
        params = {"sessionId": self._session, "prompt": [block]}
        timeout = self._context.run.turn_timeout
        self._turn = self._connection.call("session/prompt", params, self._in(timeout), self._in(WRITE_TIMEOUT))
        self._cancelled = False
        self._conversation.begin_turn(text)
        self._report_state()
        return self._turn

    def _end_turn(self, response: AgentResponse) -> None:
        for request_id in self._requests.ids:
            self._requests.cancel(request_id)
        self._conversation.end_turn()
        state, message = turns.state_after(
            response.result,
            response.error,
            cancelled=self._cancelled,
            completes=self._context.run.complete_after_turn,
            last_words=self._conversation.last_words,
        )
        self._turn, self._cancelled = None, False
        self._set_state(state, message)

    def _cancel_turn(self) -> None:
        """Ask the agent to end its turn, and answer its open requests as cancelled."""
        if not self._cancelled:
            self._cancelled = True
            for request_id in self._requests.ids:
                self._requests.cancel(request_id)
            self._connection.notify("session/cancel", {"sessionId": self._session}, self._in(WRITE_TIMEOUT))
            self._report_state()

    @property
    def _has_exited(self) -> bool:
        return self._exited.is_set() or self._context.folder.exit.exists()

    async def _turn_ends(self, seconds: float) -> bool:
        """Wait until no turn is in flight or the agent has exited; return False if neither happens in time."""
        try:
            async with asyncio.timeout(seconds):
                while self._turn is not None and not self._has_exited:  # noqa: ASYNC110 - files send no notification
                    await asyncio.sleep(POLL_INTERVAL)
        except TimeoutError:
            return False
        return True

    def _handle_bad_line(self, line: BadLine) -> None:
        """Count a line that is no message of the protocol, and log the first; many in a row end the agent."""
        self._context.metrics.runner_agent_events_bad.inc()
        self._bad_lines += 1
        if not self._bad_line_logged:
            self._bad_line_logged = True
            self._conversation.add_notice(
                f"a line of the agent is ignored, because {line.reason}: {line.excerpt} (others are only counted)"
            )
        if self._bad_lines >= MAX_BAD_LINES:
            self._fail(f"The agent does not speak the protocol: {MAX_BAD_LINES} lines in a row are no messages of it.")

    def _fail(self, reason: str) -> None:
        """Give the agent up: its start fails, or it is ended."""
        if self._session is None:
            self._failure = self._failure or reason
        self._conversation.add_notice(reason)
        self._commit()
        self._context.journal.ended_because = self._context.journal.ended_because or reason
        if self._session is not None and not self._is_ending:
            self._is_ending = True
            self._context.stop_agent()

    async def _end(self, reason: str) -> None:
        """End the agent, and have its exit told with this reason."""
        if not self._is_ending:
            self._fail(reason)
            await self._context.save()

    def _call(self, method: str, params: dict[str, Any], timeout: float) -> None:
        self._connection.call(method, params, self._in(timeout), self._in(min(timeout, WRITE_TIMEOUT)))
        self._commit()

    async def _wait_written(self, turn: int) -> None:
        """Wait until the agent was given a prompt. Raise ``NotDelivered`` or ``DeliveryUnknown`` if it was not."""
        line = self._connection.calls[turn]["line"]
        try:
            async with asyncio.timeout(WRITE_TIMEOUT):
                await self._until(lambda: line in self._written)
            if self._written.pop(line):
                return
            problem: Exception = NotDelivered(NOT_RUNNING)
        except TimeoutError:
            words = f"The agent did not read the input from its stdin within {WRITE_TIMEOUT:g} s."
            is_back = turn in self._connection.calls and self._connection.take_back(turn)
            problem = NotDelivered(words) if is_back else DeliveryUnknown(f"{words} It may have received a part of it.")
        if self._turn == turn:
            self._turn = None
            self._set_state(AgentState.IDLE, str(problem))
        raise problem

    def _flush(self) -> None:
        """Report what has changed, at intervals, and what the agent is doing now."""
        now = asyncio.get_running_loop().time()
        if now - self._flushed_at < FLUSH_EVERY:
            return
        is_due = now - self._status_at >= STATUS_EVERY
        if (
            self._turn is not None
            and not self._requests.titles
            and is_due
            and self._conversation.activity != self._status
        ):
            self._report_state()
        elif self._conversation.has_changes or self._connection.reader.offset != self._committed:
            self._commit()

    def _report_state(self) -> None:
        """Report the state that the protocol shows now, and record it."""
        if self._turn is None:
            self._commit()
        elif titles := self._requests.titles:
            self._set_state(AgentState.IDLE, titles[0], _ASKS)
        else:
            self._set_state(AgentState.WORKING, self._conversation.activity, _IN_FLIGHT)

    def _set_state(self, state: AgentState, message: str, source: str = _ENDED) -> None:
        words = shorten(message)
        if (state, words) == (self._state, self._status):
            self._commit()
            return
        self._state, self._status = state, words
        self._status_at = asyncio.get_running_loop().time()
        self._commit(self._context.reporter.status_report(state, words, guessed_from=source))

    def _commit(self, *reports: Report) -> None:
        """Report entries and ``reports`` with a checkpoint after them, then submit the lines that were recorded."""
        reporter = self._context.reporter
        entries = self._conversation.take_entries(reporter)
        size = sum(len(entry.content.encode(errors="replace")) + len(entry.data or "") for entry in entries)
        self._context.log_budget.spend(len(entries), size)
        while len(entries) > ENTRIES_PER_REPORT:
            reporter.log(entries[:ENTRIES_PER_REPORT])
            entries = entries[ENTRIES_PER_REPORT:]
        reporter.log(entries, *reports, *self._requests.take_reports(), checkpoint=self._checkpoint())
        self._committed = self._connection.reader.offset
        self._flushed_at = asyncio.get_running_loop().time()
        self._connection.submit()
        self._connection.reader.discard_read()

    def _checkpoint(self) -> Checkpoint:
        return {
            "build": self._context.reporter.build_number,
            "state": str(self._state),
            "connection": self._connection.checkpoint(),
            "conversation": self._conversation.checkpoint(),
            "requests": self._requests.checkpoint(),
            "sign_in": self._sign_in,
            "session": self._session,
            "turn": self._turn,
            "cancelled": self._cancelled,
            "bad_lines": self._bad_lines,
            "bad_line_logged": self._bad_line_logged,
        }

    def _in(self, seconds: float) -> float:
        """Return the time in ``seconds``, in seconds since the epoch."""
        return self._context.reporter.now().timestamp() + seconds

    async def _until(self, condition: Any) -> None:
        async with self._changed:
            await self._changed.wait_for(condition)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()
