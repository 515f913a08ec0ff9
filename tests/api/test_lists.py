"""Lists of tasks: search, order and pages."""

from __future__ import annotations

import gzip
import uuid
from typing import Any

import pytest

from taskherd.store.pages import MAX_PAGE_BYTES
from tests.api.conftest import StartApi
from tests.harness.api import ALICE, BOB, CAROL, OTHER, ApiHarness
from tests.harness.sse import sse_client
from tests.harness.worker import ORGANIZATION, VERSION, bring_to_status

MESSAGE = "Invalid task search query."


async def names(api_harness: ApiHarness, query: str, username: str = "alice") -> list[str]:
    """Return the names of the tasks that a user's query finds, in order."""
    response = await api_harness.clients[username].get("/tasks", params={"q": query})
    assert response.status_code == 200, response.text
    body = response.json()
    assert body["count"] == len(body["tasks"])
    return [task["name"] for task in body["tasks"]]


async def test_a_query_filters_by_owner_organization_and_status(api_harness: ApiHarness) -> None:
    """Owner, organization and status filter the list; without an owner it has all tasks that the caller may see."""
    for username, name in (("alice", "a1"), ("bob", "b1"), ("alice", "a2"), ("carol", "c1")):
        await api_harness.create(api_harness.clients[username], name=name)
    a3 = await api_harness.active(name="a3")
    everything = ["a3", "c1", "a2", "b1", "a1"]
    for query in ("", "owner:me", "me", 'owner:"me" status:"pending"', "organization:acme", "organization:default"):
        expected = ["a2", "a1"] if "pending" in query else ["a3", "a2", "a1"]
        assert await names(api_harness, query) == expected, query
    for query in (
        f"owner:{ALICE}",
        "owner:ALICE",
        "owner:alice organization:acme",
        f"organization:{ORGANIZATION} alice",
    ):
        assert await names(api_harness, query) == ["a3", "a2", "a1"], query
    assert await names(api_harness, "", "carol") == everything
    assert await names(api_harness, "organization:acme", "carol") == everything
    assert await names(api_harness, f"owner:{BOB}", "carol") == ["b1"]
    assert await names(api_harness, "status:active", "carol") == ["a3"]
    for query in ("owner:bob", f"owner:{uuid.uuid4()}", f"organization:{OTHER}", "status:paused"):
        assert await names(api_harness, query) == [], query
    assert await names(api_harness, "", "mallory") == []
    await api_harness.alice.delete(f"/tasks/me/{a3['id']}")
    assert await names(api_harness, "") == ["a2", "a1"]


async def test_a_former_admin_lists_no_tasks_of_the_organization(api_harness: ApiHarness) -> None:
    """Once the membership of an admin is deactivated, the organization's tasks are gone from every list."""
    await api_harness.create(name="of-alice")
    await api_harness.create(api_harness.clients["carol"], name="of-carol")
    assert await names(api_harness, "", "carol") == ["of-carol", "of-alice"]
    await api_harness.worker.database.execute("UPDATE memberships SET active = false WHERE user_id = $1", CAROL)
    for query in ("", "status:pending", f"owner:{ALICE}", "owner:me"):
        assert await names(api_harness, query, "carol") == [], query
    assert await names(api_harness, "") == ["of-alice"]


@pytest.mark.parametrize(
    ("query", "field", "detail"),
    [
        ("owner:dave", "owner", 'Query param "owner" has invalid value: '),
        ("dave smith", "owner", 'Query param "owner" has invalid value: '),
        ("organization:nowhere", "organization", 'Query param "organization" has invalid value: '),
        ("status:done", "status", 'Query param "status" has invalid value: '),
        ("colour:red", "colour", ""),
        ("owner:me owner:me", "q", ""),
        (":me", "q", ""),
        ("owner:", "q", ""),
        ("owner:a\0b", "owner", ""),
    ],
)
async def test_an_invalid_query_is_rejected(api_harness: ApiHarness, query: str, field: str, detail: str) -> None:
    """An invalid query is a 400 with the message that clients match on, and names the invalid part."""
    response = await api_harness.alice.get("/tasks", params={"q": query})
    body: dict[str, Any] = response.json()
    assert (response.status_code, body["message"]) == (400, MESSAGE)
    assert body["validations"][0]["field"] == field
    assert body["validations"][0]["detail"].startswith(detail)


