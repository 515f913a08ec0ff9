"""The turn in flight, and what the response to its prompt says about the task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from taskherd.domain.reports import AgentState
from taskherd.runner.agents.acp.connection import AUTH_REQUIRED
from taskherd.runner.agents.acp.handshake import describe_error
from taskherd.runner.agents.interrupting import INTERRUPTED

if TYPE_CHECKING:
    from collections.abc import Mapping

_LIMITS: Final = {
    "refusal": "The model refused to go on (refusal).",
    "max_tokens": "The turn ended at the model's limit of tokens (max_tokens).",
    "max_turn_requests": "The turn ended at its maximum number of requests to the model (max_turn_requests).",
    "cancelled": "The agent says that its turn was cancelled, although that was not requested (cancelled).",
}
_REJECTED: Final = "The agent ended its turn because this was rejected: {}"


class Turn:
    """The turn of one agent that is in flight, if one is."""

    def __init__(self, checkpoint: Mapping[str, Any]) -> None:
        self.number: int | None = checkpoint.get("turn")
        """The id of its prompt; None if no turn is in flight."""
        self.cancelled: bool = checkpoint.get("cancelled", False)
        """Whether the agent was asked to end it."""
        self.rejected: str = checkpoint.get("rejected", "")
        """The title of the request that was rejected last while it was in flight; empty if none was."""
        self.begun: int = checkpoint.get("turns", 0)
        """How many turns this build's agent has begun."""

    def checkpoint(self) -> dict[str, Any]:
        """Return what the next runner needs."""
        own = {"turns": self.begun, "cancelled": self.cancelled, "rejected": self.rejected}
        return {"turn": self.number, **own}

    @property
    def is_open(self) -> bool:
        """Whether a turn is in flight."""
        return self.number is not None

    def begin(self, number: int) -> None:
        """Note that a prompt is in flight."""
        self.number, self.cancelled, self.rejected = number, False, ""
        self.begun += 1

    def take_back(self) -> None:
        """Note that the prompt in flight was never given."""
        self.end()
        self.begun -= 1

    def end(self) -> None:
        """Note that no turn is in flight any more."""
        self.number, self.cancelled, self.rejected = None, False, ""

    def state_after(
        self,
        result: dict[str, Any] | None,
        error: dict[str, Any] | None,
        *,
        completes: bool,
        last_words: str,
        sign_in: str,
    ) -> tuple[AgentState, str]:
        """Return the state and message after this turn; ``sign_in`` is that of an agent that wants its user to sign in.

        A turn that was cancelled is interrupted, whatever the agent claims. Only one that came to its end completes a
        task; with ``completes`` any other has failed, without it the agent waits for what people say.
        """
        if self.cancelled:
            return AgentState.IDLE, INTERRUPTED
        if error is not None and error.get("code") == AUTH_REQUIRED and sign_in:
            return AgentState.FAILED, f"{sign_in} Then pause and resume the task."
        if error is not None:
            return AgentState.FAILED, f"The agent could not carry out its turn: {describe_error(error)}"
        reason = (result or {}).get("stopReason")
        if reason == "end_turn":
            return AgentState.COMPLETE if completes else AgentState.IDLE, last_words
        words = _LIMITS.get(str(reason), f"The turn ended for a reason that is not known ({str(reason)[:100]}).")
        if reason == "cancelled" and self.rejected:
            words = _REJECTED.format(self.rejected)
        return AgentState.FAILED if completes else AgentState.IDLE, words
