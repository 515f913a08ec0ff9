"""Waiting for a task, and asking why it is as it is and what it has been through."""

from __future__ import annotations

import asyncio
import uuid
from itertools import pairwise
from typing import Any

import pytest

from taskherd.store.task_queries import DOCUMENT
from tests.api.test_sse import followers
from tests.harness.api import TIMEOUT, ApiHarness
from tests.harness.worker import STATUSES, build_report, in_status, make_report


async def test_answered_at_once_where_it_is_so_already(api_harness: ApiHarness) -> None:
    """A task that is as it was waited for is answered without waiting, with its entity tag as any read."""
    task = await api_harness.active()
    waited = await api_harness.alice.get(f"/tasks/me/{task['id']}", params={"wait": "60s", "until": "active"})
    assert (waited.status_code, waited.json()) == (200, await api_harness.get(task["id"]))
    assert "X-Taskherd-Timed-Out" not in waited.headers
    plain = await api_harness.alice.get(f"/tasks/me/{task['id']}")
    assert waited.headers["ETag"] == plain.headers["ETag"]


@pytest.mark.parametrize(("until", "fields"), [("idle,failed", {"state": "idle"}), ("failed", {"state": "failure"})])
async def test_answered_when_the_agent_says_so(api_harness: ApiHarness, until: str, fields: dict[str, Any]) -> None:
    """Who waits gets the document in which the state is what was waited for, and its entity tag."""
    task = await api_harness.active()
    asked = api_harness.alice.get(f"/tasks/me/{task['name']}", params={"wait": "30s", "until": until})
    waiting = asyncio.create_task(asked)
    await followers(api_harness, 1)
    await api_harness.worker.report(
        make_report("app.status", uuid.UUID(task["id"]), state="working", message="", seq=1)
    )
    await api_harness.worker.report(make_report("app.status", uuid.UUID(task["id"]), **fields, message="done", seq=2))
    answered = await waiting
    assert answered.json()["current_state"]["state"] in until
    assert answered.json() == await api_harness.get(task["id"])
    assert answered.headers["ETag"] == (await api_harness.alice.get(f"/tasks/me/{task['id']}")).headers["ETag"]
    await followers(api_harness, 0)