async def test_pages_contain_each_task_once(api_harness: ApiHarness) -> None:
    """With a limit the list is returned in pages, newest first, each task once; ``next`` is null on the last page."""
    created = [(await api_harness.create(name=f"t{number}"))["name"] for number in range(5)]
    await api_harness.create(api_harness.bob, name="bobs")
    for username, expected in (("alice", created[::-1]), ("carol", ["bobs", *created[::-1]])):
        listed: list[str] = []
        after = ""
        while True:
            response = await api_harness.clients[username].get(
                "/tasks", params={"limit": 2, **({"after": after} if after else {})}
            )
            body = response.json()
            assert body["count"] == len(body["tasks"]) <= 2
            listed += [task["name"] for task in body["tasks"]]
            if body["next"] is None:
                break
            after = body["next"]
        assert listed == expected
    for parameters in (
        {"limit": "0"},
        {"limit": "501"},
        {"limit": "x"},
        {"limit": ""},
        {"after": "x"},
        {"after": "_" * 32},
    ):
        assert (await api_harness.alice.get("/tasks", params=parameters)).status_code == 400, parameters


async def test_no_page_is_larger_than_its_maximum(api_harness: ApiHarness) -> None:
    """One more entry than a page may have is refused, with the bounds; as many as that are not."""
    task = (await api_harness.create(name="with-a-log"))["id"]
    action = await api_harness.alice.post("/task-actions", json={"action": "pause", "q": "owner:me"})
    for path, parameter, least, most in (
        ("/task-actions", "limit", 1, 500),
        (f"/task-actions/{action.json()['id']}/results", "limit", 1, 500),
        (f"/task-actions/{action.json()['id']}/results", "after", 0, 10_000),
        ("/task-overview", "limit", 1, 50),
        ("/deleted-tasks", "limit", 1, 100),
        (f"/tasks/me/{task}/logs", "limit", 1, 10_000),
        ("/workspaces", "limit", 0, 100_000),
        ("/workspaces", "offset", 0, 100_000),
        (f"/workspaces/{task}/builds", "offset", 0, 100_000),
    ):
        for value in (least, most):
            response = await api_harness.alice.get(path, params={parameter: value})
            assert response.status_code == 200, (path, value, response.text)
        for value in (least - 1, most + 1):
            response = await api_harness.alice.get(path, params={parameter: value})
            detail = f"Expected a whole number from {least} to {most}."
            assert response.json()["validations"] == [{"field": parameter, "detail": detail}], (path, value)


async def test_a_list_without_a_limit_is_truncated(start_api: StartApi) -> None:
    """A list of more tasks than the configured maximum has the newest ones, and a header that it is truncated."""
    async with start_api(api_list_most=500) as api_harness:
        await bring_to_status(api_harness.worker, "pending")
        await api_harness.worker.database.execute("""
            INSERT INTO tasks (id, owner_id, organization_id, template_id, template_version_id, name, display_name,
                               created_at, version, updated_at, status, document, state, prompt_version)
            SELECT gen_random_uuid(), owner_id, organization_id, template_id, template_version_id, 'n' || number,
                   display_name, created_at, version, updated_at, status, document, state, prompt_version
            FROM tasks, generate_series(1, 500) AS number""")
        await api_harness.worker.database.execute("""
            INSERT INTO task_prompts SELECT id, 1, '' FROM tasks ON CONFLICT DO NOTHING""")
        response = await api_harness.alice.get("/tasks")
        assert (response.json()["count"], response.headers["X-Taskherd-Truncated"]) == (500, "true")
        assert "next" not in response.json()
        paged = await api_harness.alice.get("/tasks", params={"limit": 500})
        rest = await api_harness.alice.get("/tasks", params={"after": paged.json()["next"]})
        assert (paged.json()["count"], rest.json()["count"], rest.json()["next"]) == (500, 1, None)


