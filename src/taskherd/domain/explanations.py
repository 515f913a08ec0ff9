"""Texts that explain to users why a task has its status, state and agent health, and what would change them.

Each text holds for every task state for which ``explain.py`` uses it. Where a text depends on more than the table entry
that it explains, it is a function of the task state.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Final, assert_never

from taskherd.domain.reports import ExitReason, Health, InterruptOutcome, JobStatus, Lifecycle, Transition
from taskherd.domain.request_values import RequestKind
from taskherd.domain.view import LOST_CONNECTION, NOT_RUNNING, agent_exit_of, has_failed, is_lost

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime, timedelta

    from taskherd.domain.liveness import Timeouts
    from taskherd.domain.reports import AgentExit, AppStatus
    from taskherd.domain.task import EndedInterrupt, OpenAgentRequest, TaskState
    from taskherd.domain.view import EndedAgent

MAX_WORDS: Final = 160
"""Maximum number of characters of an agent's last words that a text repeats."""

_PURPOSES: Final[Mapping[Transition, str]] = {
    Transition.START: "starts the workspace",
    Transition.STOP: "stops the workspace",
    Transition.DELETE: "deletes the workspace",
}

APP: Final[Mapping[Health, str]] = {
    Health.INITIALIZING: (
        "The agent is running, but its app is still starting. The task becomes active when the app's health check"
        " passes."
    ),
    Health.UNHEALTHY: (
        "The agent is running, but its app fails the health check. The task becomes active when the check passes."
    ),
    Health.HEALTHY: (
        "The agent is running and its app is healthy. A pause or a failing health check would change this."
    ),
    Health.DISABLED: (
        "The agent is running, and there is no health check for its app. A pause or a shutdown of the agent would"
        " change this."
    ),
}

NOTHING_REPORTED: Final = (
    "The agent has not reported what it is doing since the latest build began. Its first status report changes this."
)
STARTING_UP: Final = (
    "The task is starting, and its agent has not reported what it is doing yet. Its first status report changes this."
)
NO_AGENT: Final = (
    "There is no agent: the latest build is not a start, or nothing has been reported about its agent yet. The first"
    " heartbeat or lifecycle report of an agent in a started workspace changes this."
)

_UNHEALTHY: Final[Mapping[str, str]] = {
    NOT_RUNNING: ("The agent reported that it is off. A heartbeat of the agent changes this. {again}"),
    "agent has not yet connected": (
        "No heartbeat of the agent has been received yet. Its first heartbeat changes this; without one for {connect}"
        " it counts as taking too long."
    ),
    "agent is taking too long to connect": (
        "No heartbeat of the agent was received within {connect}. Its first heartbeat changes this."
    ),
    LOST_CONNECTION: (
        "The agent disconnected, or sent no heartbeat for {lost} while the worker was receiving reports. Its next"
        " heartbeat changes this. {again}"
    ),
    "agent startup script exited with an error": (
        "A start-up script of the agent failed. A new start of the workspace may help."
    ),
    "agent is shutting down": (
        "The agent reported that it is shutting down. The next start of the workspace changes this."
    ),
}


def build(state: TaskState, timeouts: Timeouts) -> str:
    """Explain why the latest build keeps the task from being active."""
    subject = f"Build {state.build_number}, which {_PURPOSES[state.build.report.transition]},"
    if state.build_timed_out:
        timeout = f"timed out: {state.build_error} {_next_attempt(state)}"
        return f"{subject} {timeout} A later report about the build still counts."
    if state.unanswered_build == state.build_number:
        return (
            f"{subject} was requested, but no runner has picked it up yet. The first report about it changes this;"
            f" after {format_duration(timeouts.request_ttl)} without one it counts as failed."
        )
    return f"{subject} {_job(state, timeouts)}"


def _job(state: TaskState, timeouts: Timeouts) -> str:
    match state.job_status:
        case JobStatus.FAILED:
            error = f": {state.build_error}" if state.build_error else ""
            return f"{f'failed{error}'.rstrip('.')}. {_next_attempt(state)}"
        case JobStatus.CANCELING:
            return (
                "is being canceled. When it is reported as canceled, the task can be resumed; after"
                f" {format_duration(timeouts.build_timeout)} without a report about it, it counts as failed."
            )
        case JobStatus.CANCELED:
            return f"was canceled. {_next_attempt(state)}"
        case JobStatus.PENDING | JobStatus.RUNNING:
            progress = "is waiting for its turn" if state.job_status is JobStatus.PENDING else "is in progress"
            consequence = "the agent starts" if state.is_start else "the task is paused"
            return (
                f"{progress}. When it is reported as done, {consequence}; after"
                f" {format_duration(timeouts.build_timeout)} without a report about it, it counts as failed."
            )
        case JobStatus.SUCCEEDED:
            return "is done. Resume the task to start the workspace again."
        case _:
            assert_never(state.job_status)


