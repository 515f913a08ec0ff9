"""The overview: what the first page of a board shows, in one answer, and the position from which it is followed."""

from __future__ import annotations

import uuid
from typing import Any

import httpx
import pytest

from taskherd.api.tasks.overview import GROUPS
from tests.harness.api import ApiHarness
from tests.harness.asking import active, asked, titles
from tests.harness.sse import sse_client
from tests.harness.worker import make_report


async def overview(client: httpx.AsyncClient, **query: Any) -> dict[str, Any]:
    """Return the overview of what a caller sees."""
    response = await client.get("/task-overview", params=query)
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def names(found: dict[str, Any]) -> dict[str, list[str]]:
    """Return the names of the tasks in each group that has any."""
    return {
        name: [task["name"] for task in group["tasks"]] for name, group in found["groups"].items() if group["tasks"]
    }


async def say(harness: ApiHarness, task_id: uuid.UUID, state: str) -> None:
    """Report the state of an agent, and wait until it is shown."""
    await harness.worker.report(make_report("app.status", task_id, state=state, message=state, build_number=1))
    await harness.worker.until(lambda: harness.worker.state(task_id).get("state") == state)


async def test_an_overview_has_everything_in_one_answer(api_harness: ApiHarness) -> None:
    """A task is in the groups that it belongs to, as the list of the same terms has it, beside totals and requests."""
    harness = api_harness
    ids = {
        name: await active(harness, name=name)
        for name in ("asks", "waits", "waits-too", "fails", "works", "works-too", "silent")
    }
    for name, state in (
        ("waits", "idle"), ("waits-too", "idle"), ("fails", "failed"), ("works", "working"), ("works-too", "working"),
    ):  # fmt: skip
        await say(harness, ids[name], state)
    done = await active(harness, name="done")
    await say(harness, done, "complete")
    await asked(harness, ids["asks"], title="Which branch?")
    await harness.create(harness.alice, name="queued")
    found = await overview(harness.alice, q="owner:me")
    assert titles(found["requests"]) == ["Which branch?"]
    shown = names(found)
    shown["idle"].sort()  # the time of the last change is exact to a minute
    assert shown == {
        "idle": ["waits", "waits-too"],
        "failed": ["fails"],
        "working": ["works-too", "works"],
        "active": ["done", "silent", "works-too", "works", "fails", "waits-too", "waits", "asks"],
        "pending": ["queued"],
        "complete": ["done"],
    }
    assert set(found["groups"]) == set(GROUPS)
    assert found["totals"] == (await harness.alice.get("/task-totals", params={"q": "owner:me"})).json()
    for name, group in found["groups"].items():
        query = {"q": f"owner:me {group['q']}", "sort": group["sort"], "limit": 12, "include": "state_since"}
        listed = (await harness.alice.get("/tasks", params=query)).json()
        if name != "active" or group["tasks"]:
            assert (group["tasks"], group["next"]) == (listed["tasks"], listed["next"]), name


async def test_an_idle_agent_that_is_not_healthy_is_there_too(api_harness: ApiHarness) -> None:
    """The totals of what needs a person count healthy agents only; the group is read nevertheless."""
    task_id = await active(api_harness, name="start-failed")
    await say(api_harness, task_id, "idle")
    report = make_report("agent.lifecycle", task_id, lifecycle="start_error", build_number=1)
    await api_harness.worker.report(report)
    worker = api_harness.worker
    await worker.until(lambda: not worker.document(task_id)["workspace_agent_health"]["healthy"])
    found = await overview(api_harness.alice)
    assert (found["totals"]["attention"]["idle"], names(found)["idle"]) == (0, ["start-failed"])


async def test_a_group_has_a_cursor_for_its_next_page(api_harness: ApiHarness) -> None:
    """The list of a group's terms goes on where the overview ends."""
    for number in range(5):
        await api_harness.create(api_harness.alice, name=f"queued-{number}")
    pending = (await overview(api_harness.alice, limit=2))["groups"]["pending"]
    assert [task["name"] for task in pending["tasks"]] == ["queued-4", "queued-3"]
    query = {"q": pending["q"], "sort": pending["sort"], "limit": 9, "after": pending["next"]}
    rest = (await api_harness.alice.get("/tasks", params=query)).json()
    assert [task["name"] for task in rest["tasks"]] == ["queued-2", "queued-1", "queued-0"]


async def test_an_overview_has_what_the_caller_may_see(api_harness: ApiHarness) -> None:
    """An admin sees the tasks of all members, a member the own ones, and who belongs elsewhere none."""
    await api_harness.create(api_harness.alice, name="of-alice")
    await asked(api_harness, await active(api_harness, name="asks"), title="Secret?")
    await api_harness.create(api_harness.bob, name="of-bob")
    assert names(await overview(api_harness.carol))["pending"] == ["of-bob", "of-alice"]
    assert names(await overview(api_harness.carol, q="owner:bob")) == {"pending": ["of-bob"]}
    assert names(await overview(api_harness.bob)) == {"pending": ["of-bob"]}
    assert names(await overview(api_harness.carol, q="template:claude"))["pending"] == ["of-bob", "of-alice"]
    assert names(await overview(api_harness.carol, q="template:other")) == {}
    assert names(await overview(api_harness.carol, q="pool:nowhere")) == {}
    stranger = await overview(api_harness.mallory)
    assert (names(stranger), stranger["requests"]["requests"], stranger["totals"]["total"]) == ({}, [], 0)


async def test_what_changes_after_an_overview_is_followed_from_its_position(api_harness: ApiHarness) -> None:
    """A stream that resumes after the position has what the overview lacks, without a snapshot or a gap."""
    first = uuid.UUID((await api_harness.create(api_harness.alice, name="first"))["id"])
    await api_harness.worker.make_active(first)
    found = await overview(api_harness.alice)
    await say(api_harness, first, "working")
    await api_harness.create(api_harness.alice, name="second")
    async with sse_client(api_harness.alice, "/tasks/watch", str(found["position"]), snapshot="false") as stream:
        await stream.until(lambda: stream.events and stream.events[-1].task["name"] == "second")
    assert set(stream.types()) == {"task.updated", "task.created"}
    assert {each.task["name"] for each in stream.events} == {"first", "second"}


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"q": "status:active"}, "status"),
        ({"q": "owner:nobody-here"}, "owner"),
        ({"limit": "0"}, "limit"),
        ({"limit": "51"}, "limit"),
    ],
)
async def test_an_overview_refuses_what_it_does_not_know(
    api_harness: ApiHarness, query: dict[str, str], field: str
) -> None:
    """A term that its groups have themselves, a stranger's name, and a limit out of range are errors that say so."""
    response = await api_harness.alice.get("/task-overview", params=query)
    assert response.status_code == 400
    assert response.json()["validations"][0]["field"] == field
