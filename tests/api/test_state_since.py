"""Since when a task is in its state: beside the document, for those who ask, whatever else is said of the task."""

from __future__ import annotations

import asyncio
import uuid
from functools import partial
from typing import Any

import pytest

from tests.api.test_sse import until_subscribers
from tests.harness.api import ApiHarness
from tests.harness.asking import asked
from tests.harness.sse import SseClient, sse_client
from tests.harness.worker import make_report

INCLUDE = {"include": "state_since"}


async def shown(harness: ApiHarness, task_id: str) -> dict[str, Any]:
    """Return a task with ``state_since``."""
    response = await harness.alice.get(f"/tasks/me/{task_id}", params=INCLUDE)
    assert response.status_code == 200, response.text
    document: dict[str, Any] = response.json()
    return document


async def say(harness: ApiHarness, task_id: str, state: str, message: str) -> dict[str, Any]:
    """Report what an agent says, and return the task once that shows."""
    report = make_report("app.status", uuid.UUID(task_id), state=state, message=message, build_number=1)
    await harness.worker.report(report)
    worker = harness.worker
    await worker.until(lambda: worker.state(uuid.UUID(task_id)).get("message") == message)
    return await shown(harness, task_id)


async def test_only_another_state_begins_its_time_anew(api_harness: ApiHarness) -> None:
    """Messages, links, labels and names of agents leave it as it is; a state, a status or a request do not."""
    created = await api_harness.create()
    assert (await shown(api_harness, created["id"]))["state_since"] == created["created_at"]
    task_id = (await api_harness.active())["id"]
    working = await say(api_harness, task_id, "working", "Reading")
    assert working["state_since"] == working["updated_at"] > working["created_at"]
    again = await say(api_harness, task_id, "working", "Writing")
    labelled = await api_harness.alice.patch(f"/tasks/me/{task_id}/labels", json={"labels": {"team": "blue"}})
    assert labelled.status_code == 200
    later = await shown(api_harness, task_id)
    assert working["current_state"]["timestamp"] < again["current_state"]["timestamp"]
    assert again["state_since"] == later["state_since"] == working["state_since"] < again["updated_at"]
    assert later["updated_at"] > again["updated_at"]
    idle = await say(api_harness, task_id, "idle", "Done")
    assert idle["state_since"] == idle["updated_at"]
    await asked(api_harness, uuid.UUID(task_id), title="Which branch?")
    waiting = await shown(api_harness, task_id)
    assert idle["state_since"] < waiting["state_since"] == waiting["updated_at"]


async def test_only_who_asks_is_told(api_harness: ApiHarness) -> None:
    """It is no part of the document; lists, one task, long polls and streams have it on request, an overview always."""
    task_id = (await api_harness.active())["id"]
    told = await say(api_harness, task_id, "idle", "Done")
    client, since = api_harness.alice, told.pop("state_since")
    path = f"/tasks/me/{task_id}"
    assert told == await api_harness.get(task_id)
    assert (await client.get("/tasks")).json()["tasks"] == [told]
    assert (await client.get("/tasks", params=INCLUDE)).json()["tasks"] == [{**told, "state_since": since}]
    assert (await client.get("/tasks?q=state:idle", params=INCLUDE)).json()["tasks"][0]["state_since"] == since
    assert (await client.get(path, params={**INCLUDE, "wait": "60s"})).json()["state_since"] == since
    assert (await client.get("/task-overview")).json()["groups"]["idle"]["tasks"] == [{**told, "state_since": since}]
    for each in ("/tasks", path, "/tasks/watch", f"{path}/watch"):
        refused = await client.get(each, params={"include": "prompt"})
        assert (refused.status_code, refused.json()["validations"][0]["field"]) == (400, "include"), each


@pytest.mark.parametrize("path", ["/tasks/watch", "/tasks/me/{}/watch", "/tasks/me/{}/watch?logs=10"])
async def test_streams_tell_it_with_each_change(api_harness: ApiHarness, path: str) -> None:
    """Those who did not ask get the document alone."""
    task_id = (await api_harness.active())["id"]
    working = await say(api_harness, task_id, "working", "one")
    path, _, query = path.format(task_id).partition("?")
    others = dict([query.split("=")]) if query else {}
    async with (
        sse_client(api_harness.alice, path, **INCLUDE, **others) as asks,
        sse_client(api_harness.alice, path, **others) as plain,
    ):
        await asks.ready()
        await plain.ready()
        assert asks.events[0].task["state_since"] == working["state_since"]
        last = await say(api_harness, task_id, "working", "two")
        for each in (asks, plain):
            await each.until(partial(_is_at, each, last))
        assert _tasks(asks)[-1] == last
        assert last["state_since"] == working["state_since"]
        assert all("state_since" not in task for task in _tasks(plain))


async def test_who_resumes_is_told_of_the_state_that_stands(api_harness: ApiHarness) -> None:
    """A change that another state has followed does not tell since when, the last one does."""
    task_id = (await api_harness.active())["id"]
    await say(api_harness, task_id, "working", "one")
    async with sse_client(api_harness.alice, "/tasks/watch", **INCLUDE, snapshot="false") as stream:
        await stream.ready()
        idle = await say(api_harness, task_id, "idle", "two")
        await stream.until(partial(_is_at, stream, idle))
        position = stream.last
    await say(api_harness, task_id, "idle", "three")
    working = await say(api_harness, task_id, "working", "four")
    last = await say(api_harness, task_id, "working", "five")
    async with sse_client(api_harness.alice, "/tasks/watch", position, **INCLUDE) as resumed:
        await resumed.until(partial(_is_at, resumed, last))
        told = {task["current_state"]["message"]: task["state_since"] for task in _tasks(resumed)}
    assert told == {"three": None, "four": working["state_since"], "five": working["state_since"]}


def _tasks(stream: SseClient) -> list[dict[str, Any]]:
    return [each.task for each in stream.events if each.event in {"task.snapshot", "task.updated"}]


def _is_at(stream: SseClient, task: dict[str, Any]) -> bool:
    return bool(_tasks(stream)) and bool(_tasks(stream)[-1]["updated_at"] == task["updated_at"])


async def test_a_long_poll_tells_it_of_the_change_that_ends_it(api_harness: ApiHarness) -> None:
    """The answer to a long poll is the change itself, which has what it was asked for."""
    task_id = (await api_harness.active())["id"]
    await say(api_harness, task_id, "working", "one")
    asked_for = api_harness.alice.get(f"/tasks/me/{task_id}", params={**INCLUDE, "wait": "60s"})
    waiting = asyncio.create_task(asked_for)
    await until_subscribers(api_harness, 1)
    idle = await say(api_harness, task_id, "idle", "two")
    assert (await waiting).json() == idle


async def test_a_task_of_an_earlier_release_has_none_until_its_state_changes(api_harness: ApiHarness) -> None:
    """What was not kept is null, not made up; the next state brings it."""
    task_id = (await api_harness.active())["id"]
    await say(api_harness, task_id, "working", "one")
    await api_harness.worker.database.execute(
        "UPDATE tasks SET state = (CAST(state AS jsonb) - 'since')::json WHERE id = $1", uuid.UUID(task_id)
    )
    assert (await shown(api_harness, task_id))["state_since"] is None
    assert (await say(api_harness, task_id, "working", "two"))["state_since"] is None
    idle = await say(api_harness, task_id, "idle", "three")
    assert idle["state_since"] == idle["updated_at"]
