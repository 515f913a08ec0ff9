"""Which statements a folded batch runs, and with what; without a database."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from taskherd.domain.agent_requests import AgentRequestRecord
from taskherd.domain.command_results import COMMAND_ID_REUSED, CommandAccepted, CommandRefused
from taskherd.domain.commands import Answer, Create, Pause, Send
from taskherd.domain.directory import DirectoryNames
from taskherd.domain.reports import JobStatus, Transition
from taskherd.domain.task import Task
from taskherd.domain.updates import AcceptedInput, Cause, TaskUpdate
from taskherd.domain.value import replace
from taskherd.errors import Retry
from taskherd.messages.commands import digest
from taskherd.observability.failpoints import Failpoint
from taskherd.store import builds, command_log, directory, erasure, inputs, leases, running_tasks, tasks, work_requests
from taskherd.store.command_log import ExecutedCommand, RecordedCommand
from taskherd.store.directory import Owner, TemplateVersion
from taskherd.store.logs import LogLimits
from taskherd.store.task_creation import Inserted
from taskherd.worker import save as module
from taskherd.worker.batch import Batch, BatchResult
from taskherd.worker.context import RequestRetryPolicy
from taskherd.worker.directory_cache import NO_ENTRIES, DirectoryEntries
from taskherd.worker.load import LoadedBatch
from taskherd.worker.save import derive_writes, save_batch
from tests.harness.agent_requests import agent_request
from tests.harness.contexts import partial_context
from tests.harness.histories import NOON, TASK
from tests.harness.tasks import make_task
from tests.pure.domain.mutated_core import unchanged_core
from tests.pure.domain.test_fold import build, folded, heartbeat, lifecycle, timeouts
from tests.pure.domain.test_task_update import context as update_context
from tests.pure.test_derived_writes import core_document, unseen

CONNECTION: Any = "connection"
LATER, MINUTE = NOON + timedelta(minutes=1), timedelta(minutes=1)
ACTOR, OTHER = UUID(int=14), UUID(int=15)
STARTING = folded(unchanged_core(), [])
ACTIVE = folded(unchanged_core(), [build(job=JobStatus.SUCCEEDED), lifecycle(), heartbeat(seq=1)])
STOPPING = folded(unchanged_core(), [build(2, transition=Transition.STOP)])


class Store:
    """The statements that were run, each with what it was given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run: list[tuple[Any, ...]] = []
        self.failpoints: list[Failpoint] = []
        self.inserted: Inserted | None = None
        self.recorded: int | None = None
        self.result = BatchResult(LATER, [])
        results: dict[str, Callable[..., Any]] = {
            "insert_tasks": lambda created, added: (
                self.inserted or Inserted({row.task.id for row in created}, len(added.commands))
            ),
            "command_log.record": lambda rows: len(rows) if self.recorded is None else self.recorded,
            "directory.names": self._names,
        }
        for owner, names in (
            (module, ("insert_tasks",)), (tasks, ("save", "add_prompts")), (running_tasks, ("add", "delete")),
            (leases, ("upsert", "delete")), (work_requests, ("add",)), (builds, ("save",)), (command_log, ("record",)),
            (directory, ("names",)), (erasure, ("finish",)), (inputs, ("append", "mark_sent")),
        ):  # fmt: skip
            for name in names:
                label = name if owner is module else f"{owner.__name__.rpartition('.')[2]}.{name}"
                monkeypatch.setattr(owner, name, self._statement(label, results.get(label, lambda *_: None)))

    def _statement(self, name: str, result: Callable[..., Any]) -> Callable[..., Any]:
        async def run(connection: object, *arguments: Any) -> Any:
            assert connection is CONNECTION
            self.run.append((name, *arguments))
            return result(*arguments)

        return run

    def _names(self, pairs: Any) -> dict[Any, DirectoryNames]:
        return {
            pair: DirectoryNames(f"user {pair[0].int}", "", UUID(int=2), UUID(int=3), f"template {pair[1].int}", "", "")
            for pair in pairs
        }

    async def look_up(self, pairs: Any, connection: object) -> dict[Any, DirectoryNames]:
        """Return names of owners and templates."""
        assert connection is CONNECTION
        return self._names(pairs)

    async def save(
        self, updates: dict[UUID, TaskUpdate], *commands: Any, recorded: dict[UUID, RecordedCommand] | None = None,
        entries: DirectoryEntries = NO_ENTRIES, leased: frozenset[UUID] = frozenset(),
    ) -> list[str]:  # fmt: skip
        """Save these updates, and return the names of the statements."""
        self.run.clear()
        self.result = BatchResult(LATER, [])
        loaded = LoadedBatch(
            batch=Batch(commands=commands),
            rows={each: _row(update.before) for each, update in updates.items() if update.before is not None},
            updates=updates,
            update_context=update_context(),
            lease_checked=frozenset(updates),
            leased=leased,
            parked={},
            recorded_replies=recorded or {},
            claims={},
            template_pools={},
            entries=entries,
        )
        retry = RequestRetryPolicy(MINUTE, MINUTE, MINUTE, MINUTE)
        context = partial_context(
            directory_cache=self, failpoint=self.failpoints.append, log_limits=LogLimits(1, 1), request_retry=retry
        )
        writes = derive_writes(loaded, timeouts(unchanged_core()), LATER)
        await save_batch(CONNECTION, context, loaded, writes, self.result)
        return [name for name, *_ in self.run]

    def given(self, name: str) -> tuple[Any, ...]:
        """Return what a statement was given that was run once."""
        (given,) = [arguments for statement, *arguments in self.run if statement == name]
        return tuple(given)


