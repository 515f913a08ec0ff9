"""Commands: preconditions in order, replies, and exactly one execution."""

from __future__ import annotations

import asyncio
import itertools
import json
import uuid
from typing import Any

import aio_pika
import pytest

from taskherd.domain import names as task_names
from tests.harness.tasks import prompt_of
from tests.harness.worker import (
    ORGANIZATION,
    PRESET,
    STATUSES,
    TEMPLATE,
    WorkerHarness,
    bring_to_status,
    make_command,
    make_create,
    make_report,
    running_worker,
)
from tests.worker.conftest import StartWorker

IN_USE = {"field": "name", "detail": "This value is already in use and should be unique."}
NOT_FOUND = {"status": 404, "message": "Resource not found or you do not have access to this resource"}
NO_VERSION = {"status": 400, "message": "Template version not found or you do not have access to this resource"}
BUILD_ACTIVE = {"status": 409, "message": "A workspace build is already active."}
BAD_NAME = "Unable to create a Task with the provided name."
TOO_LONG = {"status": 400, "message": "Display name must be 64 characters or less."}

INACTIVE, ELSEWHERE, STRANGER = (uuid.UUID(int=number) for number in (0xC2, 0xC3, 0xA2))
OTHER_DIRECTORY = f"""
INSERT INTO template_versions (id, template_id, name, run, active)
    VALUES ('{INACTIVE}', '{TEMPLATE}', 'v0', '{{}}', false);
INSERT INTO organizations (id, name, display_name) VALUES ('{uuid.UUID(int=2)}', 'other', 'Other');
INSERT INTO templates (id, organization_id, name, display_name, icon, active_version_id)
    VALUES ('{uuid.UUID(int=0xB2)}', '{uuid.UUID(int=2)}', 'codex', 'Codex', '', '{ELSEWHERE}');
INSERT INTO template_versions (id, template_id, name, run)
    VALUES ('{ELSEWHERE}', '{uuid.UUID(int=0xB2)}', 'v1', '{{"pool": "gpu"}}');
INSERT INTO users (id, username, name, email, avatar_url, active)
    VALUES ('{STRANGER}', 'bob', 'Bob', 'bob@example.com', '', false);
"""


async def test_a_create_is_refused_by_its_first_violated_precondition(harness: WorkerHarness) -> None:
    """Owner, version, preset, prompt, name and display name are checked in this order, each with its own error."""
    await harness.database.execute(OTHER_DIRECTORY)

    refused, unknown = harness.refused_create, str(uuid.uuid4())
    all_wrong: dict[str, Any] = {"owner_id": unknown, "template_version_id": unknown, "name": "new"}
    assert await refused(**all_wrong, display_name="x" * 65) == {"status": 400, "message": "Owner not found."}
    assert await refused(owner_id=str(STRANGER)) == {"status": 400, "message": "Owner not found."}
    for version in (unknown, str(INACTIVE), str(ELSEWHERE)):
        assert await refused(template_version_id=version, template_version_preset_id=unknown) == NO_VERSION
    error = await refused(template_version_preset_id=unknown, name="new")
    assert error == {"status": 400, "message": "Preset not found."}
    for blank in ("", " \n\t", "\u2003\x00"):
        assert await refused(input=blank, name="new") == {"status": 400, "message": "Task input is required."}
    for name in ("new", "create", "a--b", "-a", "a-", "a_b", "é", "a" * 33, "a b"):
        error = await refused(name=name, display_name="x" * 65)
        assert (error["status"], error["message"], bool(error["detail"])) == (400, BAD_NAME, True)
    assert await refused(name="fine", display_name="x" * 65) == TOO_LONG
    await harness.create(name="Taken")
    taken = {"status": 409, "message": 'Workspace "tAKEN" already exists.', "validations": [IN_USE]}
    assert await refused(name="tAKEN") == taken
    assert await refused(name="taken", display_name="x" * 65) == TOO_LONG
    assert await harness.database.fetchval("SELECT count(*) FROM tasks") == 1


