"""Who may: tokens, their end, and that what is not the caller's can't be told from what is not there."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from typing import Any

import httpx

from taskherd.api.http.route import Auth
from taskherd.api.routes import EXPERIMENTAL, PREFIX, ROUTES
from taskherd.messages.agent_tokens import agent_token
from tests.api.conftest import StartApi
from tests.harness.api import OTHER_VERSION, TIMEOUT, VERSION, ApiHarness
from tests.harness.worker import SECRET

SIGNED_OUT = {"message": "You are signed out or your session has expired. Please sign in again to continue."}


def task_routes() -> Iterator[tuple[str, str]]:
    """Method and path of every route that names a task, under every prefix."""
    for route in ROUTES:
        if "{task}" in route.path:
            for prefix in (PREFIX, EXPERIMENTAL) if route.experimental else (PREFIX,):
                yield route.method, prefix + route.path


async def until_refused(client: httpx.AsyncClient) -> None:
    """Wait until a token no longer holds; that takes a second at most."""
    async with asyncio.timeout(2):
        while (await client.get("/tasks")).status_code == 200:  # noqa: ASYNC110 - a token tells nobody that it ended
            await asyncio.sleep(0.05)


async def test_both_headers_sign_in(api_harness: ApiHarness) -> None:
    """The session header and a bearer token do; a cookie and a query string don't."""
    token = api_harness.tokens["alice"]
    for headers in (
        {"Coder-Session-Token": token},
        {"Authorization": f"Bearer {token}"},
        {"authorization": f"bearer {token}"},
    ):
        assert (await api_harness.anonymous.get("/tasks", headers=headers)).status_code == 200
    assert (
        await api_harness.anonymous.get("/tasks", headers={"Cookie": f"coder_session_token={token}"})
    ).status_code == 401
    assert (
        await api_harness.anonymous.get("/tasks", params={"token": token, "coder_session_token": token})
    ).status_code == 401


async def test_every_route_asks_who(api_harness: ApiHarness) -> None:
    """Without a token that holds every route that wants one answers the very same 401, whatever it was."""
    other = agent_token(SECRET, uuid.uuid4(), 1)
    wrong = [
        "",
        "x",
        f"{api_harness.tokens['alice'][:-1]}!",
        f"{api_harness.tokens['alice'][:10]}-{'x' * 32}",
        f"{'x' * 10}-{'x' * 32}",
        other,
    ]
    for route in ROUTES:
        if route.auth is not Auth.USER:
            continue
        path = PREFIX + route.path.replace("{user}", "me").replace("{task}", str(uuid.uuid4()))
        for token in wrong:
            headers = {"Coder-Session-Token": token} if token else {}
            response = await api_harness.anonymous.request(route.method, f"{api_harness.base}{path}", headers=headers)
            assert (response.status_code, response.json()) == (401, SIGNED_OUT), (path, token)
            assert response.headers["WWW-Authenticate"] == 'Bearer realm="coder"'


async def test_a_token_ends(api_harness: ApiHarness) -> None:
    """A revoked token, an expired one and a deactivated user are refused within a second."""
    database = api_harness.worker.database
    assert (await api_harness.alice.get("/tasks")).status_code == 200
    await database.execute("UPDATE api_tokens SET revoked_at = now() WHERE id = $1", api_harness.tokens["alice"][:10])
    await until_refused(api_harness.alice)
    await database.execute(
        "UPDATE api_tokens SET expires_at = now() + interval '300 ms' WHERE id = $1", api_harness.tokens["bob"][:10]
    )
    await until_refused(api_harness.bob)
    await database.execute("UPDATE users SET active = false WHERE username = 'carol'")
    await until_refused(api_harness.carol)


async def test_not_yours_is_not_there(api_harness: ApiHarness) -> None:
    """On every route that names a task, another's task and none give byte-identical 404s, by id and by name."""
    task = await api_harness.create(name="private")
    await api_harness.create(api_harness.bob, name="bobs")
    for method, path in task_routes():
        answers = set()
        for user, name in (
            ("me", task["id"]),
            ("alice", task["id"]),
            ("alice", "private"),
            ("me", "private"),
            ("me", str(uuid.uuid4())),
            ("alice", "nothing"),
            ("nobody-there", task["id"]),
            ("me", "a%00b"),
            ("%00", "private"),
            ("me", "x" * 300),
            (str(uuid.uuid4()), "private"),
        ):
            filled = path.replace("{user}", user).replace("{task}", name)
            response = await api_harness.bob.request(method, f"{api_harness.base}{filled}", json={"input": "x"})
            kept = {name: value for name, value in response.headers.items() if name != "date"}
            answers.add((response.status_code, response.content, tuple(sorted(kept.items()))))
        assert len(answers) == 1, (method, path, answers)
        assert next(iter(answers))[:2] == (
            404,
            b'{"message":"Resource not found or you do not have access to this resource"}',
        )
    assert await api_harness.get(task["id"]) == task


