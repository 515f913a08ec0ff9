"""What the response to a prompt says about the task; pure."""

from __future__ import annotations

from typing import Any, Final

from taskherd.domain.reports import AgentState
from taskherd.runner.agents.acp.handshake import describe_error
from taskherd.runner.agents.interrupting import INTERRUPTED

_LIMITS: Final = {
    "refusal": "The model refused to go on (refusal).",
    "max_tokens": "The turn ended at the model's limit of tokens (max_tokens).",
    "max_turn_requests": "The turn ended at its maximum number of requests to the model (max_turn_requests).",
    "cancelled": "The agent says that its turn was cancelled, although that was not requested (cancelled).",
}


def state_after(
    result: dict[str, Any] | None, error: dict[str, Any] | None, *, cancelled: bool, completes: bool, last_words: str
) -> tuple[AgentState, str]:
    """Return the state and message after a turn.

    A turn that was cancelled is interrupted, whatever the agent claims. Only one that came to its end completes a task;
    with ``completes`` any other has failed, without it the agent waits for what people say.
    """
    if cancelled:
        return AgentState.IDLE, INTERRUPTED
    if error is not None:
        return AgentState.FAILED, f"The agent could not carry out its turn: {describe_error(error)}"
    reason = (result or {}).get("stopReason")
    if reason == "end_turn":
        return AgentState.COMPLETE if completes else AgentState.IDLE, last_words
    words = _LIMITS.get(str(reason), f"The turn ended for a reason that is not known ({str(reason)[:100]}).")
    return AgentState.FAILED if completes else AgentState.IDLE, words