def _row(task: Task) -> tasks.StoredTask:
    return tasks.StoredTask(task, "active", core_document(task), NOON + timedelta(seconds=90))


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    """Return a database that does what it is told."""
    return Store(monkeypatch)


def update(before: Any, after: Any, **fields: Any) -> TaskUpdate:
    """Return the update of a task between two states, None where there is no task."""
    old = None if before is None else make_task(TASK, state=before)
    new = None if after is None else old if after is before else make_task(TASK, state=after)
    return TaskUpdate(old, new, core_document="" if old is None else core_document(old), **fields)


def command(kind: Any, number: int = 50, task_id: UUID = TASK, **fields: Any) -> Any:
    """Return a command."""
    return kind(command_id=UUID(int=number), task_id=task_id, actor_id=ACTOR, **fields)


CREATE = command(Create, owner_id=UUID(int=1), template_version_id=UUID(int=4), input="Do it")
ENTRIES = DirectoryEntries(
    {UUID(int=1): Owner(UUID(int=1), "alice", active=True, organizations=frozenset())},
    {UUID(int=4): TemplateVersion(UUID(int=4), UUID(int=3), UUID(int=2), "v1", {}, usable=True, presets={})},
)


async def test_what_did_not_change_costs_no_statement(store: Store) -> None:
    """Nor does what a batch only asked for."""
    assert await store.save({TASK: update(ACTIVE, ACTIVE), OTHER: update(None, None)}) == ["leases.upsert"]
    assert await store.save({TASK: update(STARTING, STARTING)}) == []
    assert await store.save({}) == []
    assert store.failpoints == []
    assert (store.result.replies, store.result.has_due_requests, store.result.started_requests) == ([], False, [])


async def test_a_change_that_nobody_sees_is_saved_without_an_event(store: Store) -> None:
    """One that somebody sees has one, with its cause, and may end that the task runs."""
    hidden = update(STARTING, STARTING)
    hidden.task = unseen(hidden.existing_task)
    assert await store.save({TASK: hidden}) == ["tasks.save"]
    saved, events, indexed = store.given("tasks.save")
    assert ([row.task for row in saved], events, indexed) == ([hidden.task], [], [])
    cause = Cause("report", "workspace.build")
    stopping = update(ACTIVE, STOPPING, cause=cause)
    names = await store.save({TASK: stopping}, leased=frozenset({TASK}))
    assert names == ["tasks.save", "running_tasks.delete", "leases.delete", "builds.save"]
    saved, (event,), (row,) = store.given("tasks.save")
    assert (event.task, event.kind, event.document) == (saved[0].task, "updated", stopping.core_document)
    assert json.loads(event.cause) == {"kind": "report", "type": "workspace.build"}
    assert "workspace_status" in event.changes
    assert row.task_id == TASK
    assert store.given("running_tasks.delete") == ([TASK],)
    assert store.given("leases.delete") == ([TASK],)
    ((build_row,),) = store.given("builds.save")
    assert (build_row.number, build_row.at) == (2, LATER)


@pytest.mark.parametrize(
    ("cause", "expected"),
    [
        (None, {"kind": "sweep", "type": "task.looked_at"}),
        (Cause("command", "task.pause", OTHER), {"kind": "command", "type": "task.pause", "id": str(OTHER)}),
        (
            Cause("command", "task.pause", None, ACTOR),
            {"kind": "command", "type": "task.pause", "actor_id": str(ACTOR)},
        ),
        (
            Cause("command", "task.pause", None, OTHER),
            {"kind": "command", "type": "task.pause", "actor_id": str(OTHER)},
        ),
        (
            Cause("report", "agent.request", UUID(int=6), None, "open", "Which?", "core"),
            {
                "kind": "report", "type": "agent.request", "id": str(UUID(int=6)), "outcome": "open",
                "request": "Which?", "answer": "core",
            },
        ),
    ],
)  # fmt: skip
async def test_events_name_their_cause(store: Store, cause: Cause | None, expected: dict[str, str]) -> None:
    """Without what is not known of it; the same cause twice is the same text."""
    for _ in range(2):
        await store.save({TASK: update(ACTIVE, STOPPING, cause=cause)})
        _, (event,), _ = store.given("tasks.save")
        assert json.loads(event.cause) == expected


