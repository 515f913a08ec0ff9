"""The view of a task: status, current state and agent health, derived from the task state.

``status`` is the first result other than ``active`` of three tables: build, agent, app. A key that is missing in a
table gives ``unknown``. ``docs/state-diagram.md`` is generated from these tables.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from taskherd.domain.reports import AgentDisconnected, AgentState, ExitReason, Health, JobStatus, Lifecycle, Transition
from taskherd.domain.value import value

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from taskherd.domain.reports import AgentExit, App, AppStatus
    from taskherd.domain.task import Facet, OpenAgentRequest, Stamped, Task, TaskState
    from taskherd.domain.usage import TaskUsage


LOST_CONNECTION = "agent has lost connection"
"""Reason for the health of an agent that fell silent."""
NOT_RUNNING = "agent is not running"
"""Reason for the health of an agent that ended other than it should, or that reported that it is off."""


class Status(StrEnum):
    """The status of a task, as in the task document."""

    PENDING = "pending"
    INITIALIZING = "initializing"
    ACTIVE = "active"
    PAUSED = "paused"
    UNKNOWN = "unknown"
    ERROR = "error"


STATUS_BY_BUILD: Mapping[tuple[Transition, JobStatus], Status] = {
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
"""Status by the latest build; if it is ``active``, the agent decides."""

STATUS_BY_LIFECYCLE: Mapping[Lifecycle | None, Status] = {
    None: Status.INITIALIZING,
    Lifecycle.CREATED: Status.INITIALIZING,
    Lifecycle.STARTING: Status.INITIALIZING,
    Lifecycle.READY: Status.ACTIVE,
    Lifecycle.START_TIMEOUT: Status.ACTIVE,
    Lifecycle.START_ERROR: Status.ACTIVE,
}
"""Status by the agent's lifecycle, or None without an agent; if it is ``active``, the app decides."""

STATUS_BY_APP_HEALTH: Mapping[Health, Status] = {
    Health.INITIALIZING: Status.INITIALIZING,
    Health.UNHEALTHY: Status.ERROR,
    Health.HEALTHY: Status.ACTIVE,
    Health.DISABLED: Status.ACTIVE,
}
"""Status by the app's health."""

WORKSPACE_STATUS: Mapping[tuple[Transition, JobStatus], str] = {
    (Transition.START, JobStatus.RUNNING): "starting",
    (Transition.STOP, JobStatus.RUNNING): "stopping",
    (Transition.DELETE, JobStatus.RUNNING): "deleting",
    (Transition.START, JobStatus.SUCCEEDED): "running",
    (Transition.STOP, JobStatus.SUCCEEDED): "stopped",
    (Transition.DELETE, JobStatus.SUCCEEDED): "deleted",
}
"""Status of the workspace by the latest build; for all other builds it is the job status."""


@value(frozen=True, slots=True)
class CurrentState:
    """What the task's agent is doing; ``timestamp`` is when the report behind it was received."""

    timestamp: datetime
    state: str
    message: str
    uri: str


@value(frozen=True, slots=True)
class AgentHealth:
    """Whether the agent is healthy, and the reason if it is not."""

    healthy: bool
    reason: str | None = None


@value(frozen=True, slots=True)
class EndedAgent:
    """How the agent ended: see ``reports.AgentExit``; ``at`` is when, or when the report about it was received."""

    why: ExitReason
    status: int | None
    signal: int | None
    words: str
    at: datetime


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
    agent_exit: EndedAgent | None
    stalled_since: datetime | None
    usage: TaskUsage | None
    interrupted_since: datetime | None
    requests: tuple[OpenAgentRequest, ...]
    """The requests of the agent that wait for a person, in order."""


@value(frozen=True, slots=True)
class Agent:
    """The agent of the latest build; ``id`` is None if no facet of that build names it."""

    id: UUID | None
    lifecycle: Lifecycle


def derive_view(state: TaskState, task_name: str) -> TaskView:
    """Derive everything that users see of a task. The workspace has the task's name until its own is reported."""
    agent = agent_of(state)
    app = app_of(state)
    health = app_health_of(state)
    status = status_of(state, agent, health)
    workspace = state.workspace.report.workspace if state.workspace else None
    return TaskView(
        status=status,
        workspace_id=workspace.id if workspace else None,
        workspace_name=workspace.name if workspace else task_name,
        workspace_status=WORKSPACE_STATUS.get((state.build.report.transition, state.job_status), state.job_status),
        workspace_build_number=state.build_number,
        agent_id=agent.id if agent else None,
        lifecycle=agent.lifecycle if agent else None,
        health=health_of(state, agent),
        app_id=app.id if app else None,
        current_state=current_state_of(state, status, agent),
        agent_exit=ended_agent_of(state),
        stalled_since=stalled_since(state),
        usage=state.usage,
        interrupted_since=None if state.interrupt is None else state.interrupt.since,
        requests=tuple(open_requests(state)),
    )