async def test_a_refused_create_gets_the_same_reply_again_and_the_name_is_not_kept(harness: WorkerHarness) -> None:
    """The record of the refusal may outlive the task that has the name, so only the repeated command names it."""
    await harness.create(name="Taken")
    create = make_create(name="tAKEN")
    replies = [await harness.send(create) for _ in range(2)]
    error = {"status": 409, "message": 'Workspace "tAKEN" already exists.', "validations": [IN_USE]}
    assert replies == [{"ok": False, "error": error}] * 2
    recorded = await harness.database.fetch("SELECT reply::text FROM command_log WHERE NOT (reply ->> 'ok')::bool")
    assert len(recorded) == 1
    assert "taken" not in recorded[0]["reply"].lower()


async def test_a_create_names_the_task_and_selects_its_preset(harness: WorkerHarness) -> None:
    """Names are used as given or generated from the prompt; the nil preset means none; a delete frees the name."""
    task_id = uuid.uuid4()
    nil = str(uuid.UUID(int=0))
    fields = {"template_version_preset_id": nil, "name": "My-Task", "display_name": " My own task "}
    document = (await harness.send(make_create(task_id, **fields)))["task"]
    assert (document["id"], document["name"], document["display_name"]) == (str(task_id), "My-Task", "My own task")
    assert (document["organization_id"], document["template_id"]) == (str(ORGANIZATION), str(TEMPLATE))
    assert (document["workspace_name"], document["initial_prompt"]) == ("My-Task", prompt_of(task_id))
    assert (document["owner_name"], document["template_name"]) == ("alice", "claude")
    assert document["workspace_build_number"] == 1
    create = make_create(input="Fix the flaky test", template_version_preset_id=str(PRESET))
    generated = (await harness.send(create))["task"]
    stem, _, digits = generated["name"].rpartition("-")
    assert (stem, len(digits), generated["display_name"]) == ("fix-the-flaky-test", 4, "Fix the flaky test")
    symbols = (await harness.send(make_create(input="?!", name="")))["task"]
    assert symbols["name"]
    assert symbols["display_name"]
    await harness.until(lambda: len(harness.requests) == 3)
    presets = {each["task_id"]: each["preset"] for each in harness.requests}
    assert presets[str(task_id)] is None
    assert presets[generated["id"]] == {"id": str(PRESET), "name": "Default", "parameters": {"size": "small"}}
    assert (await harness.command("task.delete", task_id))["ok"]
    assert (await harness.send(make_create(name="my-task")))["ok"]


async def test_a_task_id_is_never_reused(harness: WorkerHarness) -> None:
    """A create with the id of another task, even a deleted one, is refused before any other check."""
    task_id = await harness.create()
    taken = {"status": 409, "message": "A task with this ID already exists."}
    assert await harness.refused_create(task_id, owner_id=str(uuid.uuid4())) == taken
    await harness.command("task.delete", task_id)
    assert await harness.refused_create(task_id) == taken


async def test_a_repeated_command_gets_the_same_reply(harness: WorkerHarness) -> None:
    """A repeated command_id changes nothing and gets the recorded reply; with another body it is refused."""
    task_id = uuid.uuid4()
    command = make_create(task_id)
    first = await harness.send(command)
    await harness.make_active(task_id)
    assert await harness.send({**command, "unknown": "field"}) == first
    clash = {"status": 409, "message": "command_id was used for another command."}
    assert (await harness.send({**command, "input": "Something else"}))["error"] == clash
    assert (await harness.send({**make_command("task.pause", task_id), "command_id": command["command_id"]}))[
        "error"
    ] == clash
    for refused in (
        make_command("task.delete", uuid.uuid4()),
        make_create(name="new"),
    ):
        await harness.report(make_report("app.status", uuid.UUID(refused["task_id"]), state="idle"))
        await harness.until_row("SELECT count(*) > 0 FROM parked WHERE task_id = $1", uuid.UUID(refused["task_id"]))
        refusal = await harness.send(refused)
        assert refusal["ok"] is False
        assert await harness.send(refused) == refusal
    await harness.until_metric(3, "taskherd_commands_total", type="task.create", outcome="repeated")
    sent = make_command("task.send", task_id, input="Once")
    assert await harness.send(sent) == await harness.send(sent)
    assert await harness.database.fetchval("SELECT count(*) FROM inputs") == 1


