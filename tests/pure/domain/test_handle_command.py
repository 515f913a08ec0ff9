"""What commands decide that only depends on the task."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace as with_fields
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from taskherd.domain import inbox, labels
from taskherd.domain.command_results import INBOX_FULL, CommandAccepted, CommandRefused
from taskherd.domain.commands import Create, Delete, Pause, Resume, Send, UpdateInput, UpdateLabels
from taskherd.domain.handle_command import CommandContext, EarlierInput, TemplateVersionInfo, handle_command
from taskherd.domain.reports import AgentState, JobStatus, Transition
from taskherd.domain.request_values import RequestKind
from taskherd.domain.task import Inbox, OpenAgentRequest
from tests.harness.histories import NOON, TASK
from tests.pure.domain.test_explain import folded, task_with
from tests.pure.domain.test_fold import build, lifecycle, status

if TYPE_CHECKING:
    from typing import Any

    from taskherd.domain.commands import Command
    from taskherd.domain.reports import Report
    from taskherd.domain.task import Task

ACTOR = UUID(int=3)
LENIENT = CommandContext({}, {}, {}, {})
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


@pytest.mark.parametrize("interrupt", [False, True])
def test_a_limited_number_of_inputs_waits(*, interrupt: bool) -> None:
    """Another one is refused, also one that steers, and interrupts nothing; one that was accepted is again."""
    busy = active(status(AgentState.WORKING))
    almost = with_fields(busy, state=with_fields(busy.state, inbox=Inbox(queued=inbox.MAX_QUEUED - 1)))
    full = accepted(almost, 116).task
    assert full.state.inbox.queued == inbox.MAX_QUEUED
    command = with_fields(send(117), interrupt=interrupt)
    assert handle_command(full, command, NOON, LENIENT) is INBOX_FULL
    assert handle_command(full, command, NOON, STRICT) is INBOX_FULL
    earlier = EarlierInput(TASK, command.input, ACTOR, queued=True)
    assert accepted(full, 117, with_fields(LENIENT, earlier_inputs={command.command_id: earlier})).repeated


def test_an_input_waits_for_a_question_that_is_not_known() -> None:
    """An input answers only a question of which there is a record; else it is queued until the question is closed."""
    asked = OpenAgentRequest(UUID(int=114), 1, 1, RequestKind.QUESTION, "Which package?", NOON, wants_text=True)
    task = active(status(AgentState.IDLE))
    asking = with_fields(task, state=with_fields(task.state, agent_requests={asked.id: asked}))
    queued = accepted(asking, 115)
    assert (queued.answered, queued.queued, queued.task.state.inbox.queued) == (None, True, 1)


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
    first = with_fields(LENIENT, names_in_use={}, running={})
    first.note_change(None, running)
    assert first.running == {running.owner_id: 1}


BLANK = (" ", "\n", "\u200b", "\ufeff \u00ad", "\u2800", "\u3164", "\x07", "\ufe0f", "\U000e0100")
"""Texts that nobody can see."""
OWNER, OTHER_OWNER, ORGANIZATION = UUID(int=21), UUID(int=22), UUID(int=23)
VERSION, UNUSABLE, FOREIGN, PRESET = UUID(int=24), UUID(int=25), UUID(int=26), UUID(int=27)
TEMPLATE = UUID(int=28)
DRAWN: defaultdict[UUID, tuple[str, ...]] = defaultdict(lambda: ("taken", "fix-1a2b", "unneeded"))
"""Names drawn for any task, of which only one owner has the first."""


def directory(**fields: Any) -> CommandContext:
    """Return a context with an owner who has a task called "taken", and three versions, of which one is usable."""
    presets = frozenset({PRESET})
    versions = {
        VERSION: TemplateVersionInfo(ORGANIZATION, TEMPLATE, presets, usable=True),
        UNUSABLE: TemplateVersionInfo(ORGANIZATION, TEMPLATE, presets, usable=False),
        FOREIGN: TemplateVersionInfo(UUID(int=29), TEMPLATE, presets, usable=True),
    }
    owners = {OWNER: frozenset({ORGANIZATION}), OTHER_OWNER: frozenset({ORGANIZATION})}
    in_use = {OWNER: {"taken"}}
    return CommandContext(owners, versions, in_use, DRAWN, **fields)


def create(context: CommandContext | None = None, **fields: Any) -> CommandAccepted | CommandRefused:
    """Return the result of a create at noon, valid except for ``fields``."""
    given = {"owner_id": OWNER, "template_version_id": VERSION, "input": "fix the login", **fields}
    command = Create(command_id=UUID(int=141), task_id=TASK, actor_id=ACTOR, **given)
    return handle_command(None, command, NOON, context or directory())


def created(context: CommandContext | None = None, **fields: Any) -> Task:
    """Return the task of a create that must be accepted."""
    result = create(context, **fields)
    assert isinstance(result, CommandAccepted)
    return result.task


def test_a_create_makes_a_task() -> None:
    """Its ids are those of the command and the version; names that are not chosen are made from the prompt."""
    task = created()
    assert (task.id, task.owner_id, task.organization_id) == (TASK, OWNER, ORGANIZATION)
    assert (task.template_id, task.template_version_id, task.preset_id) == (TEMPLATE, VERSION, None)
    assert (task.name, task.display_name, task.prompt) == ("fix-1a2b", "Fix the login", "fix the login")
    assert (task.version, task.prompt_version, task.deleted_at) == (1, 1, None)
    assert (task.created_at, task.updated_at, task.state.build.received_at) == (NOON, NOON, NOON)
    assert (task.state.requested_builds, task.state.labels) == ({1: Transition.START}, {})
    assert created(owner_id=OTHER_OWNER).name == "taken"


def test_a_create_takes_what_was_chosen() -> None:
    """Name, display name, preset and labels; the nil UUID is no preset, and a blank display name none."""
    task = created(
        name="My-Task", display_name=" Mine ", template_version_preset_id=PRESET, labels={"team": "blue", "repo": "a"}
    )
    assert (task.name, task.display_name, task.preset_id) == ("My-Task", "Mine", PRESET)
    assert list(task.state.labels.items()) == [("repo", "a"), ("team", "blue")]
    for blank in BLANK:
        plain = created(name="", display_name=blank, template_version_preset_id=UUID(int=0), labels={})
        assert (plain.name, plain.display_name, plain.preset_id) == ("fix-1a2b", "Fix the login", None)
    assert created(display_name="d" * 64).display_name == "d" * 64
    assert created(input="!?", name="a-name").display_name == "A name"


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"owner_id": UUID(int=99)}, 400, "Owner not found."),
        (
            {"template_version_id": UUID(int=98)},
            400,
            "Template version not found or you do not have access to this resource",
        ),
        (
            {"template_version_id": UNUSABLE},
            400,
            "Template version not found or you do not have access to this resource",
        ),
        (
            {"template_version_id": FOREIGN},
            400,
            "Template version not found or you do not have access to this resource",
        ),
        ({"template_version_preset_id": UUID(int=97)}, 400, "Preset not found."),
        *(({"input": blank}, 400, "Task input is required.") for blank in BLANK),
        ({"name": "new"}, 400, "Unable to create a Task with the provided name."),
        ({"display_name": "d" * 65}, 400, "Display name must be 64 characters or less."),
        ({"labels": {"": "x"}}, 400, "Invalid labels."),
        ({"name": "Taken"}, 409, 'Workspace "Taken" already exists.'),
        ({"name": "Taken", "labels": {"": "x"}}, 400, "Invalid labels."),
    ],
)
def test_why_a_create_is_refused(fields: dict[str, Any], status: int, message: str) -> None:
    """The first reason counts, in the order of Coder's API."""
    refused = create(**fields)
    assert isinstance(refused, CommandRefused)
    assert (refused.status, refused.message) == (status, message)


