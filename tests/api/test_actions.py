"""Task actions: one thing done to many tasks, durably, once for each, within the rights of who asked for it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import asyncpg
import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncConnection
from structlog.testing import capture_logs

from taskherd.api.actions import executor, handlers, progress
from taskherd.api.actions.schemas import MAX_TASKS
from taskherd.dev.ports import find_free
from taskherd.dev.services import Services
from taskherd.errors import Unavailable
from taskherd.store import task_actions, task_index
from taskherd.store.read_pool import ReadPool
from taskherd.store.task_actions import NewAction, NotAdded
from tests.api.conftest import StartApi
from tests.api.test_open_requests import leave
from tests.api.test_outages import rename_database
from tests.api.test_tasks import GOLDEN, TIME
from tests.harness import fork_server
from tests.harness.api import ALICE, TIMEOUT, TLS, VERSION, ApiHarness, running_api
from tests.harness.fork_server import RunningProcess
from tests.harness.sse import sse_client
from tests.harness.worker import SECRET, build_report, running_worker


async def act(client: httpx.AsyncClient, action: str, key: str | None = None, **fields: Any) -> Any:
    """Create an action and return its document."""
    headers = {"Idempotency-Key": key} if key else {}
    response = await client.post("/task-actions", json={"action": action, **fields}, headers=headers)
    assert response.status_code == 202, response.text
    return response.json()


async def finished(client: httpx.AsyncClient, action: Any) -> Any:
    """Wait until an action is finished, and return its document."""
    async with asyncio.timeout(45):
        document = action
        while document["finished_at"] is None:
            await asyncio.sleep(0.02)
            response = await client.get(f"/task-actions/{action['id']}")
            if response.status_code != 503:  # the database may take too long on a busy machine
                document = response.json()
    return document


async def results(client: httpx.AsyncClient, action: Any, **query: Any) -> list[Any]:
    """Return all results of an action, read page by page."""
    found: list[Any] = []
    after: int | None = None
    while True:
        page_query = {**query, **({} if after is None else {"after": after})}
        page = (await client.get(f"/task-actions/{action['id']}/results", params=page_query)).json()
        found += page["results"]
        after = page["next"]
        if after is None:
            return found


async def test_an_action_changes_all_tasks_that_match(api_harness: ApiHarness) -> None:
    """The tasks that match when the action is made are paused, each with a result; the others stay as they are."""
    active = [await api_harness.active(input=f"Busy with step {number}") for number in range(3)]
    pending = await api_harness.create(input="Not started yet")
    of_bob = await api_harness.create(api_harness.bob, input="Of Bob")
    made = await act(api_harness.alice, "pause", q="owner:me")
    assert (made["total"], made["action"], made["q"], made["failure"]) == (4, "pause", "owner:me", None)
    done = await finished(api_harness.alice, made)
    assert (done["state"], done["succeeded"], done["refused"], done["pending"]) == ("completed", 3, 1, 0)
    counted = [
        api_harness.api.metrics.registry.get_sample_value("taskherd_api_action_tasks_total", {"outcome": outcome})
        for outcome in ("succeeded", "refused", "unconfirmed")
    ]
    assert counted == [3, 1, 0]
    rows = await results(api_harness.alice, done, limit=2)
    assert [row["position"] for row in rows] == [0, 1, 2, 3]
    assert {row["task_id"]: row["status"] for row in rows} == {
        **{task["id"]: 202 for task in active},
        pending["id"]: 409,
    }
    (refused,) = await results(api_harness.alice, done, refused="true")
    assert refused == {
        "position": 0,
        "task_id": pending["id"],
        "owner_name": "alice",
        "name": pending["name"],
        "status": 409,
        "error": {"message": "A workspace build is already active."},
        "decided_at": refused["decided_at"],
    }
    for task in active:
        assert (await api_harness.get(task["id"]))["workspace_build_number"] == 2
    assert (await api_harness.get(of_bob["id"], api_harness.bob))["workspace_build_number"] == 1
    cause = await api_harness.worker.database.fetchval(
        "SELECT cause ->> 'actor_id' FROM task_events WHERE task_id = $1 AND cause ->> 'type' = 'task.pause'",
        uuid.UUID(active[0]["id"]),
    )
    assert cause == str(ALICE)


async def test_an_action_made_during_a_look_is_found(api_harness: ApiHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is executed at once, not at the next look, also if the look for due steps had just begun without it."""
    await api_harness.active(input="Paused at once")
    look, made = task_actions.is_due, asyncio.get_running_loop().create_future()

    async def look_before_it_is_made(reader: ReadPool) -> bool:
        found = await look(reader)
        if not made.done():
            assert not found
            monkeypatch.setattr(executor, "LOOK_INTERVAL", 3_600)  # not before: another look may just have begun
            made.set_result(await act(api_harness.alice, "pause", q="owner:me"))
        return found

    monkeypatch.setattr(task_actions, "is_due", look_before_it_is_made)
    assert (await finished(api_harness.alice, await made))["succeeded"] == 1


