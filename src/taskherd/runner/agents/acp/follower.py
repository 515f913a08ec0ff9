"""The follower of an agent that speaks the Agent Client Protocol (ACP) over stdin and stdout.

Rules:

- The state is what the protocol says: ``working`` while a prompt is in flight, ``idle`` while a request to a person is
  open, and after the response what that says (``turns``). No screen and no timer takes part.
- What follows from a line is recorded, with the reports, in one record of the outbox; only then are the lines submitted
  that it causes. The next runner continues at a line boundary, tells nothing twice, and knows all that is open.
- Every request of ours has a deadline. What does not end is cancelled, interrupted (SIGINT), stopped (SIGTERM) and
  killed; the outcome comes from our own record.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Final

import structlog
from acp import schema
from pydantic import ValidationError

from taskherd.domain.reports import AgentState, Health, InterruptOutcome
from taskherd.runner.agents import output
from taskherd.runner.agents.acp import turns
from taskherd.runner.agents.acp.client import ClientMethods
from taskherd.runner.agents.acp.connection import (
    INTERNAL_ERROR,
    AgentCall,
    AgentResponse,
    BadLine,
    Connection,
    Notification,
)
from taskherd.runner.agents.acp.conversation import Conversation
from taskherd.runner.agents.acp.opening import SessionOpening
from taskherd.runner.agents.acp.people import RequestClosed
from taskherd.runner.agents.acp.recorder import Recorder
from taskherd.runner.agents.acp.requests import AgentRequests
from taskherd.runner.agents.acp.usage import UsageMeter
from taskherd.runner.agents.context import (
    NOT_RUNNING,
    TAIL_BYTES,
    DeliveryUnknown,
    NotDelivered,
    report_exit,
    shorten,
)
from taskherd.runner.agents.interrupting import as_interrupted, end_agent, mark_interrupted
from taskherd.runner.agents.words import last_words

if TYPE_CHECKING:
    from uuid import UUID

    from taskherd.runner.agents.acp.connection import Incoming, RpcId
    from taskherd.runner.agents.context import AgentContext, RecordAttempt
    from taskherd.runner.outbox import Checkpoint
    from taskherd.runner.workspaces.processes import ExitRecord

log = structlog.get_logger(__name__)

POLL_INTERVAL: Final = 0.1
"""Seconds between two looks at what the agent wrote and at what is due."""
WRITE_TIMEOUT: Final = 60.0
"""Seconds within which the agent must take a line from its stdin."""
READY_TIMEOUT: Final = 300.0
"""Seconds for which an input waits until no turn is in flight."""
CANCEL_TIMEOUT: Final = 10.0
"""Seconds within which a cancelled turn must end; then the agent is interrupted with SIGINT."""
INTERRUPT_TIMEOUT: Final = 5.0
"""Seconds within which the turn must end after SIGINT; then the agent is ended with SIGTERM and SIGKILL."""
LATE: Final = "The agent did not end its turn in time (`turn_timeout`), nor when it was cancelled."
MAX_BAD_LINES: Final = 100
"""Number of lines in a row that are no messages of the protocol, after which the agent is ended."""


class AcpFollower:
    """The follower of an agent that speaks ACP."""

    needs_port: ClassVar[bool] = False
    initial_health: ClassVar[Health] = Health.HEALTHY

    def __init__(self, context: AgentContext) -> None:
        self._context = context
        checkpoint: dict[str, Any] = context.checkpoint
        self._connection = Connection(context.folder, checkpoint.get("connection", {}))
        self._conversation = Conversation(checkpoint.get("conversation", {}))
        self._requests = AgentRequests(
            checkpoint.get("requests", {}),
            respond=self,
            conversation=self._conversation,
            approvals=context.run.approvals,
            people=context.people,
            now=context.reporter.now,
        )
        earlier = context.outbox.checkpoint.get("usage") or {}
        self._usage = UsageMeter(checkpoint.get("usage", {}), earlier)
        self._client = ClientMethods(context, self._requests, self)
        self._opening = SessionOpening(context, self._conversation, self._call, checkpoint)
        self._recorder = Recorder(
            context,
            self._connection,
            self._conversation,
            self._requests,
            self._usage,
            state=checkpoint.get("state", ""),
            checkpoint=self._checkpoint,
        )
        self._turn: int | None = checkpoint.get("turn")
        """The id of the prompt in flight."""
        self._cancelled: bool = checkpoint.get("cancelled", False)
        self._bad_lines: int = checkpoint.get("bad_lines", 0)
        self._bad_line_logged: bool = checkpoint.get("bad_line_logged", False)
        self._is_ending = False
        self._is_detached = False
        """True once ``follow`` has ended: another follower may go on from the checkpoint."""
        self._changed = asyncio.Condition()
        self._awaited: dict[int, bool | None] = {}
        """Lines whose writing a caller awaits: whether they were written, None until that is known."""
        self._delivery = asyncio.Lock()
        self._exited = asyncio.Event()

    @property
    def start_outcome(self) -> str | None:
        """Why the agent could not be started, "" once its session is open, None as long as that is not known."""
        if self._opening.failure is not None:
            return self._opening.failure
        return "" if self._opening.session is not None else None

    async def follow(self) -> None:
        """Report what the agent does, until cancelled."""
        self._recover()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._read())
                group.create_task(self._watch())
                group.create_task(self._begin())
        finally:
            self._is_detached = True
            await self._notify()

    async def deliver(self, text: str, record_attempt: RecordAttempt) -> None:
        """Give the agent a prompt once no turn is in flight. Raise ``NotDelivered`` or ``DeliveryUnknown``."""
        async with self._delivery:
            try:
                async with asyncio.timeout(READY_TIMEOUT):
                    await self._until(lambda: self._opening.session is not None and self._turn is None)
            except TimeoutError:
                raise NotDelivered(f"The agent did not end its turn within {READY_TIMEOUT:g} s.") from None
            await record_attempt()
            turn = self._send_prompt(text)
            await self._wait_written(turn)

    @property
    def is_at_work(self) -> bool:
        """Whether a turn is in flight."""
        return self._turn is not None

    async def interrupt(self) -> InterruptOutcome:
        """End the turn in flight, in the end by ending the agent. Raise ``NotInterrupted``.

        What the agent claims about it does not count.
        """
        context, turn = self._context, self._turn
        if turn is None:
            for request_id in self._requests.ids:  # asked outside of a turn
                self._requests.cancel(request_id)
            self._report_state()
            return InterruptOutcome.ENDED
        self._cancel_turn()
        if await self._ends(turn, CANCEL_TIMEOUT):
            return InterruptOutcome.STOPPED
        await mark_interrupted(context, interrupted=True)
        context.interrupt_agent()
        if not await self._ends(turn, INTERRUPT_TIMEOUT):
            return await end_agent(context)
        if not self._has_exited:
            await mark_interrupted(context, interrupted=False)
        return InterruptOutcome.STOPPED

    async def answer_request(self, request_id: UUID, option_id: str | None, text: str | None = None) -> None:
        """Give the agent a person's answer. Return once it was written; raise ``RequestClosed`` if that cannot be."""
        line = self._requests.answer(request_id, option_id, text)
        self._awaited[line] = None
        self._report_state()
        await self._until(lambda: self._awaited[line] is not None or self._is_detached)
        if not self._awaited.pop(line):
            raise RequestClosed("The agent ended before it was given the answer.")

    def answer(self, request: RpcId, result: dict[str, Any] | None) -> int:
        """Record the result of a request of the agent, and return its line."""
        return self._connection.answer(request, result, self._in(WRITE_TIMEOUT))

    def refuse(self, request: RpcId, code: int, message: str) -> None:
        """Record an error as the answer to a request of the agent."""
        self._connection.refuse(request, code, message, self._in(WRITE_TIMEOUT))

    def conclude(self, agent_exit: ExitRecord) -> None:
        """Report the agent's last output, and how it ended."""
        while self._connection.reader.has_more:
            before = self._connection.reader.offset
            for message in self._connection.receive():
                self._handle_safely(message)
            if self._connection.reader.offset == before:
                break
        turn, self._turn = self._turn, None
        self._requests.withdraw_all()
        self._conversation.end_turn()
        words = last_words(output.tail(self._context.folder.log, TAIL_BYTES))
        agent_exit = self._judge(agent_exit, in_turn=turn is not None)
        if words and agent_exit.reason not in {"stopped", "interrupted"} and not agent_exit.succeeded:
            self._conversation.add_notice(f"the agent's last output:\n{words}")
        if self._opening.session is None and self._opening.failure is None:
            self._opening.fail(f"{agent_exit.describe()} {words}".strip())
        self._recorder.commit()
        last = shorten(self._conversation.last_words or words.rpartition("\n")[2])
        report_exit(self._context, agent_exit, self._recorder.state, last, words)
        self._exited.set()

    def _judge(self, agent_exit: ExitRecord, *, in_turn: bool) -> ExitRecord:
        """Return how the agent ended, with what only this side knows."""
        journal = self._context.journal
        if self._opening.session is None:
            return replace(agent_exit, reason="not started", detail=self._opening.failure or agent_exit.describe())
        if (interrupted := as_interrupted(self._context, agent_exit)) is not agent_exit:
            return interrupted
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
            self._recorder.set_state(AgentState.IDLE, "")
        self._recorder.commit()

    async def _read(self) -> None:
        """Handle what the agent writes."""
        while True:
            await self._context.outbox.wait_room()
            before = self._connection.reader.offset
            if self._context.log_budget.has_room or self._cancelled:
                for message in self._connection.receive():
                    self._handle_safely(message)
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
                self._recorder.commit()
                for line in ended:
                    self._connection.writer.forget(line)
                self._awaited |= {line: ended[line] for line in ended.keys() & self._awaited.keys()}
                if not all(ended.values()):
                    await self._end("The agent has closed its stdin.")
            if self._requests.expire():
                self._report_state()
            self._recorder.flush(in_turn=self._turn is not None)
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
                call["deadline"] = self._in(CANCEL_TIMEOUT + INTERRUPT_TIMEOUT)
                if self._cancelled:
                    await self._end(LATE)
                else:
                    self._conversation.add_notice("the turn exceeded its time limit (`turn_timeout`) and is cancelled")
                    self._cancel_turn()
            elif call["method"] != "session/prompt":
                self._fail(f"The agent did not answer `{call['method']}` within {self._context.run.start_timeout:g} s.")
                del self._connection.calls[number]

    async def _begin(self) -> None:
        """Open a session, then give the agent its prompt."""
        context = self._context
        if self._opening.session is None and not self._connection.calls:
            self._opening.begin()
        await self._until(lambda: self._opening.session is not None)
        if not context.journal.ready_reported:
            context.reporter.ready()
            context.journal.ready_reported = True
            await context.save()
        error = await context.post_prompt()
        if error:
            self._conversation.add_notice(f"prompt delivery failed: {error}")
        elif not self._recorder.state:
            self._recorder.set_state(AgentState.IDLE, "")
        self._recorder.commit()

    def _handle_safely(self, message: Incoming) -> None:
        """Handle a message; one that causes an unexpected error is a bad line, or its next reading would fail too."""
        try:
            self._handle(message)
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
            log.exception("message of an agent failed", task_id=str(self._context.journal.task_id))
            self._handle_bad_line(BadLine("it could not be handled", str(message)[:200]))

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
        self._client.handle(call, self._opening.session)
        self._report_state()

    def _handle_notification(self, message: Notification) -> None:
        if message.method == "$/cancel_request":
            self._requests.cancel_call(message.params.get("requestId"))
            self._report_state()
        elif message.method == "session/update" and self._usage.handle(
            message.params, self._opening.session, in_turn=self._turn is not None
        ):
            return  # reported with the next record
        elif message.method == "session/update" and self._opening.session is not None:
            try:
                notification = schema.SessionNotification.model_validate(message.params)
            except ValidationError:
                self._context.metrics.runner_agent_events_bad.inc()  # or of a newer version
                return
            if notification.session_id == self._opening.session:
                self._conversation.apply(notification.update)

    def _handle_response(self, response: AgentResponse) -> None:
        if response.line in self._awaited:
            self._awaited[response.line] = True  # what the agent answers, it was given
        if response.method != "session/prompt":
            self._opening.handle(response)
            if self._opening.session is not None:
                self._usage.open(self._opening.session)
            self._recorder.commit()
            if self._opening.failure is not None:
                self._fail(self._opening.failure)
        elif response.number == self._turn:
            self._end_turn(response)

    def _send_prompt(self, text: str) -> int:
        """Begin a turn, and return its id."""
        block = {"type": "text", "text": text}
        params = {"sessionId": self._opening.session, "prompt": [block]}
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
        self._usage.end_turn(response.result)
        state, message = turns.state_after(
            response.result,
            response.error,
            cancelled=self._cancelled,
            completes=self._context.run.complete_after_turn,
            last_words=self._conversation.last_words,
        )
        self._turn, self._cancelled = None, False
        self._recorder.set_state(state, message)

    def _cancel_turn(self) -> None:
        """Ask the agent to end its turn, and answer its open requests as cancelled."""
        if not self._cancelled:
            self._cancelled = True
            for request_id in self._requests.ids:
                self._requests.cancel(request_id)
            self._connection.notify("session/cancel", {"sessionId": self._opening.session}, self._in(WRITE_TIMEOUT))
            self._report_state()

    @property
    def _has_exited(self) -> bool:
        return self._exited.is_set() or self._context.folder.exit.exists()

    async def _ends(self, turn: int, seconds: float) -> bool:
        """Wait until that turn is not in flight or the agent has exited; return False if neither happens in time."""
        try:
            async with asyncio.timeout(seconds):
                while self._turn == turn and not self._has_exited:  # noqa: ASYNC110 - files send no notification
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
        if self._opening.session is None:
            self._opening.fail(reason)
        else:
            self._conversation.add_notice(reason)
        self._recorder.commit()
        self._context.journal.ended_because = self._context.journal.ended_because or reason
        if self._opening.session is not None and not self._is_ending:
            self._is_ending = True
            self._context.stop_agent()

    async def _end(self, reason: str) -> None:
        """End the agent; its exit is reported with this reason."""
        if not self._is_ending:
            self._fail(reason)
            await self._context.save()

    def _call(self, method: str, params: dict[str, Any]) -> None:
        timeout = self._context.run.start_timeout
        self._connection.call(method, params, self._in(timeout), self._in(min(timeout, WRITE_TIMEOUT)))
        self._recorder.commit()

    async def _wait_written(self, turn: int) -> None:
        """Wait until the agent was given a prompt. Raise ``NotDelivered`` or ``DeliveryUnknown`` if it was not."""
        line = self._connection.calls[turn]["line"]
        self._awaited[line] = None
        try:
            async with asyncio.timeout(WRITE_TIMEOUT):
                await self._until(lambda: self._awaited[line] is not None or self._is_detached)
        except TimeoutError:
            words = f"The agent did not read the input from its stdin within {WRITE_TIMEOUT:g} s."
        else:
            words = NOT_RUNNING
        was_written = self._awaited.pop(line)
        if was_written is None:
            was_written = self._connection.writer.endings().get(line)
        if was_written:
            return
        is_back = turn in self._connection.calls and self._connection.take_back(turn)
        if not self._is_detached and self._turn == turn:
            self._turn = None
            self._recorder.set_state(AgentState.IDLE, words)
        if is_back or was_written is False:
            raise NotDelivered(words)
        raise DeliveryUnknown(f"{words} It may have received a part of the input.")

    def _report_state(self) -> None:
        self._recorder.report_state(in_turn=self._turn is not None)

    def _checkpoint(self) -> Checkpoint:
        return {
            **self._opening.checkpoint(),
            "turn": self._turn,
            "cancelled": self._cancelled,
            "bad_lines": self._bad_lines,
            "bad_line_logged": self._bad_line_logged,
            "usage": self._usage.checkpoint(),
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