async def test_a_task_that_starts_again_runs_and_has_a_lease(store: Store) -> None:
    """As soon as that is known."""
    names = await store.save({TASK: update(STOPPING, replace(ACTIVE, requested_builds={1: Transition.START}))})
    assert names == ["tasks.save", "leases.upsert", "running_tasks.add", "builds.save"]
    assert store.given("running_tasks.add") == ([(TASK, UUID(int=1))],)
    ((lease,),) = store.given("leases.upsert")
    assert lease.task_id == TASK


async def test_a_create_inserts_everything_together(store: Store) -> None:
    """The task, its event, build, request, command and index; its first request is sent from memory."""
    created = update(None, replace(STARTING, requested_builds={1: Transition.START}), requested_builds=[1])
    created.command_result = CommandAccepted(created.existing_task)
    assert await store.save({TASK: created}, CREATE, entries=ENTRIES) == ["insert_tasks"]
    (row,), added = store.given("insert_tasks")
    assert row.task.id == TASK
    (event,), (built,), (request,), running, (executed,), (indexed,) = added
    assert (event.kind, event.task.version, built.number, indexed.task_id) == ("created", 1, 1, TASK)
    assert (request.type, request.attempt, running) == ("workspace.start", 1, [(TASK, UUID(int=1))])
    (reply,) = store.result.replies
    body = json.loads(reply.body)
    assert (body["ok"], body["version"], body["task"]["id"], body["task"]["owner_name"]) == (
        True,
        1,
        str(TASK),
        "user 1",
    )
    assert executed == ExecutedCommand(CREATE.command_id, TASK, digest(CREATE), reply.body.decode(), created_at=LATER)
    assert (reply.refusal, reply.repeated, reply.outcome) == (None, False, "accepted")
    ((sent, details),) = store.result.started_requests
    assert (sent, details.owner_username) == (request, "alice")
    assert not store.result.has_due_requests


@pytest.mark.parametrize(
    ("inserted", "message"),
    [(Inserted(set(), 1), "task with this name or id"), (Inserted({TASK}, 0), "command with this id")],
)
async def test_a_create_that_another_one_has_overtaken_is_tried_again(
    store: Store, inserted: Inserted, message: str
) -> None:
    """It may have taken its name, its id or the id of its command."""
    created = update(None, STARTING)
    created.command_result = CommandAccepted(created.existing_task)
    store.inserted = inserted
    with pytest.raises(Retry, match=message):
        await store.save({TASK: created}, CREATE)


async def test_a_command_that_another_worker_has_executed_is_tried_again(store: Store) -> None:
    """Then its recorded reply is found."""
    refused = update(None, None, command_result=CommandRefused(404, "Not found."))
    assert await store.save({TASK: refused}, command(Pause)) == ["command_log.record"]
    (reply,) = store.result.replies
    assert json.loads(reply.body) == {"ok": False, "error": {"status": 404, "message": "Not found."}}
    assert (reply.refusal, reply.outcome) == (refused.command_result, "refused")
    store.recorded = 0
    with pytest.raises(Retry, match="command with this id"):
        await store.save({TASK: refused}, command(Pause))


async def test_a_repeated_command_gets_its_recorded_reply(store: Store) -> None:
    """Beside others, in their order; with another body it is refused. It is not recorded again."""
    first, reused, last = (command(Pause, number, UUID(int=number)) for number in (50, 51, 52))
    refused = CommandRefused(404, "Not found.")
    recorded = {
        first.command_id: RecordedCommand(digest(first), '{"ok":true,"task":{},"version":3}'),
        reused.command_id: RecordedCommand(b"of another", "{}"),
    }
    updates = {each.task_id: update(None, None, command_result=refused) for each in (first, reused, last)}
    assert await store.save(updates, first, reused, last, recorded=recorded) == ["command_log.record"]
    one, two, three = store.result.replies
    assert json.loads(one.body) == {"ok": True, "task": {}, "version": 3}
    assert [each.repeated for each in (one, two, three)] == [True, True, False]
    assert [each.outcome for each in (one, two, three)] == ["repeated", "repeated", "refused"]
    assert (one.refusal, two.refusal, three.refusal) == (None, COMMAND_ID_REUSED, refused)
    ((executed,),) = store.given("command_log.record")
    assert executed.command_id == last.command_id
    recorded = {first.command_id: RecordedCommand(digest(first), json.dumps(json.loads(three.body)))}
    assert await store.save({first.task_id: updates[first.task_id]}, first, recorded=recorded) == []
    assert store.result.replies[0].refusal == refused