def is_current(state: TaskState, facet: Stamped[Facet] | None) -> bool:
    """Return whether the latest build is a start and this facet belongs to it."""
    if facet is None:
        return False
    latest = state.build.report
    return latest.transition is Transition.START and facet.report.build_number == latest.build_number


def agent_of(state: TaskState) -> Agent | None:
    """Return the agent, or None if no facet of the latest build was reported by or about one."""
    build = state.agent if is_current(state, state.agent) else None
    lifecycle = state.lifecycle if is_current(state, state.lifecycle) else None
    connection = state.connection if is_current(state, state.connection) else None
    if build is None and lifecycle is None and connection is None:
        return None
    candidates: list[tuple[int, int, UUID]] = []
    if connection and connection.report.agent_id:
        candidates.append((connection.report.seq, 0, connection.report.agent_id))
    if lifecycle and lifecycle.report.agent_id:
        candidates.append((lifecycle.report.seq, 1, lifecycle.report.agent_id))
    agent_id = build.report.agent_id if build else max(candidates)[2] if candidates else None
    return Agent(agent_id, lifecycle.report.lifecycle if lifecycle else Lifecycle.CREATED)


def app_of(state: TaskState) -> App | None:
    """Return the task's app as named by the latest build, or None."""
    return state.app.report.app if state.app and is_current(state, state.app) else None


def app_health_of(state: TaskState) -> Health:
    """Return the health of the app: the latest report, else the value in its build, else ``disabled`` (no check)."""
    if state.app_health and is_current(state, state.app_health):
        return state.app_health.report.health
    app = app_of(state)
    return app.health if app and app.health else Health.DISABLED


def status_of(state: TaskState, agent: Agent | None, app: Health) -> Status:
    """Return the first status of build, agent and app that is not ``active``."""
    build = STATUS_BY_BUILD.get((state.build.report.transition, state.job_status), Status.UNKNOWN)
    if build is not Status.ACTIVE:
        return build
    if agent is None:
        return Status.INITIALIZING
    by_agent = STATUS_BY_LIFECYCLE.get(agent.lifecycle, Status.UNKNOWN)
    return STATUS_BY_APP_HEALTH[app] if by_agent is Status.ACTIVE else by_agent


def is_connected(state: TaskState) -> bool:
    """Return whether the agent of the latest build has sent a heartbeat, and neither disconnected nor fell silent."""
    silence = state.silence
    is_silent = silence is not None and silence.build_number == state.build_number
    return state.build_number in state.last_heartbeat and not _has_disconnected(state) and not is_silent


def health_of(state: TaskState, agent: Agent | None) -> AgentHealth | None:  # noqa: PLR0911 - the reasons, in order
    """Return the health of the agent with the first reason that applies, or None if there is no agent."""
    agent_exit = agent_exit_of(state)
    if agent_exit is not None and has_failed(agent_exit.report):
        return AgentHealth(healthy=False, reason=NOT_RUNNING)
    if agent is None:
        return None
    alive = is_connected(state)
    if not alive and agent.lifecycle is Lifecycle.OFF:
        return AgentHealth(healthy=False, reason=NOT_RUNNING)
    if state.build_number not in state.last_heartbeat and not _has_disconnected(state):
        silence = state.silence
        late = silence is not None and silence.build_number == state.build_number
        reason = "agent is taking too long to connect" if late else "agent has not yet connected"
        return AgentHealth(healthy=False, reason=reason)
    if not alive:
        return AgentHealth(healthy=False, reason=LOST_CONNECTION)
    if agent.lifecycle is Lifecycle.START_ERROR:
        return AgentHealth(healthy=False, reason="agent startup script exited with an error")
    if agent.lifecycle in SHUTTING_DOWN:
        return AgentHealth(healthy=False, reason="agent is shutting down")
    return AgentHealth(healthy=True)


def agent_exit_of(state: TaskState) -> Stamped[AgentExit] | None:
    """Return the report of the end of the latest build's agent, or None if the agent has not ended."""
    return state.agent_exit if is_current(state, state.agent_exit) else None


def has_failed(agent_exit: AgentExit) -> bool:
    """Return whether an agent ended in another way than by itself with status 0, or as it was asked to."""
    if agent_exit.why is ExitReason.EXITED:
        return agent_exit.status != 0
    return agent_exit.why not in {ExitReason.STOPPED, ExitReason.INTERRUPTED}


def is_lost(state: TaskState) -> bool:
    """Return whether the agent of the latest build is lost: it fell silent, or ended without a record of how."""
    agent_exit = agent_exit_of(state)
    if agent_exit is not None:
        return agent_exit.report.why is ExitReason.LOST
    silence = state.silence
    return state.is_start and silence is not None and silence.lost and silence.build_number == state.build_number


