"""What a reader sees: each rule of the status, the state and the agent's health, in the order of the contract."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from taskherd.domain.reports import AgentState, App, AppHealth, Health, JobStatus, Lifecycle, Transition, Workspace
from tests.harness.histories import AGENTS, NOON, TASK
from tests.pure.domain.test_fold import build, folded, goodbye, heartbeat, lifecycle, seen, status

if TYPE_CHECKING:
    from taskherd.domain.reports import Report
    from tests.pure.domain.mutated_core import Core

UP = JobStatus.SUCCEEDED


def app_health(health: Health, number: int = 1, seq: int = 0) -> AppHealth:
    """A verdict of the app's health check."""
    return AppHealth(task_id=TASK, build_number=number, seq=seq, health=health)


def look(core: Core, *reports: Report, quiet: int = 0) -> dict[str, Any]:
    """What a reader sees after these reports and so many seconds of drained silence."""
    return seen(core, folded(core, reports), timedelta(seconds=quiet))


def test_status_of_each_build(core: Core) -> None:
    """Of each transition and job status: the task's status where agent and app are well, and the workspace's."""
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
        told = build(2, job=JobStatus(job), transition=Transition(transition))
        shown = look(core, told, heartbeat(2), lifecycle(number=2))
        assert (shown["status"], shown["workspace_status"]) == (task_status, workspace_status)


def test_status_of_each_agent(core: Core) -> None:
    """Of no agent and each lifecycle: the task's status in a workspace that is up."""
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
    assert look(core, build(job=UP))["status"] == "initializing"
    assert look(core, build(job=UP, agent_id=AGENTS[0]))["status"] == "initializing"
    for at, task_status in rows.items():
        assert look(core, build(job=UP), lifecycle(at))["status"] == task_status


def test_status_of_each_app(core: Core) -> None:
    """Of each app health: the task's status with an agent that is ready."""
    rows = {
        Health.INITIALIZING: "initializing",
        Health.UNHEALTHY: "error",
        Health.HEALTHY: "active",
        Health.DISABLED: "active",
    }
    assert set(rows) == set(Health)
    for health, task_status in rows.items():
        assert look(core, build(job=UP), lifecycle(), app_health(health))["status"] == task_status
    assert look(core, build(job=UP), lifecycle())["status"] == "active"


def test_where_app_health_comes_from(core: Core) -> None:
    """The latest ``app.health`` of this build, else the health that the build gave its app, else no check."""
    unwell = App(UUID(int=9), "web", health=Health.UNHEALTHY)
    up = build(2, job=UP, app=unwell)
    assert look(core, up, lifecycle(number=2))["status"] == "error"
    assert look(core, up, lifecycle(number=2), app_health(Health.HEALTHY, 2))["status"] == "active"
    assert look(core, up, lifecycle(number=2), app_health(Health.HEALTHY, 1))["status"] == "error"
    assert look(core, up, lifecycle(number=2), app_health(Health.HEALTHY, 3))["status"] == "error"


def test_a_lost_agent_changes_health_not_status(core: Core) -> None:
    """Silence shows in the agent's health and nowhere else."""
    before, after = (look(core, build(job=UP), heartbeat(), lifecycle(), quiet=quiet) for quiet in (30, 31))
    assert before["health"] == {"healthy": True, "reason": None}
    assert after["health"] == {"healthy": False, "reason": "agent has lost connection"}
    assert {**before, "health": None} == {**after, "health": None}


def test_health_reasons_in_order(core: Core) -> None:
    """The first reason that holds is given; each case would satisfy a later one too where it can."""
    cases: list[tuple[str | None, list[Report], int]] = [
        ("agent is not running", [lifecycle(Lifecycle.OFF)], 0),
        ("agent is not running", [lifecycle(Lifecycle.OFF)], 121),
        ("agent is not running", [lifecycle(Lifecycle.OFF), goodbye()], 0),
        ("agent is not running", [lifecycle(Lifecycle.OFF), heartbeat()], 31),
        ("agent has not yet connected", [lifecycle(Lifecycle.START_ERROR)], 120),
        ("agent is taking too long to connect", [lifecycle(Lifecycle.START_ERROR)], 121),
        ("agent has lost connection", [lifecycle(Lifecycle.START_ERROR), goodbye()], 0),
        ("agent has lost connection", [lifecycle(Lifecycle.START_ERROR), goodbye()], 121),
        ("agent has lost connection", [lifecycle(Lifecycle.SHUTTING_DOWN), heartbeat()], 31),
        ("agent has lost connection", [lifecycle(), heartbeat(), goodbye(seq=1)], 0),
        ("agent startup script exited with an error", [lifecycle(Lifecycle.START_ERROR), heartbeat()], 30),
        ("agent is shutting down", [lifecycle(Lifecycle.SHUTTING_DOWN), heartbeat()], 0),
        ("agent is shutting down", [lifecycle(Lifecycle.SHUTDOWN_TIMEOUT), heartbeat()], 0),
        ("agent is shutting down", [lifecycle(Lifecycle.SHUTDOWN_ERROR), heartbeat()], 0),
        (None, [lifecycle(Lifecycle.OFF), heartbeat()], 0),
        (None, [lifecycle(), heartbeat()], 30),
        (None, [lifecycle(), goodbye(), heartbeat(seq=1)], 0),
        (None, [heartbeat()], 0),
    ]
    for reason, reports, quiet in cases:
        shown = look(core, build(job=UP), *reports, quiet=quiet)
        assert shown["health"] == {"healthy": reason is None, "reason": reason}
    assert look(core, build(job=UP))["health"] is None


