"""The task routes end to end: through HTTP, the broker and the worker to the database and back."""

from __future__ import annotations

import json
import re
import uuid
from pathlib import Path
from typing import Any

import pytest

from taskherd.api.tasks import queries
from tests.api.conftest import StartApi
from tests.harness.api import VERSION, ApiHarness
from tests.harness.worker import ALICE, PRESET, STATUSES, bring_to_status, build_report, make_report

GOLDEN = Path(__file__).parent / "golden"
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
AGENT, WORKSPACE, APP = (str(uuid.UUID(int=number)) for number in (0xA9E, 0x305, 0xA99))


def normalize(document: dict[str, Any]) -> dict[str, Any]:
    """Replace what differs between runs by placeholders: the id, and times in the form of the contract."""
    text = json.dumps(document).replace(document["id"], "<task>")
    body: dict[str, Any] = json.loads(re.sub(f'"{TIME.pattern}"', '"<time>"', text))
    return body


async def create_in_status(api_harness: ApiHarness, status: str) -> dict[str, Any]:
    """Create a task and bring it to a status with all the reports of a provisioner."""
    task = await api_harness.create(name="golden", display_name="Golden task", input="Fix the flaky test")
    task_id = uuid.UUID(task["id"])
    if status in {"active", "paused", "unknown"}:
        resources = {"workspace": {"id": WORKSPACE, "name": "golden-ws"}, "app": {"id": APP, "slug": "agent"}}
        await api_harness.worker.report(
            build_report(task_id, 1, "start", "succeeded", agent_id=AGENT, **resources),
            make_report("agent.lifecycle", task_id, build_number=1, lifecycle="ready"),
            make_report("agent.heartbeat", task_id, build_number=1),
            make_report(
                "app.status", task_id, build_number=1, state="idle", message="Done", uri="https://example.com/pr/1"
            ),
        )
        await api_harness.worker.until(lambda: api_harness.worker.document(task_id).get("status") == "active")
        await api_harness.worker.until(lambda: api_harness.worker.state(task_id).get("state") == "idle")
        if status != "active":
            assert (await api_harness.alice.post(f"/tasks/me/{task_id}/pause")).status_code == 202
        if status == "paused":
            await api_harness.worker.report(build_report(task_id, 2, "stop", "succeeded"))
    elif status != "pending":
        await bring_to_status(api_harness.worker, status, task_id)
    await api_harness.worker.until(lambda: api_harness.worker.document(task_id).get("status") == status)
    return await api_harness.get(task["id"])


@pytest.mark.parametrize("status", STATUSES)
async def test_the_document_in_each_status(api_harness: ApiHarness, status: str) -> None:
    """In each status, reached by real reports, all fields of the document are those of the golden file."""
    document = await create_in_status(api_harness, status)
    assert normalize(document) == json.loads((GOLDEN / f"{status}.json").read_text())


async def test_a_task_is_created_found_and_listed(api_harness: ApiHarness) -> None:
    """Create, get and list return the same document, by id and by name, under both prefixes."""
    task = await api_harness.create(name="My-Task")
    for path in (f"/tasks/me/{task['id']}", "/tasks/me/my-task", "/tasks/ALICE/My-Task", f"/tasks/bob/{task['id']}"):
        response = await api_harness.alice.get(path)
        assert (response.status_code, response.json()) == (200, task), path
    listed = (await api_harness.alice.get("/tasks")).json()
    assert listed == {"tasks": [task], "count": 1}
    experimental = await api_harness.alice.get(f"{api_harness.base}/api/experimental/tasks?q=owner:alice")
    assert experimental.json() == listed


async def test_a_name_that_looks_like_an_id(api_harness: ApiHarness) -> None:
    """32 hexadecimal digits are looked up as an id first, then as a name."""
    name = uuid.uuid4().hex
    task = await api_harness.create(name=name)
    assert (await api_harness.get(name))["id"] == task["id"]
    assert (await api_harness.get(uuid.UUID(task["id"]).hex))["id"] == task["id"]


