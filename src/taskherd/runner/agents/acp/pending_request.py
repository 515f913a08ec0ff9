"""A request of an agent as people see it, together with what is needed to answer it over the protocol."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from taskherd.domain.blank import is_blank
from taskherd.domain.reports import AgentRequest
from taskherd.domain.value import replace
from taskherd.messages.reports import decode_stored_report, encode_report
from taskherd.runner.agents.acp import elicitation, permissions

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from taskherd.runner.agents.acp.connection import RpcId


@dataclass(frozen=True, slots=True)
class PendingAcpRequest:
    """A request that waits for its answer, or for the acknowledgement that the agent was given it."""

    request: AgentRequest
    rpc: RpcId
    """The agent's id of the request."""
    field: str | None = None
    """The field of a question's form; None for an approval."""
    is_boolean: bool = False
    """Whether that field is a boolean."""
    rejecting: str | None = None
    """The agent's id of the option that rejects once, if an approval has one."""

    def takes(self, option_id: str | None, text: str | None) -> bool:
        """Return whether this is an answer: one of the options, or text if there are none."""
        if self.request.options:
            return option_id in {option.id for option in self.request.options}
        return option_id is None and not is_blank(text or "")

    def result(self, option_id: str | None, text: str | None) -> dict[str, Any]:
        """Return the result that gives the agent an answer."""
        if self.field is None:
            return permissions.outcome(option_id)
        given = text if option_id is None else option_id
        return elicitation.accept(self.field, given == "true" if self.is_boolean else given)

    @property
    def rejection(self) -> dict[str, Any]:
        """The result that rejects it once, or decides nothing if the agent offers no such option."""
        return permissions.outcome(self.rejecting) if self.field is None else elicitation.DECLINED

    @property
    def cancellation(self) -> dict[str, Any]:
        """The result that decides nothing, because the turn was cancelled."""
        return permissions.CANCELLED if self.field is None else elicitation.CANCELLED

    def with_request(self, **changes: Any) -> PendingAcpRequest:
        """Return a copy with some fields of the request changed."""
        changed = replace(self.request, **changes)
        return PendingAcpRequest(changed, self.rpc, self.field, self.is_boolean, self.rejecting)

    def dump(self) -> dict[str, Any]:
        """Return what the next runner needs."""
        return {
            "report": encode_report(self.request).decode(),
            "rpc": self.rpc,
            "field": self.field,
            "is_boolean": self.is_boolean,
            "rejecting": self.rejecting,
        }


def load(record: Mapping[str, Any], now: datetime) -> PendingAcpRequest:
    """Return the request that ``dump`` wrote."""
    request = decode_stored_report(record["report"], now)
    assert isinstance(request, AgentRequest)
    return PendingAcpRequest(request, record["rpc"], record["field"], record["is_boolean"], record["rejecting"])
