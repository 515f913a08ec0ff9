"""What an agent asks its client: permissions and forms. The policy answers, or a person.

An open request is part of the checkpoint until its answer was recorded, so that it stays open, and answerable to the
same process, whatever becomes of the runner.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID, uuid4

from acp import schema
from pydantic import ValidationError

from taskherd.messages.texts import sanitize_title
from taskherd.runner.agents.acp import elicitation, permissions
from taskherd.runner.agents.acp.connection import INVALID_PARAMS
from taskherd.runner.agents.acp.conversation import fits_input
from taskherd.runner.agents.acp.people import MAX_OPEN, AgentRequest, Option, RequestClosed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Protocol

    from taskherd.directory_file.run import Approvals
    from taskherd.domain.reports import Report
    from taskherd.runner.agents.acp.connection import AgentCall, RpcId
    from taskherd.runner.agents.acp.conversation import Conversation
    from taskherd.runner.agents.acp.people import PeopleChannel, RequestState

    class Respond(Protocol):
        """Records responses to the agent."""

        def answer(self, request: RpcId, result: dict[str, Any] | None) -> int:
            """Record a result."""

        def refuse(self, request: RpcId, code: int, message: str) -> None:
            """Record an error."""


PERMISSION: Final = "session/request_permission"
ELICITATION: Final = "elicitation/create"


class AgentRequests:
    """The open requests of one agent."""

    def __init__(
        self,
        checkpoint: dict[str, Any],
        *,
        respond: Respond,
        conversation: Conversation,
        approvals: Approvals,
        people: PeopleChannel | None,
        now: Callable[[], datetime],
    ) -> None:
        self._respond = respond
        self._conversation = conversation
        self._approvals = approvals
        self._people = people
        self._now = now
        self._open: dict[UUID, tuple[RpcId, str | None, AgentRequest]] = {
            request.request_id: (rpc, field, request) for rpc, field, request in map(_load, checkpoint.get("open", ()))
        }
        """By ``request_id``: the agent's id, the form's field for a question, and the request as people see it."""
        self._answered: dict[int, tuple[RpcId, dict[str, Any], AgentRequest]] = {
            int(line): (rpc, result, request)
            for line, result, record in checkpoint.get("answered", ())
            for rpc, _, request in [_load(record)]
        }
        """By the line of the answer that the agent may not have been given yet: its id, the result, and the request."""
        self._unreported: list[AgentRequest] = []

    def checkpoint(self) -> dict[str, Any]:
        """Return what the next runner needs."""
        answered = [
            [line, result, _dump(rpc, None, request)] for line, (rpc, result, request) in self._answered.items()
        ]
        return {"open": [_dump(*each) for each in self._open.values()], "answered": answered}

    def take_reports(self) -> Sequence[Report]:
        """Return the reports on requests that were opened or closed since the last call."""
        unreported, self._unreported = self._unreported, []
        return self._people.reports(unreported) if self._people is not None and unreported else ()

    def answer_again(self, line: int) -> bool:
        """Record an answer again, which was recorded as a line and never submitted. Return whether it was one."""
        if line not in self._answered:
            return False
        rpc, result, request = self._answered.pop(line)
        self._answered[self._respond.answer(rpc, result)] = (rpc, result, request)
        return True

    def acknowledge(self, line: int, *, written: bool) -> None:
        """Report the request as closed whose answer was this line: as withdrawn if the agent was not given it."""
        if line in self._answered:
            _, _, request = self._answered.pop(line)
            self._unreported.append(request if written else replace(request, state="withdrawn"))

    @property
    def titles(self) -> list[str]:
        """The titles of the open requests, the first one first."""
        return [request.title for _, _, request in self._open.values()]

    @property
    def ids(self) -> Iterable[UUID]:
        """The ids of the open requests."""
        return list(self._open)

    def has(self, rpc: RpcId) -> bool:
        """Return whether a request with this id of the agent's is open."""
        return any(each == rpc and type(each) is type(rpc) for each, _, _ in self._open.values())

    def handle_permission(self, call: AgentCall) -> None:
        """Answer a request for permission by the policy, or open it for people."""
        try:
            params = schema.RequestPermissionRequest.model_validate(call.params)
        except ValidationError:
            self._respond.refuse(call.id, INVALID_PARAMS, "the parameters do not fit the schema")
            return
        tool = params.tool_call
        self._conversation.apply(tool)
        known = self._conversation.tool(tool.tool_call_id) or {}
        kind = permissions.tool_kind(known.get("kind"))
        title = sanitize_title(str(known.get("title")), {}) or "The agent asks for permission"
        decision = permissions.decide(self._approvals, kind, params.options)
        about: dict[str, Any] = {"kind": kind}
        if tool.raw_input is not None and fits_input(tool.raw_input):
            about["input"] = tool.raw_input
        request = AgentRequest(
            uuid4(), "approval", title, "", about, permissions.options_for_people(params.options), self._expiry()
        )
        if decision.asks:
            self._ask(call.id, None, request, permissions.find_option(params.options, "reject_once"))
        else:
            result = permissions.outcome(decision.option_id)
            self._give(call.id, result, replace(request, state="answered", option_id=decision.option_id))
            if not decision.allows:
                self._conversation.add_notice(f"by the template's policy, this was not permitted: {title}")

    def handle_elicitation(self, call: AgentCall) -> None:
        """Open a form with one field for people, and decline any other."""
        question = elicitation.parse_question(call.params)
        title = sanitize_title(str(call.params.get("message") or ""), {}) or "The agent asks a question"
        if question is None or self._people is None or len(self._open) >= MAX_OPEN:
            why = "its form cannot be passed on" if question is None else "no person can be asked"
            self._conversation.add_notice(f"a question of the agent was declined, because {why}: {title}")
            self._respond.answer(call.id, elicitation.DECLINED)
            return
        request = AgentRequest(uuid4(), "question", title, "", None, question.options, self._expiry())
        self._ask(call.id, question.field, request, None)

    def answer(self, request_id: UUID, option_id: str | None, text: str | None) -> int:
        """Record a person's answer, and return its line. Raise ``RequestClosed`` if the request is not open."""
        _, field, request = self._get(request_id)
        offered = {option.id for option in request.options}
        if offered and option_id not in offered:
            raise RequestClosed(f"The request has no option {option_id!r}.")
        result = permissions.outcome(option_id) if field is None else elicitation.accept(field, option_id, text)
        return self._close(request_id, result, "answered", option_id, text)

    def cancel(self, request_id: UUID) -> None:
        """Answer an open request as cancelled."""
        _, field, _ = self._get(request_id)
        self._close(request_id, permissions.CANCELLED if field is None else elicitation.CANCELLED, "withdrawn")

    def cancel_call(self, rpc: object) -> None:
        """Answer the open request with this id of the agent's as cancelled, if there is one."""
        for request_id in [key for key, (each, _, _) in self._open.items() if each == rpc]:
            self.cancel(request_id)

    def withdraw_all(self) -> None:
        """Report all open requests as withdrawn: the agent has ended, so that no answer can reach it."""
        for _, _, request in (*self._open.values(), *self._answered.values()):
            self._unreported.append(replace(request, state="withdrawn"))
        self._open.clear()
        self._answered.clear()

    def expire(self) -> bool:
        """Reject the requests whose time is over, and return whether there were any."""
        now = self._now()
        due = [
            key for key, (_, _, each) in self._open.items() if each.expires_at is not None and each.expires_at <= now
        ]
        for request_id in due:
            _, field, request = self._open[request_id]
            rejecting = next((each.id for each in request.options if each.kind == "reject_once"), None)
            result = permissions.outcome(rejecting) if field is None else elicitation.DECLINED
            self._close(request_id, result, "expired", rejecting)
            self._conversation.add_notice(f"no answer in time: {request.title}")
        return bool(due)

    def _ask(self, rpc: RpcId, field: str | None, request: AgentRequest, rejecting: str | None) -> None:
        """Open a request for people; without a way to them, or with too many open ones, reject it."""
        if self._people is not None and len(self._open) < MAX_OPEN:
            self._open[request.request_id] = (rpc, field, request)
            self._unreported.append(request)
            return
        why = "there is no way to ask a person" if self._people is None else f"{MAX_OPEN} requests are open already"
        self._conversation.add_notice(
            f"this was rejected, because {why}: {request.title} (the template's `run.approvals` can decide instead)"
        )
        self._respond.answer(rpc, permissions.outcome(rejecting))

    def _close(
        self,
        request_id: UUID,
        result: dict[str, Any],
        state: RequestState,
        option_id: str | None = None,
        text: str | None = None,
    ) -> int:
        rpc, _, request = self._open.pop(request_id)
        return self._give(rpc, result, replace(request, state=state, option_id=option_id, text=text))

    def _give(self, rpc: RpcId, result: dict[str, Any], request: AgentRequest) -> int:
        """Record the answer to a request, which is reported as closed once the agent was given it. Return its line."""
        line = self._respond.answer(rpc, result)
        self._answered[line] = (rpc, result, request)
        return line

    def _get(self, request_id: UUID) -> tuple[RpcId, str | None, AgentRequest]:
        try:
            return self._open[request_id]
        except KeyError:
            raise RequestClosed("The request is no longer open.") from None

    def _expiry(self) -> datetime | None:
        seconds = self._approvals.expire_after
        return None if seconds is None else self._now() + timedelta(seconds=seconds)


def _dump(rpc: RpcId, field: str | None, request: AgentRequest) -> dict[str, Any]:
    return {
        "rpc": rpc,
        "field": field,
        "id": str(request.request_id),
        "kind": request.kind,
        "title": request.title,
        "detail": request.detail,
        "tool": request.tool,
        "options": [[option.id, option.label, option.kind] for option in request.options],
        "state": request.state,
        "option_id": request.option_id,
        "text": request.text,
        "expires_at": request.expires_at.timestamp() if request.expires_at else None,
    }


def _load(record: dict[str, Any]) -> tuple[RpcId, str | None, AgentRequest]:
    expires_at = record["expires_at"]
    request = AgentRequest(
        UUID(record["id"]),
        record["kind"],
        record["title"],
        record["detail"],
        record["tool"],
        tuple(Option(*option) for option in record["options"]),
        None if expires_at is None else datetime.fromtimestamp(expires_at, UTC),
        record["state"],
        record["option_id"],
        record["text"],
    )
    return record["rpc"], record["field"], request
