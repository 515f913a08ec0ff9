"""The follower of an agent that speaks the Agent Client Protocol (ACP) over stdin and stdout.

Rules:

- The state is what the protocol says: ``idle`` while a request to a person is open, else ``working`` while a prompt is
  in flight, and after the response what that says (``turns``). No screen and no timer takes part.
- What follows from some lines is recorded, with the reports, in one record of the outbox; only then are the lines
  submitted that they cause. The next runner continues at a line boundary, tells nothing twice, and knows all that is
  open.
- Every request of ours has a deadline. What does not end is cancelled, interrupted (SIGINT), stopped (SIGTERM) and
  killed; the outcome comes from our own record.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, Final

from taskherd.domain.reports import AgentState, Health, InterruptOutcome
from taskherd.observability.failpoints import Failpoint
from taskherd.runner.agents import output
from taskherd.runner.agents.acp import cancelling
from taskherd.runner.agents.acp import connection as connections
from taskherd.runner.agents.acp.cancelling import TurnCancellation
from taskherd.runner.agents.acp.connection import INTERNAL_ERROR, Connection
from taskherd.runner.agents.acp.conversation import Conversation
from taskherd.runner.agents.acp.ending import AgentEnding
from taskherd.runner.agents.acp.incoming import MessageHandler
from taskherd.runner.agents.acp.opening import SessionOpening
from taskherd.runner.agents.acp.parts import Parts
from taskherd.runner.agents.acp.reading import MessageReading
from taskherd.runner.agents.acp.recorder import Recorder
from taskherd.runner.agents.acp.requests import AgentRequests
from taskherd.runner.agents.acp.terminals import Terminals
from taskherd.runner.agents.acp.turns import Turn
from taskherd.runner.agents.acp.usage import UsageMeter
from taskherd.runner.agents.context import (
    NOT_FOLLOWED,
    NOT_RUNNING,
    TAIL_BYTES,
    AnswerOutcome,
    DeliveryUnknown,
    NotDelivered,
    report_exit,
    shorten,
)
from taskherd.runner.agents.interrupting import has_exited
from taskherd.runner.agents.words import last_words
from taskherd.runner.log_ids import FAILED_START_ID, LAST_OUTPUT_ID

if TYPE_CHECKING:
    from uuid import UUID

    from taskherd.runner.agents.context import AgentContext, RecordAttempt
    from taskherd.runner.outbox import Checkpoint
    from taskherd.runner.workspaces.processes import ExitRecord

POLL_INTERVAL: Final = 0.1
"""Seconds between two looks at what the agent wrote and at what is due."""
READY_TIMEOUT: Final = 300.0
"""Seconds for which an input waits until no turn is in flight."""
NOTICE_TIME: Final = 2.0
"""Seconds for which an agent that did not read its input goes on, so that the log says so before its end."""
LATE: Final = "The agent did not end its turn in time (`turn_timeout`), nor when it was cancelled."
UNKNOWN_ANSWER: Final = (
    "the record of an answer was lost with the runner that gave it, so it is unknown whether the agent got it. The "
    "turn is cancelled: {}"
)


class AcpFollower:
    """The follower of an agent that speaks ACP."""

    needs_port: ClassVar[bool] = False
    initial_health: ClassVar[Health] = Health.HEALTHY

    def __init__(self, context: AgentContext) -> None:
        self._context = context
        checkpoint: dict[str, Any] = context.checkpoint
        self._turn = Turn(checkpoint)
        self._connection = Connection(context.folder, checkpoint.get("connection", {}))
        self._conversation = Conversation(checkpoint.get("conversation", {}))
        self._requests = AgentRequests(
            checkpoint.get("requests", {}),
            respond=self._connection,
            conversation=self._conversation,
            turn=self._turn,
            approvals=context.run.approvals,
            reporter=context.reporter,
        )
        earlier = context.outbox.checkpoint.get("usage") or {}
        self._usage = UsageMeter(checkpoint.get("usage", {}), earlier)
        self._opening = SessionOpening(context, self._conversation, self._call, checkpoint)
        self._terminals = Terminals(
            checkpoint.get("terminals", {}),
            context=context,
            respond=self._connection,
            conversation=self._conversation,
            turn=self._turn,
        )
        self._recorder = Recorder(
            context,
            self._connection,
            self._conversation,
            self._requests,
            self._usage,
            earlier=checkpoint,
            checkpoint=self._checkpoint,
        )
        self._parts = Parts(
            context=context,
            connection=self._connection,
            conversation=self._conversation,
            requests=self._requests,
            usage=self._usage,
            opening=self._opening,
            turn=self._turn,
            terminals=self._terminals,
            recorder=self._recorder,
        )
        self._cancellation = TurnCancellation(self._parts)
        self._ending = AgentEnding(self._parts, checkpoint)
        self._messages = MessageHandler(self._parts, checkpoint, self._ending.fail)
        self._is_recovered = False
        """True once it is known what an earlier runner has given the agent."""
        self._has_begun = False
        """True once the agent was given its prompt, if there is one for it."""
        self._is_detached = False
        """True once ``follow`` has ended: another follower may go on from the checkpoint."""
        self._changed = asyncio.Condition()
        self._awaited: dict[int, bool | None] = {}
        """Lines whose writing a caller awaits: whether they were written, None until that is known."""
        self._reading = MessageReading(self._parts, self._messages, self._awaited, self._ending.stop)
        self._delivery = asyncio.Lock()

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
            self._terminals.close()
            await self._notify()

    async def deliver(self, text: str, record_attempt: RecordAttempt) -> None:
        """Give the agent a prompt once no turn is in flight. Raise ``NotDelivered`` or ``DeliveryUnknown``."""
        async with self._delivery:
            try:
                async with asyncio.timeout(READY_TIMEOUT):
                    await self._until(lambda: self._is_recovered and self._takes_prompt)
            except TimeoutError:
                raise NotDelivered(f"The agent did not end its turn within {READY_TIMEOUT:g} s.") from None
            if self._connection.is_closed:
                raise NotDelivered(NOT_RUNNING)
            await record_attempt()
            if self._is_detached or self._connection.is_closed:  # it has ended meanwhile, and its end was reported
                raise NotDelivered(NOT_RUNNING)
            try:
                turn = self._send_prompt(text)
            except OSError:  # the disk is full, for example
                self._withdraw_prompt()
                raise
            await self._wait_written(turn)

    @property
    def _takes_prompt(self) -> bool:
        """Whether a turn can begin."""
        return self._opening.session is not None and not self._turn.is_open

    @property
    def is_at_work(self) -> bool:
        """Whether a turn is in flight, or the prompt is still to be given."""
        return self._turn.is_open or not self._has_begun

    def answer(self, request_id: UUID, option_id: str | None, text: str | None) -> AnswerOutcome:
        """Give the agent the answer to a request, at most once; a report says what became of it.

        Raise ``OSError`` if it cannot be written to disk; it is then tried again.
        """
        if not self._is_recovered or self._is_detached:
            return AnswerOutcome.LATER
        outcome = self._requests.answer(request_id, option_id, text)
        if outcome is AnswerOutcome.DONE:
            self._parts.report_state()
        return outcome

    async def interrupt(self) -> InterruptOutcome:
        """End the turn in flight, in the end by ending the agent. Raise ``NotInterrupted``.

        That of a prompt which is just given counts, too.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(cancelling.CANCEL_TIMEOUT):
                await self._until(lambda: self._has_begun or self._turn.is_open or self._is_detached)
        return await self._cancellation.interrupt()

    async def conclude(self, agent_exit: ExitRecord) -> None:
        """Report the agent's last output, and how it ended."""
        turn = None if self._turn.number is None else self._connection.calls.get(self._turn.number)
        ended = self._connection.acknowledged()
        for line, is_written in ended.items():
            self._requests.acknowledge(line, written=is_written)
        given: int | None = None if turn is None else turn["line"]
        was_given = given is not None and given not in self._connection.lines and ended.get(given, True)
        self._connection.close()
        await self._reading.read_rest()
        has_answered = self._turn.begun > 0 and not self._turn.is_open
        if was_given or has_answered:
            self._context.conclude_prompt()
        self._requests.withdraw_all()
        self._conversation.end_turn()
        words = last_words(output.tail(self._context.folder.log, TAIL_BYTES))
        agent_exit = self._ending.judge(agent_exit)
        if words and agent_exit.reason not in {"stopped", "interrupted"} and not agent_exit.succeeded:
            self._conversation.add_notice(f"the agent's last output:\n{words}", entry=LAST_OUTPUT_ID)
        if self._opening.session is None and self._opening.failure is None:
            self._opening.fail(f"{agent_exit.describe()} {words}".strip(), entry=FAILED_START_ID)
        if self._turn.is_open:
            self._recorder.commit()
        else:
            self._parts.report_state()
        last = shorten(self._conversation.last_words or words.rpartition("\n")[2])
        report_exit(self._context, agent_exit, self._recorder.state, last, words)

    def _recover(self) -> None:
        """Deal with what an earlier runner recorded and did not submit, or submitted and did not record."""
        self._connection.allow_catch_up()
        unrecorded = self._connection.unrecorded  # before anything is changed, if it cannot be found out
        lost_lines = self._connection.lost_lines()
        if self._turn.number is not None and self._turn.number not in self._connection.calls:
            self._take_back_turn()
            if self._turn.begun:  # else the prompt is given again
                self._recorder.set_state(AgentState.IDLE, "")
        elif any("notifies" in line for line in lost_lines.values()):
            self._cancellation.notify()
        self._context.recover_prompt(is_given=self._turn.begun > 0)
        self._withdraw_unknown(unrecorded)
        for line, lost in lost_lines.items():
            request = lost.get("answers")
            if request is not None and "result" in lost:
                self._connection.answer(request, lost["result"], keep=True)
            elif request is not None and not self._requests.answer_again(line):
                self._connection.refuse(request, INTERNAL_ERROR, "taskherd was restarted while it handled this request")
        self._is_recovered = True
        self._parts.report_state()
        self._ending.stop()

    def _withdraw_unknown(self, messages: list[dict[str, Any]]) -> None:
        """Cancel the turn if an answer may have reached the agent, or a prompt of which this runner knows nothing."""
        is_unknown = False
        for message in messages:
            if "method" in message:
                is_unknown |= message["method"] == "session/prompt"
            elif (title := self._requests.withdraw_unknown(message["id"])) is not None:
                self._conversation.add_notice(UNKNOWN_ANSWER.format(title))
                is_unknown = True
            else:
                self._connection.ignore_call(message["id"])
        if is_unknown and self._turn.is_open:
            self._turn.cancelled = False  # the agent may not have been asked that either
            self._cancellation.cancel()
        elif is_unknown and self._opening.session is not None:
            self._cancellation.notify()

    async def _read(self) -> None:
        """Handle what the agent writes."""
        while True:
            if self._context.outbox.full:
                with self._connection.paused():
                    await self._context.outbox.wait_room()
            has_read = self._reading.read()
            if has_read:
                await self._notify()
            await asyncio.sleep(0 if has_read else POLL_INTERVAL)

    async def _watch(self) -> None:
        """Look regularly at what is due: acknowledgements, deadlines, and entries to report."""
        while True:
            await self._acknowledge()
            if self._requests.expire():
                self._parts.report_state()
            if self._terminals.advance():
                self._recorder.commit()
            self._recorder.flush(in_turn=self._turn.is_open)
            await self._check_deadlines()
            await self._notify()
            await asyncio.sleep(POLL_INTERVAL)

    async def _acknowledge(self) -> None:
        """Record which lines the shim has written."""
        ended = self._connection.acknowledged()
        if not ended:
            return
        self._context.failpoint(Failpoint.LINE_WRITTEN)
        for line, is_written in ended.items():
            self._requests.acknowledge(line, written=is_written)
        self._recorder.commit()
        if self._context.outbox.is_saved:  # else the next runner looks again
            for line in ended:
                self._connection.writer.forget(line)
        self._awaited |= {line: ended[line] for line in ended.keys() & self._awaited.keys()}
        if not all(ended.values()):
            await self._ending.end("The agent has closed its stdin.")

    async def _check_deadlines(self) -> None:
        is_late = self._connection.is_late
        lines = self._connection.lines.items()
        if any(is_late(line) for number, line in lines if number not in self._awaited):
            await self._ending.end(f"The agent did not read from its stdin for {connections.WRITE_TIMEOUT:g} s.")
        for number, call in [each for each in self._connection.calls.items() if is_late(each[1])]:
            if number == self._turn.number:
                grace = cancelling.CANCEL_TIMEOUT + cancelling.INTERRUPT_TIMEOUT
                call["deadline"] = self._connection.deadline(grace)
                if self._turn.cancelled:
                    await self._ending.end(LATE)
                else:
                    self._conversation.add_notice("the turn exceeded its time limit (`turn_timeout`) and is cancelled")
                    self._cancellation.cancel()
            elif call["method"] != "session/prompt":
                timeout = self._context.run.start_timeout
                self._ending.fail(f"The agent did not answer `{call['method']}` within {timeout:g} s.")
                self._ending.stop()
                del self._connection.calls[number]

    async def _begin(self) -> None:
        """Open a session, then give the agent its prompt."""
        context = self._context
        if self._opening.session is None and not self._connection.calls:
            self._opening.begin()
        await self._until(lambda: self._opening.session is not None)
        if not context.journal.ready_reported:
            if context.prompt:  # before the task is active, or it would take inputs for that moment
                self._recorder.report_state(in_turn=True)
            context.reporter.ready()
            context.journal.ready_reported = True
            await context.save()
        error = await context.post_prompt()
        self._has_begun = True
        if error:
            self._conversation.add_notice(f"prompt delivery failed: {error}")
        if not self._turn.is_open and self._recorder.state in {"", AgentState.WORKING}:
            self._recorder.set_state(AgentState.IDLE, "")
        self._recorder.commit()

    def _send_prompt(self, text: str) -> int:
        """Begin a turn, and return its id."""
        block = {"type": "text", "text": text}
        params = {"sessionId": self._opening.session, "prompt": [block]}
        number = self._connection.call("session/prompt", params, self._context.run.turn_timeout)
        self._terminals.begin_turn()
        self._turn.begin(number)
        self._conversation.begin_turn(text)
        self._parts.report_state()
        return number

    def _withdraw_prompt(self) -> None:
        """Keep a prompt that could not be submitted from being submitted later, when it counts as failed."""
        assert self._turn.number is not None
        self._connection.take_back(self._turn.number)
        self._take_back_turn()
        with suppress(OSError):  # it is reported with the next record that fits
            self._recorder.set_state(AgentState.IDLE, "")

    def _take_back_turn(self) -> None:
        """End the turn that has just begun: its prompt was never given."""
        self._turn.take_back()
        self._conversation.take_back_turn()
        self._terminals.end_turn()

    def _call(self, method: str, params: dict[str, Any]) -> None:
        timeout = self._context.run.start_timeout
        self._connection.call(method, params, timeout, write_within=timeout)
        self._recorder.commit()

    async def _wait_written(self, turn: int) -> None:
        """Wait until the agent was given a prompt. Raise ``NotDelivered`` or ``DeliveryUnknown`` if it was not."""
        line = self._connection.calls[turn]["line"]
        self._awaited[line] = None
        try:
            async with asyncio.timeout(connections.WRITE_TIMEOUT):
                await self._until(lambda: self._awaited[line] is not None or self._is_detached)
        except TimeoutError:
            words = f"The agent did not read the input from its stdin within {connections.WRITE_TIMEOUT:g} s."
        else:
            words = NOT_FOLLOWED if self._is_detached and not has_exited(self._context) else NOT_RUNNING
        was_written = self._awaited.pop(line)
        if was_written is None:
            with suppress(OSError):  # then it is unknown
                was_written = self._connection.writer.endings().get(line)
        if was_written:
            return
        is_back = turn in self._connection.calls and self._connection.take_back(turn)
        if line in self._connection.lines:  # the agent is ended, but not before this is told
            self._connection.lines[line]["deadline"] = self._connection.deadline(NOTICE_TIME)
        if not self._is_detached and self._turn.number == turn:
            self._turn.end()
            self._recorder.set_state(AgentState.IDLE, words)
        if is_back or was_written is False:
            raise NotDelivered(words)
        raise DeliveryUnknown(f"{words} It may have received a part of the input.")

    def _checkpoint(self) -> Checkpoint:
        return {
            **self._opening.checkpoint(),
            **self._turn.checkpoint(),
            **self._messages.checkpoint(),
            **self._ending.checkpoint(),
            "terminals": self._terminals.checkpoint(),
            "usage": self._usage.checkpoint(),
        }

    async def _until(self, condition: Any) -> None:
        async with self._changed:
            await self._changed.wait_for(condition)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()
