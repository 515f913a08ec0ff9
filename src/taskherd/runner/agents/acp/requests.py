"""What an agent asks its client: permissions and forms. The policy answers, or a person.

- An open request is part of the checkpoint until its answer was recorded, so that it stays open, and answerable to the
  same process, whatever becomes of the runner.
- A request is reported as answered once the shim has written the whole answer. Where that cannot be known it is
  reported as withdrawn: no answer is given twice.
- Only this side judges when a request has expired.
- What comes in a turn that is cancelled is answered as cancelled: neither the policy nor a person decides it.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from acp import schema
from pydantic import ValidationError

from taskherd.domain.request_values import OptionKind, RequestKind, RequestState
from taskherd.domain.value import replace
from taskherd.messages.reports import encode_report
from taskherd.messages.texts import sanitize_detail, sanitize_title
from taskherd.runner.agents.acp import elicitation, pending_request, permissions
from taskherd.runner.agents.acp.closed_requests import ClosedRequests
from taskherd.runner.agents.acp.connection import INVALID_PARAMS
from taskherd.runner.agents.acp.pending_request import PendingAcpRequest
from taskherd.runner.agents.context import AnswerOutcome

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Protocol
    from uuid import UUID

    from taskherd.directory_file.run import Approvals
    from taskherd.domain.reports import AgentRequest, Report
    from taskherd.runner.agents.acp.connection import AgentCall, RpcId
    from taskherd.runner.agents.acp.conversation import Conversation
    from taskherd.runner.agents.acp.turns import Turn
    from taskherd.runner.reporter import Reporter

    class Respond(Protocol):
        """Records responses to the agent."""

        def answer(self, request: RpcId, result: dict[str, Any] | None, *, keep: bool = False) -> int:
            """Record a result, and return its line; with ``keep`` the next runner gives it again if it was lost."""

        def refuse(self, request: RpcId, code: int, message: str) -> None:
            """Record an error."""


PERMISSION: Final = "session/request_permission"
ELICITATION: Final = "elicitation/create"
MAX_OPEN: Final = 20
"""Maximum number of open requests of one agent; the runner rejects further ones itself."""
MAX_ID: Final = 1_024
"""Maximum length of the id of an option that rejects, in characters."""
_NOT_SHOWN: Final = "(The tool's input cannot be shown here: it is too large, or has names that look the same.)"
_DECIDE: Final = "(the template's `run.approvals` can decide instead)"
_REJECTING: Final = {OptionKind.REJECT_ONCE, OptionKind.REJECT_ALWAYS}


class AgentRequests:
    """The requests of one agent that are open, and the latest ones that are closed."""

    def __init__(
        self,
        checkpoint: dict[str, Any],
        *,
        respond: Respond,
        conversation: Conversation,
        turn: Turn,
        approvals: Approvals,
        reporter: Reporter,
    ) -> None:
        self._respond = respond
        self._conversation = conversation
        self._turn = turn
        self._approvals = approvals
        self._reporter = reporter
        now = reporter.now()
        waiting = [pending_request.load(record, now) for record in checkpoint.get("open", ())]
        self._open: dict[UUID, PendingAcpRequest] = {each.request.request_id: each for each in waiting}
        self._answered: dict[int, tuple[PendingAcpRequest, dict[str, Any]]] = {
            line: (pending_request.load(record, now), result) for line, result, record in checkpoint.get("answers", ())
        }
        """By the line of the answer that the agent may not have been given yet: the closed request, and the result."""
        self._closed = ClosedRequests(checkpoint.get("closed", ()))
        self._unreported: list[AgentRequest] = []

    def checkpoint(self) -> dict[str, Any]:
        """Return what the next runner needs."""
        answers = [[line, result, each.dump()] for line, (each, result) in self._answered.items()]
        waiting = [each.dump() for each in self._open.values()]
        return {"open": waiting, "answers": answers, "closed": self._closed.checkpoint()}

    def take_reports(self) -> Sequence[Report]:
        """Return the reports on requests that were opened or closed since the last call."""
        unreported, self._unreported = self._unreported, []
        return unreported

    @property
    def titles(self) -> list[str]:
        """The titles of the open requests, the first one first."""
        return [each.request.title for each in self._open.values()]

    @property
    def ids(self) -> Iterable[UUID]:
        """The ids of the open requests."""
        return list(self._open)

    def has(self, rpc: RpcId) -> bool:
        """Return whether a request with this id of the agent's is open."""
        return any(_is_same(each.rpc, rpc) for each in self._open.values())

    def handle_permission(self, call: AgentCall) -> None:
        """Answer a request for permission by the policy, or open it for people."""
        try:
            params = schema.RequestPermissionRequest.model_validate(call.params)
        except ValidationError:
            self._respond.refuse(call.id, INVALID_PARAMS, "the parameters do not fit the schema")
            return
        tool, given = params.tool_call, call.params["toolCall"]
        self._conversation.apply(tool)
        if self._turn.cancelled:
            self._respond.answer(call.id, permissions.CANCELLED, keep=True)
            return
        known = self._conversation.tool(tool.tool_call_id) or {}
        kind = permissions.tool_kind(known.get("kind"))
        described = permissions.describe_tool(kind, given.get("name"), tool.raw_input)
        detail = self._conversation.describe(tool.tool_call_id)
        if tool.raw_input is not None and described.input is None:
            detail = f"{_NOT_SHOWN}\n{detail}".rstrip()
        asked = PendingAcpRequest(
            self._reporter.request_report(
                request_id=uuid4(),
                kind=RequestKind.APPROVAL,
                title=sanitize_title(str(known.get("title")), {}) or "The agent asks for permission",
                detail=sanitize_detail(detail, {}),
                tool=described,
                options=permissions.options_for_people(params.options),
                expires_at=self._expiry(),
            ),
            call.id,
            rejecting=permissions.find_option(
                [each for each in params.options if _is_short(each)], OptionKind.REJECT_ONCE
            ),
        )
        decision = permissions.decide(self._approvals, kind, params.options)
        if not decision.asks:
            self._decide(asked, decision)
        elif not asked.request.options:
            self._reject(asked, "it offers nothing to choose from")
        else:
            self._ask(asked)

    def handle_elicitation(self, call: AgentCall) -> None:
        """Open a form with one field for people, and decline any other."""
        if self._turn.cancelled:
            self._respond.answer(call.id, elicitation.CANCELLED, keep=True)
            return
        question = elicitation.parse_question(call.params)
        message = call.params.get("message") if question is None else question.message
        title = sanitize_title(str(message or "")[: elicitation.MAX_MESSAGE], {}) or "The agent asks a question"
        if question is None:
            self._conversation.add_notice(f"a question was declined, because its form cannot be passed on: {title}")
            self._respond.answer(call.id, elicitation.DECLINED)
            return
        request = self._reporter.request_report(
            request_id=uuid4(),
            kind=RequestKind.QUESTION,
            title=title,
            detail=sanitize_detail(question.message, {}) if question.message.strip() != title else "",
            options=question.options,
            expires_at=self._expiry(),
        )
        self._ask(PendingAcpRequest(request, call.id, question.field, question.is_boolean))

    def answer(self, request_id: UUID, option_id: str | None, text: str | None) -> AnswerOutcome:
        """Record a person's answer. A text beside an option is no part of it; the worker sends that as an input.

        An answer to a request that is not open changes nothing; what closed that is reported again, if it is known.
        """
        if (asked := self._open.get(request_id)) is None:
            return self._repeat(request_id)
        if not asked.takes(option_id, text):
            return AnswerOutcome.IGNORED
        self._note_rejection(asked, option_id)
        given = {"option_id": option_id, "text": text if option_id is None else None}
        self._close(asked, asked.result(option_id, text), RequestState.ANSWERED, **given)
        return AnswerOutcome.DONE

    def answer_again(self, line: int) -> bool:
        """Record an answer again, which was recorded as a line and never submitted. Return whether it was one."""
        if line not in self._answered:
            return False
        asked, result = self._answered.pop(line)
        self._answered[self._respond.answer(asked.rpc, result)] = asked, result
        return True

    def acknowledge(self, line: int, *, written: bool) -> None:
        """Report the request as closed whose answer was this line: as withdrawn if the agent was not given it."""
        if line in self._answered:
            asked, _ = self._answered.pop(line)
            self._report_closed(asked.request if written else _withdrawn(asked.request))

    def withdraw_unknown(self, rpc: RpcId) -> str | None:
        """Report an open request as withdrawn that an earlier runner may have answered, and return its title."""
        for request_id, asked in list(self._open.items()):
            if _is_same(asked.rpc, rpc):
                del self._open[request_id]
                self._report_closed(_withdrawn(asked.request))
                return asked.request.title
        return None

    def cancel_all(self) -> None:
        """Answer all open requests as cancelled."""
        for asked in list(self._open.values()):
            self._close(asked, asked.cancellation, RequestState.WITHDRAWN)

    def cancel_call(self, rpc: object) -> None:
        """Answer the open request with this id of the agent's as cancelled, if there is one."""
        for asked in [each for each in self._open.values() if _is_same(each.rpc, rpc)]:
            self._close(asked, asked.cancellation, RequestState.WITHDRAWN)

    def withdraw_all(self) -> None:
        """Report all requests as withdrawn whose answer has not reached the agent: it has ended."""
        for asked in (*self._open.values(), *(each for each, _ in self._answered.values())):
            self._report_closed(_withdrawn(asked.request))
        self._open.clear()
        self._answered.clear()

    def expire(self) -> bool:
        """Reject the requests whose time is over, and return whether there were any."""
        now = self._reporter.now()
        due = [each for each in self._open.values() if each.request.expires_at and each.request.expires_at <= now]
        for asked in due:
            self._turn.rejected = asked.request.title
            self._close(asked, asked.rejection, RequestState.EXPIRED)
            self._conversation.add_notice(f"this was rejected, because no answer came in time: {asked.request.title}")
        return bool(due)

    def _ask(self, asked: PendingAcpRequest) -> None:
        """Open a request for people; with too many open ones, reject it."""
        if len(self._open) >= MAX_OPEN:
            self._reject(asked, f"{MAX_OPEN} requests are open already")
            return
        self._open[asked.request.request_id] = asked
        self._unreported.append(asked.request)

    def _reject(self, asked: PendingAcpRequest, why: str) -> None:
        """Reject a request that is not passed on to people."""
        self._turn.rejected = asked.request.title
        advice = f" {_DECIDE}" if asked.field is None else ""
        self._conversation.add_notice(f"this was rejected, because {why}: {asked.request.title}{advice}")
        self._respond.answer(asked.rpc, asked.rejection)

    def _decide(self, asked: PendingAcpRequest, decision: permissions.Decision) -> None:
        """Answer a request by the policy."""
        if not decision.allows:
            self._turn.rejected = asked.request.title
            self._conversation.add_notice(f"by the template's policy, this was not permitted: {asked.request.title}")
        option_id = decision.option_id if asked.takes(decision.option_id, None) else None  # or its id cannot be told
        self._close(asked, permissions.outcome(decision.option_id), RequestState.ANSWERED, option_id=option_id)

    def _note_rejection(self, asked: PendingAcpRequest, option_id: str | None) -> None:
        if any(option.id == option_id and option.kind in _REJECTING for option in asked.request.options):
            self._turn.rejected = asked.request.title

    def _close(
        self, asked: PendingAcpRequest, result: dict[str, Any], state: RequestState, **answer: str | None
    ) -> None:
        """Record the answer to a request, which is reported as closed once the agent was given it."""
        self._open.pop(asked.request.request_id, None)
        line = self._respond.answer(asked.rpc, result)
        self._answered[line] = asked.with_request(state=state, **answer), result

    def _report_closed(self, request: AgentRequest) -> None:
        report = self._reporter.renewed(request)
        self._unreported.append(report)
        self._closed.add(report.request_id, encode_report(report).decode())

    def _repeat(self, request_id: UUID) -> AnswerOutcome:
        if (report := self._closed.report_of(request_id)) is not None:
            self._reporter.repeat(report)
            return AnswerOutcome.REPEATED
        is_answered = any(each.request.request_id == request_id for each, _ in self._answered.values())
        return AnswerOutcome.REPEATED if is_answered else AnswerOutcome.IGNORED

    def _expiry(self) -> datetime | None:
        seconds = self._approvals.expire_after
        return None if seconds is None else self._reporter.now() + timedelta(seconds=seconds)


def _withdrawn(request: AgentRequest) -> AgentRequest:
    return replace(request, state=RequestState.WITHDRAWN, option_id=None, text=None)


def _is_short(option: schema.PermissionOption) -> bool:
    """Return whether the id of an option is short enough to be kept."""
    return len(option.option_id) <= MAX_ID


def _is_same(rpc: RpcId, other: object) -> bool:
    return rpc == other and type(rpc) is type(other)