def test_start_up_messages_in_order(core: Core) -> None:
    """While a task initializes its state says how far the start-up is, at the time the build facet was replaced."""
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
        assert look(core, *reports)["current_state"] == {"state": "working", "message": message, "uri": ""}
    state = core.fold.fold(folded(core, []), up, NOON + timedelta(seconds=7)).state
    assert core.view.derive_view(state, "t").current_state.timestamp == NOON + timedelta(seconds=7)


def test_state_without_a_word(core: Core) -> None:
    """With nothing said: the error of a build that failed, else nothing, while pending too."""
    failed = {"state": "failed", "message": "it broke", "uri": ""}
    for transition in Transition:
        told = build(2, job=JobStatus.FAILED, error="it broke", transition=transition)
        assert look(core, told)["current_state"] == failed
    assert look(core, build(job=JobStatus.FAILED))["current_state"] == {**failed, "message": ""}
    for job in (JobStatus.CANCELED, JobStatus.CANCELING, JobStatus.PENDING):
        assert look(core, build(job=job, error="it broke"))["current_state"] is None
    assert look(core, build(job=UP), lifecycle())["current_state"] is None
    assert look(core, build(2, job=UP, transition=Transition.STOP))["current_state"] is None


def test_state_that_was_said(core: Core) -> None:
    """The latest app status stands in every status; on a new start only one of that very build; a stop keeps it."""
    said = status(AgentState.FAILURE, message="m", uri="https://example.com")
    shown = {"state": "failed", "message": "m", "uri": "https://example.com"}
    assert look(core, said)["current_state"] == shown
    assert look(core, build(job=JobStatus.FAILED), said)["current_state"] == shown
    assert look(core, build(2, job=UP, transition=Transition.STOP), said)["current_state"] == shown
    assert look(core, build(2, job=UP), lifecycle(number=2), said)["current_state"] is None
    early = status(number=3)
    assert look(core, build(2, job=UP), lifecycle(number=2), early)["current_state"] is None
    assert look(core, build(3, job=UP), lifecycle(number=3), early)["current_state"]["state"] == "idle"
    for state in (AgentState.WORKING, AgentState.IDLE, AgentState.COMPLETE, AgentState.FAILED):
        assert look(core, status(state))["current_state"]["state"] == state
    memory = core.fold.fold(folded(core, []), said, NOON + timedelta(seconds=7)).state
    assert core.view.derive_view(memory, "t").current_state.timestamp == NOON + timedelta(seconds=7)


def test_which_agent(core: Core) -> None:
    """The build's agent id, else that of lifecycle or connection, the greater seq first, the lifecycle on a tie."""
    one, two, three = AGENTS
    up = build(job=UP)
    assert look(core, up, lifecycle())["agent_id"] is None
    assert look(core, up, heartbeat(agent_id=one))["agent_id"] == str(one)
    assert look(core, up, goodbye(agent_id=one))["agent_id"] == str(one)
    assert look(core, up, lifecycle(agent_id=two), heartbeat(agent_id=one))["agent_id"] == str(two)
    assert look(core, up, lifecycle(agent_id=two), heartbeat(seq=1, agent_id=one))["agent_id"] == str(one)
    assert look(core, up, lifecycle(agent_id=two), heartbeat(seq=1))["agent_id"] == str(two)
    assert look(core, up, lifecycle(seq=1), heartbeat(agent_id=one))["agent_id"] == str(one)
    named = build(job=UP, agent_id=three)
    assert look(core, named, lifecycle(seq=9, agent_id=two))["agent_id"] == str(three)
    assert look(core, named)["lifecycle"] == "created"


def test_what_outlives_a_build(core: Core) -> None:
    """A new build empties agent, lifecycle, health and app until a start names them; the workspace stays."""
    told: list[Report] = [
        build(job=UP, agent_id=AGENTS[0], app=App(UUID(int=9), "web"), workspace=Workspace(UUID(int=8), "w")),
        lifecycle(),
        heartbeat(),
    ]
    before = look(core, *told)
    assert before["app_id"] == str(UUID(int=9))
    for transition in Transition:
        after = look(core, *told, build(2, job=UP, transition=transition))
        assert [after[name] for name in ("agent_id", "lifecycle", "health", "app_id")] == [None] * 4
        assert (after["workspace_id"], after["workspace_name"]) == (str(UUID(int=8)), "w")
        assert after["workspace_build_number"] == 2
    assert look(core, build())["workspace_name"] == "task-name"


def test_no_agent_while_stopping(core: Core) -> None:
    """While the build facet is a stop or delete there is no agent and no app, even of that build number."""
    for transition in (Transition.STOP, Transition.DELETE):
        named = build(2, job=UP, transition=transition, agent_id=AGENTS[0], app=App(UUID(int=9), "web"))
        shown = look(core, named, lifecycle(number=2), heartbeat(2))
        assert [shown[name] for name in ("agent_id", "lifecycle", "health", "app_id")] == [None] * 4


def test_a_build_given_up_shows_as_failed(core: Core) -> None:
    """A build that was given up counts as failed, with an error that says so."""
    state = replace(folded(core, []), timed_out=core.task.TimedOut(1, -1, "nobody came"))
    shown = seen(core, state)
    assert (shown["status"], shown["workspace_status"]) == ("error", "failed")
    assert shown["current_state"] == {"state": "failed", "message": "nobody came", "uri": ""}
    assert seen(core, replace(state, timed_out=core.task.TimedOut(1, -2, "other")))["status"] == "pending"