async def test_a_process_looks_again_when_its_next_step_is_due(
    start_api: StartApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that wait for a step learn when it comes, although that was not known when they began to wait."""
    monkeypatch.setattr(executor, "LOOK_INTERVAL", 3_600)
    async with start_api(api_action_rate=2) as api_harness:
        for number in range(3):
            await api_harness.create(input=f"One of three steps {number}")
        made = await act(api_harness.alice, "delete", q="owner:me")
        assert (await finished(api_harness.alice, made))["succeeded"] == 3
        assert await api_harness.worker.database.fetchval("SELECT failures FROM task_actions") == 0


@pytest.mark.parametrize(("problem", "crashes"), [(Unavailable("no database"), 0), (RuntimeError("a bug"), 1)])
async def test_a_step_that_fails_is_repeated(
    api_harness: ApiHarness, monkeypatch: pytest.MonkeyPatch, problem: Exception, crashes: int
) -> None:
    """An outage or a bug in between costs time, and each task still gets its command once; a bug is counted."""
    tasks = [await api_harness.active(input=f"Paused in spite of it {number}") for number in range(2)]
    problems, claim = [problem], task_actions.claim

    async def failing_once(*arguments: Any) -> Any:
        if problems:
            raise problems.pop()
        return await claim(*arguments)

    monkeypatch.setattr(task_actions, "claim", failing_once)
    done = await finished(api_harness.alice, await act(api_harness.alice, "pause", q="owner:me"))
    assert (done["state"], done["succeeded"], done["refused"], problems) == ("completed", 2, 0, [])
    assert [(await api_harness.get(task["id"]))["workspace_build_number"] for task in tasks] == [2, 2]
    assert api_harness.api.metrics.registry.get_sample_value("taskherd_api_crashes_total") == crashes


async def test_the_documents_of_an_action(api_harness: ApiHarness) -> None:
    """All fields of a preview, an action and its results are those of the golden file."""
    task = await api_harness.active(name="golden", input="Fix the flaky test")
    gone = str(uuid.uuid4())
    body: dict[str, Any] = {"action": "pause", "ids": [task["id"], gone]}
    preview = (await api_harness.alice.post("/task-actions", json={**body, "dry_run": True})).json()
    done = await finished(api_harness.alice, await act(api_harness.alice, **body))
    shown = {"preview": preview, "action": done, "results": await results(api_harness.alice, done)}
    text = json.dumps(shown).replace(task["id"], "<task>").replace(gone, "<gone>").replace(done["id"], "<action>")
    normalized = json.loads(re.sub(f'"{TIME.pattern}"', '"<time>"', text))
    assert normalized == json.loads((GOLDEN / "action.json").read_text())


async def test_tasks_given_by_id(api_harness: ApiHarness) -> None:
    """Tasks of others, deleted ones and ids that do not exist have the same result, and none of them is changed."""
    mine = [await api_harness.active(input=f"Mine {number}") for number in range(2)]
    other = await api_harness.active(input="Of Alice, but deleted")
    assert (await api_harness.alice.delete(f"/tasks/me/{other['id']}")).status_code == 202
    foreign = await api_harness.create(api_harness.bob, input="Of Bob, not of Alice")
    ids = [foreign["id"], mine[1]["id"], other["id"], str(uuid.uuid4()), mine[0]["id"], mine[1]["id"]]
    with capture_logs() as lines:
        made = await act(api_harness.alice, "send", ids=ids, input="All\0 hear this")
    logged = {"action_id": made["id"], "action": "send", "tasks": 5}
    assert any(logged.items() <= line.items() for line in lines)
    done = await finished(api_harness.alice, made)
    assert (done["q"], done["total"], done["succeeded"], done["refused"]) == (None, 5, 2, 3)
    rows = await results(api_harness.alice, done)
    assert [row["task_id"] for row in rows] == ids[:5]
    assert [row["status"] for row in rows] == [404, 204, 404, 404, 204]
    gone = [{**row, "position": 0, "task_id": "", "decided_at": ""} for row in rows if row["status"] == 404]
    assert gone[0] == gone[1] == gone[2]
    assert gone[0]["name"] is None
    query = "SELECT content, actor_id FROM inputs"
    assert [tuple(row) for row in await api_harness.worker.database.fetch(query)] == [("All hear this", ALICE)] * 2


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"action": "pause"}, "q"),
        ({"action": "pause", "q": " "}, "q"),
        ({"action": "pause", "q": "color:red"}, "color"),
        ({"action": "stop", "q": "owner:me"}, "action"),
        ({"action": "send", "q": "owner:me"}, "input"),
        ({"action": "pause", "q": "owner:me", "input": "Stop"}, "input"),
        ({"action": "pause", "ids": []}, "ids"),
        ({"action": "pause", "ids": ["x"]}, "ids.0"),
        ({"action": "pause", "ids": [str(uuid.uuid4())] * 10_001}, "ids"),
        ({"action": "pause", "q": "owner:me", "dry_run": 1}, "dry_run"),
    ],
)
async def test_a_bad_request_is_refused(api_harness: ApiHarness, body: dict[str, Any], field: str) -> None:
    """What is wrong with a request is named, and nothing is stored."""
    response = await api_harness.alice.post("/task-actions", json=body)
    assert response.status_code == 400
    assert response.json()["validations"][0]["field"] == field
    assert (await api_harness.alice.get("/task-actions")).json() == {"actions": [], "next": None}


async def test_too_many_tasks_are_refused(api_harness: ApiHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that matches more tasks than an action may have is refused, with what to do."""
    monkeypatch.setattr(handlers, "MAX_TASKS", 2)
    for number in range(3):
        await api_harness.create(input=f"One of three {number}")
    response = await api_harness.alice.post("/task-actions", json={"action": "delete", "q": "owner:me"})
    assert (response.status_code, response.json()["message"]) == (400, "More than 2 tasks match.")
    assert "Narrow the search" in response.json()["detail"]
    monkeypatch.setattr(handlers, "MAX_TASKS", 3)
    assert (await act(api_harness.alice, "delete", q="owner:me"))["total"] == 3


async def test_an_action_has_more_tasks_than_a_list(start_api: StartApi) -> None:
    """Where a list ends does not matter to it, whatever the tasks are selected by; a dry run shows the first 100."""
    async with start_api(api_list_most=500) as api_harness:
        names = [f"nightly-{number}" for number in range(510)]
        tasks = [{"template_version_id": str(VERSION), "input": f"Run {name}", "name": name} for name in names]
        created = (await api_harness.alice.post("/task-batches", json={"tasks": tasks})).json()
        assert created["created"] == 510
        for query in ("owner:me", "name:nightly", "status:pending"):
            body = {"action": "delete", "dry_run": True, "q": query}
            shown = (await api_harness.alice.post("/task-actions", json=body)).json()
            assert (shown["total"], len(shown["tasks"])) == (510, 100), query
        workspaces = (await api_harness.alice.get("/workspaces?offset=498")).json()
        assert (workspaces["count"], len(workspaces["workspaces"])) == (500, 2)


async def test_a_dry_run_changes_nothing(api_harness: ApiHarness) -> None:
    """A dry run says which tasks an action would be for, and stores none."""
    tasks = [await api_harness.create(input=f"Would be deleted {number}") for number in range(2)]
    body = {"action": "delete", "dry_run": True}
    response = await api_harness.alice.post("/task-actions", json={**body, "q": "owner:me"})
    assert response.status_code == 200
    shown = response.json()
    assert (shown["action"], shown["total"], shown["missing"]) == ("delete", 2, 0)
    assert shown["tasks"] == [
        {"task_id": task["id"], "owner_name": "alice", "name": task["name"], "status": "pending"}
        for task in reversed(tasks)
    ]
    foreign = await api_harness.create(api_harness.bob, input="Not of Alice")
    response = await api_harness.alice.post("/task-actions", json={**body, "ids": [foreign["id"], tasks[0]["id"]]})
    assert (response.json()["total"], response.json()["missing"]) == (2, 1)
    assert [task["task_id"] for task in response.json()["tasks"]] == [tasks[0]["id"]]
    assert (await api_harness.alice.get("/task-actions")).json()["actions"] == []
    assert (await api_harness.get(tasks[0]["id"]))["status"] == "pending"


async def test_an_action_is_for_what_a_dry_run_found(api_harness: ApiHarness) -> None:
    """Of the ids of a dry run, those that still match are changed: nothing that matches since, nor of others."""
    tasks = [await api_harness.create(input=f"Found by the dry run {number}") for number in range(2)]
    body: dict[str, Any] = {"action": "delete", "q": "owner:me"}
    found = (await api_harness.alice.post("/task-actions", json={**body, "dry_run": True})).json()["ids"]
    assert found == [task["id"] for task in reversed(tasks)]
    later = await api_harness.create(input="Made after the dry run")
    foreign = await api_harness.create(api_harness.bob, input="Of Bob, who has not been asked")
    assert (await api_harness.alice.delete(f"/tasks/me/{tasks[0]['id']}")).status_code == 202
    nothing = await finished(api_harness.alice, await act(api_harness.alice, **body, ids=[]))
    assert (nothing["state"], nothing["total"]) == ("completed", 0)
    made = await act(api_harness.alice, key="once", **body, ids=[*found, foreign["id"]])
    done = await finished(api_harness.alice, made)
    assert (done["q"], done["total"], done["succeeded"]) == ("owner:me", 1, 1)
    assert [row["task_id"] for row in await results(api_harness.alice, done)] == [tasks[1]["id"]]
    again = {**body, "ids": [later["id"]]}  # what a client sends that has asked again, since it got no answer
    response = await api_harness.alice.post("/task-actions", json=again, headers={"Idempotency-Key": "once"})
    assert (response.status_code, response.json()) == (200, done)
    assert [task["id"] for task in (await api_harness.alice.get("/tasks")).json()["tasks"]] == [later["id"]]


async def test_the_largest_action_fits_into_a_request(api_harness: ApiHarness) -> None:
    """As many tasks as it may have and the longest input, however JSON escapes that."""
    ids = [str(uuid.UUID(int=number)) for number in range(1, MAX_TASKS + 1)]
    body = {"action": "send", "q": "owner:me", "ids": ids, "input": "я" * (128 * 1024), "dry_run": True}
    content = json.dumps(body, ensure_ascii=True)
    response = await api_harness.alice.post(
        "/task-actions", content=content, headers={"Content-Type": "application/json"}
    )
    assert (response.status_code, response.json()["total"]) == (200, 0)


async def test_an_action_is_made_once_for_a_key(api_harness: ApiHarness) -> None:
    """The same Idempotency-Key returns the same action, for the tasks of then; another request with it is refused."""
    await api_harness.create(input="Already there")
    made = await act(api_harness.alice, "delete", "tidy up", q="owner:me")
    done = await finished(api_harness.alice, made)
    later = await api_harness.create(input="Made later")
    body = {"action": "delete", "q": "owner:me"}
    headers = {"Idempotency-Key": "tidy up"}
    again = await api_harness.alice.post("/task-actions", json=body, headers=headers)
    assert (again.status_code, again.json()) == (200, done)
    assert (await api_harness.get(later["id"]))["id"] == later["id"]
    other = await api_harness.alice.post("/task-actions", json={**body, "q": "status:error"}, headers=headers)
    assert (other.status_code, other.json()["message"]) == (409, "Idempotency-Key was used for another request.")
    of_bob = await api_harness.bob.post("/task-actions", json=body, headers=headers)
    assert (of_bob.status_code, of_bob.json()["total"]) == (202, 0)
    assert of_bob.json()["id"] != made["id"]


@pytest.mark.parametrize(("q", "status"), [("owner:me", 202), ("status:error", 409)])
async def test_an_action_whose_key_was_used_meanwhile(
    api_harness: ApiHarness, monkeypatch: pytest.MonkeyPatch, q: str, status: int
) -> None:
    """It is the action of the request that was faster, if both ask for the same, and is refused otherwise."""
    await api_harness.create(input="Deleted once")
    made = await act(api_harness.alice, "delete", "tidy up", q="owner:me")
    await finished(api_harness.alice, made)
    find, looks = task_actions.find, [1]

    async def find_nothing_yet(*arguments: Any) -> Any:
        return None if looks and looks.pop() else await find(*arguments)

    monkeypatch.setattr(task_actions, "find", find_nothing_yet)
    body, headers = {"action": "delete", "q": q}, {"Idempotency-Key": "tidy up"}
    response = await api_harness.alice.post("/task-actions", json=body, headers=headers)
    assert (response.status_code, looks) == (status, [])
    assert len((await api_harness.alice.get("/task-actions")).json()["actions"]) == 1


async def test_a_canceled_action_ends_at_once(start_api: StartApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that waits for another of the same user ends before that, without waiting for the next look."""
    monkeypatch.setattr(executor, "LOOK_INTERVAL", 3_600)
    async with start_api(api_action_rate=0.001) as api_harness:
        for number in range(2):
            await api_harness.create(input=f"One of two {number}")
        await act(api_harness.alice, "delete", q="owner:me")
        await api_harness.worker.until_row("SELECT succeeded FROM task_actions", is_=1)
        made = await act(api_harness.alice, "pause", q="owner:me")
        assert (await api_harness.alice.post(f"/task-actions/{made['id']}/cancel")).status_code == 202
        assert (await finished(api_harness.alice, made))["state"] == "canceled"


async def test_actions_are_private(api_harness: ApiHarness) -> None:
    """Only who made an action sees, watches and cancels it; its id is to everyone else like one that does not exist."""
    await api_harness.create(input="Private matter")
    made = await act(api_harness.alice, "pause", q="owner:me")
    for user in ("bob", "carol", "mallory"):
        client = api_harness.clients[user]
        for method, path in (("GET", ""), ("GET", "/results"), ("GET", "/watch"), ("POST", "/cancel")):
            found = await client.request(method, f"/task-actions/{made['id']}{path}")
            missing = await client.request(method, f"/task-actions/{uuid.uuid4()}{path}")
            assert (found.status_code, found.json()) == (missing.status_code, missing.json()) == (404, missing.json())
        assert (await client.get("/task-actions")).json() == {"actions": [], "next": None}
    assert (await api_harness.anonymous.get(f"/task-actions/{made['id']}")).status_code == 401
    assert (await api_harness.alice.get("/task-actions/seven")).status_code == 404


async def test_the_list_of_actions_has_pages(api_harness: ApiHarness) -> None:
    """Actions are listed newest first, in pages."""
    made = [
        (await finished(api_harness.alice, await act(api_harness.alice, "pause", q="owner:me")))["id"] for _ in "123"
    ]
    page = (await api_harness.alice.get("/task-actions", params={"limit": 2})).json()
    assert [action["id"] for action in page["actions"]] == [made[2], made[1]]
    rest = (await api_harness.alice.get("/task-actions", params={"limit": 2, "after": page["next"]})).json()
    assert ([action["id"] for action in rest["actions"]], rest["next"]) == ([made[0]], None)
    whole = (await api_harness.alice.get("/task-actions", params={"limit": 3})).json()
    assert ([action["id"] for action in whole["actions"]], whole["next"]) == (made[::-1], None)
    assert (await api_harness.alice.get("/task-actions", params={"after": "x"})).status_code == 400


async def test_an_action_keeps_to_its_rate_and_can_be_canceled(start_api: StartApi) -> None:
    """Tasks are changed at the configured rate; after a cancel the rest stay as they are, and the progress ends."""
    async with start_api(api_action_rate=2) as api_harness:
        tasks = [await api_harness.create(input=f"One of six {number}") for number in range(6)]
        loop = asyncio.get_running_loop()
        started = loop.time()
        made = await act(api_harness.alice, "delete", q="owner:me")
        async with sse_client(api_harness.alice, f"/task-actions/{made['id']}/watch") as stream:
            await stream.until(lambda: any(event.data["succeeded"] >= 3 for event in stream.events))
            assert loop.time() - started >= 0.9  # at two a second, the third one comes a second after the first
            canceled = await api_harness.alice.post(f"/task-actions/{made['id']}/cancel")
            assert canceled.status_code == 202
            assert canceled.json()["state"] in {"canceling", "canceled"}
            await stream.until(lambda: stream.events[-1].data["finished_at"] is not None)
        assert {event.event for event in stream.events} == {progress.PROGRESS}
        done = await finished(api_harness.alice, made)
        assert (done["state"], done["refused"], done["failure"]) == ("canceled", 0, None)
        assert 3 <= done["succeeded"] < 6
        listed = (await api_harness.alice.get("/tasks")).json()["tasks"]
        assert len(listed) == done["pending"] == 6 - done["succeeded"]
        left = [row for row in await results(api_harness.alice, made) if row["status"] is None]
        assert sorted(row["task_id"] for row in left) == sorted(task["id"] for task in listed)
        assert {row["task_id"] for row in left} < {task["id"] for task in tasks}
        again = await api_harness.alice.post(f"/task-actions/{made['id']}/cancel")
        assert (again.status_code, again.json()) == (202, done)


async def test_the_actions_of_a_user_share_the_rate(start_api: StartApi) -> None:
    """Many small actions change no more tasks a second than a large one, also those made after others have ended."""
    async with start_api(api_action_rate=2) as api_harness:
        tasks = [await api_harness.create(input=f"One of four {number}") for number in range(4)]
        loop = asyncio.get_running_loop()
        started = loop.time()
        made = [await act(api_harness.alice, "delete", ids=[task["id"]]) for task in tasks[:3]]
        assert (await finished(api_harness.alice, made[2]))["succeeded"] == 1
        assert loop.time() - started >= 0.9  # at two a second, it comes a second after the first one
        last = await act(api_harness.alice, "delete", ids=[tasks[3]["id"]])
        assert (await finished(api_harness.alice, last))["succeeded"] == 1
        assert loop.time() - started >= 1.4


async def test_unfinished_actions_are_limited(start_api: StartApi) -> None:
    """A user has up to ten unfinished actions, one of which is executed at a time; others are not held up."""
    async with start_api(worker=False) as api_harness:
        async with running_worker(api_harness.worker):
            await api_harness.create(input="In many actions")
            await api_harness.create(api_harness.bob, input="In one of Bob")
        made = [await act(api_harness.alice, "delete", q="owner:me") for _ in range(10)]
        response = await api_harness.alice.post("/task-actions", json={"action": "delete", "q": "owner:me"})
        assert (response.status_code, response.json()["message"]) == (409, "Too many actions are unfinished.")
        assert response.json()["detail"].startswith("You may have 10. Cancel one,")
        empty = await act(api_harness.alice, "delete", q="owner:me", ids=[])  # that a request is not to make one
        assert (empty["state"], empty["total"]) == ("completed", 0)
        of_bob = await act(api_harness.bob, "delete", q="owner:me")
        async with running_worker(api_harness.worker):
            assert (await finished(api_harness.bob, of_bob))["succeeded"] == 1
            assert (await finished(api_harness.alice, made[0]))["succeeded"] == 1
            assert (await finished(api_harness.alice, made[1]))["refused"] == 1


async def test_requests_for_actions_in_progress_are_limited(
    api_harness: ApiHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user's fifth one at a time is refused before its body is read; others go on, and it does when one has ended."""
    find, entered, go_on = task_actions.find, asyncio.Queue[uuid.UUID](), asyncio.Event()

    async def find_later(reader: ReadPool, user_id: uuid.UUID, action_id: uuid.UUID) -> Any:
        if user_id == ALICE:
            entered.put_nowait(action_id)
            await go_on.wait()
        return await find(reader, user_id, action_id)

    monkeypatch.setattr(task_actions, "find", find_later)
    ids = [str(uuid.uuid4())]
    requests = [asyncio.create_task(act(api_harness.alice, "pause", ids=ids)) for _ in range(4)]
    async with asyncio.timeout(TIMEOUT):
        for _ in requests:
            await entered.get()
    refused = await api_harness.alice.post("/task-actions", content=b"never read")
    assert (refused.status_code, refused.json()["message"]) == (429, handlers.TOO_MANY)
    assert refused.headers["Retry-After"] == "1"
    await act(api_harness.bob, "pause", ids=ids)
    go_on.set()
    await asyncio.gather(*requests)
    await act(api_harness.alice, "pause", ids=ids)


async def test_what_actions_may_store_of_a_user_is_limited(
    api_harness: ApiHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Actions that are finished at once count, too, until maintenance has deleted their results."""
    monkeypatch.setattr(handlers, "MAX_STORED", handlers.MAX_STORED._replace(tasks=5))
    body: dict[str, Any] = {"action": "pause", "ids": [str(uuid.uuid4()) for _ in range(3)]}
    assert (await act(api_harness.alice, **body))["state"] == "completed"
    refused = await api_harness.alice.post("/task-actions", json=body)
    assert (refused.status_code, refused.json()["message"]) == (429, "You have made too many actions.")
    assert refused.headers["Retry-After"] == str(handlers.PRUNED_AFTER)
    assert (await api_harness.alice.post("/task-actions", json={**body, "dry_run": True})).status_code == 200
    await act(api_harness.bob, **body)
    await api_harness.worker.database.execute("DELETE FROM task_action_tasks")
    await act(api_harness.alice, **body)


async def test_an_action_waits_for_others_of_its_user_without_a_connection(
    api_harness: ApiHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While another process adds one for a user, two requests of the user wait, and those of others do not."""
    monkeypatch.setattr(handlers, "MAX_BUSY", 3_600)
    add, busy = task_actions.add, asyncio.Queue[uuid.UUID]()

    async def noted_add(connection: AsyncConnection, new: NewAction, *arguments: Any) -> NotAdded | None:
        reason = await add(connection, new, *arguments)
        if reason is NotAdded.BUSY:
            busy.put_nowait(new.id)
        return reason

    monkeypatch.setattr(task_actions, "add", noted_add)
    ids = [str(uuid.uuid4())]
    async with adding_for_alice(api_harness):
        requests = [asyncio.create_task(act(api_harness.alice, "pause", ids=ids)) for _ in range(2)]
        waiting: set[uuid.UUID] = set()
        async with asyncio.timeout(TIMEOUT):
            while len(waiting) < 2:
                waiting.add(await busy.get())
        await act(api_harness.bob, "pause", ids=ids)
        assert not any(request.done() for request in requests)
    assert {uuid.UUID(made["id"]) for made in await asyncio.gather(*requests)} == waiting


async def test_an_action_waits_for_others_of_its_user_only_for_a_while(
    api_harness: ApiHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its request is then refused, and may be repeated."""
    monkeypatch.setattr(handlers, "MAX_BUSY", 0)
    body: dict[str, Any] = {"action": "pause", "ids": [str(uuid.uuid4())]}
    async with adding_for_alice(api_harness):
        refused = await api_harness.alice.post("/task-actions", json=body)
    assert (refused.status_code, refused.json()["message"]) == (503, "Other actions of yours are being added.")
    assert refused.headers["Retry-After"] == "2"
    await act(api_harness.alice, **body)


@asynccontextmanager
async def adding_for_alice(api_harness: ApiHarness) -> AsyncIterator[None]:
    """Hold the lock of a process that adds an action of Alice while the block runs."""
    database = api_harness.worker.database
    async with database.transaction():
        await database.execute(f"SELECT pg_advisory_xact_lock({task_actions.LOCK_CLASS}, hashtext($1))", str(ALICE))
        yield


async def test_the_last_action_that_a_user_may_have_can_be_repeated(
    start_api: StartApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repetition beside the first request is the same action, and not one too many."""
    monkeypatch.setattr(handlers, "MAX_STORED", handlers.MAX_STORED._replace(unfinished=1))
    async with start_api(api_action_rate=0.001) as api_harness:
        for number in range(2):
            await api_harness.create(input=f"One of two {number}")
        made = await act(api_harness.alice, "delete", "tidy up", q="owner:me")
        find, looks = task_actions.find, [1]

        async def find_nothing_yet(*arguments: Any) -> Any:
            return None if looks and looks.pop() else await find(*arguments)

        monkeypatch.setattr(task_actions, "find", find_nothing_yet)
        body = {"action": "delete", "q": "owner:me"}
        again = await api_harness.alice.post("/task-actions", json=body, headers={"Idempotency-Key": "tidy up"})
        assert (again.status_code, again.json()["id"], looks) == (202, made["id"], [])
        assert (await api_harness.alice.post("/task-actions", json=body)).status_code == 409


async def test_an_action_is_not_for_what_an_index_that_is_behind_finds(
    api_harness: ApiHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search that needs it is refused, also in a dry run: other tasks may match by now. Others are not."""
    task = await api_harness.create(input="Paused, deleted or whatever")
    monkeypatch.setattr(task_index, "MAX_CORRECTED", -1)
    for q in ("owner:me status:pending", "changed:<1h"):
        for dry_run in (True, False):
            body: dict[str, Any] = {"action": "delete", "q": q, "dry_run": dry_run}
            refused = await api_harness.alice.post("/task-actions", json=body)
            assert (refused.status_code, refused.json()["message"]) == (503, handlers.BEHIND), q
            assert refused.headers["Retry-After"] == "2"
    assert (await api_harness.alice.get("/task-actions")).json()["actions"] == []
    targets: list[dict[str, Any]] = [{"q": "owner:me created:<1h"}, {"ids": [task["id"]]}]
    for target in targets:
        body = {"action": "delete", "dry_run": True, **target}
        shown = await api_harness.alice.post("/task-actions", json=body)
        assert (shown.status_code, shown.json()["total"]) == (200, 1), target
    assert (await act(api_harness.alice, "delete", q="owner:me"))["total"] == 1


async def test_an_action_ends_with_its_token(start_api: StartApi) -> None:
    """Once the token that requested it is revoked, an action fails, says why, and changes no further task."""
    async with start_api(worker=False, api_command_timeout=3) as api_harness:
        async with running_worker(api_harness.worker):
            await api_harness.create(input="Stays as it is")
        made = await act(api_harness.alice, "send", q="owner:me", input="Never arrives")
        database = api_harness.worker.database
        await database.execute(
            "UPDATE api_tokens SET revoked_at = now() WHERE id = $1", api_harness.tokens["alice"][:10]
        )
        await api_harness.worker.until_row(
            "SELECT failure FROM task_actions WHERE id = $1", uuid.UUID(made["id"]), is_=executor.SIGNED_OUT
        )
        assert await database.fetchval("SELECT input FROM task_actions") is None
        async with running_worker(api_harness.worker):
            assert (await api_harness.create(api_harness.bob, input="The worker is back"))["id"]
        assert await database.fetchval("SELECT count(*) FROM inputs") == 0


async def test_a_task_that_the_user_lost_meanwhile_is_left_alone(start_api: StartApi) -> None:
    """Who leaves an organization while an action is executed changes no more of its tasks; the results say 404."""
    async with start_api(api_action_rate=1, worker=False, api_command_timeout=3) as api_harness:
        async with running_worker(api_harness.worker):
            task = await api_harness.create(input="Of an organization that Alice leaves")
        made = await act(api_harness.alice, "delete", q="owner:me")
        await leave(api_harness)
        done = await finished(api_harness.alice, made)
        assert (done["state"], done["refused"]) == ("completed", 1)
        (row,) = await results(api_harness.alice, done)
        assert (row["status"], row["name"]) == (404, None)
        assert (await api_harness.carol.get(f"/tasks/alice/{task['id']}")).status_code == 200


async def test_an_action_goes_on_after_an_outage_of_the_worker(start_api: StartApi) -> None:
    """What was not confirmed is sent again under the same command ids, so each task gets an input once."""
    async with start_api(worker=False, api_command_timeout=3) as api_harness:
        async with running_worker(api_harness.worker):
            tasks = [await api_harness.active(input=f"Gets an input {number}") for number in range(3)]
        made = await act(api_harness.alice, "send", q="owner:me", input="Once, please")
        await api_harness.worker.until_row("SELECT failures > 0 FROM task_actions")
        async with running_worker(api_harness.worker):
            done = await finished(api_harness.alice, made)
        assert (done["state"], done["succeeded"]) == ("completed", 3)
        value = api_harness.api.metrics.registry.get_sample_value
        assert value("taskherd_api_action_tasks_total", {"outcome": "unconfirmed"})
        counts = await api_harness.worker.database.fetch("SELECT task_id, count(*) FROM inputs GROUP BY task_id")
        assert {str(row[0]): row[1] for row in counts} == {task["id"]: 1 for task in tasks}


@pytest.mark.parametrize("lost", ["", ", attempts = 0, command_id = NULL"])
async def test_another_process_repeats_a_step_without_doing_anything_twice(start_api: StartApi, lost: str) -> None:
    """A step whose results were lost with its process is executed again after its lease, with the same effect.

    One of the previous release leaves no attempts either.
    """
    async with start_api() as api_harness:
        database = api_harness.worker.database
        tasks = [await api_harness.active(input=f"Executed twice {number}") for number in range(3)]
        made = await act(api_harness.alice, "send", q="owner:me", input="Said once")
        first = await finished(api_harness.alice, made)
        action_id = uuid.UUID(made["id"])
        await database.execute("UPDATE task_action_tasks SET status = NULL, decided_at = NULL" + lost)
        await database.execute(
            "UPDATE task_actions SET finished_at = NULL, input = 'Said once', succeeded = 0, next_at = now()"
            " WHERE id = $1",
            action_id,
        )
        urls, prefix = api_harness.worker.urls, api_harness.worker.prefix
        async with running_api(*urls, prefix):
            again = await finished(api_harness.alice, made)
        assert {**again, "finished_at": ""} == {**first, "finished_at": ""}
        counts = await database.fetch("SELECT task_id, count(*) FROM inputs GROUP BY task_id")
        assert {str(row[0]): row[1] for row in counts} == {task["id"]: 1 for task in tasks}


async def test_a_delete_that_is_executed_twice_keeps_its_result(api_harness: ApiHarness) -> None:
    """A task that the action itself has deleted, before its results were lost, has no 404."""
    await api_harness.create(input="Deleted by the action")
    made = await act(api_harness.alice, "delete", q="owner:me")
    await finished(api_harness.alice, made)
    database = api_harness.worker.database
    await database.execute("UPDATE task_action_tasks SET status = NULL, decided_at = NULL")
    await database.execute("UPDATE task_actions SET finished_at = NULL, succeeded = 0, next_at = now()")
    done = await finished(api_harness.alice, made)
    assert (done["succeeded"], done["refused"]) == (1, 0)


async def test_resuming_more_than_may_run(start_api: StartApi) -> None:
    """The limit of running tasks holds: those beyond it are refused, with what to do."""
    async with start_api(tasks_running_most=2) as api_harness:
        query = "SELECT count(*) FROM tasks WHERE status = 'error'"
        for number in range(3):
            task = await api_harness.create(input=f"Paused {number}")
            report = build_report(uuid.UUID(task["id"]), 1, "start", "failed", error="no machine")
            await api_harness.worker.report(report)
            await api_harness.worker.until_row(query, is_=number + 1)
        done = await finished(api_harness.alice, await act(api_harness.alice, "resume", q="owner:me status:error"))
        assert (done["succeeded"], done["refused"]) == (2, 1)
        (refused,) = await results(api_harness.alice, done, refused="true")
        assert refused["error"]["message"] == "Too many tasks are running."
        assert "Pause or delete one" in refused["error"]["detail"]


async def test_an_action_that_is_too_old_ends(start_api: StartApi) -> None:
    """An action ends after 12 hours, before the worker could forget which commands it has executed."""
    async with start_api(worker=False, api_command_timeout=3) as api_harness:
        async with running_worker(api_harness.worker):
            await api_harness.create(input="Waits for twelve hours", template_version_id=str(VERSION))
        made = await act(api_harness.alice, "delete", q="owner:me")
        await api_harness.worker.database.execute("UPDATE task_actions SET created_at = now() - interval '12 h'")
        done = await finished(api_harness.alice, made)
        assert (done["state"], done["failure"], done["pending"] + done["unconfirmed"]) == (
            "failed",
            executor.EXPIRED,
            1,
        )


async def test_an_action_survives_a_kill_of_the_api(start_api: StartApi) -> None:
    """Another process goes on with the action of one that was killed; each task gets its input once."""
    async with start_api(api_action_rate=20, api_command_timeout=3) as api_harness:
        tasks = [await api_harness.active(input=f"Survives {number}") for number in range(12)]
        async with process_of(api_harness, "api") as process, client_of(api_harness, process) as client:
            made = await act(client, "send", q="owner:me", input="Once in spite of all")
            await api_harness.worker.until_row("SELECT count(*) > 0 FROM inputs")
        await until_each_has_its_input_once(api_harness, made, tasks)


@pytest.mark.parametrize(
    ("failpoint", "inputs", "saved"), [("action_claimed", 0, 0), ("action_replied", 2, 0), ("action_saved", 2, 2)]
)
async def test_an_action_survives_a_kill_at_each_point_of_a_step(
    start_api: StartApi, monkeypatch: pytest.MonkeyPatch, failpoint: str, inputs: int, saved: int
) -> None:
    """Wherever in its first step the process dies, the next one completes the action; each task gets its input once."""
    monkeypatch.setattr(executor, "LOOK_INTERVAL", 3_600)  # the API of the harness executes nothing
    async with start_api(api_action_rate=20, api_command_timeout=3) as api_harness:
        tasks = [await api_harness.active(input=f"Survives {number}") for number in range(5)]
        words = {"q": "owner:me", "input": "Once in spite of all"}
        async with (
            process_of(api_harness, "api", failpoint=f"{failpoint}:kill") as process,
            client_of(api_harness, process) as client,
        ):
            with suppress(httpx.TransportError):  # it may die before it answers
                await act(client, "send", "nightly", **words)
            assert await asyncio.wait_for(process.wait(), TIMEOUT) == -signal.SIGKILL
        database = api_harness.worker.database
        assert await database.fetchval("SELECT count(*) FROM inputs") == inputs
        assert await database.fetchval("SELECT count(*) FROM task_action_tasks WHERE status IS NOT NULL") == saved
        # The lease ends; that the next process waits for that is shown by the test above.
        assert await database.execute("UPDATE task_actions SET next_at = now()") == "UPDATE 1"
        monkeypatch.undo()
        made = await act_again(api_harness.alice, "send", "nightly", **words)
        url, amqp_url = api_harness.worker.urls
        async with running_api(url, amqp_url, api_harness.worker.prefix, api_action_rate=20, api_command_timeout=3):
            await until_each_has_its_input_once(api_harness, made, tasks)


@pytest.mark.parametrize(
    ("end", "state", "failure"),
    [
        ("UPDATE task_actions SET canceled_at = now(), next_at = now()", "canceled", None),
        ("UPDATE task_actions SET created_at = now() - interval '12 h', next_at = now()", "failed", executor.EXPIRED),
    ],
)
async def test_an_action_that_ends_after_a_kill_tells_what_it_has_done(
    start_api: StartApi, monkeypatch: pytest.MonkeyPatch, end: str, state: str, failure: str | None
) -> None:
    """The replies of its first step were not stored: those tasks have results all the same, and the others none."""
    monkeypatch.setattr(executor, "LOOK_INTERVAL", 3_600)  # the API of the harness executes nothing
    async with start_api() as api_harness:
        tasks = [await api_harness.active(input=f"Half of them {number}") for number in range(4)]
        words = {"q": "owner:me", "input": "Before the end"}
        async with (
            process_of(api_harness, "api", failpoint="action_replied:kill", api_command_timeout="30") as process,
            client_of(api_harness, process) as client,
        ):
            with suppress(httpx.TransportError):  # it may die before it answers
                await act(client, "send", "nightly", **words)
            assert await asyncio.wait_for(process.wait(), TIMEOUT) == -signal.SIGKILL
        database = api_harness.worker.database
        sent = {str(row[0]) for row in await database.fetch("SELECT task_id FROM inputs")}
        assert len(sent) == 2
        assert await database.execute(end) == "UPDATE 1"
        monkeypatch.undo()
        made = await act_again(api_harness.alice, "send", "nightly", **words)
        async with running_api(*api_harness.worker.urls, api_harness.worker.prefix):
            done = await finished(api_harness.alice, made)
        assert (done["state"], done["failure"], done["succeeded"], done["pending"]) == (state, failure, 2, 2)
        told = {row["task_id"]: row["status"] for row in await results(api_harness.alice, done)}
        assert told == {task["id"]: 204 if task["id"] in sent else None for task in tasks}
        assert await database.fetchval("SELECT count(*) FROM inputs") == 2


async def test_an_action_survives_a_kill_of_the_worker(start_api: StartApi) -> None:
    """A worker dies between the commit of its inputs and the replies: the action is told by the next one, once each."""
    async with start_api(worker=False, api_action_rate=20, api_command_timeout=3) as api_harness:
        async with running_worker(api_harness.worker):
            tasks = [await api_harness.active(input=f"Survives {number}") for number in range(5)]
        async with process_of(api_harness, "worker", failpoint="command_committed:kill") as process:
            made = await act(api_harness.alice, "send", q="owner:me", input="Once in spite of all")
            assert await asyncio.wait_for(process.wait(), TIMEOUT) == -signal.SIGKILL
        database = api_harness.worker.database
        assert await database.fetchval("SELECT count(*) > 0 FROM inputs")
        assert await database.fetchval("SELECT count(*) FROM task_action_tasks WHERE status IS NOT NULL") == 0
        async with running_worker(api_harness.worker):
            await until_each_has_its_input_once(api_harness, made, tasks)


@pytest.mark.parametrize(
    "moment",
    ["SELECT failures > 0 FROM task_actions", "SELECT count(*) > 0 FROM task_action_tasks WHERE attempts > 0"],
    ids=["after a step", "during a step"],
)
async def test_what_was_sent_is_not_left_as_it_was(
    start_api: StartApi, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """A worker that holds a command of a canceled action executes it later: its task is unconfirmed, others are not."""
    monkeypatch.setattr(executor, "MAX_SAVED", 1)
    async with start_api(api_action_rate=2, api_command_timeout=3) as api_harness:
        tasks = [await api_harness.active(input=f"Held {number}") for number in range(10)]
        held = await api_harness.worker.block_writes("tasks")
        ids = [task["id"] for task in tasks]
        made = await act(api_harness.alice, "send", ids=ids, input="Later than expected")
        await api_harness.worker.until_row(moment)
        assert (await api_harness.alice.post(f"/task-actions/{made['id']}/cancel")).status_code == 202
        done = await finished(api_harness.alice, made)
        rows = await results(api_harness.alice, done)
        sent = [row for row in rows if row["status"] == 503]
        assert (done["state"], done["succeeded"], done["refused"]) == ("canceled", 0, 0)
        assert (done["unconfirmed"], done["pending"]) == (len(sent), 10 - len(sent))
        assert 0 < len(sent) < 10
        assert {row["error"]["message"] for row in sent} == {executor.NOT_CONFIRMED}
        assert {row["status"] for row in rows} == {503, None}
        assert await results(api_harness.alice, done, refused="true") == sent
        await held.rollback()
        await api_harness.worker.until_row("SELECT count(*) > 0 FROM inputs")
        changed = {str(row[0]) for row in await api_harness.worker.database.fetch("SELECT task_id FROM inputs")}
        assert changed <= {row["task_id"] for row in sent}


@pytest.mark.parametrize("locked", [1, 2])
async def test_a_task_that_is_not_confirmed_holds_up_no_others(
    start_api: StartApi, monkeypatch: pytest.MonkeyPatch, locked: int
) -> None:
    """Others are tried first, and a step fails only if it confirmed nothing; each task gets its input once."""
    save, saved = task_actions.save, list[tuple[int, bool]]()

    async def noting(*arguments: Any, **words: Any) -> None:
        saved.append((len(arguments[2]), words["failed"]))
        await save(*arguments, **words)

    monkeypatch.setattr(task_actions, "save", noting)
    async with start_api(api_action_rate=4, api_command_timeout=3) as api_harness:
        tasks = [await api_harness.active(input=f"One of six {number}") for number in range(6)]
        ids = [task["id"] for task in tasks]
        locks = api_harness.worker.database.transaction()
        await locks.start()
        query = "SELECT id FROM tasks WHERE id = ANY($1) FOR UPDATE"
        await api_harness.worker.database.fetch(query, [uuid.UUID(each) for each in ids[:locked]])
        made = await act(api_harness.alice, "send", ids=ids, input="Once each")
        await api_harness.worker.until_row("SELECT succeeded FROM task_actions", is_=6 - locked)
        await locks.rollback()
        await until_each_has_its_input_once(api_harness, made, tasks)
    assert saved[1:3] == [(2, False)] * 2
    assert all(failed is (confirmed == 0) for confirmed, failed in saved)


FORGET = """
DELETE FROM task_actions; DELETE FROM task_action_tasks;
UPDATE inputs SET created_at = created_at - interval '2 days';
UPDATE command_log SET created_at = created_at - interval '2 days';
"""
"""What maintenance does a day after an action was made, but for the age of what it has left."""


@pytest.mark.parametrize("also", ["", "DELETE FROM command_log"])
async def test_a_key_that_was_forgotten_is_that_of_a_new_action(api_harness: ApiHarness, also: str) -> None:
    """Its commands are executed, whether those of the earlier action are recorded or only their inputs are there."""
    task = await api_harness.active(input="Reminded every night")
    database = api_harness.worker.database
    for night in (1, 2):
        made = await act(api_harness.alice, "send", "nightly", q="owner:me", input="Tidy up")
        done = await finished(api_harness.alice, made)
        assert (done["state"], done["succeeded"], done["refused"]) == ("completed", 1, 0)
        assert await database.fetchval("SELECT count(*) FROM inputs") == night
        await database.execute(FORGET + also)
    assert (await api_harness.get(task["id"]))["id"] == task["id"]


async def test_a_new_action_with_an_old_key_is_executed_once(
    start_api: StartApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process dies before it has stored the results: the next one repeats the same commands, not new ones."""
    monkeypatch.setattr(executor, "LOOK_INTERVAL", 3_600)  # the API of the harness executes only what it has made
    async with start_api(api_action_rate=20) as api_harness:
        database = api_harness.worker.database
        tasks = [await api_harness.active(input=f"Every night {number}") for number in range(3)]
        words = {"q": "owner:me", "input": "Tidy up"}
        await finished(api_harness.alice, await act(api_harness.alice, "send", "nightly", **words))
        await database.execute(FORGET)
        async with (
            process_of(api_harness, "api", failpoint="action_replied:kill") as process,
            client_of(api_harness, process) as client,
        ):
            with suppress(httpx.TransportError):  # it may die before it answers
                await act(client, "send", "nightly", **words)
            assert await asyncio.wait_for(process.wait(), TIMEOUT) == -signal.SIGKILL
        assert await database.fetchval("SELECT count(*) FROM inputs") == 3 + 2
        assert await database.execute("UPDATE task_actions SET next_at = now()") == "UPDATE 1"
        monkeypatch.undo()
        made = await act_again(api_harness.alice, "send", "nightly", **words)
        async with running_api(*api_harness.worker.urls, api_harness.worker.prefix):
            done = await finished(api_harness.alice, made)
        assert (done["state"], done["succeeded"]) == ("completed", 3)
        counts = await database.fetch("SELECT task_id, count(*) FROM inputs GROUP BY task_id")
        assert {str(row[0]): row[1] for row in counts} == {task["id"]: 2 for task in tasks}


async def until_each_has_its_input_once(api_harness: ApiHarness, made: Any, tasks: Sequence[Any]) -> None:
    """Wait until an action that sends an input is finished; each task then has one, and the action says so."""
    done = await finished(api_harness.alice, made)
    ids = {task["id"] for task in tasks}
    assert (done["state"], done["total"], done["succeeded"]) == ("completed", len(ids), len(ids))
    told = await results(api_harness.alice, done)
    assert sorted((row["task_id"], row["status"]) for row in told) == sorted((task_id, 204) for task_id in ids)
    counts = await api_harness.worker.database.fetch("SELECT task_id, count(*) FROM inputs GROUP BY task_id")
    assert {str(row[0]): row[1] for row in counts} == dict.fromkeys(ids, 1)


async def act_again(client: httpx.AsyncClient, action: str, key: str, **fields: Any) -> Any:
    """Repeat the request for an action that was made, as its client does without an answer; return its document."""
    response = await client.post("/task-actions", json={"action": action, **fields}, headers={"Idempotency-Key": key})
    assert response.status_code == 200, response.text
    return response.json()


async def test_an_action_survives_a_restart_of_the_database(start_api: StartApi, services: Services) -> None:
    """Results that could not be stored are obtained again by the same command ids; each task gets its input once."""
    async with start_api(api_action_rate=4, api_command_timeout=3) as api_harness:
        worker = api_harness.worker
        tasks = [await api_harness.active(input=f"Outlives the database {number}") for number in range(8)]
        made = await act(api_harness.alice, "send", q="owner:me", input="Once in spite of it")
        await worker.until_row("SELECT count(*) > 0 FROM inputs")
        name = await worker.database.fetchval("SELECT current_database()")
        server = await asyncpg.connect(services.database_url, timeout=30, command_timeout=30)
        await rename_database(server, name, f"{name}_away")
        await asyncio.wait_for(server.fetchval("SELECT 1"), TIMEOUT)
        await rename_database(server, f"{name}_away", name)
        await server.close()
        done = await until_finished_after_outage(api_harness, made)
        assert (done["state"], done["succeeded"]) == ("completed", 8)
        database = await asyncpg.connect(worker.urls[0], timeout=30)
        counts = await database.fetch("SELECT task_id, count(*) FROM inputs GROUP BY task_id")
        await database.close()
        assert {str(row[0]): row[1] for row in counts} == {task["id"]: 1 for task in tasks}


async def until_finished_after_outage(api_harness: ApiHarness, made: Any) -> Any:
    """Wait until an action is finished, also while the API answers 503."""
    async with asyncio.timeout(60):
        while True:
            response = await api_harness.alice.get(f"/task-actions/{made['id']}")
            if response.status_code == 200 and response.json()["finished_at"] is not None:
                return response.json()
            await asyncio.sleep(0.1)


@dataclass(frozen=True, slots=True)
class OtherProcess:
    """A process of taskherd beside the one of the test; ``port`` is that of its API."""

    running: RunningProcess
    port: int

    async def wait(self) -> int:
        """Wait until it has exited, and return its exit code, negative for a signal."""
        return await self.running.wait()


@asynccontextmanager
async def process_of(api_harness: ApiHarness, program: str, **settings: str) -> AsyncIterator[OtherProcess]:
    """Run ``taskherd api`` or ``taskherd worker`` as a process of its own, and kill it with SIGKILL at the end."""
    (port,) = find_free([None])
    urls = api_harness.worker.urls
    defaults = {
        "database_url": urls[0],
        "amqp_url": urls[1],
        "amqp_prefix": api_harness.worker.prefix,
        "secret_key": SECRET,
        "api_port": str(port),
        "ops_port": "0",
        "api_action_rate": "4",
        "api_command_timeout": "3",
    }
    variables = {f"TASKHERD_{name.upper()}": value for name, value in {**defaults, **settings}.items()}
    process = await fork_server.start(program, {**os.environ, **variables})
    try:
        yield OtherProcess(process, port)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@asynccontextmanager
async def client_of(api_harness: ApiHarness, process: OtherProcess) -> AsyncIterator[httpx.AsyncClient]:
    """Wait until the API of a process answers, and yield a client of Alice for it."""
    base, headers = f"http://127.0.0.1:{process.port}/api/v2", api_harness.alice.headers
    async with httpx.AsyncClient(base_url=base, headers=headers, timeout=30, verify=TLS) as client:
        async with asyncio.timeout(TIMEOUT):
            while True:
                with suppress(httpx.HTTPError):
                    await client.get("/buildinfo")
                    break
                await asyncio.sleep(0.1)
        yield client
