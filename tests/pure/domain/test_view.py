"""The view: each rule of the status, the current state and the agent health, in the order of the contract."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from taskherd.domain.reports import (
    AgentExit,
    AgentState,
    App,
    AppHealth,
    ExitReason,
    Health,
    JobStatus,
    Lifecycle,
    Transition,
    Workspace,
)
from tests.harness.histories import AGENTS, NOON, TASK
from tests.pure.domain.test_fold import build, disconnected, folded, heartbeat, lifecycle, status, view_of

if TYPE_CHECKING:
    from taskherd.domain.reports import Report
    from tests.pure.domain.mutated_core import Core

UP = JobStatus.SUCCEEDED


def app_health(health: Health, number: int = 1, seq: int = 0) -> AppHealth:
    """Return a report of the app's health check."""
    return AppHealth(task_id=TASK, build_number=number, seq=seq, health=health)


def view_after(core: Core, *reports: Report, silence: int = 0) -> dict[str, Any]:
    """Return the view after these reports and ``silence``, in seconds of drained time."""
    return view_of(core, folded(core, reports), timedelta(seconds=silence))


def test_status_of_each_build(core: Core) -> None:
    """Each transition and job status gives a status, if agent and app are healthy, and a workspace status."""
    table = """
        start pending   pending pending  | stop pending   unknown pending  | delete pending   unknown pending
        start running   active  starting | stop running   unknown stopping | delete running   unknown deleting
        start succeeded active  running  | stop succeeded paused  stopped  | delete succeeded paused  deleted
        start canceling error  canceling | stop canceling error  canceling | delete canceling error  canceling
        start canceled  error   canceled | stop canceled  error   canceled | delete canceled  error   canceled
        start failed    error   failed   | stop failed    error   failed   | delete failed    error   failed
    """
    rows = [row.split() for row in table.replace("|", "\n").split("\n") if row.strip()]
    assert len(rows) == len(Transition) * len(JobStatus)
    for transition, job, task_status, workspace_status in rows:
        report = build(2, job=JobStatus(job), transition=Transition(transition))
        view = view_after(core, report, heartbeat(2), lifecycle(number=2))
        assert (view["status"], view["workspace_status"]) == (task_status, workspace_status)


def test_status_of_each_agent(core: Core) -> None:
    """Each agent lifecycle, and no agent, gives a status if the build succeeded."""
    rows = {
        Lifecycle.CREATED: "initializing",
        Lifecycle.STARTING: "initializing",
        Lifecycle.START_TIMEOUT: "active",
        Lifecycle.START_ERROR: "active",
        Lifecycle.READY: "active",
        Lifecycle.SHUTTING_DOWN: "unknown",
        Lifecycle.SHUTDOWN_TIMEOUT: "unknown",
        Lifecycle.SHUTDOWN_ERROR: "unknown",
        Lifecycle.OFF: "unknown",
    }
    assert set(rows) == set(Lifecycle)
    assert view_after(core, build(job=UP))["status"] == "initializing"
    assert view_after(core, build(job=UP, agent_id=AGENTS[0]))["status"] == "initializing"
    for at, task_status in rows.items():
        assert view_after(core, build(job=UP), lifecycle(at))["status"] == task_status


def test_status_of_each_app(core: Core) -> None:
    """Each app health gives a status if the agent is ready."""
    rows = {
        Health.INITIALIZING: "initializing",
        Health.UNHEALTHY: "error",
        Health.HEALTHY: "active",
        Health.DISABLED: "active",
    }
    assert set(rows) == set(Health)
    for health, task_status in rows.items():
        assert view_after(core, build(job=UP), lifecycle(), app_health(health))["status"] == task_status
    assert view_after(core, build(job=UP), lifecycle())["status"] == "active"


def test_which_app_health_counts(core: Core) -> None:
    """The latest ``app.health`` of this build counts, else the health in the build's app, else there is no check."""
    unhealthy = App(UUID(int=9), "web", health=Health.UNHEALTHY)
    up = build(2, job=UP, app=unhealthy)
    assert view_after(core, up, lifecycle(number=2))["status"] == "error"
    assert view_after(core, up, lifecycle(number=2), app_health(Health.HEALTHY, 2))["status"] == "active"
    assert view_after(core, up, lifecycle(number=2), app_health(Health.HEALTHY, 1))["status"] == "error"
    assert view_after(core, up, lifecycle(number=2), app_health(Health.HEALTHY, 3))["status"] == "error"


def test_a_lost_agent_changes_health_not_status(core: Core) -> None:
    """Silence changes the agent health and nothing else in the view."""
    before, after = (view_after(core, build(job=UP), heartbeat(), lifecycle(), silence=silence) for silence in (30, 31))
    assert before["health"] == {"healthy": True, "reason": None}
    assert after["health"] == {"healthy": False, "reason": "agent has lost connection"}
    assert {**before, "health": None} == {**after, "health": None}


