"""Long polls, explanations and timelines of tasks."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable
from itertools import pairwise
from typing import Any

import httpx
import pytest

from taskherd.store.task_queries import DOCUMENT
from tests.api.conftest import StartApi
from tests.api.test_process import shown, until_shown
from tests.api.test_sse import until_subscribers
from tests.harness.api import TIMEOUT, ApiHarness
from tests.harness.asking import OWN, active, as_agent, own
from tests.harness.tasks import prompt_of
from tests.harness.worker import STATUSES, bring_to_status, build_report, make_report


async def test_a_task_that_already_matches_is_returned_immediately(api_harness: ApiHarness) -> None:
    """A task that already has one of the values is returned without waiting, with its ETag as in any read."""
    task = await api_harness.active()
    waited = await api_harness.alice.get(f"/tasks/me/{task['id']}", params={"wait": "60s", "until": "active"})
    assert (waited.status_code, waited.json()) == (200, await api_harness.get(task["id"]))
    assert "X-Taskherd-Timed-Out" not in waited.headers
    read = await api_harness.alice.get(f"/tasks/me/{task['id']}")
    assert waited.headers["ETag"] == read.headers["ETag"]


@pytest.mark.parametrize(("until", "fields"), [("idle,failed", {"state": "idle"}), ("failed", {"state": "failure"})])
async def test_a_long_poll_returns_when_the_state_matches(
    api_harness: ApiHarness, until: str, fields: dict[str, Any]
) -> None:
    """A long poll returns the first document whose state is one of the values, with its ETag."""
    task = await api_harness.active()
    request = api_harness.alice.get(f"/tasks/me/{task['name']}", params={"wait": "30s", "until": until})
    waiting = asyncio.create_task(request)
    await until_subscribers(api_harness, 1)
    await api_harness.worker.report(
        make_report("app.status", uuid.UUID(task["id"]), state="working", message="", seq=1)
    )
    await api_harness.worker.report(make_report("app.status", uuid.UUID(task["id"]), **fields, message="done", seq=2))
    response = await waiting
    assert response.json()["current_state"]["state"] in until
    assert response.json() == await api_harness.get(task["id"])
    assert response.headers["ETag"] == (await api_harness.alice.get(f"/tasks/me/{task['id']}")).headers["ETag"]
    await until_subscribers(api_harness, 0)


async def test_a_long_poll_times_out(api_harness: ApiHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """On timeout a long poll returns the current document and a header, after three reads however long it waits."""
    task = await api_harness.create()
    reads: list[str] = []
    fetch = api_harness.api._reader.fetch

    async def counted(statement: str, *values: Any) -> Any:
        reads.append(statement)
        return await fetch(statement, *values)

    monkeypatch.setattr(api_harness.api._reader, "fetch", counted)
    response = await api_harness.alice.get(f"/tasks/me/{task['id']}", params={"wait": "1500ms"})
    assert (response.status_code, response.json()) == (200, task)
    assert response.headers["X-Taskherd-Timed-Out"] == "true"
    assert len([each for each in reads if DOCUMENT in each]) == 3
    for params in ({"wait": "61s"}, {"wait": "x"}, {"wait": ""}, {"wait": "1s", "until": "done"}):
        refused = await api_harness.alice.get(f"/tasks/me/{task['id']}", params=params)
        assert (refused.status_code, refused.json()["message"]) == (400, "Validation failed."), params


async def test_a_task_that_matches_at_the_deadline(api_harness: ApiHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that matches only when it is read at the deadline is returned as a match, without the timeout header."""
    task = await api_harness.active()
    task_id = uuid.UUID(task["id"])
    reads: list[str] = []
    fetch = api_harness.api._reader.fetch

    async def change_before_the_last_read(statement: str, *values: Any) -> Any:
        if DOCUMENT in statement:
            reads.append(statement)
            if len(reads) == 3:
                await api_harness.worker.report(make_report("app.status", task_id, state="idle", message="done"))
                await api_harness.worker.until(lambda: api_harness.worker.state(task_id).get("state") == "idle")
        return await fetch(statement, *values)

    monkeypatch.setattr(api_harness.api._reader, "fetch", change_before_the_last_read)
    response = await api_harness.alice.get(f"/tasks/me/{task_id}", params={"wait": "0s", "until": "idle"})
    assert len(reads) == 3
    assert (response.status_code, response.json()["current_state"]["state"]) == (200, "idle")
    assert "X-Taskherd-Timed-Out" not in response.headers


