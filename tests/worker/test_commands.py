"""Commands: what is asked first, what is answered, and that each is done once."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

import aio_pika
import pytest

from tests.harness.worker import (
    ALICE,
    ORGANIZATION,
    PRESET,
    STATUSES,
    TEMPLATE,
    VERSION,
    WorkerHarness,
    in_status,
    make_command,
    make_report,
    running_worker,
)
from tests.worker.conftest import StartWorker

WANTED: dict[str, Any] = {"owner_id": str(ALICE), "template_version_id": str(VERSION), "input": "Fix the flaky test"}
IN_USE = {"field": "name", "detail": "This value is already in use and should be unique."}
NOT_FOUND = {"status": 404, "message": "Resource not found or you do not have access to this resource"}
NO_VERSION = {"status": 400, "message": "Template version not found or you do not have access to this resource"}
BUILD_ACTIVE = {"status": 409, "message": "A workspace build is already active."}
BAD_NAME = "Unable to create a Task with the provided name."
TOO_LONG = {"status": 400, "message": "Display name must be 64 characters or less."}

INACTIVE, ELSEWHERE, STRANGER = (uuid.UUID(int=number) for number in (0xC2, 0xC3, 0xA2))
MORE = f"""
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


async def test_what_a_create_is_refused_for(harness: WorkerHarness) -> None:
    """Owner, template version, preset, name and display name are checked in this order, each with its own answer."""
    await harness.database.execute(MORE)

    async def refused(**fields: Any) -> dict[str, Any]:
        return await harness.refused("task.create", uuid.uuid4(), **{**WANTED, **fields})

    nobody = str(uuid.uuid4())
    every = {"owner_id": nobody, "template_version_id": nobody, "name": "new", "display_name": "x" * 65}
    assert await refused(**every) == {"status": 400, "message": "Owner not found."}
    assert await refused(owner_id=str(STRANGER)) == {"status": 400, "message": "Owner not found."}
    for version in (nobody, str(INACTIVE), str(ELSEWHERE)):
        assert await refused(template_version_id=version, template_version_preset_id=nobody) == NO_VERSION
    absent = await refused(template_version_preset_id=nobody, name="new")
    assert absent == {"status": 400, "message": "Preset not found."}
    for name in ("new", "create", "a--b", "-a", "a-", "a_b", "é", "a" * 33, "a b"):
        error = await refused(name=name, display_name="x" * 65)
        assert (error["status"], error["message"], bool(error["detail"])) == (400, BAD_NAME, True)
    assert await refused(name="fine", display_name="x" * 65) == TOO_LONG
    await harness.create(name="Taken")
    taken = {"status": 409, "message": 'Workspace "tAKEN" already exists.', "validations": [IN_USE]}
    assert await refused(name="tAKEN") == taken
    assert await refused(name="taken", display_name="x" * 65) == TOO_LONG
    assert await harness.database.fetchval("SELECT count(*) FROM tasks") == 1


async def test_what_a_create_makes(harness: WorkerHarness) -> None:
    """Names are taken as given or drawn from the prompt; the nil preset is none; a delete frees the name."""
    task_id = uuid.uuid4()
    nil = str(uuid.UUID(int=0))
    fields = {**WANTED, "template_version_preset_id": nil, "name": "My-Task", "display_name": " My own task "}
    reply = await harness.command("task.create", task_id, **fields)
    document = reply["task"]
    assert (document["id"], document["name"], document["display_name"]) == (str(task_id), "My-Task", "My own task")
    assert (document["organization_id"], document["template_id"]) == (str(ORGANIZATION), str(TEMPLATE))
    assert (document["workspace_name"], document["initial_prompt"]) == ("My-Task", "Fix the flaky test")
    assert (document["owner_name"], document["template_name"]) == ("alice", "claude")
    assert document["workspace_build_number"] == 1
    drawn = (await harness.command("task.create", uuid.uuid4(), **WANTED, template_version_preset_id=str(PRESET)))[
        "task"
    ]
    stem, _, digits = drawn["name"].rpartition("-")
    assert (stem, len(digits), drawn["display_name"]) == ("fix-the-flaky-test", 4, "Fix the flaky test")
    empty = (await harness.command("task.create", uuid.uuid4(), **{**WANTED, "input": "", "name": ""}))["task"]
    assert empty["name"]
    assert empty["display_name"]
    await harness.until(lambda: len(harness.requests) == 3)
    presets = {each["task_id"]: each["preset"] for each in harness.requests}
    assert presets[str(task_id)] is None
    assert presets[drawn["id"]] == {"id": str(PRESET), "name": "Default", "parameters": {"size": "small"}}
    assert (await harness.command("task.delete", task_id))["ok"]
    assert (await harness.command("task.create", uuid.uuid4(), **WANTED, name="my-task"))["ok"]


async def test_an_id_is_taken_for_good(harness: WorkerHarness) -> None:
    """A create under the id of a task, live or deleted, is refused before anything else is looked at."""
    task_id = await harness.create()
    taken = {"status": 409, "message": "A task with this ID already exists."}
    assert await harness.refused("task.create", task_id, **{**WANTED, "owner_id": str(uuid.uuid4())}) == taken
    await harness.command("task.delete", task_id)
    assert await harness.refused("task.create", task_id, **WANTED) == taken