async def test_a_command_that_the_database_rejects_is_dead_lettered(harness: WorkerHarness) -> None:
    """It is dead-lettered and replied to, and the worker continues."""
    task_id = await harness.make_active()
    await harness.database.execute("ALTER TABLE inputs ADD CHECK (content <> 'rejected')")
    error = (await harness.command("task.send", task_id, input="rejected"))["error"]
    assert (error["status"], error["message"]) == (400, "Command could not be read.")
    await harness.until(lambda: harness.reasons() == ["data_error"])
    assert (await harness.command("task.send", task_id, input="Twice"))["ok"]


async def test_a_refused_command_without_reply_to_is_dead_lettered(harness: WorkerHarness) -> None:
    """The dead letter has the unchanged body. An accepted command without reply_to is executed."""
    refused = make_command("task.delete", uuid.uuid4())
    await harness.post_command(refused)
    await harness.until(lambda: harness.dead_letters)
    letter = harness.dead_letters[0]
    assert json.loads(letter.body) == refused
    assert letter.headers["x-taskherd-reason"] == "command_refused"
    assert letter.headers["x-taskherd-detail"] == f"404 {NOT_FOUND['message']}"
    task_id = uuid.uuid4()
    await harness.post_command(make_create(task_id))
    await harness.until(lambda: harness.document(task_id))
    assert len(harness.dead_letters) == 1


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"not json", "not_json"),
        (b'{"type":"task.explode"}', "unknown_type"),
        (b'{"type":"task.delete","task_id":"x"}', "invalid"),
        (json.dumps(make_command("task.send", uuid.UUID(int=1), input="x" * (256 * 1024 + 1))).encode(), "invalid"),
    ],
)
async def test_an_invalid_command_gets_an_error_and_is_dead_lettered(
    harness: WorkerHarness, body: bytes, reason: str
) -> None:
    """An undecodable command gets a reply with status 400 and becomes a dead letter."""
    error = (await harness.send(body))["error"]
    assert (error["status"], error["message"]) == (400, "Command could not be read.")
    assert error["detail"].startswith(f"{reason}: ")
    await harness.until(lambda: harness.reasons() == [reason])
    assert harness.dead_letters[0].body == body


async def test_each_status_refuses_the_commands_that_coder_refuses(harness: WorkerHarness) -> None:
    """Each command in each status is executed or refused as Coder's API answers; blank inputs are refused first."""
    blank = {"status": 400, "message": "Task input is required."}
    not_paused = {"status": 409, "message": "Unable to update task input, task must be paused."}
    send = {
        "pending": {"status": 409, "message": "Task is pending."},
        "initializing": {"status": 409, "message": "Task is initializing."},
        "paused": {"status": 409, "message": "Task is paused.", "detail": "Resume the task to send messages."},
        "error": {"status": 400, "message": "Task must be active.", "detail": "The task's status is error."},
        "unknown": {"status": 400, "message": "Task must be active.", "detail": "The task's status is unknown."},
    }
    pause = dict.fromkeys(("pending", "initializing", "unknown"), BUILD_ACTIVE)
    resume = {**pause, "active": {"status": 409, "message": "Task workspace is already running."}}
    for status in STATUSES:
        task_id = await bring_to_status(harness, status)
        cases: list[tuple[str, dict[str, str], dict[str, Any] | None]] = [
            ("task.send", {"input": ""}, blank),
            ("task.update_input", {"input": " \n"}, blank),
            ("task.send", {"input": "Go on"}, send.get(status)),
            ("task.update_input", {"input": "Other"}, None if status == "paused" else not_paused),
            ("task.pause", {}, pause.get(status)),
        ]
        for kind, fields, refusal in cases:
            reply = await harness.command(kind, task_id, **fields)
            assert reply.get("error") == refusal, (status, kind, reply)
        other = await bring_to_status(harness, status)
        reply = await harness.command("task.resume", other)
        assert reply.get("error") == resume.get(status), (status, reply)
        assert (await harness.command("task.delete", other))["ok"]
        for kind in ("task.send", "task.update_input", "task.pause", "task.resume", "task.delete"):
            fields = {"input": ""} if kind in {"task.send", "task.update_input"} else {}
            assert await harness.refused_command(kind, other, **fields) == NOT_FOUND


