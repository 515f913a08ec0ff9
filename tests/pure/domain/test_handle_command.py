"""What commands decide that only depends on the task."""

from __future__ import annotations

from dataclasses import replace as with_fields
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from taskherd.domain import inbox, labels
from taskherd.domain.command_results import CommandAccepted, CommandRefused
from taskherd.domain.commands import Pause, Resume, Send, UpdateLabels
from taskherd.domain.handle_command import CommandContext, handle_command
from taskherd.domain.reports import AgentState, JobStatus, Transition
from tests.harness.histories import NOON, TASK
from tests.pure.domain.test_explain import folded, task_with
from tests.pure.domain.test_fold import build, lifecycle, status

if TYPE_CHECKING:
    from taskherd.domain.reports import Report
    from taskherd.domain.task import Task

ACTOR = UUID(int=3)
LENIENT = CommandContext({}, {}, {}, lambda _prompt, _names: "")
STRICT = with_fields(LENIENT, strict_send=True)


def active(*reports: Report) -> Task:
    """Return an active task after these reports, all received at noon."""
    return task_with(folded(build(job=JobStatus.SUCCEEDED), lifecycle(), *reports))


def send(number: int) -> Send:
    """Return a send with an id and an input of its own."""
    return Send(command_id=UUID(int=number), task_id=TASK, actor_id=ACTOR, input=f"input {number}")


def accepted(task: Task, number: int, context: CommandContext = LENIENT) -> CommandAccepted:
    """Return the result of a send that must be accepted."""
    result = handle_command(task, send(number), NOON, context)
    assert isinstance(result, CommandAccepted)
    return result


def test_an_input_behind_another_is_queued() -> None:
    """An input for a ready agent is sent at once; the next of the same batch is queued, or refused in strict mode."""
    first = accepted(active(status(AgentState.IDLE)), 101, STRICT)
    assert not first.queued
    second = accepted(first.task, 102)
    assert second.queued
    assert second.task.state.inbox.queued == 2
    refused = handle_command(first.task, send(103), NOON, STRICT)
    assert isinstance(refused, CommandRefused)
    assert (refused.status, refused.message) == (409, "Task app is not ready to accept input.")


def test_an_input_for_a_busy_agent_is_queued() -> None:
    """An agent that works, or that an input is on its way to, gets no other."""
    assert accepted(active(status(AgentState.WORKING)), 111).queued
    idle = active(status(AgentState.IDLE))
    in_flight = with_fields(idle, state=inbox.mark_sent(inbox.enqueue(idle.state), UUID(int=112)))
    assert accepted(in_flight, 113).queued


def test_a_pause_requests_a_stop_and_a_resume_a_start() -> None:
    """Each is the next build, which is pending from now on."""
    paused = handle_command(active(), Pause(command_id=UUID(int=121), task_id=TASK, actor_id=ACTOR), NOON, LENIENT)
    assert isinstance(paused, CommandAccepted)
    assert paused.task.state.requested_builds[2] is Transition.STOP
    assert paused.task.state.build.received_at == NOON
    stopped = task_with(
        folded(build(job=JobStatus.SUCCEEDED), build(2, job=JobStatus.SUCCEEDED, transition=Transition.STOP))
    )
    resumed = handle_command(stopped, Resume(command_id=UUID(int=122), task_id=TASK, actor_id=ACTOR), NOON, LENIENT)
    assert isinstance(resumed, CommandAccepted)
    assert resumed.task.state.requested_builds[3] is Transition.START
    assert resumed.task.state.build.received_at == NOON


def test_labels_are_set_and_removed_by_key() -> None:
    """Labels that a command does not name stay; the same labels again change nothing."""

    def update(task: Task, number: int, **changes: str | None) -> CommandAccepted | CommandRefused:
        command = UpdateLabels(command_id=UUID(int=number), task_id=TASK, actor_id=ACTOR, labels=changes)
        return handle_command(task, command, NOON, LENIENT)

    first = update(active(), 131, team="blue", repo="acme/app")
    assert isinstance(first, CommandAccepted)
    assert list(first.task.state.labels.items()) == [("repo", "acme/app"), ("team", "blue")]
    second = update(first.task, 132, team=None, repo="acme/docs", absent=None)
    assert isinstance(second, CommandAccepted)
    assert second.task.state.labels == {"repo": "acme/docs"}
    again = update(second.task, 133, repo="acme/docs")
    assert isinstance(again, CommandAccepted)
    assert again.task == second.task
    full = update(second.task, 134, **{f"key-{number}": "x" for number in range(15)})
    assert isinstance(full, CommandAccepted)
    too_many = update(full.task, 135, another="y")
    assert isinstance(too_many, CommandRefused)
    assert (too_many.status, too_many.message) == (400, "Invalid labels.")
    assert too_many.validations == (("labels", "A task has at most 16 labels."),)


@pytest.mark.parametrize(
    ("key", "value", "is_valid"),
    [
        ("repo", "acme/app", True),
        ("a", "b", True),
        ("k" * 64, "v" * 64, True),
        ("app.example.com/a_b-c", "größe 1:2=3", True),
        ("k" * 65, "v", False),
        ("k", "v" * 65, False),
        ("", "v", False),
        ("k", "", False),
        ("-k", "v", False),
        ("k-", "v", False),
        ("k=k", "v", False),
        ("k k", "v", False),
        ("k\n", "v", False),
        ("é", "v", False),
        ("k", 'a"b', False),
        ("k", "a\nb", False),
        ("k", " v", False),
        ("k", "v\u202e", False),
    ],
)
def test_the_form_of_a_label(key: str, value: str, is_valid: bool) -> None:  # noqa: FBT001 - a case
    """A key can be written before an equals sign, a value within quotation marks, and both are short."""
    assert (labels.error({key: value}) is None) is is_valid


def test_what_commands_of_a_batch_start_and_stop_counts_for_the_next() -> None:
    """A start takes room, a pause makes room, and an input for a running task does neither."""
    running = active(status(AgentState.IDLE))
    paused = task_with(
        folded(build(job=JobStatus.SUCCEEDED), build(2, job=JobStatus.SUCCEEDED, transition=Transition.STOP))
    )
    resume = Resume(command_id=UUID(int=131), task_id=TASK, actor_id=ACTOR)
    context = with_fields(LENIENT, names_in_use={}, running={running.owner_id: 1}, max_running=2)
    context.note_change(running, accepted(running, 132).task)
    assert context.running[running.owner_id] == 1
    resumed = handle_command(paused, resume, NOON, context)
    assert isinstance(resumed, CommandAccepted)
    context.note_change(paused, resumed.task)
    refused = handle_command(paused, resume, NOON, context)
    assert isinstance(refused, CommandRefused)
    assert refused.message == "Too many tasks are running."
    context.note_change(running, paused)
    assert isinstance(handle_command(paused, resume, NOON, context), CommandAccepted)
    context.note_change(None, running)
    assert context.running[running.owner_id] == 2
    assert context.names_in_use == {running.owner_id: {running.name.lower()}}