async def test_optional_fields_of_a_create(api_harness: ApiHarness) -> None:
    """A nil preset means none, null an absent field; missing names are generated."""
    nil = str(uuid.UUID(int=0))
    body: dict[str, Any] = {"template_version_id": str(VERSION), "template_version_preset_id": nil}
    for prompt, fields in (("!", {}), ("?", {"name": None, "display_name": None}), (";", {"name": "", "unknown": [1]})):
        response = await api_harness.alice.post("/tasks/me", json={**body, "input": prompt, **fields})
        assert response.status_code == 201, response.text
        assert response.json()["initial_prompt"] == prompt
        assert response.json()["name"]
        assert response.json()["display_name"]
    task = await api_harness.create(template_version_preset_id=str(PRESET), input="Fix it\x00\x01 now\n")
    assert task["initial_prompt"] == "Fix it now\n"
    rows = await api_harness.worker.database.fetchval(
        "SELECT preset_id FROM tasks WHERE id = $1", uuid.UUID(task["id"])
    )
    assert rows == PRESET


async def test_an_invalid_create_is_rejected(api_harness: ApiHarness) -> None:
    """An invalid template version, preset, name or display name gets the message that clients match on."""
    await api_harness.create(name="taken")
    valid: dict[str, Any] = {"template_version_id": str(VERSION), "input": "x"}
    no_version = "Template version not found or you do not have access to this resource"
    bad_name = "Unable to create a Task with the provided name."
    cases: list[tuple[dict[str, Any], int, str]] = [
        ({"template_version_id": None}, 400, no_version),
        ({"template_version_id": str(uuid.uuid4())}, 400, no_version),
        ({"template_version_preset_id": str(uuid.uuid4())}, 400, "Preset not found."),
        ({"input": ""}, 400, "Task input is required."),
        ({"input": None}, 400, "Task input is required."),
        ({"input": " \n"}, 400, "Task input is required."),
        ({"name": "a b"}, 400, bad_name),
        ({"name": "new"}, 400, bad_name),
        ({"name": "x" * 33}, 400, bad_name),
        ({"name": "x" * 5000}, 400, bad_name),
        ({"display_name": "x" * 65}, 400, "Display name must be 64 characters or less."),
        ({"display_name": "x" * 5000}, 400, "Display name must be 64 characters or less."),
        ({"name": "TAKEN"}, 409, 'Workspace "TAKEN" already exists.'),
        ({"input": "x" * (256 * 1024 + 1)}, 400, "Validation failed."),
        ({"input": 5}, 400, "Validation failed."),
        ({"template_version_id": "x"}, 400, "Validation failed."),
        ({"template_version_id": ""}, 400, "Validation failed."),
    ]
    for fields, status, message in cases:
        response = await api_harness.alice.post("/tasks/me", json={**valid, **fields})
        assert (response.status_code, response.json()["message"]) == (status, message), fields
        assert response.headers["content-type"] == "application/json"
        assert "detail" not in response.json() or response.json()["detail"]
    validations = [{"field": "name", "detail": "This value is already in use and should be unique."}]
    response = await api_harness.alice.post("/tasks/me", json={**valid, "name": "taken"})
    assert response.json()["validations"] == validations


async def test_the_actions_that_each_status_rejects(api_harness: ApiHarness) -> None:
    """Send, new prompt and resume in each status: status codes and messages of Coder's servers, or of taskherd."""
    active = (409, "A workspace build is already active.")
    not_paused = (409, "Unable to update task input, task must be paused.")
    send = {
        "pending": (409, "Task is pending."),
        "initializing": (409, "Task is initializing."),
        "paused": (409, "Task is paused."),
        "error": (400, "Task must be active."),
        "unknown": (400, "Task must be active."),
    }
    resume = {**dict.fromkeys(("pending", "initializing", "unknown"), active)}
    resume["active"] = (409, "Task workspace is already running.")
    for status in STATUSES:
        for method, path, body, refusal in (
            ("POST", "/send", {"input": ""}, (400, "Task input is required.")),
            ("POST", "/send", {}, (400, "Task input is required.")),
            ("PATCH", "/input", {"input": " \n"}, (400, "Task input is required.")),
            ("POST", "/send", {"input": "Go on"}, send.get(status, (204, ""))),
            ("PATCH", "/input", {"input": "Other"}, (204, "") if status == "paused" else not_paused),
            ("POST", "/resume", None, resume.get(status, (202, ""))),
        ):
            task = str(await bring_to_status(api_harness.worker, status))
            response = await api_harness.alice.request(method, f"/tasks/me/{task}{path}", json=body)
            message = "" if response.status_code < 300 else response.json()["message"]
            assert (response.status_code, message) == refusal, (status, method, path, body)
    paused = str(await bring_to_status(api_harness.worker, "paused"))
    detail = (await api_harness.alice.post(f"/tasks/me/{paused}/send", json={"input": "x"})).json()["detail"]
    assert detail == "Resume the task to send messages."


