"""Say in words why a task changed: who did what, or what was reported or found.

The texts name the actor of a command; everything else happened by itself. They begin with a lower-case letter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from taskherd.domain.explanations import how_ended
from taskherd.domain.reports import AgentExit, AgentRequest, InterruptOutcome
from taskherd.domain.request_values import RequestState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from taskherd.domain.view import EndedAgent

COMMANDS: Final[Mapping[str, str]] = {
    "task.create": "created the task",
    "task.delete": "deleted the task",
    "task.update_input": "changed the prompt",
    "task.update_labels": "changed the labels",
    "task.send": "sent an input",
    "task.pause": "paused the task",
    "task.resume": "resumed the task",
    "task.interrupt": "interrupted the agent",
    "task.answer": "answered a request of the agent",
}
"""What the actor of each type of command did."""

REPORTS: Final[Mapping[str, str]] = {
    "workspace.build": "the workspace was reported",
    "agent.lifecycle": "the agent's start-up or shutdown was reported",
    "agent.heartbeat": "the agent sent a heartbeat",
    "agent.disconnected": "the agent disconnected",
    "agent.exit": "the end of the agent was reported",
    "app.health": "the health of the agent's app was reported",
    "app.status": "the agent's state was reported",
    "task.log": "the agent's log was reported",
    "task.input": "what became of an input was reported",
    "agent.usage": "the agent's use of its models was reported",
    "agent.interrupted": "what became of an interrupt was reported",
    "agent.request": "a request of the agent was reported",
}
"""What each type of report says."""

FINDINGS: Final[Mapping[str, str]] = {
    "build.given_up": "the worker gave the build up, because nothing about it was reported in time",
    "agent.silent": "no heartbeat of the agent came in time",
    "agent.stalled": "the agent stalled: nothing but heartbeats came from it",
    "agent.lost": "the worker started the agent again after it was lost",
    "agent.interrupt_expired": "the interrupt failed: the runner did not report in time what became of it",
    "runner.drained": "the worker started the agent again after the runner was drained",
    "task.looked_at": "the worker checked the task",
}
"""What each finding of the worker means."""


INTERRUPTS: Final[Mapping[str, str]] = {
    InterruptOutcome.STOPPED: "the interrupt ended what the agent did",
    InterruptOutcome.ENDED: "the interrupt found that the agent did nothing any more",
    InterruptOutcome.FAILED: "the interrupt failed",
}
"""What the report about an interrupt says, by its outcome."""
REQUESTS: Final[Mapping[str, str]] = {
    RequestState.OPEN: "the agent asks “{}”",
    RequestState.ANSWERED: "the agent got the answer to “{}”",
    RequestState.WITHDRAWN: "the agent's request “{}” was withdrawn",
    RequestState.EXPIRED: "the agent's request “{}” expired",
}
"""What the report about a request says, by the state of the request."""
STEERED: Final = "interrupted the agent and sent an input"
"""What the actor did who sent an input that steers."""


def describe(
    kind: str,
    message_type: str,
    actor: str,
    ended: EndedAgent | None = None,
    *,
    outcome: str = "",
    steers: bool = False,
    request: str = "",
    answer: str | None = None,
) -> str:
    """Return the cause of a change in words; a type that this release does not know is named as it is.

    Args:
        kind: ``command``, ``report`` or ``sweep``.
        message_type: the type of the command or report, or the finding of the sweep.
        actor: the name of who sent a command, "" if it is not known.
        ended: how the agent ended, for the report about that.
        outcome: the outcome of the interrupt, or the state of the request, for the report about that.
        steers: True for a send that interrupted the agent.
        request: the title of the agent's request that was reported or answered.
        answer: the answer that the actor gave to that, in words.
    """
    if kind == "command":
        what = STEERED if steers else COMMANDS.get(message_type, f"sent {message_type}")
        return f"{actor or 'somebody'} {what if answer is None else f'answered “{request}”: {answer}'}"
    if message_type == AgentExit.type and ended is not None:
        return f"the agent {how_ended(ended)}"
    if message_type == AgentRequest.type and outcome in REQUESTS:
        return REQUESTS[outcome].format(request)
    if outcome in INTERRUPTS:
        return INTERRUPTS[outcome]
    return (REPORTS if kind == "report" else FINDINGS).get(message_type, message_type)