@pytest.mark.parametrize(
    ("kind", "answering", "kept"), [(Send, True, True), (Send, False, False), (Answer, True, False)]
)
async def test_a_send_that_answers_is_recorded_until_its_task_is_erased(
    store: Store, kind: type[Send | Answer], *, answering: bool, kept: bool
) -> None:
    """A repetition of another send is recognized by its input, and a repeated answer is refused."""
    fields = {"input": "core"} if kind is Send else {"request_id": UUID(int=9), "option_id": None, "text": "core"}
    asked = update(STARTING, STARTING)
    record = AgentRequestRecord(agent_request(UUID(int=9)), NOON, NOON)
    asked.command_result = CommandAccepted(asked.existing_task, answered=record if answering else None)
    await store.save({TASK: asked}, command(kind, **fields), entries=ENTRIES)
    ((recorded,),) = store.given("command_log.record")
    assert recorded.kept_until_erased is kept


async def test_requests_of_tasks_that_existed_are_due_at_once(store: Store) -> None:
    """They are read with their details; so is one to a runner that only a parked report has named."""
    resumed = update(ACTIVE, ACTIVE, sent_input=UUID(int=7), new_inputs=[AcceptedInput(UUID(int=7), "Go", ACTOR)])
    resumed.task = unseen(resumed.existing_task)
    names = await store.save({TASK: resumed})
    assert "work_requests.add" in names
    ((request,),) = store.given("work_requests.add")
    assert (request.type, request.attempt, store.result.has_due_requests) == ("agent.input", 0, True)
    state = folded(unchanged_core(), [build(runner="r1")])
    created = update(None, replace(state, requested_builds={1: Transition.START}), requested_builds=[1])
    created.command_result = CommandAccepted(created.existing_task)
    await store.save({TASK: created}, CREATE, entries=ENTRIES)
    _, added = store.given("insert_tasks")
    assert ([each.attempt for each in added.requests], store.result.has_due_requests) == ([0], True)
    assert store.result.started_requests == []


async def test_another_prompt_is_kept_with_its_version(store: Store) -> None:
    """That of a create is part of it."""
    changed = update(STARTING, STARTING)
    changed.task = replace(changed.existing_task, prompt="Another")
    assert await store.save({TASK: changed}) == ["tasks.save", "tasks.add_prompts"]
    ((task,),) = store.given("tasks.add_prompts")
    assert (task.prompt, task.version, task.prompt_version) == ("Another", 2, 2)
    _, (event,), _ = store.given("tasks.save")
    assert event.changes == ("initial_prompt",)


async def test_the_contents_of_a_task_are_erased_with_its_last_document(store: Store) -> None:
    """As it was shown, without a prompt."""
    deleted = make_task(TASK, state=PAUSED, deleted_at=NOON)
    erased = TaskUpdate(deleted, replace(deleted, display_name=""), core_document=core_document(deleted), erased=True)
    names = await store.save({TASK: erased, OTHER: update(None, None)})
    assert names[-2:] == ["directory.names", "erasure.finish"]
    documents, at = store.given("erasure.finish")
    shown = json.loads(documents[TASK])
    assert (at, [*documents]) == (LATER, [TASK])
    assert (shown["initial_prompt"], shown["owner_name"], shown["template_name"]) == ("", "user 1", "template 4")


PAUSED = folded(unchanged_core(), [build(2, transition=Transition.STOP, job=JobStatus.SUCCEEDED)])


@pytest.mark.parametrize("field", ["opened_interrupt", "closed_interrupt"])
async def test_a_batch_with_an_interrupt_reaches_its_failpoint(
    store: Store, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    """Whatever else is in it; one without does not."""

    async def nothing(*_: Any) -> None:
        return

    monkeypatch.setattr(work_requests, "delete_of_interrupts", nothing)
    other = update(ACTIVE, ACTIVE)
    await store.save({OTHER: other})
    assert store.failpoints == []
    interrupted = update(ACTIVE, ACTIVE)
    setattr(interrupted, field, UUID(int=8))
    interrupted.task = unseen(interrupted.existing_task)
    await store.save({OTHER: other, TASK: interrupted})
    assert store.failpoints == [Failpoint.INTERRUPT_SAVED]