async def test_a_task_that_is_deleted_during_the_wait(api_harness: ApiHarness) -> None:
    """A long poll of a task that is deleted gets a 404."""
    task = await api_harness.create()
    waiting = asyncio.create_task(api_harness.alice.get(f"/tasks/me/{task['id']}", params={"wait": "30s"}))
    await until_subscribers(api_harness, 1)
    await api_harness.alice.delete(f"/tasks/me/{task['id']}")
    assert (await asyncio.wait_for(waiting, TIMEOUT)).status_code == 404


async def test_a_token_that_is_revoked_during_the_wait(api_harness: ApiHarness) -> None:
    """A long poll whose token is revoked gets a 401, whether the task matches or the wait times out."""
    task = await api_harness.active()
    for wait in ("2s", "30s"):
        await api_harness.worker.database.execute("UPDATE api_tokens SET revoked_at = NULL")
        params = {"wait": wait, "until": "failed"}
        waiting = asyncio.create_task(api_harness.alice.get(f"/tasks/me/{task['id']}", params=params))
        await until_subscribers(api_harness, 1)
        await api_harness.worker.database.execute("UPDATE api_tokens SET revoked_at = now()")
        async with asyncio.timeout(TIMEOUT):
            while (await api_harness.alice.get("/tasks")).status_code == 200:
                continue
        if wait == "30s":
            fields = {"state": "failure", "message": "", "seq": 1, "build_number": 1}
            await api_harness.worker.report(make_report("app.status", uuid.UUID(task["id"]), **fields))
        assert (await asyncio.wait_for(waiting, TIMEOUT)).status_code == 401
        await until_subscribers(api_harness, 0)


async def test_the_wait_of_a_long_poll_is_no_response_time(api_harness: ApiHarness) -> None:
    """Neither that of a task nor that of an agent for its answer; one that is answered at once is counted."""

    async def counted(request: Awaitable[httpx.Response]) -> float:
        await until_shown(api_harness, "api_requests_in_flight", 0)
        before = shown(api_harness, "api_seconds_count")
        assert (await request).status_code == 200
        await until_shown(api_harness, "api_requests_in_flight", 0)
        after = shown(api_harness, "api_seconds_count")
        assert before is not None
        assert after is not None
        return after - before

    task_id = await active(api_harness, name="waited-for")
    request_id = await own(api_harness, task_id)
    path, params = f"/tasks/me/{task_id}", {"wait": "50ms", "until": "complete"}
    assert await counted(api_harness.alice.get(path, params=params)) == 0
    assert await counted(as_agent(api_harness, task_id, "GET", f"{OWN}/{request_id}?wait=50ms")) == 0
    assert await counted(api_harness.alice.get(path, params={**params, "until": "active"})) == 1
    assert await counted(as_agent(api_harness, task_id, "GET", f"{OWN}/{request_id}")) == 1


async def test_many_long_polls(api_harness: ApiHarness) -> None:
    """One change answers ninety long polls of a task."""
    task = await api_harness.active()
    params = {"wait": "30s", "until": "complete"}
    waiting = [asyncio.create_task(api_harness.alice.get(f"/tasks/me/{task['id']}", params=params)) for _ in range(90)]
    await until_subscribers(api_harness, 90)
    await api_harness.worker.report(
        make_report("app.status", uuid.UUID(task["id"]), state="complete", message="", seq=1)
    )
    responses = await asyncio.gather(*waiting)
    assert {each.json()["current_state"]["state"] for each in responses} == {"complete"}


