"""The state of a task in one word, as its history tells it, derived from the task document like everything shown.

Since when a task is in its state is not in the document, which does not depend on the order in which reports were
received: the worker keeps it with the task's state, and the API tells it to those who ask.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any

from taskherd.domain.reports import AgentState, ExitReason
from taskherd.domain.view import LOST_CONNECTION, NOT_RUNNING, Status

if TYPE_CHECKING:
    from collections.abc import Mapping


class ShownState(StrEnum):
    """What a task is doing, in one word."""

    STARTING = "starting"
    WORKING = "working"
    WAITING = "waiting"
    IDLE = "idle"
    COMPLETE = "complete"
    FAILED = "failed"
    LOST = "lost"
    PAUSED = "paused"
    UNKNOWN = "unknown"


def shown_state(
    status: str, state: str | None, health: str | None, agent_exit: str | None, *, is_asking: bool
) -> ShownState:
    """Return what a task is doing.

    Args:
        status: its status.
        state: what its agent says, None if it says nothing.
        health: the reason why its agent is not healthy, None if it is.
        agent_exit: why its agent has ended, None if it has not.
        is_asking: whether a request of its agent is open.
    """
    has_vanished = agent_exit == ExitReason.LOST
    if (has_vanished or health == LOST_CONNECTION) and state != AgentState.COMPLETE:
        return ShownState.LOST
    if status == Status.ERROR or (health == NOT_RUNNING and not has_vanished):
        return ShownState.FAILED
    if status in {Status.PENDING, Status.INITIALIZING}:
        return ShownState.STARTING
    if status != Status.ACTIVE:
        return ShownState(status)
    if is_asking:
        return ShownState.WAITING
    return ShownState(state or ShownState.WORKING)


def shown_state_of(core: Mapping[str, Any]) -> ShownState:
    """Return what a task with this core document is doing, which may be one of an earlier release."""
    status, state, health, agent_exit, is_asking = _facts(core)
    return shown_state(status, state, health, agent_exit, is_asking=is_asking)


def is_another_state(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Return whether a task has come into another state between two core documents.

    That it waits for its start is a state of its own here, and so is that its agent has not said anything yet.
    """
    return _distinguished(before) != _distinguished(after)


def may_be_another(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Return False if everything is as before that a task's state and its ending follow from.

    That is far cheaper than to derive them, and most changes are of a message alone.
    """
    return _facts(before) != _facts(after)


def _facts(core: Mapping[str, Any]) -> tuple[str, str | None, str | None, str | None, bool]:
    """Return what ``shown_state`` is derived from."""
    state, health, agent_exit = core["current_state"], core["workspace_agent_health"], core.get("agent_exit")
    return (
        core["status"],
        None if state is None else state["state"],
        None if health is None else health.get("reason"),
        None if agent_exit is None else agent_exit["why"],
        bool(core.get("requests_open")),
    )


def _distinguished(core: Mapping[str, Any]) -> tuple[ShownState, object]:
    shown = shown_state_of(core)
    match shown:
        case ShownState.STARTING:
            return shown, core["status"]
        case ShownState.WORKING:
            return shown, core["current_state"] is None
        case _:
            return shown, None
