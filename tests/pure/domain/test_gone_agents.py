"""Which agents have ended, are lost or are gone, and which tasks count as running."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from taskherd.domain.reports import AgentExit, AgentState, ExitReason, JobStatus, Lifecycle, Transition
from taskherd.domain.task import Silence, Stall
from taskherd.domain.value import replace
from taskherd.domain.view import (
    AgentHealth,
    EndedAgent,
    ended_agent_of,
    has_failed,
    is_agent_gone,
    is_lost,
    is_running,
    stalled_since,
)
from tests.harness.histories import NOON, TASK
from tests.harness.tasks import make_task
from tests.pure.domain.mutated_core import unchanged_core
from tests.pure.domain.test_fold import build, disconnected, heartbeat, lifecycle, status
from tests.pure.domain.test_fold import folded as folded_in

if TYPE_CHECKING:
    from taskherd.domain.reports import Report
    from taskherd.domain.task import TaskState

MINUTE = timedelta(minutes=1)
UP = build(job=JobStatus.SUCCEEDED)
OFF = lifecycle(Lifecycle.OFF)


def ended(why: ExitReason, number: int = 1, **fields: Any) -> AgentExit:
    """Return the report of the end of an agent."""
    return AgentExit(task_id=TASK, build_number=number, seq=9, why=why, **fields)


def folded(*reports: Report, silence: Silence | None = None) -> TaskState:
    """Return the state of a task after these reports, with a decision about the silence of its agent."""
    state: TaskState = folded_in(unchanged_core(), reports)
    return replace(state, silence=silence)


@pytest.mark.parametrize(
    ("agent_exit", "failed"),
    [
        (ended(ExitReason.EXITED, status=0), False),
        (ended(ExitReason.EXITED, status=1), True),
        (ended(ExitReason.EXITED), True),
        (ended(ExitReason.STOPPED, status=1), False),
        (ended(ExitReason.INTERRUPTED, status=1), False),
        (ended(ExitReason.SIGNALLED, status=0), True),
        (ended(ExitReason.OUT_OF_MEMORY), True),
        (ended(ExitReason.TIMEOUT), True),
        (ended(ExitReason.LOST), True),
        (ended(ExitReason.NOT_STARTED), True),
    ],
)
def test_which_ends_are_failures(agent_exit: AgentExit, failed: bool) -> None:  # noqa: FBT001 - a case
    """All but an exit with status 0, and an end that somebody asked for."""
    assert has_failed(agent_exit) is failed
    health = unchanged_core().view.derive_view(folded(UP, lifecycle(), heartbeat(), agent_exit), "t").health
    assert health == (
        AgentHealth(healthy=False, reason="agent is not running") if failed else AgentHealth(healthy=True)
    )


LOST, LATE = Silence(1, lost=True), Silence(1, lost=False)


@pytest.mark.parametrize(
    ("reports", "silence", "lost", "gone", "running"),
    [
        ([UP], None, False, False, True),
        ([UP, lifecycle()], None, False, False, True),
        ([UP, lifecycle(), heartbeat()], None, False, False, True),
        ([UP, lifecycle()], LATE, False, False, True),
        ([UP, heartbeat()], LOST, True, True, False),
        ([UP, heartbeat()], Silence(2, lost=True), False, False, True),
        ([UP, heartbeat(), ended(ExitReason.EXITED, status=0)], None, False, True, False),
        ([UP, heartbeat(), ended(ExitReason.LOST)], None, True, True, False),
        ([UP, heartbeat(), ended(ExitReason.TIMEOUT)], LOST, False, True, False),
        ([UP, heartbeat(), ended(ExitReason.LOST, number=2)], None, False, False, True),
        ([UP, OFF], None, False, True, False),
        ([UP, OFF, heartbeat()], None, False, False, True),
        ([UP, lifecycle(), disconnected()], None, False, True, False),
        ([UP, disconnected(), heartbeat(seq=1)], None, False, False, True),
        ([build(job=JobStatus.PENDING)], None, False, False, True),
        ([build(), ended(ExitReason.EXITED, status=0)], None, False, True, True),
        ([build(job=JobStatus.FAILED), heartbeat()], None, False, False, False),
        ([build(job=JobStatus.CANCELED), heartbeat()], None, False, False, False),
        ([build(job=JobStatus.CANCELING), heartbeat()], None, False, False, True),
        ([build(2, transition=Transition.STOP)], Silence(2, lost=True), False, False, False),
        ([build(2, job=JobStatus.SUCCEEDED), heartbeat(2), ended(ExitReason.EXITED)], None, False, False, True),
    ],
)
def test_which_agents_are_lost_or_gone(
    reports: list[Report],
    silence: Silence | None,
    lost: bool,  # noqa: FBT001 - a case
    gone: bool,  # noqa: FBT001 - a case
    running: bool,  # noqa: FBT001 - a case
) -> None:
    """What is known of the agent of the latest build decides, and a task runs while its start has not failed."""
    state = folded(*reports, silence=silence)
    assert (is_lost(state), is_agent_gone(state)) == (lost, gone)
    task = make_task(TASK, state=state)
    assert is_running(task) is running
    assert is_running(replace(task, deleted_at=NOON)) is False


@pytest.mark.parametrize(
    ("observed_at", "at"), [(None, NOON), (NOON - MINUTE, NOON - MINUTE), (NOON + MINUTE, NOON), (NOON, NOON)]
)
def test_how_and_when_an_agent_ended(observed_at: Any, at: Any) -> None:
    """When it was observed, unless that is later than the receipt of the report."""
    signalled = ended(ExitReason.SIGNALLED, status=137, signal=9, words="killed", observed_at=observed_at)
    assert ended_agent_of(folded(UP, signalled)) == EndedAgent(ExitReason.SIGNALLED, 137, 9, "killed", at)
    silent = ended(ExitReason.EXITED, observed_at=observed_at)
    assert ended_agent_of(folded(UP, silent)) == EndedAgent(ExitReason.EXITED, None, None, "", at)
    assert ended_agent_of(folded(UP)) is None
    assert ended_agent_of(folded(UP, replace(signalled, build_number=2))) is None


def test_only_an_agent_that_works_shows_as_stalled() -> None:
    """A stall of another build, or of an agent that no longer works, does not show."""
    state = folded(UP, lifecycle(), heartbeat(), status(AgentState.WORKING))
    assert stalled_since(replace(state, stall=Stall(1, NOON + MINUTE))) == NOON + MINUTE
    assert stalled_since(state) is None
    assert stalled_since(replace(state, stall=Stall(2, NOON))) is None
    idle = folded(UP, lifecycle(), heartbeat(), status(AgentState.IDLE))
    assert stalled_since(replace(idle, stall=Stall(1, NOON))) is None


def test_a_view_names_app_workspace_and_usage_as_reported() -> None:
    """An agent without an id has a lifecycle, and a workspace without a name of its own that of the task."""
    view = unchanged_core().view.derive_view(folded(UP, lifecycle(agent_id=UUID(int=3))), "fix-it-1a2b")
    assert (view.agent_id, view.lifecycle) == (UUID(int=3), Lifecycle.READY)
    assert (view.workspace_id, view.workspace_name, view.workspace_status) == (None, "fix-it-1a2b", "running")
    assert (view.app_id, view.usage, view.interrupted_since, view.requests) == (None, None, None, ())