def test_health_reasons_in_order(core: Core) -> None:
    """The first reason that applies is shown; each case meets the condition of a later one too, if possible."""
    cases: list[tuple[str | None, list[Report], int]] = [
        ("agent is not running", [lifecycle(Lifecycle.OFF)], 0),
        ("agent is not running", [lifecycle(Lifecycle.OFF)], 121),
        ("agent is not running", [lifecycle(Lifecycle.OFF), disconnected()], 0),
        ("agent is not running", [lifecycle(Lifecycle.OFF), heartbeat()], 31),
        ("agent has not yet connected", [lifecycle(Lifecycle.START_ERROR)], 120),
        ("agent is taking too long to connect", [lifecycle(Lifecycle.START_ERROR)], 121),
        ("agent has lost connection", [lifecycle(Lifecycle.START_ERROR), disconnected()], 0),
        ("agent has lost connection", [lifecycle(Lifecycle.START_ERROR), disconnected()], 121),
        ("agent has lost connection", [lifecycle(Lifecycle.SHUTTING_DOWN), heartbeat()], 31),
        ("agent has lost connection", [lifecycle(), heartbeat(), disconnected(seq=1)], 0),
        ("agent startup script exited with an error", [lifecycle(Lifecycle.START_ERROR), heartbeat()], 30),
        ("agent is shutting down", [lifecycle(Lifecycle.SHUTTING_DOWN), heartbeat()], 0),
        ("agent is shutting down", [lifecycle(Lifecycle.SHUTDOWN_TIMEOUT), heartbeat()], 0),
        ("agent is shutting down", [lifecycle(Lifecycle.SHUTDOWN_ERROR), heartbeat()], 0),
        (None, [lifecycle(Lifecycle.OFF), heartbeat()], 0),
        (None, [lifecycle(), heartbeat()], 30),
        (None, [lifecycle(), disconnected(), heartbeat(seq=1)], 0),
        (None, [heartbeat()], 0),
    ]
    for reason, reports, silence in cases:
        view = view_after(core, build(job=UP), *reports, silence=silence)
        assert view["health"] == {"healthy": reason is None, "reason": reason}
    assert view_after(core, build(job=UP))["health"] is None


def test_who_is_connected(core: Core) -> None:
    """An agent is connected from the first heartbeat of the latest build until it says goodbye."""
    assert not core.view.is_connected(folded(core, [build(), lifecycle()]))
    assert core.view.is_connected(folded(core, [build(), lifecycle(), heartbeat()]))
    assert not core.view.is_connected(folded(core, [build(), heartbeat(), disconnected(seq=1)]))
    assert not core.view.is_connected(folded(core, [build(), heartbeat(), build(2), lifecycle(number=2)]))


def test_start_up_messages_in_order(core: Core) -> None:
    """While a task initializes, its state is the progress of the start-up, with the time of the build facet."""
    up = build(job=UP)
    cases: list[tuple[str, list[Report]]] = [
        ("Workspace is starting", [build()]),
        ("Workspace is starting", [build(), lifecycle(Lifecycle.STARTING)]),
        ("Initializing workspace", [up]),
        ("Agent is connecting", [up, heartbeat()]),
        ("Agent is connecting", [up, lifecycle(Lifecycle.CREATED)]),
        ("Agent is starting", [up, lifecycle(Lifecycle.STARTING)]),
        ("App is initializing", [up, lifecycle(), app_health(Health.INITIALIZING)]),
        ("App is initializing", [up, lifecycle(Lifecycle.START_TIMEOUT), app_health(Health.INITIALIZING)]),
    ]
    for message, reports in cases:
        assert view_after(core, *reports)["current_state"] == {"state": "working", "message": message, "uri": ""}
    state = core.fold.fold(folded(core, []), up, NOON + timedelta(seconds=7)).state
    assert core.view.derive_view(state, "t").current_state.timestamp == NOON + timedelta(seconds=7)


def test_current_state_without_an_app_status(core: Core) -> None:
    """Without an app status, the state is the error of a failed build, else None, also while the build is pending."""
    failed = {"state": "failed", "message": "it broke", "uri": ""}
    for transition in Transition:
        report = build(2, job=JobStatus.FAILED, error="it broke", transition=transition)
        assert view_after(core, report)["current_state"] == failed
    assert view_after(core, build(job=JobStatus.FAILED))["current_state"] == {**failed, "message": ""}
    for job in (JobStatus.CANCELED, JobStatus.CANCELING, JobStatus.PENDING):
        assert view_after(core, build(job=job, error="it broke"))["current_state"] is None
    assert view_after(core, build(job=UP), lifecycle())["current_state"] is None
    assert view_after(core, build(2, job=UP, transition=Transition.STOP))["current_state"] is None


