"""What a person is told about a task that is as it is: sentences that say why, and what would change it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from taskherd.domain.reports import Health, JobStatus, Lifecycle, Transition

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import timedelta

    from taskherd.domain.liveness import Timeouts
    from taskherd.domain.task import TaskState

_TRANSITION_NAMES: Final[Mapping[Transition, str]] = {
    Transition.START: "starts the workspace",
    Transition.STOP: "stops the workspace",
    Transition.DELETE: "deletes the workspace",
}

APP: Final[Mapping[Health, str]] = {
    Health.INITIALIZING: (
        "The agent is ready, and its app is still starting. When its health check passes, the task becomes active."
    ),
    Health.UNHEALTHY: (
        "The agent is ready, but its app fails the health check. The task recovers when the check passes again."
    ),
    Health.HEALTHY: (
        "The workspace is up, the agent is ready and its app is healthy. A pause, or a failing health check, would"
        " change this."
    ),
    Health.DISABLED: (
        "The workspace is up and the agent is ready; its app has no health check. A pause, or the agent shutting down,"
        " would change this."
    ),
}

NOTHING_REPORTED: Final = (
    "The agent has said nothing about what it does since its build began. Its first status report changes this."
)
COMING_UP: Final = (
    "The task is still coming up, and its agent has said nothing yet. Its first status report changes this."
)
NO_AGENT: Final = (
    "The latest build is no start, or its agent was not heard of yet, so there is none to be well. An agent that"
    " reports changes this."
)

_UNHEALTHY: Final[Mapping[str, str]] = {
    "agent is not running": "The agent said that it is off. The next start of the workspace changes this.",
    "agent has not yet connected": (
        "No heartbeat of the agent has come yet. Its first one makes it healthy; after {connect} without any it counts"
        " as too slow."
    ),
    "agent is taking too long to connect": (
        "No heartbeat of the agent came within {connect}. Its first one makes it healthy."
    ),
    "agent has lost connection": (
        "The agent said goodbye, or was silent for {lost} while we were listening. Its next heartbeat makes it healthy."
    ),
    "agent startup script exited with an error": (
        "A start-up script of the agent failed. The next start of the workspace may do better."
    ),
    "agent is shutting down": (
        "The agent says that it is shutting down. The next start of the workspace changes this."
    ),
}


def build(state: TaskState, timeouts: Timeouts) -> str:
    """Why the latest build keeps the task from being active."""
    what = f"Build {state.number}, which {_TRANSITION_NAMES[state.build.report.transition]},"
    if state.build_timed_out:
        return f"{what} was given up: {state.error} {_again(state)} A late report of the build would count too."
    if state.pending_build == state.number:
        return (
            f"{what} was asked for, and no runner has taken it up yet. The first report about it changes this;"
            f" after {format_duration(timeouts.request_ttl)} without any it counts as failed."
        )
    return f"{what} {_job(state, timeouts)}"


def _job(state: TaskState, timeouts: Timeouts) -> str:
    match state.job:
        case JobStatus.FAILED:
            error = f": {state.error}" if state.error else ""
            told = f"failed{error}".rstrip(".")
            return f"{told}. {_again(state)}"
        case JobStatus.CANCELING:
            return "is being canceled. When it is reported as canceled, the task can be resumed."
        case JobStatus.CANCELED:
            return f"was canceled. {_again(state)}"
        case JobStatus.PENDING | JobStatus.RUNNING:
            under = "waits for its turn" if state.job is JobStatus.PENDING else "is under way"
            then = "the agent comes up" if state.starting else "the task is paused"
            return (
                f"{under}. When it is reported as done, {then}; after {format_duration(timeouts.build_timeout)} "
                f"without a word"
                " about it, it counts as failed."
            )
        case JobStatus.SUCCEEDED:
            return "is done. Resume the task to start the workspace again."


def _again(state: TaskState) -> str:
    deleting = state.build.report.transition is Transition.DELETE
    return "It is asked for again by itself." if deleting else "Resume the task to try again."


def no_agent(state: TaskState) -> str:
    """Why a task whose build is well has no agent."""
    if state.job is JobStatus.RUNNING:
        return f"Build {state.number} is starting the workspace. Its agent is expected to report when that is done."
    return (
        f"Build {state.number} has started the workspace, but no agent has been heard of in it. The agent's first"
        " report changes this."
    )


def agent(lifecycle: Lifecycle) -> str:
    """Why the agent keeps the task from being active."""
    if lifecycle is Lifecycle.CREATED:
        return "The agent has yet to say that it is starting. Its next lifecycle report changes this."
    if lifecycle is Lifecycle.STARTING:
        return "The agent is running its start-up scripts. When it reports that it is ready, the task becomes active."
    what = "has ended" if lifecycle is Lifecycle.OFF else "is shutting down"
    return (
        f"The agent {what}, and no stop of its workspace was reported. A report of a build, or the agent, changes this."
    )


def reported_state(number: int) -> str:
    """Why a state that the agent reported stands."""
    return f"The agent said so itself, in build {number}. Its next status report replaces it."


def failed_build(state: TaskState) -> str:
    """Why a failed build shows as the agent's state."""
    return f"Build {state.number} failed, so its agent can't say anything. {_again(state)}"


def healthy(timeouts: Timeouts) -> str:
    """Why an agent is well."""
    return (
        f"The agent's heartbeats come. Silent for {format_duration(timeouts.agent_lost_after)}, it would count as lost."
    )


def unhealthy(reason: str, timeouts: Timeouts) -> str:
    """Why an agent is not well."""
    return _UNHEALTHY[reason].format(
        lost=format_duration(timeouts.agent_lost_after), connect=format_duration(timeouts.agent_connect_timeout)
    )


def format_duration(time: timedelta) -> str:
    """A length of time in words."""
    seconds = time.total_seconds()
    return f"{seconds / 60:g} minutes" if seconds >= 120 else f"{seconds:g} seconds"  # noqa: PLR2004 - two minutes
