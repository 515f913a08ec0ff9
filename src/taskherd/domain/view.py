"""What a reader sees of a task: status, state and agent health, derived from its memory.

``status`` is the first that is not ``active`` of three rows of the tables below: build, agent, app. A pair that is
missing in a table is ``unknown``. The state diagram in ``docs/`` is drawn from these tables.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from taskherd.domain.reports import AgentDisconnected, AgentState, Health, JobStatus, Lifecycle, Transition
from taskherd.domain.value import value

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from uuid import UUID

    from taskherd.domain.reports import App, AppStatus
    from taskherd.domain.task import Facet, Stamped, TaskState


class Status(StrEnum):
    """A task's status, as its document carries it."""

    PENDING = "pending"
    INITIALIZING = "initializing"
    ACTIVE = "active"
    PAUSED = "paused"
    UNKNOWN = "unknown"
    ERROR = "error"


BUILD_STATUS: Mapping[tuple[Transition, JobStatus], Status] = {
    (Transition.START, JobStatus.PENDING): Status.PENDING,
    (Transition.START, JobStatus.RUNNING): Status.ACTIVE,
    (Transition.START, JobStatus.SUCCEEDED): Status.ACTIVE,
    (Transition.STOP, JobStatus.SUCCEEDED): Status.PAUSED,
    (Transition.DELETE, JobStatus.SUCCEEDED): Status.PAUSED,
    **{
        (transition, job): Status.ERROR
        for transition in Transition
        for job in (JobStatus.FAILED, JobStatus.CANCELING, JobStatus.CANCELED)
    },
}

AGENT_STATUS: Mapping[Lifecycle | None, Status] = {
    None: Status.INITIALIZING,
    Lifecycle.CREATED: Status.INITIALIZING,
    Lifecycle.STARTING: Status.INITIALIZING,
    Lifecycle.READY: Status.ACTIVE,
    Lifecycle.START_TIMEOUT: Status.ACTIVE,
    Lifecycle.START_ERROR: Status.ACTIVE,
}

APP_STATUS: Mapping[Health, Status] = {
    Health.INITIALIZING: Status.INITIALIZING,
    Health.UNHEALTHY: Status.ERROR,
    Health.HEALTHY: Status.ACTIVE,
    Health.DISABLED: Status.ACTIVE,
}

WORKSPACE_STATUS: Mapping[tuple[Transition, JobStatus], str] = {
    (Transition.START, JobStatus.RUNNING): "starting",
    (Transition.STOP, JobStatus.RUNNING): "stopping",
    (Transition.DELETE, JobStatus.RUNNING): "deleting",
    (Transition.START, JobStatus.SUCCEEDED): "running",
    (Transition.STOP, JobStatus.SUCCEEDED): "stopped",
    (Transition.DELETE, JobStatus.SUCCEEDED): "deleted",
}


@value(frozen=True, slots=True)
class CurrentState:
    """What the task's agent is doing; ``timestamp`` is when we took the report."""

    timestamp: datetime
    state: str
    message: str
    uri: str


@value(frozen=True, slots=True)
class AgentHealth:
    """Whether the agent is well, and if not, why."""

    healthy: bool
    reason: str | None = None


@value(frozen=True, slots=True)
class TaskView:
    """The derived part of the task document."""

    status: Status
    workspace_id: UUID | None
    workspace_name: str
    workspace_status: str
    workspace_build_number: int
    agent_id: UUID | None
    lifecycle: Lifecycle | None
    health: AgentHealth | None
    app_id: UUID | None
    current_state: CurrentState | None


@value(frozen=True, slots=True)
class Agent:
    """The agent of the latest build, where a facet of that build names it."""

    id: UUID | None
    lifecycle: Lifecycle


def derive_view(state: TaskState, task_name: str) -> TaskView:
    """Everything a reader sees of a task with this memory. Its workspace bears ``task_name`` until one is reported."""
    agent = agent_of(state)
    app = app_of(state)
    health = app_health_of(state)
    status = status_of(state, agent, health)
    workspace = state.workspace.report.workspace if state.workspace else None
    return TaskView(
        status=status,
        workspace_id=workspace.id if workspace else None,
        workspace_name=workspace.name if workspace else task_name,
        workspace_status=WORKSPACE_STATUS.get((state.build.report.transition, state.job), state.job),
        workspace_build_number=state.number,
        agent_id=agent.id if agent else None,
        lifecycle=agent.lifecycle if agent else None,
        health=health_of(state, agent),
        app_id=app.id if app else None,
        current_state=state_of(state, status, agent),
    )


def is_current(state: TaskState, facet: Stamped[Facet] | None) -> bool:
    """Whether a facet that does not outlive its build counts: only for a start, and with the number of that build."""
    if facet is None:
        return False
    latest = state.build.report
    return latest.transition is Transition.START and facet.report.build_number == latest.build_number