async def test_pause_and_resume(api_harness: ApiHarness) -> None:
    """Both return a 202 with the requested build; a paused task can be paused again; no body is needed."""
    task = await api_harness.active()
    task_id = uuid.UUID(task["id"])
    paused = await api_harness.alice.post(
        f"/tasks/me/{task_id}/pause", content=b"", headers={"Content-Type": "text/plain"}
    )
    assert paused.status_code == 202
    body = paused.json()
    assert body["workspace_build_id"] == body["workspace_build"]["id"] == str(uuid.uuid5(task_id, "2"))
    assert (body["workspace_build"]["transition"], body["workspace_build"]["build_number"]) == ("stop", 2)
    assert body["workspace_build"]["job"]["status"] == "pending"
    after = await api_harness.get(task["id"])
    assert (after["status"], after["workspace_build_number"], after["workspace_status"]) == ("unknown", 2, "pending")
    assert (after["workspace_agent_id"], after["workspace_agent_lifecycle"], after["workspace_agent_health"]) == (
        None,
        None,
        None,
    )
    again = await api_harness.alice.post(f"/tasks/me/{task_id}/pause")
    assert (again.status_code, again.json()) == (409, {"message": "A workspace build is already active."})
    await api_harness.worker.report(build_report(task_id, 2, "stop", "succeeded"))
    await api_harness.worker.until(lambda: api_harness.worker.document(task_id).get("status") == "paused")
    assert (await api_harness.alice.post(f"/tasks/me/{task_id}/pause")).status_code == 202
    await api_harness.worker.report(build_report(task_id, 3, "stop", "succeeded"))
    await api_harness.worker.until(lambda: api_harness.worker.document(task_id).get("workspace_status") == "stopped")
    changed = await api_harness.alice.patch(f"/tasks/me/{task_id}/input", json={"input": "Another prompt"})
    assert (changed.status_code, changed.content) == (204, b"")
    assert (await api_harness.get(task["id"]))["initial_prompt"] == "Another prompt"
    resumed = await api_harness.alice.post(f"/tasks/me/{task_id}/resume")
    assert (resumed.status_code, resumed.json()["workspace_build"]["transition"]) == (202, "start")


async def test_an_input_for_a_busy_agent_is_queued(start_api: StartApi) -> None:
    """An input for a busy agent waits in the inbox, and a header says so."""
    async with start_api() as api_harness:
        task = (await api_harness.active())["id"]
        first = await api_harness.alice.post(f"/tasks/me/{task}/send", json={"input": "One"})
        assert (first.status_code, first.content, "X-Taskherd-Queued" in first.headers) == (204, b"", False)
        second = await api_harness.alice.post(f"/tasks/me/{task}/send", json={"input": "Two"})
        assert (second.status_code, second.headers["X-Taskherd-Queued"]) == (204, "true")


async def test_strict_mode_rejects_an_input_for_a_busy_agent(start_api: StartApi) -> None:
    """In strict mode an input for a busy agent is rejected as by Coder's servers."""
    async with start_api(send_mode="strict") as api_harness:
        task = (await api_harness.active())["id"]
        assert (await api_harness.alice.post(f"/tasks/me/{task}/send", json={"input": "One"})).status_code == 204
        refused = await api_harness.alice.post(f"/tasks/me/{task}/send", json={"input": "Two"})
        assert (refused.status_code, refused.json()) == (409, {"message": "Task app is not ready to accept input."})


async def test_a_deleted_task_is_hidden_immediately(api_harness: ApiHarness) -> None:
    """A delete returns an empty 202 with a length, also during a build; the task is hidden and its name is free."""
    task = await api_harness.create(name="gone")
    response = await api_harness.alice.delete("/tasks/me/gone")
    assert (response.status_code, response.content, response.headers["content-length"]) == (202, b"", "0")
    assert (await api_harness.alice.get(f"/tasks/me/{task['id']}")).status_code == 404
    assert (await api_harness.alice.get("/tasks")).json() == {"tasks": [], "count": 0}
    assert (await api_harness.alice.delete(f"/tasks/me/{task['id']}")).status_code == 404
    await api_harness.create(name="Gone")


