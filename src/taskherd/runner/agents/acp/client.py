"""The methods that an agent may call of its client: permissions, forms, and what the template allows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from taskherd.runner.agents.acp import files, requests
from taskherd.runner.agents.acp.connection import INVALID_PARAMS, METHOD_NOT_FOUND, RESOURCE_NOT_FOUND
from taskherd.runner.agents.acp.sizes import MAX_PARTS, has_few_parts
from taskherd.runner.agents.acp.terminals import METHODS

if TYPE_CHECKING:
    from collections.abc import Callable

    from taskherd.runner.agents.acp.connection import AgentCall
    from taskherd.runner.agents.acp.requests import AgentRequests, Respond
    from taskherd.runner.agents.acp.terminals import Terminals
    from taskherd.runner.agents.acp.turns import Turn
    from taskherd.runner.agents.context import AgentContext


class ClientMethods:
    """The methods of the runner as a client of one agent."""

    def __init__(
        self, context: AgentContext, turn: Turn, agent_requests: AgentRequests, terminals: Terminals, respond: Respond
    ) -> None:
        self._context = context
        self._turn = turn
        self._respond = respond
        self._methods: dict[str, Callable[[AgentCall], None]] = {
            requests.PERMISSION: agent_requests.handle_permission,
            requests.ELICITATION: agent_requests.handle_elicitation,
        }
        if context.run.client_files != "none":
            self._methods["fs/read_text_file"] = self._access
        if context.run.client_files == "write":
            self._methods["fs/write_text_file"] = self._access
        if context.run.client_terminals:
            self._methods |= dict.fromkeys(METHODS, terminals.handle)

    def handle(self, call: AgentCall, session: str | None) -> bool:
        """Carry out a request of the agent, or refuse it; return False if that is for the form of its parameters.

        What is refused is its method before its parameters, and those before the session in them.
        """
        method = self._methods.get(call.method)
        if method is None:
            self._respond.refuse(call.id, METHOD_NOT_FOUND, f"Method not found: {call.method[:100]}")
        elif not call.has_fields or not has_few_parts(call.params):
            words = f"have over {MAX_PARTS} parts" if call.has_fields else "are no object"
            self._respond.refuse(call.id, INVALID_PARAMS, f"the parameters {words}")
            return False
        elif call.params.get("sessionId", session) != session:
            self._respond.refuse(call.id, INVALID_PARAMS, "there is no such session")
        else:
            method(call)
        return True

    def _access(self, call: AgentCall) -> None:
        """Read or write a file in the task's folder."""
        path, content = call.params.get("path"), call.params.get("content")
        line, limit = call.params.get("line"), call.params.get("limit")
        writes = call.method == "fs/write_text_file"
        if (
            not isinstance(path, str)
            or (writes and not isinstance(content, str))
            or not _is_count(line)
            or not _is_count(limit)
        ):
            self._respond.refuse(call.id, INVALID_PARAMS, "the parameters do not fit the schema")
            return
        if writes and self._turn.cancelled:
            self._respond.refuse(call.id, INVALID_PARAMS, "a file is not written in a turn that is cancelled")
            return
        context = self._context
        result: dict[str, Any] = {}
        try:
            if writes:
                files.write_text(context.work, path, str(content), context.journal.agent_uid)
            else:
                result["content"] = files.read_text(context.work, path, line, limit, context.journal.agent_uid)
        except files.NotAllowed as error:
            self._respond.refuse(call.id, RESOURCE_NOT_FOUND, str(error))
        else:
            self._respond.answer(call.id, result)


def _is_count(value: object) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0)