async def test_a_large_list_is_compressed_for_clients_that_accept_it(api_harness: ApiHarness) -> None:
    """The bytes on the wire are gzip, the tag is weak in both forms, and a 304 follows; one task stays plain."""
    for number in range(4):
        await api_harness.create(name=f"packed-{number}")
    alice = api_harness.alice
    plain = await alice.get("/tasks", headers={"Accept-Encoding": "identity"})
    async with alice.stream("GET", "/tasks", headers={"Accept-Encoding": "gzip"}) as response:
        wire = b"".join([each async for each in response.aiter_raw()])
    assert gzip.decompress(wire) == plain.content
    assert int(response.headers["Content-Length"]) == len(wire) < len(plain.content) / 2
    assert response.headers["Content-Encoding"] == "gzip"
    assert response.headers["ETag"] == plain.headers["ETag"]
    assert plain.headers["ETag"].startswith('W/"')
    assert response.headers["Vary"] == plain.headers["Vary"] == "Accept-Encoding"
    for tag in (plain.headers["ETag"], plain.headers["ETag"].removeprefix("W/")):
        for encoding in ("gzip", "identity"):
            unchanged = await alice.get("/tasks", headers={"Accept-Encoding": encoding, "If-None-Match": tag})
            assert (unchanged.status_code, unchanged.content) == (304, b"")
            assert unchanged.headers["Vary"] == "Accept-Encoding"
    head = await alice.head("/tasks", headers={"Accept-Encoding": "gzip"})
    assert (head.headers["Content-Length"], head.content) == (str(len(wire)), b"")
    task = await alice.get("/tasks/me/packed-0", headers={"Accept-Encoding": "gzip"})
    assert "Content-Encoding" not in task.headers
    assert "Vary" not in task.headers


async def test_what_lists_and_streams_hold_in_memory_is_bounded_in_bytes(api_harness: ApiHarness) -> None:
    """Prompts have up to 256 KiB each: a page ends sooner, says so, and all tasks are reached, page by page."""
    count, size = 40, 256 * 1024
    tasks = [{"template_version_id": str(VERSION), "input": f"of {number}"} for number in range(count)]
    created = await api_harness.alice.post("/task-batches", json={"tasks": tasks})
    assert created.status_code == 200, created.text
    ids = {result["task"]["id"] for result in created.json()["results"]}
    await api_harness.worker.database.execute("UPDATE task_prompts SET prompt = rpad(prompt, $1, '.')", size)

    unpaged = await api_harness.alice.get("/tasks")
    assert unpaged.headers["X-Taskherd-Truncated"] == "true"
    assert MAX_PAGE_BYTES < len(unpaged.content) < MAX_PAGE_BYTES + 2 * size
    assert 0 < unpaged.json()["count"] < count
    found, after = list[str](), ""
    while True:
        page = (await api_harness.alice.get("/tasks", params={"limit": count, "after": after})).json()
        found += [task["id"] for task in page["tasks"]]
        if page["next"] is None:
            break
        after = page["next"]
    assert (len(found), set(found)) == (count, ids)

    overview = await api_harness.alice.get("/task-overview", params={"limit": 50})
    group = overview.json()["groups"]["pending"]
    assert len(group["tasks"]) == 4
    assert group["next"] is not None

    async with sse_client(api_harness.alice, "/tasks/watch", snapshot="true") as stream:
        await stream.ready()
        assert sorted(each.task["id"] for each in stream.events) == sorted(ids)
        assert {len(each.task["initial_prompt"]) for each in stream.events} == {size}
    async with sse_client(api_harness.alice, "/tasks/watch", "0") as stream:
        await stream.until(lambda: len(stream.events) >= count)
        assert sorted(each.task["id"] for each in stream.events) == sorted(ids)
        assert {len(each.task["initial_prompt"]) for each in stream.events} == {size}