async def test_a_paused_task_accepts_another_prompt(harness: WorkerHarness) -> None:
    """The new prompt is in the document, in the next start request and in the history."""
    task_id = await bring_to_status(harness, "paused")
    reply = await harness.command("task.update_input", task_id, input="Try again")
    assert reply["task"]["initial_prompt"] == "Try again"
    assert (await harness.command("task.resume", task_id))["task"]["workspace_build_number"] == 3
    await harness.until(lambda: any(each["build_number"] == 3 for each in harness.requests_of(task_id)))
    assert harness.requests_of(task_id)[-1]["prompt"] == "Try again"
    await harness.until(lambda: reply["version"] in harness.versions(task_id))
    changed = next(each for each in harness.events_of(task_id) if each["version"] == reply["version"])
    assert changed["changes"] == ["initial_prompt"]
    rows = await harness.database.fetch(
        "SELECT version, prompt FROM task_prompts WHERE task_id = $1 ORDER BY 1", task_id
    )
    assert [tuple(row) for row in rows] == [(1, prompt_of(task_id)), (reply["version"], "Try again")]


async def test_a_drawn_name_that_is_in_use_costs_no_transaction(
    start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an owner's thousands of tasks with the same prompt, a batch of creates nearly always draws some that are."""
    numbers = itertools.count()
    monkeypatch.setattr(task_names, "draw", lambda _prompt, **_: ("fix-0000", f"fix-{next(numbers):08x}"))
    async with start_worker() as harness:
        created = [await harness.create() for _ in range(2)]
        created += await asyncio.gather(*(harness.create() for _ in range(20)))
        await harness.until(lambda: all(map(harness.document, created)))  # their events may come after the replies
        names = {harness.document(task_id)["name"] for task_id in created}
        assert names == {"fix-0000", *(f"fix-{number:08x}" for number in range(1, len(created)))}


async def test_concurrent_creates_never_share_a_name(start_worker: StartWorker) -> None:
    """Of concurrent creates with the same name exactly one succeeds; generated names never collide."""
    async with start_worker() as harness:
        creates = [make_create(name="Same") for _ in range(10)]
        replies = await asyncio.gather(*map(harness.send, creates))
        assert [reply["ok"] for reply in replies].count(True) == 1
        creates = [make_create(input=f"Fix it{'!' * number}") for number in range(40)]
        assert all(reply["ok"] for reply in await asyncio.gather(*map(harness.send, creates)))


async def test_a_command_does_not_wait_behind_reports(external: WorkerHarness) -> None:
    """With thousands of reports waiting, a command is replied to long before the last of them is processed."""
    queue = f"{external.prefix}.reports"
    body = json.dumps(
        [make_report("app.status", uuid.uuid4(), state="working", message=str(n)) for n in range(50)]
    ).encode()
    exchange = await external.channel.get_exchange(queue, ensure=False)
    for _ in range(10):
        await asyncio.gather(*(exchange.publish(aio_pika.Message(body), "any", timeout=30) for _ in range(100)))
    async with running_worker(external, prefetch=20, batch_most=10):
        await external.create()
        queue_state = await external.channel.declare_queue(queue, passive=True)
        assert (queue_state.declaration_result.message_count or 0) > 100