def _next_attempt(state: TaskState) -> str:
    return "Resume the task to try again." if state.deletion is None else "The delete is retried automatically."


def no_agent(state: TaskState) -> str:
    """Explain why a task whose workspace is starting or has started has no agent."""
    if state.job_status is JobStatus.RUNNING:
        return f"Build {state.build_number} is starting the workspace. Its agent should report when that is done."
    return (
        f"Build {state.build_number} has started the workspace, but its agent has not reported yet. The agent's first"
        " heartbeat or lifecycle report changes this."
    )


def agent(lifecycle: Lifecycle) -> str:
    """Explain why the agent keeps the task from being active."""
    if lifecycle is Lifecycle.CREATED:
        return "The agent has not reported that it is starting yet. Its next lifecycle report changes this."
    if lifecycle is Lifecycle.STARTING:
        return "The agent is running its start-up scripts. The task can become active when the agent reports ready."
    event = "has stopped" if lifecycle is Lifecycle.OFF else "is shutting down"
    return (
        f"The agent {event}, but no stop of its workspace was reported. A report about a build, or another lifecycle"
        " report of the agent, changes this."
    )


def reported_state(state: TaskState, report: AppStatus) -> str:
    """Explain a current state that was reported."""
    number = report.sort_key[0]
    if number == state.build_number:
        stamped = agent_exit_of(state)
        if stamped is not None:
            return f"The last state of the agent, which {how_ended(stamped.report)}. {start_again(state)}"
        if is_lost(state):
            return (
                f"Reported in build {number}, before the agent was lost; it may no longer be true. {start_again(state)}"
            )
    if report.guessed_from:
        return (
            f"The agent did not say this itself: the runner concluded it in build {number} from {report.guessed_from}."
            " The next status replaces it."
        )
    return f"Reported by the agent in build {number}. Its next status report replaces it."


def agent_gone(state: TaskState) -> str:
    """Explain the status of a task whose agent has ended or is lost, while its workspace counts as up."""
    stamped = agent_exit_of(state)
    if stamped is None:
        return f"The workspace is up, as far as is known, but its agent is lost. {start_again(state)}"
    place = "" if has_failed(stamped.report) else ", and its workspace is up"
    return f"The agent {how_ended(stamped.report)}{place}. {start_again(state)}"


def how_ended(agent_exit: AgentExit | EndedAgent) -> str:
    """Describe how an agent ended, as a predicate: ``exited with status 3 ("out of disk space")``."""
    words = f' ("{_shorten(agent_exit.words)}")' if agent_exit.words else ""
    match agent_exit.why:
        case ExitReason.EXITED:
            how = "exited" if agent_exit.status is None else f"exited with status {agent_exit.status}"
        case ExitReason.SIGNALLED:
            how = "was ended by a signal" if agent_exit.signal is None else f"was ended by {_name(agent_exit.signal)}"
        case ExitReason.OUT_OF_MEMORY:
            how = "was ended because it ran out of memory"
        case ExitReason.TIMEOUT:
            how = "was ended because it exceeded its time limit"
        case ExitReason.LOST:
            how = "is lost: it ended without a record of how, because its machine, container or shim was stopped"
        case ExitReason.STOPPED:
            how = "was stopped with its workspace"
        case ExitReason.INTERRUPTED:
            how = "was ended because a user interrupted it"
        case ExitReason.NOT_STARTED:
            how = "could not be started"
        case _:
            assert_never(agent_exit.why)
    return how + words


def _name(number: int) -> str:
    try:
        return f"signal {number} ({signal.Signals(number).name})"
    except ValueError:
        return f"signal {number}"


def _shorten(text: str) -> str:
    last = " ".join(text.split())
    return last if len(last) <= MAX_WORDS else f"…{last[-MAX_WORDS:]}"


def start_again(state: TaskState) -> str:
    """Say what starts the agent of a task again, which has ended or is lost."""
    if state.deletion is not None:
        return "The task is being deleted."
    if state.has_active_build:
        return "It can be started again when the build of its workspace has ended."
    if state.loss_restarts.retry_at is not None:
        return "The worker starts it again by itself, as the template's `run.on_loss` asks for."
    return "Resume the task to start it again."


