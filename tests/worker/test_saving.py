"""What the tables contain after a batch, and which statements save it: with a worker's parts, but none of its loops."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from taskherd.domain.command_results import COMMAND_ID_REUSED, NOT_FOUND
from taskherd.domain.commands import Answer, Create, Delete, Pause, Resume, Send, UpdateInput
from taskherd.domain.reports import (
    AgentRequest,
    AgentState,
    AppHealth,
    AppStatus,
    Health,
    JobStatus,
    Transition,
    format_rfc3339,
)
from taskherd.domain.request_values import RequestKind
from taskherd.domain.value import replace
from taskherd.errors import Retry
from taskherd.messages.commands import digest
from taskherd.store import engine
from taskherd.store.engine import transaction
from taskherd.store.task_creation import insert_tasks
from taskherd.store.tasks import StoredTask
from taskherd.worker import reconcile
from taskherd.worker.save import save_batch
from tests.harness.batches import (
    BOB,
    GPU_V1,
    LATER,
    NOW,
    TABLES,
    Batches,
    NotedSave,
    batch_of,
    build,
    command,
    create,
    opened_batches,
    starting,
)
from tests.harness.tasks import make_task, prompt_of
from tests.harness.worker import ALICE, TIMEOUT
from tests.worker.test_conflicts import Hold

ONE, TWO, THREE, FOUR = (UUID(int=number) for number in (0x101, 0x102, 0x103, 0x104))


@pytest.fixture
async def batches(database_url: str, amqp_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Batches]:
    """Yield the batches of a worker that does not run; the statements that save them are noted."""
    noted = NotedSave()
    monkeypatch.setattr(reconcile, "save_batch", noted)
    monkeypatch.setattr(engine, "IDLE_IN_TRANSACTION", TIMEOUT)  # one waits while another batch is saved
    async with opened_batches(database_url, amqp_url, noted) as opened:
        yield opened


def said(task_id: UUID, state: AgentState) -> AppStatus:
    """Return what an agent says of itself."""
    return AppStatus(task_id=task_id, build_number=1, seq=1, state=state, message=f"In {task_id.hex}")


def question(task_id: UUID, request_id: UUID) -> AgentRequest:
    """Return an open question of an agent."""
    title = f"Which package of {task_id.hex}?"
    asked: dict[str, Any] = {"task_id": task_id, "build_number": 1, "seq": 1, "title": title}
    return AgentRequest(request_id=request_id, kind=RequestKind.QUESTION, **asked)


async def test_what_did_not_change_costs_no_statement(batches: Batches) -> None:
    """Nor does a report that is parked."""
    await batches.save(create(ONE))
    await batches.make_active(TWO)
    await batches.save(said(ONE, AgentState.IDLE))
    before = [await batches.contents(each) for each in (ONE, TWO)]
    assert await batches.save(said(ONE, AgentState.IDLE), said(THREE, AgentState.IDLE), at=LATER) == [[]]
    assert await batches.save(said(FOUR, AgentState.IDLE), at=LATER) == [[]]
    result = batches.result
    assert (result.replies, result.has_due_requests, result.started_requests) == ([], False, [])
    assert await batches.save(starting(TWO)[1], at=LATER) == [[]]
    assert [await batches.changed(*each) for each in zip((ONE, TWO), before, strict=True)] == [set(), set()]
    assert await batches.column("SELECT task_id FROM parked ORDER BY 1") == [THREE, FOUR]


async def test_a_check_that_changes_nothing_moves_only_itself(batches: Batches) -> None:
    """Without a watermark, silence counts from now on. What needs no further check has none; the others stay."""
    await batches.save(create(ONE), create(THREE))
    await batches.make_active(TWO)
    await batches.database.execute("UPDATE task_deadlines SET due_at = $1", NOW)
    before = [await batches.contents(each) for each in (ONE, TWO, THREE)]
    version = (await batches.row("tasks", ONE))["version"]
    assert await batches.save(checked=[ONE, TWO], at=LATER) == [["UPDATE tasks"]]
    changed = [await batches.changed(*each) for each in zip((ONE, TWO, THREE), before, strict=True)]
    assert changed == [{"tasks", "task_deadlines"}, {"tasks", "task_deadlines"}, set()]
    assert (await batches.row("tasks", ONE))["version"] == version
    deadlines = await batches.database.fetch("SELECT task_id, due_at FROM task_deadlines ORDER BY 1")
    assert [tuple(each) for each in deadlines] == [(ONE, LATER + batches.context.timeouts.request_ttl), (THREE, NOW)]
    assert [(await batches.row("tasks", each))["due_at"] for each in (ONE, TWO)] == [deadlines[0]["due_at"], None]


async def test_a_task_that_a_check_found_idle_is_due_when_it_works_again(batches: Batches) -> None:
    """Also if its earlier deadline was still to come when it was checked, as that of a silent agent may be."""
    await batches.make_active(TWO)
    await batches.save(said(TWO, AgentState.WORKING))
    await batches.save(replace(said(TWO, AgentState.IDLE), seq=2), at=NOW + timedelta(seconds=1))
    assert (await batches.row("tasks", TWO))["due_at"] > LATER
    await batches.save(checked=[TWO], at=NOW + timedelta(seconds=2))
    assert await batches.column("SELECT due_at FROM task_deadlines") == []
    await batches.save(replace(said(TWO, AgentState.WORKING), seq=3), at=NOW + timedelta(seconds=3))
    (due_at,) = await batches.column("SELECT due_at FROM task_deadlines WHERE task_id = $1", TWO)
    assert due_at == (await batches.row("tasks", TWO))["due_at"] > LATER


async def test_a_change_that_nobody_sees_is_saved_without_an_event(batches: Batches) -> None:
    """The state of the task has it, its document and its version are as they were."""
    await batches.save(create(ONE), create(TWO))
    healthy = AppHealth(task_id=ONE, build_number=1, seq=1, health=Health.HEALTHY)
    await batches.save(build(ONE), healthy)
    before, other = [await batches.contents(each) for each in (ONE, TWO)]
    version = (await batches.row("tasks", ONE))["version"]
    assert await batches.save(replace(healthy, seq=7), at=LATER) == [["UPDATE tasks"]]
    assert await batches.changed(ONE, before) == {"tasks"}
    row = await batches.row("tasks", ONE)
    assert (row["version"], row["updated_at"]) == (version, NOW)
    assert json.loads(row["state"])["app_health"][1] == 7
    assert await batches.changed(TWO, other) == set()


async def test_a_stop_ends_that_a_task_runs_and_its_lease(batches: Batches) -> None:
    """Readers see its event, with its cause, and the list the task as it is now; other tasks stay as they are."""
    await batches.make_active(ONE, TWO)
    await batches.database.execute("DELETE FROM task_index_changes")
    before, other = [await batches.contents(each) for each in (ONE, TWO)]
    version = (await batches.row("tasks", ONE))["version"]
    stop = build(ONE, 2, Transition.STOP)
    statements = ["DELETE FROM leases", "DELETE FROM running_tasks", "INSERT INTO task_builds", "UPDATE tasks"]
    assert await batches.save(stop, at=LATER) == [statements]
    assert await batches.changed(ONE, before) == {
        *("tasks", "task_events", "outbox", "task_index_changes", "task_builds", "running_tasks", "leases")
    }
    assert await batches.changed(TWO, other) == set()
    task = await batches.row("tasks", ONE)
    written = await batches.database.fetchrow(EVENT, ONE, version + 1)
    assert written["occurred_at"] == task["updated_at"] == LATER
    assert (written["kind"], written["document"]) == ("updated", task["document"])
    assert json.loads(written["cause"]) == {"kind": "report", "type": "workspace.build"}
    assert {"status", "workspace_status"} <= {*written["changes"]}
    assert await batches.column("SELECT version FROM outbox WHERE task_id = $1 ORDER BY 1", ONE) == [1, 2, 3]
    indexed = await batches.row("task_index_changes", ONE)
    assert (indexed["status"], indexed["changed_at"]) == (task["status"], LATER) == ("unknown", LATER)
    assert await batches.column("SELECT task_id FROM running_tasks UNION ALL SELECT task_id FROM leases") == [TWO] * 2
    query = "SELECT number, transition, updated_at FROM task_builds WHERE task_id = $1 ORDER BY 1"
    assert [tuple(row) for row in await batches.database.fetch(query, ONE)] == [(1, "start", NOW), (2, "stop", LATER)]


EVENT = "SELECT * FROM task_events WHERE task_id = $1 AND version = $2"


async def test_a_task_that_starts_again_runs_and_has_a_lease(batches: Batches) -> None:
    """Its owner's running tasks have it from the resume on, its agent's leases once that is connected."""
    await batches.make_active(ONE)
    await batches.save(create(TWO, owner_id=BOB, template_version_id=GPU_V1))
    await batches.save(*(build(each, 2, Transition.STOP, job_status=JobStatus.SUCCEEDED) for each in (ONE, TWO)))
    assert await batches.column("SELECT task_id FROM running_tasks") == []
    assert await batches.save(command(Resume, ONE, 3), command(Resume, TWO, 3), at=LATER) == [[
        "INSERT INTO command_log", "INSERT INTO running_tasks", "INSERT INTO task_builds",
        "INSERT INTO work_requests", "UPDATE tasks",
    ]]  # fmt: skip
    running = "SELECT task_id, owner_id FROM running_tasks ORDER BY 1"
    assert [tuple(row) for row in await batches.database.fetch(running)] == [(ONE, ALICE), (TWO, BOB)]
    assert await batches.column("SELECT task_id FROM leases") == []
    statements = ["DELETE FROM work_requests", "INSERT INTO leases", "INSERT INTO task_builds", "UPDATE tasks"]
    assert await batches.save(*starting(ONE, 3), at=LATER) == [statements]
    lease = await batches.row("leases", ONE)
    assert (lease["build_number"], lease["seq"], lease["last_heartbeat_at"]) == (3, 3, LATER)


async def test_a_create_inserts_everything_together(batches: Batches) -> None:
    """Task, prompt, event, build, request, command and index; its first request is sent from memory."""
    await batches.save(create(TWO))
    other = await batches.contents(TWO)
    made = create(ONE)
    assert await batches.save(made, at=LATER) == [["INSERT INTO tasks"]]
    filled = {table for table, rows in (await batches.contents(ONE)).items() if rows}
    assert filled == {*TABLES} - {"leases", "inputs", "agent_requests"}
    assert await batches.changed(TWO, other) == set()
    task, written = await batches.row("tasks", ONE), await batches.row("task_events", ONE)
    assert (task["owner_id"], task["version"], task["status"], task["created_at"]) == (ALICE, 1, "pending", LATER)
    assert (written["version"], written["kind"], written["document"]) == (1, "created", task["document"])
    assert written["changes"] == sorted({*json.loads(task["document"]), "initial_prompt"})
    cause = {"kind": "command", "type": "task.create", "id": str(made.command_id), "actor_id": str(ALICE)}
    assert json.loads(written["cause"]) == cause
    assert (await batches.row("outbox", ONE))["version"] == 1
    assert (await batches.row("task_prompts", ONE))["prompt"] == prompt_of(ONE)
    assert (await batches.row("running_tasks", ONE))["owner_id"] == ALICE
    assert (await batches.row("task_index_changes", ONE))["status"] == "pending"
    built, request = await batches.row("task_builds", ONE), await batches.row("work_requests", ONE)
    assert (built["number"], built["created_at"]) == (1, LATER)
    assert (request["type"], request["attempt"], request["first_sent_at"]) == ("workspace.start", 1, LATER)
    ((sent, details),) = batches.result.started_requests
    assert (sent.request_id, sent.next_at) == (request["request_id"], request["next_at"])
    assert (details.owner_username, details.prompt) == ("alice", prompt_of(ONE))
    assert not batches.result.has_due_requests
    (reply,) = batches.result.replies
    assert (reply.refusal, reply.repeated, reply.outcome) == (None, False, "accepted")
    executed = await batches.row("command_log", ONE)
    assert (executed["command_id"], executed["digest"], executed["reply"]) == (
        made.command_id, digest(made), reply.body.decode()
    )  # fmt: skip
    assert (executed["created_at"], executed["kept_until_erased"]) == (LATER, False)


async def test_a_batch_of_new_and_existing_tasks_saves_each_once(batches: Batches) -> None:
    """The existing ones first; what it adds of them is inserted with the new ones."""
    await batches.make_active(TWO)
    statements = ["DELETE FROM leases", "DELETE FROM running_tasks", "INSERT INTO tasks", "UPDATE tasks"]
    assert await batches.save(create(ONE), command(Pause, TWO, 3), at=LATER) == [statements]
    events = "SELECT task_id, version, kind FROM task_events WHERE occurred_at = $1 ORDER BY 1"
    version = (await batches.row("tasks", TWO))["version"]
    saved = [(ONE, 1, "created"), (TWO, version, "updated")]
    assert [tuple(row) for row in await batches.database.fetch(events, LATER)] == saved
    assert await batches.column("SELECT task_id FROM running_tasks") == [ONE]
    added = "SELECT task_id FROM {} WHERE created_at = $1 ORDER BY 1"
    for table in ("task_builds", "work_requests", "command_log"):
        assert await batches.column(added.format(table), LATER) == [ONE, TWO]
    requests = [await batches.row("work_requests", each) for each in (ONE, TWO)]
    assert [(row["type"], row["attempt"]) for row in requests] == [("workspace.start", 1), ("workspace.stop", 0)]


async def test_each_command_is_answered_with_the_names_of_its_task(batches: Batches) -> None:
    """In the order of the commands; names that were read once are not read again."""
    creates = [create(TWO, owner_id=BOB, template_version_id=GPU_V1), create(ONE)]
    assert await batches.save(*creates) == [["INSERT INTO tasks", "SELECT"]]
    shown = [json.loads(reply.body) for reply in batches.result.replies]
    assert [(each["ok"], each["version"]) for each in shown] == [(True, 1)] * 2
    names = ("id", "owner_name", "template_name", "initial_prompt")
    assert [tuple(each["task"][name] for name in names) for each in shown] == [
        (str(TWO), "bob", "codex", prompt_of(TWO)), (str(ONE), "alice", "claude", prompt_of(ONE))
    ]  # fmt: skip
    assert await batches.save(command(Pause, THREE)) == [["INSERT INTO command_log"]]


async def insert(batches: Batches, task_id: UUID) -> None:
    """Insert the row of a task of Bob, without the locks of a create."""
    task = make_task(task_id, owner_id=BOB, created_at=NOW, updated_at=NOW)
    async with transaction(batches.context.engine) as connection:
        assert (await insert_tasks(connection, [StoredTask(task, "pending", "{}", NOW)])).tasks == {task_id}


TASK_EXISTS, COMMAND_EXISTS = "task with this name or id", "command with this id"
REUSED = replace(command(Pause, ONE), command_id=command(Pause, TWO).command_id)


@pytest.mark.parametrize(
    ("late", "meanwhile", "expected"),
    [
        (create(TWO, name="Fix-It"), create(ONE, name="fix-it"), (TASK_EXISTS, 'Workspace "Fix-It" already exists.')),
        (create(TWO), TWO, (TASK_EXISTS, "A task with this ID already exists.")),
        (create(TWO), REUSED, (COMMAND_EXISTS, COMMAND_ID_REUSED.message)),
        (command(Pause, TWO), REUSED, (COMMAND_EXISTS, COMMAND_ID_REUSED.message)),
    ],
)
async def test_a_command_that_another_one_overtakes_is_tried_again(
    batches: Batches, monkeypatch: pytest.MonkeyPatch, late: Any, meanwhile: Any, expected: tuple[str, str]
) -> None:
    """The other one is saved when all is read: nothing of the whole batch is, and then the command is refused."""
    message, refusal = expected
    both = (late, create(THREE)) if isinstance(late, Create) else (late, command(Pause, THREE))
    hold = Hold(save_batch)
    monkeypatch.setattr(reconcile, "save_batch", hold)
    saving = asyncio.create_task(reconcile.reconcile(batches.context, batch_of(*both), NOW))
    async with asyncio.timeout(TIMEOUT):
        await hold.reached.wait()
    await (insert(batches, meanwhile) if isinstance(meanwhile, UUID) else batches.save(meanwhile))
    before = [await batches.contents(each) for each in (TWO, THREE)]
    hold.release.set()
    with pytest.raises(Retry, match=message):
        await saving
    assert [await batches.changed(*each) for each in zip((TWO, THREE), before, strict=True)] == [set(), set()]
    refused, other = await batches.replies(*both, at=LATER)
    assert (refused["ok"], refused["error"]["message"]) == (False, refusal)
    assert other["ok"] is isinstance(late, Create)


async def test_a_repeated_command_gets_its_recorded_reply(batches: Batches) -> None:
    """Beside others, in their order; with another body it is refused. Only what is new is recorded."""
    await batches.make_active(ONE)
    first, lost = command(Pause, ONE, 1), command(Resume, TWO, 1)
    recorded = await batches.replies(first, lost)
    assert [reply["ok"] for reply in recorded] == [True, False]
    before = await batches.contents(ONE)
    new, reused = command(Pause, THREE, 1), replace(command(Delete, FOUR), command_id=first.command_id)
    assert await batches.save(first, new, lost, at=LATER) == [["INSERT INTO command_log"]]
    replies = batches.result.replies
    assert [json.loads(replies[number].body) for number in (0, 2)] == recorded
    assert [reply.repeated for reply in replies] == [True, False, True]
    assert [reply.outcome for reply in replies] == ["repeated", "refused", "repeated"]
    assert [reply.refusal for reply in replies] == [None, NOT_FOUND, NOT_FOUND]
    assert await batches.changed(ONE, before) == set()
    executed = "SELECT command_id FROM command_log ORDER BY created_at, command_id"
    assert (await batches.column(executed))[-1] == new.command_id
    assert await batches.save(reused, lost, at=LATER) == [[]]
    refused, _ = batches.result.replies
    assert (refused.refusal, refused.repeated) == (COMMAND_ID_REUSED, True)
    assert json.loads(refused.body)["error"]["message"] == COMMAND_ID_REUSED.message
    assert len(await batches.column(executed)) == 4


async def test_a_send_that_answers_is_recorded_until_its_task_is_erased(batches: Batches) -> None:
    """A repetition of another send is recognized by its input, and a repeated answer is refused."""
    await batches.make_active(ONE, TWO, THREE)
    asked = {ONE: UUID(int=0x901), TWO: UUID(int=0x902)}
    await batches.save(*(question(*each) for each in asked.items()), said(THREE, AgentState.IDLE))
    answer = command(Answer, TWO, 7, request_id=asked[TWO], text="core")
    replies = await batches.replies(
        command(Send, ONE, 7, input="api"), answer, command(Send, THREE, 7, input="Go on"), at=LATER
    )
    assert [reply.get("answered") for reply in replies] == [str(asked[ONE]), str(asked[TWO]), None]
    query = "SELECT task_id, kept_until_erased FROM command_log WHERE created_at = $1 ORDER BY 1"
    kept = [(ONE, True), (TWO, False), (THREE, False)]
    assert [tuple(row) for row in await batches.database.fetch(query, LATER)] == kept


async def test_a_request_of_a_task_that_existed_is_due_at_once(batches: Batches) -> None:
    """It is read with its details; no attempt is counted before, whether it goes to a runner or to a pool."""
    await batches.make_active(ONE)
    await batches.save(create(TWO), said(ONE, AgentState.IDLE))
    await batches.save(build(TWO, 2, Transition.STOP, job_status=JobStatus.SUCCEEDED))
    sent = command(Send, ONE, 7, input="Go")
    assert await batches.save(sent, at=LATER) == [[
        "INSERT INTO command_log", "INSERT INTO inputs", "INSERT INTO work_requests",
        "UPDATE inputs", "UPDATE tasks",
    ]]  # fmt: skip
    request, item = await batches.row("work_requests", ONE), await batches.row("inputs", ONE)
    assert (request["type"], request["input_id"], request["attempt"]) == ("agent.input", sent.command_id, 0)
    assert (request["next_at"], request["target_runner"]) == (LATER, "r1")
    assert (item["content"], item["state"], item["actor_id"]) == ("Go", "sent", ALICE)
    assert (batches.result.has_due_requests, batches.result.started_requests) == (True, [])
    await batches.save(command(Resume, TWO, 3), at=LATER)
    request = await batches.row("work_requests", TWO)
    assert (request["build_number"], request["target_runner"], request["attempt"]) == (3, None, 0)
    assert (batches.result.has_due_requests, batches.result.started_requests) == (True, [])


async def test_a_request_to_a_runner_that_a_parked_report_has_named_is_due_at_once(batches: Batches) -> None:
    """It is not known yet whether it may go there; that of another create is sent from memory all the same."""
    drained = build(ONE, 2, Transition.STOP, job_status=JobStatus.SUCCEEDED, runner="r7", restart=True)
    await batches.save(drained)
    await batches.save(create(ONE), create(TWO), at=LATER)
    parked, other = await batches.row("work_requests", ONE), await batches.row("work_requests", TWO)
    assert (parked["build_number"], parked["target_runner"], parked["attempt"]) == (3, "r7", 0)
    assert (other["build_number"], other["target_runner"], other["attempt"]) == (1, None, 1)
    assert batches.result.has_due_requests
    assert [row.task_id for row, _ in batches.result.started_requests] == [TWO]


async def test_another_prompt_is_kept_with_its_version(batches: Batches) -> None:
    """The first one stays; a task without another prompt gets no row."""
    await batches.save(create(ONE), create(TWO))
    await batches.save(*(build(each, 2, Transition.STOP, job_status=JobStatus.SUCCEEDED) for each in (ONE, TWO)))
    changed, resumed = command(UpdateInput, ONE, 2, input="Another"), command(Resume, TWO, 2)
    (statements,) = await batches.save(changed, resumed, at=LATER)
    assert "INSERT INTO task_prompts" in statements
    version = (await batches.row("tasks", ONE))["version"]
    prompts = "SELECT version, prompt FROM task_prompts WHERE task_id = $1 ORDER BY 1"
    assert [tuple(row) for row in await batches.database.fetch(prompts, ONE)] == [
        (1, prompt_of(ONE)), (version, "Another")
    ]  # fmt: skip
    assert (await batches.row("tasks", ONE))["prompt_version"] == version
    assert (await batches.database.fetchrow(EVENT, ONE, version))["changes"] == ["initial_prompt"]
    assert await batches.column("SELECT prompt FROM task_prompts WHERE task_id = $1", TWO) == [prompt_of(TWO)]


async def test_the_contents_of_a_task_are_erased_with_its_last_document(batches: Batches) -> None:
    """Each recorded reply has that of its task instead, without a prompt; what is not erased stays."""
    creates = [create(ONE), create(TWO, owner_id=BOB, template_version_id=GPU_V1), create(THREE)]
    await batches.save(*creates)
    await batches.save(*(command(Delete, each, 1) for each in (ONE, TWO, THREE)), at=LATER)
    kept = await batches.contents(THREE)
    erased = LATER + timedelta(days=1)
    (statements,) = await batches.save(build(THREE, 2, Transition.DELETE), at=erased, erased=(ONE, TWO))
    assert "SELECT" in statements
    assert await batches.changed(THREE, kept) == {"tasks", "task_builds", "task_deadlines", "work_requests"}
    for task_id, names in ((ONE, ("alice", "claude")), (TWO, ("bob", "codex"))):
        task = await batches.row("tasks", task_id)
        assert (task["name"], task["display_name"], task["erased_at"]) == (str(task_id), "", erased)
        assert (await batches.row("task_prompts", task_id))["prompt"] == ""
        replies = await batches.column("SELECT reply FROM command_log WHERE task_id = $1", task_id)
        assert len(replies) == 2
        for shown in (json.loads(reply)["task"] for reply in replies):
            assert (shown["id"], shown["owner_name"], shown["template_name"]) == (str(task_id), *names)
            assert (shown["initial_prompt"], shown["updated_at"]) == ("", format_rfc3339(LATER))
            assert shown.items() >= json.loads(task["document"]).items()
