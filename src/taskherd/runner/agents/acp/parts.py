"""The parts that follow one agent: they share its checkpoint, and what follows from a line goes through all of them."""

from __future__ import annotations

from dataclasses import dataclass

from taskherd.runner.agents.acp.connection import Connection
from taskherd.runner.agents.acp.conversation import Conversation
from taskherd.runner.agents.acp.opening import SessionOpening
from taskherd.runner.agents.acp.recorder import Recorder
from taskherd.runner.agents.acp.requests import AgentRequests
from taskherd.runner.agents.acp.terminals import Terminals
from taskherd.runner.agents.acp.turns import Turn
from taskherd.runner.agents.acp.usage import UsageMeter
from taskherd.runner.agents.context import AgentContext


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts that follow one agent."""

    context: AgentContext
    connection: Connection
    conversation: Conversation
    requests: AgentRequests
    usage: UsageMeter
    opening: SessionOpening
    turn: Turn
    terminals: Terminals
    recorder: Recorder

    def report_state(self) -> None:
        """Report the state that the protocol shows, and record what has changed."""
        self.recorder.report_state(in_turn=self.turn.is_open)