async def test_the_time_is_up(api_harness: ApiHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """In vain: 200 with the document as it is then, and a header that says so; three reads, however long."""
    task = await api_harness.create()
    reads: list[str] = []
    fetch = api_harness.api._reader.fetch

    async def counted(statement: str, *values: Any) -> Any:
        reads.append(statement)
        return await fetch(statement, *values)

    monkeypatch.setattr(api_harness.api._reader, "fetch", counted)
    answered = await api_harness.alice.get(f"/tasks/me/{task['id']}", params={"wait": "1500ms"})
    assert (answered.status_code, answered.json()) == (200, task)
    assert answered.headers["X-Taskherd-Timed-Out"] == "true"
    assert len([each for each in reads if DOCUMENT in each]) == 3
    for wrong in ({"wait": "61s"}, {"wait": "x"}, {"wait": ""}, {"wait": "1s", "until": "done"}):
        refused = await api_harness.alice.get(f"/tasks/me/{task['id']}", params=wrong)
        assert (refused.status_code, refused.json()["message"]) == (400, "Validation failed."), wrong


async def test_a_task_that_is_deleted_meanwhile(api_harness: ApiHarness) -> None:
    """Who waits for a task that is deleted gets the 404."""
    task = await api_harness.create()
    waiting = asyncio.create_task(api_harness.alice.get(f"/tasks/me/{task['id']}", params={"wait": "30s"}))
    await followers(api_harness, 1)
    await api_harness.alice.delete(f"/tasks/me/{task['id']}")
    assert (await asyncio.wait_for(waiting, TIMEOUT)).status_code == 404


async def test_a_token_that_is_revoked_during_the_wait(api_harness: ApiHarness) -> None:
    """A long poll whose token was revoked meanwhile ends with a 401, whether the task changed or the time is up."""
    task = await api_harness.active()
    for wait in ("2s", "30s"):
        await api_harness.worker.database.execute("UPDATE api_tokens SET revoked_at = NULL")
        params = {"wait": wait, "until": "failed"}
        waiting = asyncio.create_task(api_harness.alice.get(f"/tasks/me/{task['id']}", params=params))
        await followers(api_harness, 1)
        await api_harness.worker.database.execute("UPDATE api_tokens SET revoked_at = now()")
        async with asyncio.timeout(TIMEOUT):
            while (await api_harness.alice.get("/tasks")).status_code == 200:
                continue
        if wait == "30s":
            fields = {"state": "failure", "message": "", "seq": 1, "build_number": 1}
            await api_harness.worker.report(make_report("app.status", uuid.UUID(task["id"]), **fields))
        assert (await asyncio.wait_for(waiting, TIMEOUT)).status_code == 401
        await followers(api_harness, 0)


async def test_many_wait(api_harness: ApiHarness) -> None:
    """A hundred who wait for one task are answered by its one change."""
    task = await api_harness.active()
    params = {"wait": "30s", "until": "complete"}
    waiting = [asyncio.create_task(api_harness.alice.get(f"/tasks/me/{task['id']}", params=params)) for _ in range(90)]
    await followers(api_harness, 90)
    await api_harness.worker.report(
        make_report("app.status", uuid.UUID(task["id"]), state="complete", message="", seq=1)
    )
    answers = await asyncio.gather(*waiting)
    assert {each.json()["current_state"]["state"] for each in answers} == {"complete"}


async def test_the_timeline(api_harness: ApiHarness) -> None:
    """The changes of a task in order, each with what was and what is, and its cause; in pages."""
    task = await api_harness.create(input="first")
    task_id = uuid.UUID(task["id"])
    await api_harness.worker.report(build_report(task_id, 1, "start", "failed", error="No space left"))
    await api_harness.worker.until(lambda: api_harness.worker.document(task_id).get("status") == "error")
    await api_harness.alice.post(f"/tasks/me/{task_id}/pause")
    await api_harness.worker.report(build_report(task_id, 2, "stop", "succeeded"))
    await api_harness.worker.until(lambda: api_harness.worker.document(task_id).get("status") == "paused")
    assert (await api_harness.alice.patch(f"/tasks/me/{task_id}/input", json={"input": "second"})).status_code == 204
    await api_harness.worker.until(lambda: api_harness.worker.document(task_id).get("initial_prompt") == "second")
    await api_harness.worker.until_row("SELECT count(*) FROM outbox", is_=0)
    told = (await api_harness.alice.get(f"/tasks/me/{task_id}/events")).json()["events"]
    assert [each["version"] for each in told] == list(range(1, len(told) + 1))
    assert told[0]["changes"]["status"] == {"from": None, "to": "pending"}
    assert told[0]["changes"]["initial_prompt"] == {"from": None, "to": "first"}
    assert told[0]["cause"]["kind"] == "command"
    assert told[0]["time"] == task["created_at"]
    assert told[1]["changes"]["status"] == {"from": "pending", "to": "error"}
    assert told[1]["cause"] == {"kind": "report", "type": "workspace.build"}
    assert told[-1]["changes"] == {"initial_prompt": {"from": "first", "to": "second"}}
    for before, after in pairwise(told):
        assert before["position"] < after["position"]
    paged: list[Any] = []
    while page := (
        await api_harness.alice.get(
            f"/tasks/me/{task_id}/events", params={"limit": 2, "after": paged[-1]["position"] if paged else 0}
        )
    ).json()["events"]:
        paged += page
    assert paged == told
    for wrong in ({"limit": "0"}, {"limit": "501"}, {"after": "-1"}, {"after": "x"}):
        assert (await api_harness.alice.get(f"/tasks/me/{task_id}/events", params=wrong)).status_code == 400


@pytest.mark.parametrize("status", STATUSES)
async def test_why(api_harness: ApiHarness, status: str) -> None:
    """In each status the explanation says the status that the document says, why, and by which report."""
    task_id = await in_status(api_harness.worker, status)
    task = await api_harness.get(str(task_id))
    told = (await api_harness.alice.get(f"/tasks/me/{task_id}/explain")).json()
    assert told["status"]["value"] == task["status"] == status
    assert told["current_state"]["value"] == task["current_state"]
    assert told["health"]["value"] == task["workspace_agent_health"]
    for part in ("status", "current_state", "health"):
        assert told[part]["because"].endswith(".")
    if status == "error":
        assert told["status"]["because"] == (
            "Build 1, which starts the workspace, failed: No space left. Resume the task to try again."
        )
        report = told["status"]["report"]
        assert (report["type"], report["build_number"]) == ("workspace.build", 1)
        assert report["received_at"].endswith("Z")
    if status == "pending":
        assert told["status"]["report"] is None
        assert [each["type"] for each in told["requests"]] == ["workspace.start"]
        assert told["requests"][0]["created_at"].endswith("Z")


async def test_why_an_input_waits(api_harness: ApiHarness) -> None:
    """What is open of the inbox is told in order."""
    task = await api_harness.active()
    for text in ("one", "two"):
        assert (await api_harness.alice.post(f"/tasks/me/{task['id']}/send", json={"input": text})).status_code == 204
    inbox = (await api_harness.alice.get(f"/tasks/me/{task['id']}/explain")).json()["inbox"]
    assert [(each["input"], each["state"]) for each in inbox] == [("one", "sent"), ("two", "queued")]