def test_current_state_from_an_app_status(core: Core) -> None:
    """The latest app status is shown in every status and after a stop; after a new start only one of that build."""
    failure = status(AgentState.FAILURE, message="m", uri="https://example.com")
    view = {"state": "failed", "message": "m", "uri": "https://example.com"}
    assert view_after(core, failure)["current_state"] == view
    assert view_after(core, build(job=JobStatus.FAILED), failure)["current_state"] == view
    assert view_after(core, build(2, job=UP, transition=Transition.STOP), failure)["current_state"] == view
    assert view_after(core, build(2, job=UP), lifecycle(number=2), failure)["current_state"] is None
    early = status(number=3)
    assert view_after(core, build(2, job=UP), lifecycle(number=2), early)["current_state"] is None
    assert view_after(core, build(3, job=UP), lifecycle(number=3), early)["current_state"]["state"] == "idle"
    for reported in (AgentState.WORKING, AgentState.IDLE, AgentState.COMPLETE, AgentState.FAILED):
        assert view_after(core, status(reported))["current_state"]["state"] == reported
    state = core.fold.fold(folded(core, []), failure, NOON + timedelta(seconds=7)).state
    assert core.view.derive_view(state, "t").current_state.timestamp == NOON + timedelta(seconds=7)


def test_which_agent_id_is_shown(core: Core) -> None:
    """The build's agent id, else that of lifecycle or connection: the greater seq, or the lifecycle if equal."""
    one, two, three = AGENTS
    up = build(job=UP)
    assert view_after(core, up, lifecycle())["agent_id"] is None
    assert view_after(core, up, heartbeat(agent_id=one))["agent_id"] == str(one)
    assert view_after(core, up, disconnected(agent_id=one))["agent_id"] == str(one)
    assert view_after(core, up, lifecycle(agent_id=two), heartbeat(agent_id=one))["agent_id"] == str(two)
    assert view_after(core, up, lifecycle(agent_id=two), heartbeat(seq=1, agent_id=one))["agent_id"] == str(one)
    assert view_after(core, up, lifecycle(agent_id=two), heartbeat(seq=1))["agent_id"] == str(two)
    assert view_after(core, up, lifecycle(seq=1), heartbeat(agent_id=one))["agent_id"] == str(one)
    named = build(job=UP, agent_id=three)
    assert view_after(core, named, lifecycle(seq=9, agent_id=two))["agent_id"] == str(three)
    assert view_after(core, named)["lifecycle"] == "created"


def test_which_facets_outlive_a_build(core: Core) -> None:
    """A new build clears agent, lifecycle, health and app, which only a start sets again; the workspace stays."""
    reports: list[Report] = [
        build(job=UP, agent_id=AGENTS[0], app=App(UUID(int=9), "web"), workspace=Workspace(UUID(int=8), "w")),
        lifecycle(),
        heartbeat(),
    ]
    before = view_after(core, *reports)
    assert before["app_id"] == str(UUID(int=9))
    for transition in Transition:
        after = view_after(core, *reports, build(2, job=UP, transition=transition))
        assert [after[name] for name in ("agent_id", "lifecycle", "health", "app_id")] == [None] * 4
        assert (after["workspace_id"], after["workspace_name"]) == (str(UUID(int=8)), "w")
        assert after["workspace_build_number"] == 2
    assert view_after(core, build())["workspace_name"] == "task-name"


def test_no_agent_while_stopping(core: Core) -> None:
    """While the latest build is a stop or delete there is no agent and no app, not even one that it names."""
    for transition in (Transition.STOP, Transition.DELETE):
        named = build(2, job=UP, transition=transition, agent_id=AGENTS[0], app=App(UUID(int=9), "web"))
        view = view_after(core, named, lifecycle(number=2), heartbeat(2))
        assert [view[name] for name in ("agent_id", "lifecycle", "health", "app_id")] == [None] * 4


def test_a_timed_out_build_shows_as_failed(core: Core) -> None:
    """A timed-out build counts as failed, with the error of the timeout."""
    state = replace(folded(core, []), timed_out=core.task.TimedOut(1, -1, "no runner"))
    view = view_of(core, state)
    assert (view["status"], view["workspace_status"]) == ("error", "failed")
    assert view["current_state"] == {"state": "failed", "message": "no runner", "uri": ""}
    assert view_of(core, replace(state, timed_out=core.task.TimedOut(1, -2, "other")))["status"] == "pending"
    failed = folded(core, [build(job=JobStatus.FAILED, error="it broke")])
    assert replace(failed, timed_out=core.task.TimedOut(1, -1, "no runner")).build_error == "it broke"
    assert replace(failed, timed_out=core.task.TimedOut(1, 0, "no report")).build_error == "no report"


def test_who_is_working(core: Core) -> None:
    """An agent of the latest start that is connected, has not ended, and said so; a stop has none, whatever is sent."""
    started: list[Report] = [build(job=UP), lifecycle(), heartbeat(), status(AgentState.WORKING)]
    stop = build(2, job=JobStatus.RUNNING, transition=Transition.STOP)
    ended = AgentExit(task_id=TASK, build_number=1, seq=5, why=ExitReason.EXITED, status=0)
    assert core.view.is_working(folded(core, started))
    cases: list[list[Report]] = [
        [status(AgentState.IDLE, seq=1)],
        [disconnected(seq=1)],
        [ended],
        [stop],
        [stop, heartbeat(2)],
        [build(2, job=UP), heartbeat(2)],
    ]
    for others in cases:
        assert not core.view.is_working(folded(core, [*started, *others]))
    assert core.view.is_working(folded(core, [*started, build(2, job=UP), heartbeat(2), status(AgentState.WORKING, 2)]))