def agent_of(state: TaskState) -> Agent | None:
    """The agent, or None while no facet of the latest build names it."""
    build = state.agent if is_current(state, state.agent) else None
    lifecycle = state.lifecycle if is_current(state, state.lifecycle) else None
    connection = state.connection if is_current(state, state.connection) else None
    if build is None and lifecycle is None and connection is None:
        return None
    named: list[tuple[int, int, UUID]] = []
    if connection and connection.report.agent_id:
        named.append((connection.report.seq, 0, connection.report.agent_id))
    if lifecycle and lifecycle.report.agent_id:
        named.append((lifecycle.report.seq, 1, lifecycle.report.agent_id))
    agent_id = build.report.agent_id if build else max(named)[2] if named else None
    return Agent(agent_id, lifecycle.report.lifecycle if lifecycle else Lifecycle.CREATED)


def app_of(state: TaskState) -> App | None:
    """The task's app, as the latest build named it."""
    return state.app.report.app if state.app and is_current(state, state.app) else None


def app_health_of(state: TaskState) -> Health:
    """The app's health: the latest reported, else the one its build gave it, else ``disabled`` (no check)."""
    if state.app_health and is_current(state, state.app_health):
        return state.app_health.report.health
    app = app_of(state)
    return app.health if app and app.health else Health.DISABLED


def status_of(state: TaskState, agent: Agent | None, app: Health) -> Status:
    """The first that is not active of build, agent and app."""
    build = BUILD_STATUS.get((state.build.report.transition, state.job), Status.UNKNOWN)
    if build is not Status.ACTIVE:
        return build
    if agent is None:
        return Status.INITIALIZING
    running = AGENT_STATUS.get(agent.lifecycle, Status.UNKNOWN)
    return APP_STATUS[app] if running is Status.ACTIVE else running


def is_connected(state: TaskState) -> bool:
    """Whether the agent of the latest build was heard, did not say goodbye and was not found silent."""
    silence = state.silence
    found_silent = silence is not None and silence.build_number == state.number
    return state.number in state.last_heartbeat and not _has_disconnected(state) and not found_silent


def health_of(state: TaskState, agent: Agent | None) -> AgentHealth | None:  # noqa: PLR0911 - the reasons, in order
    """The agent's health: None without an agent; the first reason that holds, or healthy."""
    if agent is None:
        return None
    alive = is_connected(state)
    if not alive and agent.lifecycle is Lifecycle.OFF:
        return AgentHealth(healthy=False, reason="agent is not running")
    if state.number not in state.last_heartbeat and not _has_disconnected(state):
        silence = state.silence
        late = silence is not None and silence.build_number == state.number
        reason = "agent is taking too long to connect" if late else "agent has not yet connected"
        return AgentHealth(healthy=False, reason=reason)
    if not alive:
        return AgentHealth(healthy=False, reason="agent has lost connection")
    if agent.lifecycle is Lifecycle.START_ERROR:
        return AgentHealth(healthy=False, reason="agent startup script exited with an error")
    if agent.lifecycle in SHUTTING_DOWN:
        return AgentHealth(healthy=False, reason="agent is shutting down")
    return AgentHealth(healthy=True)


SHUTTING_DOWN = frozenset({Lifecycle.SHUTTING_DOWN, Lifecycle.SHUTDOWN_TIMEOUT, Lifecycle.SHUTDOWN_ERROR})


def current_app_status(state: TaskState) -> Stamped[AppStatus] | None:
    """The latest app status that counts; while the latest build is a start, only one of that very build."""
    stamped = state.app_status
    if stamped and state.starting and stamped.report.build_number != state.number:
        return None
    return stamped


def state_of(memory: TaskState, status: Status, agent: Agent | None) -> CurrentState | None:
    """What the agent says it is doing, or what the start-up says for it."""
    stamped = current_app_status(memory)
    if stamped:
        report = stamped.report
        state = AgentState.FAILED if report.state is AgentState.FAILURE else report.state
        return CurrentState(stamped.received_at, state.value, report.message, report.uri)
    if status is Status.INITIALIZING:
        return CurrentState(memory.build.received_at, AgentState.WORKING.value, _starting_message(memory, agent), "")
    if memory.job is JobStatus.FAILED:
        return CurrentState(memory.build.received_at, AgentState.FAILED.value, memory.error or "", "")
    return None


def _starting_message(state: TaskState, agent: Agent | None) -> str:
    if state.job is JobStatus.RUNNING:
        return "Workspace is starting"
    if agent is None:
        return "Initializing workspace"
    if agent.lifecycle is Lifecycle.CREATED:
        return "Agent is connecting"
    return "Agent is starting" if agent.lifecycle is Lifecycle.STARTING else "App is initializing"


def _has_disconnected(state: TaskState) -> bool:
    stamped = state.connection
    return stamped is not None and is_current(state, stamped) and isinstance(stamped.report, AgentDisconnected)
