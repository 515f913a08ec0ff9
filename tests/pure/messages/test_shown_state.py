"""When a task counts as having come into another state."""

from __future__ import annotations

from typing import Any

import pytest

from taskherd.domain.view import LOST_CONNECTION, NOT_RUNNING
from taskherd.messages.shown_state import ShownState, is_another_state, may_be_another, shown_state_of


def core(status: str = "active", state: str | None = "working", reason: str | None = None, **fields: Any) -> Any:
    """Return what a core document has of a task's state."""
    health = {"healthy": True} if reason is None else {"healthy": False, "reason": reason}
    said = None if state is None else {"state": state, "message": "Reading", "uri": "", "timestamp": ""}
    return {"status": status, "current_state": said, "workspace_agent_health": health, **fields}


VANISHED = core("error", "failed", NOT_RUNNING, agent_exit={"why": "lost"})
"""A task whose machine was rebooted, as its next runner reports it."""


@pytest.mark.parametrize(
    ("before", "after", "is_another"),
    [
        (core(), core(), False),
        (core(labels={}), core(labels={"team": "blue"}), False),
        (core(reason="agent has not yet connected"), core(), False),
        (core(state=None), core(), True),
        (core(), core(state="idle"), True),
        (core(), core(requests_open=1), True),
        (core(requests_open=1), core(state="idle", requests_open=2), False),
        (core(), core(reason=LOST_CONNECTION), True),
        (core(state="complete"), core(state="complete", reason=LOST_CONNECTION), False),
        (core("pending", None), core("initializing", None), True),
        (core(), core("unknown"), True),
        (core("unknown"), core("paused"), True),
        (core(agent_exit=None), core(agent_exit={"why": "lost"}), True),
        (core(state=None, reason=LOST_CONNECTION), VANISHED, False),
        (core(state="complete"), core("active", "complete", NOT_RUNNING, agent_exit={"why": "lost"}), False),
        (core(state="failed"), core("error", "failed", NOT_RUNNING, agent_exit={"why": "exited"}), False),
    ],
)
def test_what_is_another_state(before: Any, after: Any, *, is_another: bool) -> None:
    """What people are shown in one word counts; what else is said of a task does not."""
    assert is_another_state(before, after) is is_another


@pytest.mark.parametrize(
    ("document", "shown"),
    [
        (core("pending", None), ShownState.STARTING),
        (core("initializing", "working"), ShownState.STARTING),
        (core("active", None), ShownState.WORKING),
        (core("active", "working"), ShownState.WORKING),
        (core("active", "idle"), ShownState.IDLE),
        (core("active", "complete"), ShownState.COMPLETE),
        (core("active", "failed"), ShownState.FAILED),
        (core("active", "idle", requests_open=1), ShownState.WAITING),
        (core("paused", "idle", requests_open=1), ShownState.PAUSED),
        (core("pending", None, requests_open=1), ShownState.STARTING),
        (core("unknown", "working"), ShownState.UNKNOWN),
        (core("error", "working"), ShownState.FAILED),
        (core("error", None), ShownState.FAILED),
        (core("error", "working", LOST_CONNECTION), ShownState.LOST),
        (core("active", "working", NOT_RUNNING), ShownState.FAILED),
        (core("paused", "complete", NOT_RUNNING), ShownState.FAILED),
        (core("active", "working", NOT_RUNNING, agent_exit={"why": "exited"}), ShownState.FAILED),
        (core("active", "complete", NOT_RUNNING, agent_exit={"why": "lost"}), ShownState.COMPLETE),
        (core("active", "complete", LOST_CONNECTION), ShownState.COMPLETE),
        (core("active", "working", "agent is shutting down"), ShownState.WORKING),
        (core("active", "working", agent_exit={"why": "lost"}), ShownState.LOST),
        (VANISHED, ShownState.LOST),
    ],
)
def test_what_a_task_is_said_to_do(document: Any, shown: ShownState) -> None:
    """A lost agent before a failure, both before the status, an open request before what the agent says."""
    assert shown_state_of(document) is shown


def test_a_document_of_an_earlier_release_has_a_state() -> None:
    """One without the fields that came later."""
    assert shown_state_of(core("paused", None)) is ShownState.PAUSED


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (core(), core(state="idle")),
        (core(), core(state=None)),
        (core(), core(requests_open=1)),
        (core(), core(reason=LOST_CONNECTION)),
        (core(), core("error")),
        (core(), core(agent_exit={"why": "exited"})),
    ],
)
def test_each_fact_may_make_another_state(before: Any, after: Any) -> None:
    """Whatever a state or an ending follows from counts; another message, and the labels, do not."""
    assert may_be_another(before, after)
    said = {**before["current_state"], "message": "Writing", "uri": "file:///a", "timestamp": "later"}
    assert not may_be_another(before, {**before, "current_state": said, "labels": {"team": "blue"}})