async def test_the_same_command_again(harness: WorkerHarness) -> None:
    """The same command_id changes nothing and gets the same reply, refusals too; with another body it is refused."""
    task_id = uuid.uuid4()
    command = make_command("task.create", task_id, **WANTED)
    first = await harness.send(command)
    await harness.active(task_id)
    assert await harness.send({**command, "unknown": "field"}) == first
    clash = {"status": 409, "message": "command_id was used for another command."}
    assert (await harness.send({**command, "input": "Something else"}))["error"] == clash
    assert (await harness.send({**make_command("task.pause", task_id), "command_id": command["command_id"]}))[
        "error"
    ] == clash
    for lost in (
        make_command("task.delete", uuid.uuid4()),
        make_command("task.create", uuid.uuid4(), **WANTED, name="new"),
    ):
        await harness.report(make_report("app.status", uuid.UUID(lost["task_id"]), state="idle"))
        await harness.until_row("SELECT count(*) > 0 FROM parked WHERE task_id = $1", uuid.UUID(lost["task_id"]))
        refusal = await harness.send(lost)
        assert refusal["ok"] is False
        assert await harness.send(lost) == refusal
    await harness.until_metric(3, "taskherd_commands_total", type="task.create", outcome="repeated")
    sent = make_command("task.send", task_id, input="Once")
    assert await harness.send(sent) == await harness.send(sent)
    assert await harness.database.fetchval("SELECT count(*) FROM inputs") == 1


async def test_a_command_id_outlives_the_memory_of_its_reply(harness: WorkerHarness) -> None:
    """A send whose id is that of an input from long ago is buried and answered; the worker goes on."""
    task_id = await harness.active()
    sent = make_command("task.send", task_id, input="Once")
    assert (await harness.send(sent))["ok"]
    await harness.database.execute("DELETE FROM command_log")
    error = (await harness.send(sent))["error"]
    assert (error["status"], error["message"]) == (400, "Command could not be read.")
    await harness.until(lambda: harness.reasons() == ["data_error"])
    assert (await harness.command("task.send", task_id, input="Twice"))["ok"]


async def test_what_nobody_is_told_of_is_buried(harness: WorkerHarness) -> None:
    """A refused command without reply_to goes to the dead letters unchanged; an accepted one is simply done."""
    lost = make_command("task.delete", uuid.uuid4())
    await harness.post_command(lost)
    await harness.until(lambda: harness.dead_letters)
    letter = harness.dead_letters[0]
    assert json.loads(letter.body) == lost
    assert letter.headers["x-taskherd-reason"] == "command_refused"
    assert letter.headers["x-taskherd-detail"] == f"404 {NOT_FOUND['message']}"
    task_id = uuid.uuid4()
    await harness.post_command(make_command("task.create", task_id, **WANTED))
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
async def test_what_cannot_be_read_is_answered_and_buried(harness: WorkerHarness, body: bytes, reason: str) -> None:
    """An undecodable command is answered with 400 where reply_to can be read, and goes to the dead letters."""
    error = (await harness.send(body))["error"]
    assert (error["status"], error["message"]) == (400, "Command could not be read.")
    assert error["detail"].startswith(f"{reason}: ")
    await harness.until(lambda: harness.reasons() == [reason])
    assert harness.dead_letters[0].body == body


async def test_what_each_status_refuses(harness: WorkerHarness) -> None:
    """Each command in each status: the code and message of compat.md, or done; blank inputs are refused first."""
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
        task_id = await in_status(harness, status)
        asked: list[tuple[str, dict[str, str], dict[str, Any] | None]] = [
            ("task.send", {"input": ""}, blank),
            ("task.update_input", {"input": " \n"}, blank),
            ("task.send", {"input": "Go on"}, send.get(status)),
            ("task.update_input", {"input": "Other"}, None if status == "paused" else not_paused),
            ("task.pause", {}, pause.get(status)),
        ]
        for kind, fields, refusal in asked:
            reply = await harness.command(kind, task_id, **fields)
            assert reply.get("error") == refusal, (status, kind, reply)
        other = await in_status(harness, status)
        reply = await harness.command("task.resume", other)
        assert reply.get("error") == resume.get(status), (status, reply)
        assert (await harness.command("task.delete", other))["ok"]
        for kind in ("task.send", "task.update_input", "task.pause", "task.resume", "task.delete"):
            fields = {"input": ""} if kind in {"task.send", "task.update_input"} else {}
            assert await harness.refused(kind, other, **fields) == NOT_FOUND


async def test_a_paused_task_takes_another_prompt(harness: WorkerHarness) -> None:
    """The new prompt is in the document at once, in the next start, and its version is in the history."""
    task_id = await in_status(harness, "paused")
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
    assert [tuple(row) for row in rows] == [(1, "Fix the flaky test"), (reply["version"], "Try again")]


async def test_a_create_races_for_its_name(start_worker: StartWorker) -> None:
    """Of creates with one name one wins, whatever they clash with; generated names never clash."""
    async with start_worker() as harness:
        creates = [make_command("task.create", uuid.uuid4(), **WANTED, name="Same") for _ in range(10)]
        replies = await asyncio.gather(*map(harness.send, creates))
        assert [reply["ok"] for reply in replies].count(True) == 1
        creates = [make_command("task.create", uuid.uuid4(), **WANTED) for _ in range(40)]
        assert all(reply["ok"] for reply in await asyncio.gather(*map(harness.send, creates)))


async def test_a_command_does_not_wait_behind_reports(alone: WorkerHarness) -> None:
    """With thousands of reports waiting, a command is answered long before the last of them is taken."""
    queue = f"{alone.prefix}.reports"
    body = json.dumps(
        [make_report("app.status", uuid.uuid4(), state="working", message=str(n)) for n in range(50)]
    ).encode()
    exchange = await alone.channel.get_exchange(queue, ensure=False)
    for _ in range(10):
        await asyncio.gather(*(exchange.publish(aio_pika.Message(body), "any", timeout=5) for _ in range(100)))
    async with running_worker(alone, prefetch=20, batch_most=10):
        await alone.create()
        held = await alone.channel.declare_queue(queue, passive=True)
        assert (held.declaration_result.message_count or 0) > 100
