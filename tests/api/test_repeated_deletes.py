"""Who repeats a delete with its Idempotency-Key, because its answer was lost, is told again that it is deleted."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.api.test_clients import WORKSPACE, start_build

if TYPE_CHECKING:
    from tests.harness.api import ApiHarness

Ask = Callable[[httpx.AsyncClient, str], Awaitable[httpx.Response]]
GONE = "UPDATE memberships SET active = false WHERE user_id = (SELECT id FROM users WHERE username = 'alice')"


def deleting(path: str) -> Ask:
    """Return what deletes the task at a path with a key."""

    async def ask(client: httpx.AsyncClient, key: str) -> httpx.Response:
        return await client.delete(path, headers={"Idempotency-Key": key})

    return ask


def building(workspace: str, transition: str = "delete") -> Ask:
    """Return what requests a build of a workspace with a key."""

    async def ask(client: httpx.AsyncClient, key: str) -> httpx.Response:
        path, body = f"/workspaces/{workspace}/builds", {"transition": transition}
        return await client.post(path, json=body, headers={"Idempotency-Key": key})

    return ask


@pytest.mark.parametrize("way", ["id", "name", "workspace", "build", "build of the task"])
async def test_a_repeated_delete_has_the_same_result(api_harness: ApiHarness, way: str) -> None:
    """However the task is named, once: another key, or the same one of another user, finds no task."""
    task = await api_harness.create(name="done-with")
    await start_build(api_harness, task["id"])
    ask = {
        "id": deleting(f"/tasks/me/{task['id']}"),
        "name": deleting("/tasks/alice/Done-With"),
        "workspace": deleting(f"/tasks/me/{WORKSPACE}"),
        "build": building(WORKSPACE),
        "build of the task": building(task["id"]),
    }[way]
    first = await ask(api_harness.alice, "once")
    again = await ask(api_harness.alice, "once")
    done = 201 if way.startswith("build") else 202
    assert (first.status_code, again.status_code) == (done, done), again.text
    assert again.text == first.text
    assert (await ask(api_harness.alice, "twice")).status_code == 404
    for client in (api_harness.bob, api_harness.carol, api_harness.mallory):
        assert (await ask(client, "once")).status_code == 404
    await api_harness.worker.database.execute(GONE)
    assert (await ask(api_harness.alice, "once")).status_code == 404


async def test_a_key_repeats_nothing_but_the_delete_that_it_was_used_for(api_harness: ApiHarness) -> None:
    """Not one of another task, nor what another command did before its task was deleted, nor another command."""
    alice, first, second, third = api_harness.alice, *[await api_harness.create() for _ in range(3)]
    paused = await alice.post(f"/tasks/me/{second['id']}/pause", headers={"Idempotency-Key": "pause"})
    assert paused.status_code in {202, 409}
    for task, key in ((first, "one"), (second, "two")):
        assert (await deleting(f"/tasks/me/{task['id']}")(alice, key)).status_code == 202
    refused = await deleting(f"/tasks/me/{third['id']}")(alice, "one")
    assert (refused.status_code, refused.json()["message"]) == (409, "Idempotency-Key was used for another request.")
    for ask, key in (
        (deleting(f"/tasks/me/{second['id']}"), "one"),
        (deleting(f"/tasks/me/{second['id']}"), "pause"),
        (deleting(f"/tasks/bob/{first['name']}"), "one"),
        (deleting("/tasks/me/nothing"), "one"),
        (building(second["id"]), "one"),
        (building(first["id"], "stop"), "one"),
    ):
        assert (await ask(alice, key)).status_code == 404
    sent = await alice.post(f"/tasks/me/{first['id']}/pause", headers={"Idempotency-Key": "one"})
    assert sent.status_code == 404
