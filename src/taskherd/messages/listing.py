"""What lists select tasks by and totals count them by: derived from the task document, so that it never contradicts it.

A task has one value of each. Its terms, the runner and the labels, are of its own: there may be any number of values.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from taskherd.domain.reports import AgentState, ExitReason
from taskherd.domain.view import LOST_CONNECTION, NOT_RUNNING, Status

if TYPE_CHECKING:
    from collections.abc import Mapping

NO_STATE: Final = "none"
"""The state of a task whose ``current_state`` is null."""


class ListedHealth(StrEnum):
    """The health of a task's agent in one word."""

    HEALTHY = "healthy"
    CONNECTING = "connecting"
    LATE = "late"
    LOST = "lost"
    NOT_RUNNING = "not_running"
    START_ERROR = "start_error"
    SHUTTING_DOWN = "shutting_down"
    NONE = "none"


UNHEALTHY: Final = tuple(each for each in ListedHealth if each not in {ListedHealth.HEALTHY, ListedHealth.NONE})

HEALTH_BY_REASON: Final[Mapping[str, ListedHealth]] = {
    NOT_RUNNING: ListedHealth.NOT_RUNNING,
    "agent has not yet connected": ListedHealth.CONNECTING,
    "agent is taking too long to connect": ListedHealth.LATE,
    LOST_CONNECTION: ListedHealth.LOST,
    "agent startup script exited with an error": ListedHealth.START_ERROR,
    "agent is shutting down": ListedHealth.SHUTTING_DOWN,
}
"""The reasons of ``domain.view.health_of``."""

FIELDS: Final = frozenset(
    {"status", "current_state", "workspace_agent_health", "agent_exit", "requests_open", "stalled_since", "labels"}
)
"""The fields of the document from which a listing and the labels are derived."""


class Listing(NamedTuple):
    """The values of a task."""

    status: str
    state: str
    health: str
    waiting: bool
    stalled: bool

    @property
    def failed(self) -> bool:
        """True if the last build or the agent failed."""
        return self.status == Status.ERROR or self.state == AgentState.FAILED


def listing(core: Mapping[str, Any]) -> Listing:
    """Return the listing of a task with this core document, which may be one of an earlier release."""
    return Listing(
        core["status"],
        state(core),
        health(core).value,
        bool(core.get("requests_open")),
        core.get("stalled_since") is not None,
    )


def state(core: Mapping[str, Any]) -> str:
    """Return the state that a task's agent has reported."""
    current = core["current_state"]
    return NO_STATE if current is None else str(current["state"])


def health(core: Mapping[str, Any]) -> ListedHealth:
    """Return the health of a task's agent; one that ended without a record of how is lost, like one that is silent."""
    document, agent_exit = core["workspace_agent_health"], core.get("agent_exit")
    if document is None:
        return ListedHealth.NONE
    if document["healthy"]:
        return ListedHealth.HEALTHY
    if agent_exit is not None and agent_exit["why"] == ExitReason.LOST:
        return ListedHealth.LOST
    return HEALTH_BY_REASON[document["reason"]]


def runner_term(runner: str) -> str:
    """Return the term of the tasks that are on this runner."""
    return f"runner:{runner.lower()}"


def label_term(label: str) -> str:
    """Return the term of the tasks with this label, ``key=value``; upper and lower case are not distinguished."""
    return f"label:{label.lower()}"


def terms(runner: str | None, labels: Mapping[str, str]) -> list[str]:
    """Return the terms of a task, sorted; keys that differ only in case may share one."""
    found = {label_term(f"{key}={value}") for key, value in labels.items()}
    return sorted(found | ({runner_term(runner)} if runner else set()))