def agent_exit(state: TaskState) -> str:
    """Explain whether and how the agent of the latest build has ended."""
    stamped = agent_exit_of(state)
    if stamped is not None:
        return f"The agent {how_ended(stamped.report)}. {start_again(state)}"
    if is_lost(state):
        return f"The agent is lost: its heartbeats stopped, and nothing says how it ended. {start_again(state)}"
    return "No agent of the latest build has ended. The end of its agent changes this."


def stalled(since: datetime | None) -> str:
    """Explain since when the agent has stalled, or that it has not."""
    if since is None:
        return (
            "The agent has not stalled: it is not working, or has reported something within the time that"
            " `run.stalled_after` allows."
        )
    return (
        "The agent reported that it is working, and has sent nothing but heartbeats since"
        f" {since:%Y-%m-%d %H:%M:%S} UTC. Its next report changes this. To start it again, pause the task, and"
        " resume it when it is paused."
    )


def open_interrupt(timeouts: Timeouts) -> str:
    """Explain an open interrupt, and what ends it."""
    return (
        "The agent is being interrupted, and is given no input meanwhile. The report of its runner about the interrupt"
        f" changes this; after {format_duration(timeouts.interrupt_timeout)} without one it counts as failed."
    )


def last_interrupt(interrupt: EndedInterrupt | None) -> str:
    """Explain that no interrupt is open, and what became of the last one."""
    if interrupt is None:
        return "Nobody has interrupted the agent. An interrupt is accepted while it works."
    detail = f" ({interrupt.detail.rstrip('.')})" if interrupt.detail else ""
    match interrupt.outcome:
        case InterruptOutcome.STOPPED:
            what = "ended what the agent did"
        case InterruptOutcome.ENDED:
            what = "found that the agent did nothing any more"
        case InterruptOutcome.FAILED:
            what = "failed"
        case _:
            assert_never(interrupt.outcome)
    return f"No interrupt is open. The last one, of {interrupt.at:%Y-%m-%d %H:%M:%S} UTC, {what}{detail}."


NOTHING_ASKED: Final = "The agent asks nothing: it has no open request."
ANSWER_ON_ITS_WAY: Final = (
    "The agent's request is answered. The answer is sent to the runner of the agent until that reports what became of"
    " the request."
)


def waits_for_person(requests: Sequence[OpenAgentRequest]) -> str:
    """Explain that the agent waits for a person: what it asks, since when, and how to answer."""
    first = requests[0]
    kind = "approval" if first.kind is RequestKind.APPROVAL else "an answer"
    more = f", and {len(requests) - 1} more" if len(requests) > 1 else ""
    title = first.title.rstrip(".…")
    return (
        f"The agent waits for {kind}: “{title}”, since {first.since:%Y-%m-%d %H:%M:%S} UTC{more}. Meanwhile no input is"
        " sent to it. An answer changes this, and so does the end of the agent."
    )


def resume(refusal: str | None) -> str:
    """Say what a resume does, or why it is refused."""
    return refusal or "A resume is accepted: it starts the workspace and its agent again."


def failed_build(state: TaskState) -> str:
    """Explain why the current state is that of a failed build."""
    return f"Build {state.build_number} failed, and no agent has reported a status in it. {_next_attempt(state)}"


def healthy(state: TaskState, timeouts: Timeouts) -> str:
    """Explain why an agent is healthy: its heartbeats arrive, which the runner sends while the workspace is up."""
    stamped = agent_exit_of(state)
    if stamped is not None:
        return f"The agent {how_ended(stamped.report)}, which is no fault. {start_again(state)}"
    return (
        f"The agent sends heartbeats. After {format_duration(timeouts.agent_lost_after)} without one it would count as"
        " lost."
    )


def unhealthy(state: TaskState, reason: str, timeouts: Timeouts) -> str:
    """Explain a reason of the agent health."""
    stamped = agent_exit_of(state)
    if stamped is not None and has_failed(stamped.report):
        return f"The agent {how_ended(stamped.report)}. {start_again(state)}"
    return _UNHEALTHY[reason].format(
        lost=format_duration(timeouts.agent_lost_after),
        connect=format_duration(timeouts.agent_connect_timeout),
        again=start_again(state),
    )


def format_duration(duration: timedelta) -> str:
    """Format a duration in seconds, or in minutes from two minutes on."""
    seconds = duration.total_seconds()
    return f"{seconds / 60:g} minutes" if seconds >= 120 else f"{seconds:g} seconds"  # noqa: PLR2004 - two minutes