def test_a_name_is_in_use_for_its_owner_only() -> None:
    """The refusal names the field, as clients expect; another owner may take the name."""
    refused = create(name="taken")
    assert isinstance(refused, CommandRefused)
    assert refused.validations == (("name", "This value is already in use and should be unique."),)
    assert created(owner_id=OTHER_OWNER, name="taken").name == "taken"


def test_the_number_of_running_tasks_is_checked_last() -> None:
    """At the limit a create is refused, unless it has another fault; without a limit it is never."""
    full = directory(running={OWNER: 2, OTHER_OWNER: 1}, max_running=2)
    refused = create(full)
    assert isinstance(refused, CommandRefused)
    assert (refused.status, refused.message) == (409, "Too many tasks are running.")
    assert (refused.detail or "").startswith("The owner may have 2 running tasks. ")
    faulty = create(full, name="new")
    assert isinstance(faulty, CommandRefused)
    assert faulty.status == 400
    assert created(full, owner_id=OTHER_OWNER).owner_id == OTHER_OWNER
    assert created(directory(max_running=1)).owner_id == OWNER
    assert created(directory(running={OWNER: 9})).owner_id == OWNER


def refusal(task: Task | None, command: Command, context: CommandContext = LENIENT) -> tuple[int, str]:
    """Return the status and message of a command that must be refused."""
    result = handle_command(task, command, NOON, context)
    assert isinstance(result, CommandRefused)
    return result.status, result.message


def test_a_task_that_is_not_there_is_not_found() -> None:
    """Whether it never was, or is deleted; only its id is taken for ever."""
    not_found = (404, "Resource not found or you do not have access to this resource")
    gone = with_fields(active(), deleted_at=NOON)
    ids: dict[str, Any] = {"command_id": UUID(int=151), "task_id": TASK, "actor_id": ACTOR}
    for task in (None, gone):
        for command in (Delete(**ids), Pause(**ids), Resume(**ids), send(152)):
            assert refusal(task, command) == not_found
    again = Create(**ids, owner_id=OWNER, template_version_id=VERSION, input="once more")
    for task in (active(), gone):
        assert refusal(task, again, directory()) == (409, "A task with this ID already exists.")