async def test_an_admin_of_the_organization_sees_and_changes_all_of_it(api_harness: ApiHarness) -> None:
    """An admin reads, lists, pauses and deletes the members' tasks; one of another organization sees nothing."""
    task = await api_harness.create(name="private")
    for path in (f"/tasks/me/{task['id']}", "/tasks/alice/private"):
        assert (await api_harness.carol.get(path)).json() == task
        assert (await api_harness.mallory.get(path)).status_code == 404
    assert (await api_harness.mallory.delete(f"/tasks/me/{task['id']}")).status_code == 404
    await api_harness.worker.database.execute("UPDATE memberships SET active = false WHERE role = 'admin'")
    assert (await api_harness.carol.get("/tasks/alice/private")).status_code == 404
    await api_harness.worker.database.execute("UPDATE memberships SET active = true")
    assert (await api_harness.carol.delete("/tasks/alice/private")).status_code == 202


async def test_whom_tasks_are_created_for(api_harness: ApiHarness) -> None:
    """Everybody for themselves; an admin for members, from what the organization has; the rest can't be probed."""
    body: dict[str, Any] = {"template_version_id": str(VERSION), "input": "x"}
    made = await api_harness.carol.post("/tasks/bob", json=body)
    assert (made.status_code, made.json()["owner_name"], made.json()["owner_avatar_url"]) == (201, "bob", "/bob.png")
    assert (await api_harness.bob.get(f"/tasks/me/{made.json()['id']}")).status_code == 200
    refused = await api_harness.carol.post("/tasks/bob", json={**body, "template_version_id": str(OTHER_VERSION)})
    assert (refused.status_code, refused.json()["message"]) == (
        400,
        "Template version not found or you do not have access to this resource",
    )
    answers = {
        (response.status_code, response.content)
        for response in [
            await api_harness.bob.post(f"/tasks/{user}", json=body)
            for user in ("alice", "mallory", "nobody-there", str(uuid.uuid4()), "a%00b")
        ]
    }
    assert len(answers) == 1
    assert next(iter(answers))[0] == 404
    assert (await api_harness.carol.post("/tasks/mallory", json=body)).status_code == 404


async def test_use_is_noted(api_harness: ApiHarness) -> None:
    """When a token was last used is written down at the latest when the process ends."""
    assert (await api_harness.alice.get("/tasks")).status_code == 200
    api_harness.api.stop()
    query = "SELECT last_used_at IS NOT NULL FROM api_tokens WHERE id = $1"
    await api_harness.worker.until_row(query, api_harness.tokens["alice"][:10])
    assert not await api_harness.worker.database.fetchval(query, api_harness.tokens["mallory"][:10])


async def test_too_many_requests(start_api: StartApi) -> None:
    """A user over the rate gets 429 with Retry-After, others don't; guessing tokens is limited by address."""
    async with start_api(api_rate_limit=1, api_rate_burst=5) as api_harness:
        answers = [await api_harness.alice.get("/tasks") for _ in range(7)]
        assert [each.status_code for each in answers[:5]] == [200] * 5
        assert answers[-1].status_code == 429
        assert 1 <= int(answers[-1].headers["Retry-After"]) <= 60
        assert answers[-1].json()["message"] == "You have made too many requests. Please wait."
        assert (await api_harness.bob.get("/tasks")).status_code == 200
        guesses = [
            await api_harness.anonymous.get("/tasks", headers={"Coder-Session-Token": "x" * 10 + "-" + "y" * 32})
            for _ in range(7)
        ]
        assert [each.status_code for each in guesses][:5] == [401] * 5
        assert guesses[-1].status_code == 429
        async with asyncio.timeout(TIMEOUT):
            while (await api_harness.alice.get("/tasks")).status_code == 429:  # noqa: ASYNC110 - a bucket tells nobody
                await asyncio.sleep(0.2)