async def test_logs(api_harness: ApiHarness) -> None:
    """Ids count from 0 and times are UTC; while no agent is running, the log is marked as a snapshot."""
    task_id = uuid.UUID((await api_harness.create())["id"])
    empty = (await api_harness.alice.get(f"/tasks/me/{task_id}/logs")).json()
    assert empty == {"logs": [], "snapshot": True}
    await api_harness.worker.make_active(task_id)
    entries = [
        {"id": 7, "type": "input", "content": "Hello", "time": "2026-01-02T03:04:05+01:00"},
        {"id": 8, "type": "output", "content": "Hi", "time": "2026-01-02T03:04:06Z"}
        | {"kind": "tool_call", "title": "Say hi", "status": "completed", "data": {"kind": "other"}},
    ]
    await api_harness.worker.report(make_report("task.log", task_id, build_number=1, entries=entries))
    await api_harness.worker.until_row("SELECT count(*) FROM task_logs", is_=2)
    logs = (await api_harness.alice.get(f"/tasks/alice/{task_id}/logs")).json()
    places = [entry.pop("place") for entry in logs["logs"]]
    assert places == sorted(places)
    assert [place[-1] for place in places] == [0, 1]
    assert logs == {
        "logs": [
            {"id": 0, "content": "Hello", "type": "input", "time": "2026-01-02T02:04:05.000000Z"},
            {"id": 1, "content": "Hi", "type": "output", "time": "2026-01-02T03:04:06.000000Z"}
            | {"kind": "tool_call", "title": "Say hi", "status": "completed", "data": {"kind": "other"}},
        ]
    }
    await api_harness.alice.post(f"/tasks/me/{task_id}/pause")
    await api_harness.worker.report(build_report(task_id, 2, "stop", "succeeded"))
    await api_harness.worker.until(lambda: api_harness.worker.document(task_id).get("status") == "paused")
    paused = (await api_harness.alice.get(f"/tasks/me/{task_id}/logs")).json()
    assert [entry.pop("place") for entry in paused["logs"]] == places
    assert (paused["snapshot"], paused["logs"]) == (True, logs["logs"])
    assert TIME.fullmatch(paused["snapshot_at"])