def test_a_delete_empties_the_inbox() -> None:
    """The task is hidden from then on, and its inputs and its interrupt count no more."""
    task = accepted(active(status(AgentState.WORKING)), 153).task
    deleted = handle_command(task, Delete(command_id=UUID(int=154), task_id=TASK, actor_id=ACTOR), NOON, LENIENT)
    assert isinstance(deleted, CommandAccepted)
    assert (deleted.task.deleted_at, deleted.task.state.inbox.queued) == (NOON, 0)
    assert deleted.task.state.deletion is not None
    assert deleted.task.state.interrupt is None


def test_only_a_paused_task_gets_another_prompt() -> None:
    """A blank one is refused before that is looked at."""
    paused = task_with(
        folded(build(job=JobStatus.SUCCEEDED), build(2, job=JobStatus.SUCCEEDED, transition=Transition.STOP))
    )

    def update(text: str) -> UpdateInput:
        return UpdateInput(command_id=UUID(int=161), task_id=TASK, actor_id=ACTOR, input=text)

    changed = handle_command(paused, update("another way"), NOON, LENIENT)
    assert isinstance(changed, CommandAccepted)
    assert changed.task == with_fields(paused, prompt="another way")
    assert refusal(active(), update("another way")) == (409, "Unable to update task input, task must be paused.")
    for blank in BLANK:
        assert refusal(active(), update(blank)) == refusal(paused, update(blank)) == (400, "Task input is required.")
    assert isinstance(handle_command(paused, update("\u200b.\u200b"), NOON, LENIENT), CommandAccepted)


def test_which_tasks_take_no_inputs() -> None:
    """The message says why, and the detail what helps."""
    stopped = build(2, job=JobStatus.SUCCEEDED, transition=Transition.STOP)
    for reports, expected in (
        ([build(job=JobStatus.PENDING)], (409, "Task is pending.")),
        ([build(job=JobStatus.RUNNING)], (409, "Task is initializing.")),
        ([build(job=JobStatus.SUCCEEDED), stopped], (409, "Task is paused.")),
        ([build(job=JobStatus.FAILED)], (400, "Task must be active.")),
    ):
        assert refusal(task_with(folded(*reports)), send(171)) == expected
    empty = Send(command_id=UUID(int=172), task_id=TASK, actor_id=ACTOR, input="")
    assert refusal(active(), empty) == (400, "Task input is required.")


def test_a_repeated_send_is_accepted_whatever_the_task_does_now() -> None:
    """If it is the same: the task, the text and the actor, unless that is not known any more."""
    paused = task_with(
        folded(build(job=JobStatus.SUCCEEDED), build(2, job=JobStatus.SUCCEEDED, transition=Transition.STOP))
    )
    command = send(181)

    def repeated(**fields: Any) -> CommandAccepted | CommandRefused:
        given = {"task_id": TASK, "content": command.input, "actor_id": ACTOR, "queued": True, **fields}
        earlier = {command.command_id: EarlierInput(**given)}
        return handle_command(paused, command, NOON, with_fields(LENIENT, earlier_inputs=earlier))

    same: list[dict[str, Any]] = [{}, {"actor_id": None}, {"queued": False}]
    for fields in same:
        again = repeated(**fields)
        assert isinstance(again, CommandAccepted)
        assert (again.task, again.input_id, again.input) == (paused, command.command_id, None)
        assert (again.queued, again.repeated) == (fields.get("queued", True), True)
    different: list[dict[str, Any]] = [{"task_id": UUID(int=1)}, {"content": "another"}, {"actor_id": UUID(int=1)}]
    for fields in different:
        other = repeated(**fields)
        assert isinstance(other, CommandRefused)
        assert (other.status, other.message) == (409, "command_id was used for another command.")


def test_when_a_workspace_can_be_stopped_and_started() -> None:
    """Not while a build is active; a start only if no agent runs, or may be running."""
    ids: dict[str, Any] = {"command_id": UUID(int=191), "task_id": TASK, "actor_id": ACTOR}
    pause, resume = Pause(**ids), Resume(**ids)
    starting = task_with(folded(build()))
    for command in (pause, resume):
        assert refusal(starting, command) == (409, "A workspace build is already active.")
    assert refusal(active(), resume) == (409, "Task workspace is already running.")
    assert isinstance(handle_command(active(), pause, NOON, LENIENT), CommandAccepted)
    failed = task_with(folded(build(job=JobStatus.FAILED)))
    assert isinstance(handle_command(failed, resume, NOON, LENIENT), CommandAccepted)
    full = with_fields(LENIENT, running={failed.owner_id: 1}, max_running=1)
    assert refusal(failed, resume, full) == (409, "Too many tasks are running.")
    assert refusal(active(), resume, full) == (409, "Task workspace is already running.")
    last = task_with(folded(build(2**31 - 1, job=JobStatus.SUCCEEDED), lifecycle(number=2**31 - 1)))
    assert refusal(last, pause) == (409, "This task has reached the maximum number of builds.")
    failed = task_with(folded(build(2**31 - 1, job=JobStatus.FAILED)))
    assert refusal(failed, resume) == (409, "This task has reached the maximum number of builds.")
