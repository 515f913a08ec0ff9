"""The texts of explanations, word for word where a condition chooses the words."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from taskherd.domain import explanations
from taskherd.domain.reports import (
    AgentDisconnected,
    AgentExit,
    ExitReason,
    InterruptOutcome,
    JobStatus,
    Lifecycle,
    Transition,
)
from taskherd.domain.request_values import RequestKind
from taskherd.domain.task import Deletion, EndedInterrupt, LossRestarts, OpenAgentRequest
from taskherd.domain.value import replace
from taskherd.domain.view import LOST_CONNECTION
from tests.harness.histories import NOON, TASK
from tests.pure.domain.test_explain import HEARTBEAT, TIMEOUTS, UP, agent_exit, folded, lifecycle
from tests.pure.domain.test_fold import build

if TYPE_CHECKING:
    from taskherd.domain.task import TaskState

AGAIN = "Resume the task to try again."
DELETING = replace(folded(UP), deletion=Deletion())


def in_job(job: JobStatus, transition: Transition = Transition.START, **fields: Any) -> TaskState:
    """Return the state of a task whose build 2 is in this state, after build 1 has started the workspace."""
    return folded(UP, build(2, 1, job, transition=transition, **fields))


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (
            in_job(JobStatus.PENDING),
            (
                "Build 2, which starts the workspace, is waiting for its turn. When it is reported as done, the agent"
                " starts; after 30 minutes without a report about it, it counts as failed."
            ),
        ),
        (
            in_job(JobStatus.RUNNING, Transition.STOP),
            (
                "Build 2, which stops the workspace, is in progress. When it is reported as done, the task is paused;"
                " after 30 minutes without a report about it, it counts as failed."
            ),
        ),
        (
            in_job(JobStatus.CANCELING),
            (
                "Build 2, which starts the workspace, is being canceled. When it is reported as canceled, the task can"
                " be resumed; after 30 minutes without a report about it, it counts as failed."
            ),
        ),
        (in_job(JobStatus.CANCELED), f"Build 2, which starts the workspace, was canceled. {AGAIN}"),
        (
            in_job(JobStatus.SUCCEEDED, Transition.STOP),
            "Build 2, which stops the workspace, is done. Resume the task to start the workspace again.",
        ),
        (in_job(JobStatus.FAILED), f"Build 2, which starts the workspace, failed. {AGAIN}"),
        (
            in_job(JobStatus.FAILED, error="No space left."),
            f"Build 2, which starts the workspace, failed: No space left. {AGAIN}",
        ),
        (
            replace(in_job(JobStatus.FAILED, Transition.DELETE), deletion=Deletion(1)),
            "Build 2, which deletes the workspace, failed. The delete is retried automatically.",
        ),
        (
            folded(),
            (
                "Build 1, which starts the workspace, was requested, but no runner has picked it up yet. The first"
                " report about it changes this; after 10 minutes without one it counts as failed."
            ),
        ),
    ],
)
def test_what_a_build_waits_for(state: TaskState, text: str) -> None:
    """The text says what the build does, how far it is, and what happens next."""
    assert explanations.build(state, TIMEOUTS) == text


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (in_job(JobStatus.RUNNING), "Build 2 is starting the workspace. Its agent should report when that is done."),
        (
            folded(UP),
            (
                "Build 1 has started the workspace, but its agent has not reported yet. The agent's first heartbeat or"
                " lifecycle report changes this."
            ),
        ),
    ],
)
def test_why_there_is_no_agent(state: TaskState, text: str) -> None:
    """Either the workspace is not up yet, or nothing came from it."""
    assert explanations.no_agent(state) == text


@pytest.mark.parametrize(
    ("at", "beginning"),
    [
        (Lifecycle.CREATED, "The agent has not reported that it is starting yet. "),
        (Lifecycle.STARTING, "The agent is running its start-up scripts. "),
        (Lifecycle.SHUTTING_DOWN, "The agent is shutting down, but no stop of its workspace was reported. "),
        (Lifecycle.OFF, "The agent has stopped, but no stop of its workspace was reported. "),
    ],
)
def test_what_an_agent_waits_for(at: Lifecycle, beginning: str) -> None:
    """The lifecycle that the agent reported keeps the task from being active."""
    assert explanations.agent(at).startswith(beginning)


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (DELETING, "The task is being deleted."),
        (in_job(JobStatus.RUNNING), "It can be started again when the build of its workspace has ended."),
        (
            replace(folded(UP), loss_restarts=LossRestarts(0, NOON)),
            "The worker starts it again by itself, as the template's `run.on_loss` asks for.",
        ),
        (folded(UP), "Resume the task to start it again."),
    ],
)
def test_what_starts_an_agent_again(state: TaskState, text: str) -> None:
    """A person has to do something only if nothing else will happen."""
    assert explanations.start_again(state) == text


@pytest.mark.parametrize(
    ("ended", "text"),
    [
        (agent_exit(ExitReason.SIGNALLED), "was ended by a signal"),
        (agent_exit(ExitReason.SIGNALLED, signal=9), "was ended by signal 9 (SIGKILL)"),
        (agent_exit(ExitReason.SIGNALLED, signal=99, words=""), "was ended by signal 99"),
        (agent_exit(ExitReason.EXITED, status=0, words="all\n done "), 'exited with status 0 ("all done")'),
        (agent_exit(ExitReason.EXITED, words="w" * 160), f'exited ("{"w" * 160}")'),
        (agent_exit(ExitReason.EXITED, words="-" + "w" * 160), f'exited ("…{"w" * 160}")'),
    ],
)
def test_how_an_agent_ended(ended: AgentExit, text: str) -> None:
    """An unknown signal has its number only, and of long last words the end is repeated, in one line."""
    assert explanations.how_ended(ended) == text


def request(number: int, kind: RequestKind, title: str) -> OpenAgentRequest:
    """Return an open request of the agent of build 1, asked so many seconds after noon."""
    return OpenAgentRequest(UUID(int=number), 1, number, kind, title, NOON + timedelta(seconds=number))


@pytest.mark.parametrize(
    ("requests", "beginning"),
    [
        (
            [request(1, RequestKind.APPROVAL, "Run make?")],
            "The agent waits for approval: “Run make?”, since 2026-03-01 12:00:01 UTC. Meanwhile",
        ),
        (
            [request(2, RequestKind.QUESTION, "Which branch…"), request(3, RequestKind.APPROVAL, "Push it.")],
            "The agent waits for an answer: “Which branch”, since 2026-03-01 12:00:02 UTC, and 1 more. Meanwhile",
        ),
    ],
)
def test_what_the_agent_asks(requests: list[OpenAgentRequest], beginning: str) -> None:
    """The first request is quoted, the others are counted."""
    assert explanations.waits_for_person(requests).startswith(beginning)


@pytest.mark.parametrize(
    ("interrupt", "text"),
    [
        (None, "Nobody has interrupted the agent. An interrupt is accepted while it works."),
        (
            EndedInterrupt(UUID(int=5), InterruptOutcome.STOPPED, NOON, None),
            "No interrupt is open. The last one, of 2026-03-01 12:00:00 UTC, ended what the agent did.",
        ),
        (
            EndedInterrupt(UUID(int=6), InterruptOutcome.ENDED, NOON, ""),
            (
                "No interrupt is open. The last one, of 2026-03-01 12:00:00 UTC, found that the agent did nothing any"
                " more."
            ),
        ),
        (
            EndedInterrupt(UUID(int=7), InterruptOutcome.FAILED, NOON, "It has no terminal."),
            "No interrupt is open. The last one, of 2026-03-01 12:00:00 UTC, failed (It has no terminal).",
        ),
    ],
)
def test_what_became_of_the_last_interrupt(interrupt: EndedInterrupt | None, text: str) -> None:
    """Its outcome and the detail of its report, which ends in one full stop."""
    assert explanations.last_interrupt(interrupt) == text


def test_an_agent_that_ended_as_it_should_is_no_fault() -> None:
    """An exit with status 0 is none; of an agent that runs, the text says what would make it count as lost."""
    done = folded(UP, lifecycle(Lifecycle.READY), HEARTBEAT, agent_exit(ExitReason.EXITED, status=0))
    assert explanations.healthy(done, TIMEOUTS) == (
        "The agent exited with status 0, which is no fault. Resume the task to start it again."
    )
    left = folded(UP, AgentDisconnected(task_id=TASK, build_number=1, seq=1), agent_exit(ExitReason.EXITED, status=0))
    assert explanations.unhealthy(left, LOST_CONNECTION, TIMEOUTS) == (
        "The agent disconnected, or sent no heartbeat for 30 seconds while the worker was receiving reports. Its next"
        " heartbeat changes this. Resume the task to start it again."
    )
    running = folded(UP, lifecycle(Lifecycle.READY), HEARTBEAT)
    assert explanations.healthy(running, TIMEOUTS) == (
        "The agent sends heartbeats. After 30 seconds without one it would count as lost."
    )
    assert explanations.agent_exit(running) == (
        "No agent of the latest build has ended. The end of its agent changes this."
    )
    assert explanations.failed_build(in_job(JobStatus.FAILED)) == (
        f"Build 2 failed, and no agent has reported a status in it. {AGAIN}"
    )