async def test_the_timeline_names_who_acted(api_harness: ApiHarness) -> None:
    """A send and a pause by an admin are in the owner's timeline by name; who may not see the task sees neither."""
    other_id = (await api_harness.active(input="Has a timeline of its own"))["id"]
    other = await api_harness.alice.post(f"/tasks/me/{other_id}/send", json={"input": "Not for the other task"})
    assert other.status_code == 204
    task_id = (await api_harness.active())["id"]
    sent = await api_harness.clients["carol"].post(f"/tasks/alice/{task_id}/send", json={"input": "Hurry"})
    assert sent.status_code == 204
    assert (await api_harness.clients["carol"].post(f"/tasks/alice/{task_id}/pause")).status_code == 202
    await api_harness.worker.until_row("SELECT count(*) FROM outbox", is_=0)
    timeline = (await api_harness.alice.get(f"/tasks/me/{task_id}/events")).json()
    (action,) = timeline["actions"]
    assert (action["type"], action["actor_name"], action["input"]) == ("task.send", "carol", "Hurry")
    named = [(each["cause"]["type"], each["cause"].get("actor_name")) for each in timeline["events"]]
    assert [cause for cause in named if cause[1]] == [("task.create", "alice"), ("task.pause", "carol")]
    assert (await api_harness.bob.get(f"/tasks/alice/{task_id}/events")).status_code == 404


async def test_the_timeline_has_an_edit_of_the_prompt_by_an_admin(api_harness: ApiHarness) -> None:
    """It has her name, in words too; so has the explanation, as the last command."""
    task_id = await bring_to_status(api_harness.worker, "paused")
    edited = await api_harness.carol.patch(f"/tasks/alice/{task_id}/input", json={"input": "Fix only the parser"})
    assert edited.status_code == 204
    await api_harness.worker.until_row("SELECT count(*) FROM outbox", is_=0)
    event = (await api_harness.alice.get(f"/tasks/me/{task_id}/events")).json()["events"][-1]
    assert event["changes"] == {"initial_prompt": {"from": prompt_of(task_id), "to": "Fix only the parser"}}
    assert (event["cause"]["actor_name"], event["cause"]["words"]) == ("carol", "carol changed the prompt")
    last = (await api_harness.alice.get(f"/tasks/me/{task_id}/explain")).json()["last_command"]
    assert (last["type"], last["actor_name"], last["words"]) == (
        "task.update_input",
        "carol",
        "carol changed the prompt",
    )
    assert last["time"] == event["time"]


async def test_the_last_command_of_an_actor_that_the_directory_does_not_know(api_harness: ApiHarness) -> None:
    """The explanation has the id of such an actor in place of a name."""
    task_id = uuid.UUID((await api_harness.active())["id"])
    actor = str(uuid.UUID(int=0xFACE))
    assert (await api_harness.worker.command("task.pause", task_id, actor_id=actor))["ok"]
    last = (await api_harness.alice.get(f"/tasks/me/{task_id}/explain")).json()["last_command"]
    assert (last["type"], last["actor_id"], last["actor_name"]) == ("task.pause", actor, actor)


async def test_the_newest_changes_of_a_timeline(api_harness: ApiHarness) -> None:
    """``newest`` returns the last changes after a position, in order; the last command may be a send."""
    task_id = uuid.UUID((await api_harness.active())["id"])
    for number in range(4):
        await api_harness.worker.report(make_report("app.status", task_id, state="idle", message=f"{number}"))
    assert (await api_harness.carol.post(f"/tasks/alice/{task_id}/send", json={"input": "Hurry"})).status_code == 204
    await api_harness.worker.until(lambda: api_harness.worker.state(task_id).get("message") == "3")
    await api_harness.worker.until_row("SELECT count(*) FROM outbox", is_=0)
    every = (await api_harness.alice.get(f"/tasks/me/{task_id}/events")).json()["events"]
    params = {"newest": "true", "limit": "2"}
    newest = (await api_harness.alice.get(f"/tasks/me/{task_id}/events", params=params)).json()["events"]
    assert newest == every[-2:]
    params["after"] = str(every[-2]["position"])
    newest = (await api_harness.alice.get(f"/tasks/me/{task_id}/events", params=params)).json()["events"]
    assert newest == every[-1:]
    assert (await api_harness.alice.get(f"/tasks/me/{task_id}/events", params={"newest": "1"})).status_code == 400
    explanation = (await api_harness.alice.get(f"/tasks/me/{task_id}/explain")).json()
    assert explanation["last_command"]["words"] == "carol sent an input"