def is_agent_gone(state: TaskState) -> bool:
    """Return whether the agent of the latest build, a start, is known not to run any more, or is lost."""
    if agent_exit_of(state) is not None or is_lost(state):
        return True
    agent = agent_of(state)
    if agent is None or is_connected(state):
        return False
    return agent.lifecycle is Lifecycle.OFF or _has_disconnected(state)


def is_running(task: Task) -> bool:
    """Return whether a task counts as running: its latest build is a start that neither failed nor lost its agent.

    A task counts from its create or resume on, before its agent runs, and until a pause is accepted or it is deleted.
    """
    state = task.state
    if task.deleted_at is not None or not state.is_start:
        return False
    return state.has_active_build or (state.job_status is JobStatus.SUCCEEDED and not is_agent_gone(state))


def runs_alike(task: Task, other: Task) -> bool:
    """Return whether the two have the very same of all that ``is_running`` depends on, as after most reports."""
    one, two = task.state, other.state
    return (
        one.build is two.build
        and one.last_heartbeat is two.last_heartbeat
        and one.connection is two.connection
        and one.lifecycle is two.lifecycle
        and one.agent is two.agent
        and one.agent_exit is two.agent_exit
        and one.silence is two.silence
        and one.timed_out is two.timed_out
        and task.deleted_at == other.deleted_at
    )


def ended_agent_of(state: TaskState) -> EndedAgent | None:
    """Return how the agent of the latest build ended, or None if it has not ended."""
    stamped = agent_exit_of(state)
    if stamped is None:
        return None
    report, received_at = stamped.report, stamped.received_at
    at = received_at if report.observed_at is None else min(report.observed_at, received_at)
    return EndedAgent(report.why, report.status, report.signal, report.words or "", at)


def is_working(state: TaskState) -> bool:
    """Return whether the agent of the latest build runs, is connected, and reported that it is working."""
    stamped = current_app_status(state)
    return (
        state.is_start
        and stamped is not None
        and stamped.report.state is AgentState.WORKING
        and agent_exit_of(state) is None
        and is_connected(state)
    )


def stalled_since(state: TaskState) -> datetime | None:
    """Return since when an agent that is working has sent nothing but heartbeats, or None if it is not stalled."""
    stall = state.stall
    is_stalled = stall is not None and stall.build_number == state.build_number and is_working(state)
    return stall.since if stall is not None and is_stalled else None


def asking_requests(state: TaskState) -> Sequence[OpenAgentRequest]:
    """Return the requests of the latest build's agent that wait for a person, or whose answer is on its way.

    There are none once the build has failed, its agent has ended, or the task is to be deleted: nothing can be answered
    then. A lost agent may come back.
    """
    if not state.agent_requests or not state.is_start or state.deletion is not None:
        return ()
    if state.job_status in {JobStatus.FAILED, JobStatus.CANCELED} or agent_exit_of(state) is not None:
        return ()
    current = [each for each in state.agent_requests.values() if each.build_number == state.build_number]
    return sorted(current, key=lambda request: (request.build_number, request.seq, request.id))


def open_requests(state: TaskState) -> Sequence[OpenAgentRequest]:
    """Return the requests that wait for a person: the only definition of what a task waits for."""
    return [request for request in asking_requests(state) if not request.answered]


SHUTTING_DOWN = frozenset({Lifecycle.SHUTTING_DOWN, Lifecycle.SHUTDOWN_TIMEOUT, Lifecycle.SHUTDOWN_ERROR})


def current_app_status(state: TaskState) -> Stamped[AppStatus] | None:
    """Return the app status to show: the latest, but while the latest build is a start only one of that build."""
    stamped = state.app_status
    if stamped and state.is_start and stamped.report.build_number != state.build_number:
        return None
    return stamped


def current_state_of(state: TaskState, status: Status, agent: Agent | None) -> CurrentState | None:
    """Return the state that the agent reported, or without one the progress of the start-up or the build's failure."""
    stamped = current_app_status(state)
    if stamped:
        report = stamped.report
        reported = AgentState.FAILED if report.state is AgentState.FAILURE else report.state
        return CurrentState(stamped.received_at, reported.value, report.message, report.uri)
    if status is Status.INITIALIZING:
        return CurrentState(state.build.received_at, AgentState.WORKING.value, _starting_message(state, agent), "")
    if state.job_status is JobStatus.FAILED:
        return CurrentState(state.build.received_at, AgentState.FAILED.value, state.build_error or "", "")
    return None


def _starting_message(state: TaskState, agent: Agent | None) -> str:
    if state.job_status is JobStatus.RUNNING:
        return "Workspace is starting"
    if agent is None:
        return "Initializing workspace"
    if agent.lifecycle is Lifecycle.CREATED:
        return "Agent is connecting"
    return "Agent is starting" if agent.lifecycle is Lifecycle.STARTING else "App is initializing"


def _has_disconnected(state: TaskState) -> bool:
    stamped = state.connection
    return stamped is not None and is_current(state, stamped) and isinstance(stamped.report, AgentDisconnected)