async def test_the_newest_entries_of_a_long_log(api_harness: ApiHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more entries than a response may have, it has the newest, oldest first; ``after`` gets those behind an id."""
    task_id = uuid.UUID((await api_harness.create())["id"])
    await api_harness.worker.make_active(task_id)
    entries = [
        {"id": number, "type": "output", "content": f"line {number}", "time": "2026-01-02T03:04:06Z"}
        for number in range(5)
    ]
    await api_harness.worker.report(make_report("task.log", task_id, build_number=1, entries=entries))
    await api_harness.worker.until_row("SELECT count(*) FROM task_logs", is_=5)
    monkeypatch.setattr(queries, "MAX_LOG_ENTRIES", 2)
    for after, contents in (("", ["line 3", "line 4"]), ("?after=3", ["line 4"]), ("?after=4", [])):
        logs = (await api_harness.alice.get(f"/tasks/me/{task_id}/logs{after}")).json()["logs"]
        assert [entry["content"] for entry in logs] == contents


async def test_times_of_a_clock_that_is_far_off_are_bounded(api_harness: ApiHarness) -> None:
    """Times at the ends of the calendar come back as times in UTC, within the years 1970 to 2999."""
    task_id = uuid.UUID((await api_harness.create())["id"])
    times = ("0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z")
    entries = [{"id": id_, "type": "output", "content": "x", "time": time} for id_, time in enumerate(times)]
    await api_harness.worker.report(
        *(make_report("agent.heartbeat", task_id, build_number=1, observed_at=time) for time in times),
        make_report("task.log", task_id, build_number=1, observed_at=times[1], entries=entries),
    )
    await api_harness.worker.until_row("SELECT count(*) FROM task_logs", is_=2)
    logs = (await api_harness.alice.get(f"/tasks/me/{task_id}/logs")).json()["logs"]
    assert [each["time"] for each in logs] == ["1970-01-01T00:00:00.000000Z", "2999-12-31T23:59:59.999999Z"]


async def test_an_idempotency_key_creates_one_task(api_harness: ApiHarness) -> None:
    """Repeating a key returns a 200 with the same task, or a 409 for another body; each user has separate keys."""
    body = {"template_version_id": str(VERSION), "input": "Once"}
    key = {"Idempotency-Key": "deploy-42"}
    first = await api_harness.alice.post("/tasks/me", json=body, headers=key)
    again = await api_harness.alice.post("/tasks/me", json=body, headers=key)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    other = await api_harness.alice.post("/tasks/me", json={**body, "input": "Twice"}, headers=key)
    assert (other.status_code, other.json()["message"]) == (409, "Idempotency-Key was used for another request.")
    bobs = await api_harness.bob.post("/tasks/me", json=body, headers=key)
    assert (bobs.status_code, bobs.json()["id"] != first.json()["id"]) == (201, True)
    for invalid_key in ("", "x" * 256, "a\tb"):
        refused = await api_harness.alice.post("/tasks/me", json=body, headers={"Idempotency-Key": invalid_key})
        assert refused.status_code == 400, invalid_key
    assert await api_harness.worker.database.fetchval("SELECT count(*) FROM tasks") == 2


async def test_if_none_match(api_harness: ApiHarness) -> None:
    """If-None-Match returns a 304 until the task or the directory changes, for one task and for a list."""
    task = await api_harness.create()
    path, headers = "", {"If-None-Match": ""}
    for path in (f"/tasks/me/{task['id']}", "/tasks?q=owner:me"):
        first = await api_harness.alice.get(path)
        headers = {"If-None-Match": first.headers["ETag"]}
        same = await api_harness.alice.get(path, headers=headers)
        assert (same.status_code, same.content, same.headers["ETag"]) == (304, b"", first.headers["ETag"])
        assert "content-length" not in same.headers
    await api_harness.worker.database.execute("UPDATE directory_revision SET revision = revision + 1")
    assert (await api_harness.alice.get(path, headers=headers)).status_code == 200
    headers = {"If-None-Match": (await api_harness.alice.get(path)).headers["ETag"]}
    await api_harness.worker.make_active(uuid.UUID(task["id"]))
    assert (await api_harness.alice.get(path, headers=headers)).status_code == 200


async def test_the_tag_of_a_task_is_of_no_other_task_at_its_address(api_harness: ApiHarness) -> None:
    """A name stands for another task once its own was deleted, and ``me`` for other people's; caches are told so."""
    path, tag = "/tasks/me/again", '"none"'
    for number, client in enumerate((api_harness.alice, api_harness.alice, api_harness.bob)):
        task = await api_harness.create(client, name="again", input=f"Prompt {number}")
        for query in ("", "?wait=0s"):
            response = await client.get(path + query, headers={"If-None-Match": tag})
            assert (response.status_code, response.headers["Cache-Control"]) == (200, "private, no-cache")
            assert (response.json()["id"], response.json()["initial_prompt"]) == (task["id"], f"Prompt {number}")
        tag = (await client.get(path)).headers["ETag"]
        unchanged = await client.get(path, headers={"If-None-Match": tag})
        assert (unchanged.status_code, unchanged.headers["Cache-Control"]) == (304, "private, no-cache")
        assert (await client.delete(path)).status_code == 202
        gone = await client.get(path, headers={"If-None-Match": tag})
        assert (gone.status_code, gone.headers["Cache-Control"]) == (404, "private, no-cache")


async def test_nullable_ids_as_objects(start_api: StartApi) -> None:
    """If configured, nullable ids are objects in every document."""
    async with start_api(api_nullable_ids="object") as api_harness:
        task = await api_harness.create()
        nil = {"uuid": str(uuid.UUID(int=0)), "valid": False}
        assert [task[name] for name in ("workspace_id", "workspace_agent_id", "workspace_app_id")] == [nil] * 3
        assert await api_harness.get(task["id"]) == task
        assert (await api_harness.alice.get("/tasks")).json()["tasks"] == [task]
        assert task["owner_id"] == str(ALICE)