async def test_an_explanation_says_where_the_task_runs(api_harness: ApiHarness) -> None:
    """The pool is that of its template, the runner the one that reported its build: the terms that find it in lists."""
    task_id = uuid.UUID((await api_harness.create(name="placed"))["id"])
    asked = (await api_harness.alice.get("/tasks/me/placed/explain")).json()
    assert (asked["pool"], asked["runner"]) == ("default", None)
    await api_harness.worker.make_active(task_id)
    running = (await api_harness.alice.get("/tasks/me/placed/explain")).json()
    assert (running["pool"], running["runner"]) == ("default", "r1")
    assert (await api_harness.mallory.get("/tasks/alice/placed/explain")).status_code == 404


async def test_an_agent_that_ended_is_explained_until_it_is_resumed(api_harness: ApiHarness) -> None:
    """The explanation says how it ended and that a resume is accepted, the timeline what happened, in words."""
    task_id = uuid.UUID((await api_harness.active())["id"])
    running = (await api_harness.alice.get(f"/tasks/me/{task_id}/explain")).json()
    assert (running["agent_exit"]["value"], running["resume"]["value"]) == (None, False)
    assert running["resume"]["because"] == "Task workspace is already running."
    await api_harness.worker.report(
        make_report("agent.exit", task_id, why="signalled", signal=9, words="<b>bye</b>", build_number=1)
    )
    await api_harness.worker.until(lambda: api_harness.worker.document(task_id).get("agent_exit"))
    ended = (await api_harness.alice.get(f"/tasks/me/{task_id}/explain")).json()
    assert ended["agent_exit"]["value"] == (await api_harness.get(str(task_id)))["agent_exit"]
    assert ended["agent_exit"]["because"] == (
        'The agent was ended by signal 9 (SIGKILL) ("<b>bye</b>"). Resume the task to start it again.'
    )
    assert ended["agent_exit"]["report"]["type"] == "agent.exit"
    assert (ended["resume"]["value"], ended["stalled_since"]["value"], ended["restart_at"]) == (True, None, None)
    assert (await api_harness.carol.post(f"/tasks/alice/{task_id}/resume")).status_code == 202
    await api_harness.worker.until_row("SELECT count(*) FROM outbox", is_=0)
    words = [
        each["cause"]["words"] for each in (await api_harness.alice.get(f"/tasks/me/{task_id}/events")).json()["events"]
    ]
    assert words[0] == "alice created the task"
    assert words[-2:] == [
        'the agent was ended by signal 9 (SIGKILL) ("<b>bye</b>")',
        "carol resumed the task",
    ]


@pytest.mark.parametrize(
    "fields",
    [{"why": "exited", "status": 0}, {"why": "lost"}, {"why": "out_of_memory"}, {"why": "interrupted"}],
    ids=lambda fields: fields["why"],
)
async def test_a_long_poll_ends_when_the_agent_has_ended(api_harness: ApiHarness, fields: dict[str, Any]) -> None:
    """By default, or with ``ended``; a stop of the workspace is no such end, and other values are not matched."""
    task_id = uuid.UUID((await api_harness.active())["id"])
    for params in ({"wait": "30s"}, {"wait": "30s", "until": "ended,paused"}):
        waiting = asyncio.create_task(api_harness.alice.get(f"/tasks/me/{task_id}", params=params))
        await until_subscribers(api_harness, 1)
        number = api_harness.worker.document(task_id)["workspace_build_number"]
        await api_harness.worker.report(make_report("agent.exit", task_id, why="stopped", build_number=number, seq=1))
        await api_harness.worker.until(lambda: api_harness.worker.document(task_id).get("agent_exit"))
        assert not waiting.done()
        await api_harness.worker.report(make_report("agent.exit", task_id, **fields, build_number=number, seq=2))
        response = await asyncio.wait_for(waiting, TIMEOUT)
        assert response.json()["agent_exit"]["why"] == fields["why"]
        assert "X-Taskherd-Timed-Out" not in response.headers
        assert (await api_harness.alice.post(f"/tasks/me/{task_id}/resume")).status_code == 202
        await api_harness.worker.make_active(task_id, number + 1)
    params = {"wait": "0s", "until": "ended"}
    response = await api_harness.alice.get(f"/tasks/me/{task_id}", params=params)
    assert response.headers["X-Taskherd-Timed-Out"] == "true"


