"""Check an agent that speaks the Agent Client Protocol: open a session as a runner does, and begin no turn."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from taskherd.cli.diagnostics.findings import Finding, error, note, ok
from taskherd.cli.diagnostics.trial import POLL_INTERVAL, AgentEnded
from taskherd.runner.agents.acp import handshake
from taskherd.runner.agents.acp.connection import (
    AUTH_REQUIRED,
    METHOD_NOT_FOUND,
    AgentCall,
    AgentResponse,
    BadLine,
    Connection,
)

if TYPE_CHECKING:
    from acp import schema

    from taskherd.cli.diagnostics.trial import Trial

MAX_BAD_LINES: Final = 100
"""Lines that are no messages, after which the agent is taken for one that does not speak the protocol."""
_FAR: Final = 600.0
"""Seconds until a call ends; the check ends before."""


class NotTheProtocol(Exception):  # noqa: N818 - it ends the check, as an answer
    """The agent writes what is not the protocol."""


class AcpClient:
    """A client that makes one call after the other, and offers the agent nothing."""

    def __init__(self, trial: Trial) -> None:
        self._trial = trial
        self._connection = Connection(trial.files, {})
        self._bad_lines = 0

    async def call(self, method: str, params: dict[str, Any]) -> AgentResponse:
        """Return the response to a call. Raise ``NotTheProtocol``."""
        connection = self._connection
        number = connection.call(method, params, _FAR)
        while True:
            connection.submit()
            has_ended = self._trial.how_it_ended() is not None  # what it wrote is read after this
            for message in connection.receive():
                match message:
                    case AgentResponse() if message.number == number:
                        return message
                    case AgentCall():
                        connection.refuse(message.id, METHOD_NOT_FOUND, "a check offers nothing")
                    case BadLine():
                        self._count_bad(message)
                    case _:
                        continue
            if has_ended and not connection.reader.has_more:
                raise AgentEnded
            await asyncio.sleep(POLL_INTERVAL)

    def _count_bad(self, line: BadLine) -> None:
        self._bad_lines += 1
        if self._bad_lines == MAX_BAD_LINES:
            raise NotTheProtocol(f"{MAX_BAD_LINES} of its lines are no messages of it, the last: {line.excerpt}")


async def probe_acp(trial: Trial) -> list[Finding]:
    """Return what an agent says about itself, and whether it opens a session. Raise ``AgentEnded`` if it ends first."""
    client = AcpClient(trial)
    try:
        return await _handshake(trial, client)
    except NotTheProtocol as problem:
        advice = "start the agent with the option that makes it speak the Agent Client Protocol"
        return [error("protocol", f"it does not speak the Agent Client Protocol: {problem}", advice)]


async def _handshake(trial: Trial, client: AcpClient) -> list[Finding]:
    params = handshake.initialize_params(trial.run)
    initialized = await client.call("initialize", params)
    if initialized.error is not None:
        words = f"it refused `initialize`: {handshake.describe_error(initialized.error)}"
        return [error("protocol", words, "see the agent's own documentation")]
    agent = handshake.parse_initialized(initialized.result or {})
    if isinstance(agent, str):
        return [error("protocol", agent, "install a version of the agent that speaks this version")]
    info = agent.agent_info
    name = f"{info.title or info.name} {info.version}" if info is not None else "an agent that does not say its name"
    findings = [ok("protocol", f"ACP version {agent.protocol_version}: {name}"), _capabilities(agent)]
    session = await client.call("session/new", handshake.session_params(str(trial.spec.cwd), [], None))
    return [*findings, _session(session, initialized)]


def _capabilities(agent: schema.InitializeResponse) -> Finding:
    """Check for what a resumed task needs."""
    method = handshake.continuation(agent, "earlier")
    if method == "session/new":
        words = "it cannot continue a session: a resumed task begins a new one"
        return note("capabilities", words, "none, unless tasks with this template are paused and resumed")
    return ok("capabilities", f"it continues a session with `{method}`")


def _session(response: AgentResponse, initialized: AgentResponse) -> Finding:
    if response.error is None:
        return ok("session", "it opens a session")
    if response.error.get("code") == AUTH_REQUIRED:
        words = "it wants `authenticate`: its user must sign in"
        return error("session", words, handshake.authentication_needed(initialized.result or {}))
    words = f"it refused `session/new`: {handshake.describe_error(response.error)}"
    return error("session", words, "see the agent's last words, or its own documentation")