async def test_a_long_poll_ends_when_the_agent_is_lost(start_api: StartApi) -> None:
    """Also if nothing reports the end of the agent."""
    async with start_api(agent_lost_after=1) as api_harness:
        task_id = uuid.UUID((await api_harness.active())["id"])
        response = await api_harness.alice.get(f"/tasks/me/{task_id}", params={"wait": "30s"})
        assert response.json()["workspace_agent_health"]["reason"] == "agent has lost connection"
        explanation = (await api_harness.alice.get(f"/tasks/me/{task_id}/explain")).json()
        assert (explanation["agent_exit"]["value"], explanation["agent_exit"]["rule"]) == (None, "agent.lost")
        assert explanation["resume"]["value"] is True


async def test_the_timeline(api_harness: ApiHarness) -> None:
    """A timeline has the changes of a task in order, with old and new values and the cause, in pages."""
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
    events = (await api_harness.alice.get(f"/tasks/me/{task_id}/events")).json()["events"]
    assert [each["version"] for each in events] == list(range(1, len(events) + 1))
    assert events[0]["changes"]["status"] == {"from": None, "to": "pending"}
    assert events[0]["changes"]["initial_prompt"] == {"from": None, "to": "first"}
    assert events[0]["cause"]["kind"] == "command"
    assert events[0]["time"] == task["created_at"]
    assert events[1]["changes"]["status"] == {"from": "pending", "to": "error"}
    assert events[1]["cause"] == {
        "kind": "report",
        "type": "workspace.build",
        "words": "the workspace was reported",
    }
    assert events[-1]["changes"] == {"initial_prompt": {"from": "first", "to": "second"}}
    for before, after in pairwise(events):
        assert before["position"] < after["position"]
    paged: list[Any] = []
    while page := (
        await api_harness.alice.get(
            f"/tasks/me/{task_id}/events", params={"limit": 2, "after": paged[-1]["position"] if paged else 0}
        )
    ).json()["events"]:
        paged += page
    assert paged == events
    for params in ({"limit": "0"}, {"limit": "501"}, {"after": "-1"}, {"after": "x"}):
        assert (await api_harness.alice.get(f"/tasks/me/{task_id}/events", params=params)).status_code == 400


@pytest.mark.parametrize("status", STATUSES)
async def test_the_explanation_in_each_status(api_harness: ApiHarness, status: str) -> None:
    """In each status the explanation has the values of the document, the reasons, and the reports behind them."""
    task_id = await bring_to_status(api_harness.worker, status)
    task = await api_harness.get(str(task_id))
    explanation = (await api_harness.alice.get(f"/tasks/me/{task_id}/explain")).json()
    assert explanation["status"]["value"] == task["status"] == status
    assert explanation["current_state"]["value"] == task["current_state"]
    assert explanation["health"]["value"] == task["workspace_agent_health"]
    for part in ("status", "current_state", "health"):
        assert explanation[part]["because"].endswith(".")
    if status == "error":
        assert explanation["status"]["because"] == (
            "Build 1, which starts the workspace, failed: No space left. Resume the task to try again."
        )
        report = explanation["status"]["report"]
        assert (report["type"], report["build_number"]) == ("workspace.build", 1)
        assert report["received_at"].endswith("Z")
    if status == "pending":
        assert explanation["status"]["report"] is None
        assert [each["type"] for each in explanation["requests"]] == ["workspace.start"]
        assert explanation["requests"][0]["created_at"].endswith("Z")


async def test_the_explanation_lists_open_inputs(api_harness: ApiHarness) -> None:
    """The explanation lists the undelivered inputs in order."""
    task = await api_harness.active()
    for text in ("one", "two"):
        assert (await api_harness.alice.post(f"/tasks/me/{task['id']}/send", json={"input": text})).status_code == 204
    inbox = (await api_harness.alice.get(f"/tasks/me/{task['id']}/explain")).json()["inbox"]
    assert [(each["input"], each["state"]) for each in inbox] == [("one", "sent"), ("two", "queued")]
