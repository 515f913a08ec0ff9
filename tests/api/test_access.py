"""Access: tokens and their end, and that a caller cannot tell whether a resource of another user exists."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Iterator
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
    """Return method and path of every route that names a task, under every prefix."""
    for route in ROUTES:
        if "{task}" in route.path:
            for prefix in (PREFIX, EXPERIMENTAL) if route.experimental else (PREFIX,):
                yield route.method, prefix + route.path


async def until_refused(client: httpx.AsyncClient) -> None:
    """Wait until a token is no longer accepted, which takes about a second."""
    async with asyncio.timeout(TIMEOUT):
        while (await client.get("/tasks")).status_code == 200:  # noqa: ASYNC110 - the end of a token causes no event
            await asyncio.sleep(0.05)


async def test_both_headers_authenticate(api_harness: ApiHarness) -> None:
    """The session header and a bearer token are accepted; a query parameter is not."""
    token = api_harness.tokens["alice"]
    for headers in (
        {"Coder-Session-Token": token},
        {"Authorization": f"Bearer {token}"},
        {"authorization": f"bearer {token}"},
    ):
        assert (await api_harness.anonymous.get("/tasks", headers=headers)).status_code == 200
    assert (
        await api_harness.anonymous.get("/tasks", params={"token": token, "coder_session_token": token})
    ).status_code == 401


async def test_every_route_requires_a_valid_token(api_harness: ApiHarness) -> None:
    """Without a valid token, every route that requires one returns the same 401."""
    agents = agent_token(SECRET, uuid.uuid4(), 1)
    invalid = [
        "",
        "x",
        f"{api_harness.tokens['alice'][:-1]}!",
        f"{api_harness.tokens['alice'][:10]}-{'x' * 32}",
        f"{'x' * 10}-{'x' * 32}",
        agents,
    ]
    for route in ROUTES:
        if route.auth is not Auth.USER:
            continue
        path = PREFIX + route.path.replace("{user}", "me").replace("{task}", str(uuid.uuid4()))
        for token in invalid:
            headers = {"Coder-Session-Token": token} if token else {}
            response = await api_harness.anonymous.request(route.method, f"{api_harness.base}{path}", headers=headers)
            assert (response.status_code, response.json()) == (401, SIGNED_OUT), (path, token)
            assert response.headers["WWW-Authenticate"] == 'Bearer realm="coder"'


async def test_revoked_and_expired_tokens_are_rejected(api_harness: ApiHarness) -> None:
    """A revoked token, an expired one and a deactivated user are rejected within a second."""
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


async def test_the_task_of_another_user_looks_like_a_missing_one(api_harness: ApiHarness) -> None:
    """On every route that names a task, another user's task and a missing one give identical 404s."""
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
            body = {"input": "x", "labels": {"repo": "x"}}
            response = await api_harness.bob.request(method, f"{api_harness.base}{filled}", json=body)
            headers = {name: value for name, value in response.headers.items() if name != "date"}
            answers.add((response.status_code, response.content, tuple(sorted(headers.items()))))
        assert len(answers) == 1, (method, path, answers)
        assert next(iter(answers))[:2] == (
            404,
            b'{"message":"Resource not found or you do not have access to this resource"}',
        )
    assert await api_harness.get(task["id"]) == task


async def test_an_admin_sees_and_changes_all_tasks_of_the_organization(api_harness: ApiHarness) -> None:
    """An admin reads and deletes the tasks of members; an admin of another organization sees nothing."""
    task = await api_harness.create(name="private")
    for path in (f"/tasks/me/{task['id']}", "/tasks/alice/private"):
        assert (await api_harness.carol.get(path)).json() == task
        assert (await api_harness.mallory.get(path)).status_code == 404
    assert (await api_harness.mallory.delete(f"/tasks/me/{task['id']}")).status_code == 404
    await api_harness.worker.database.execute("UPDATE memberships SET active = false WHERE role = 'admin'")
    assert (await api_harness.carol.get("/tasks/alice/private")).status_code == 404
    await api_harness.worker.database.execute("UPDATE memberships SET active = true")
    assert (await api_harness.carol.delete("/tasks/alice/private")).status_code == 202


async def test_the_users_that_tasks_can_be_created_for(api_harness: ApiHarness) -> None:
    """Users create tasks for themselves, admins for members with the organization's templates; others look missing."""
    body: dict[str, Any] = {"template_version_id": str(VERSION), "input": "x"}
    created = await api_harness.carol.post("/tasks/bob", json=body)
    assert (created.status_code, created.json()["owner_name"], created.json()["owner_avatar_url"]) == (
        201,
        "bob",
        "/bob.png",
    )
    assert (await api_harness.bob.get(f"/tasks/me/{created.json()['id']}")).status_code == 200
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


async def test_the_last_use_of_a_token_is_stored(api_harness: ApiHarness) -> None:
    """The last-used time of a token is stored when the process stops, at the latest."""
    assert (await api_harness.alice.get("/tasks")).status_code == 200
    api_harness.api.stop()
    query = "SELECT last_used_at IS NOT NULL FROM api_tokens WHERE id = $1"
    await api_harness.worker.until_row(query, api_harness.tokens["alice"][:10])
    assert not await api_harness.worker.database.fetchval(query, api_harness.tokens["mallory"][:10])


async def at_once(request: Callable[[], Awaitable[httpx.Response]]) -> list[httpx.Response]:
    """Make thirty requests together, and return the answers: a slow machine makes few in a second one by one."""
    return await asyncio.gather(*(request() for _ in range(30)))


async def test_the_rate_limit(start_api: StartApi) -> None:
    """A user over the rate gets a 429 with Retry-After, others do not; guessing tokens is limited by address."""
    async with start_api(api_rate_limit=1, api_rate_burst=5) as api_harness:
        answers = await at_once(lambda: api_harness.alice.get("/tasks"))
        refused = next(each for each in answers if each.status_code == 429)
        assert [each.status_code for each in answers].count(200) >= 5
        assert 1 <= int(refused.headers["Retry-After"]) <= 60
        assert refused.json()["message"] == "You have made too many requests. Please wait."
        assert (await api_harness.bob.get("/tasks")).status_code == 200
        guessed = {"Coder-Session-Token": "x" * 10 + "-" + "y" * 32}
        guesses: list[int] = []
        async with asyncio.timeout(TIMEOUT):
            while 429 not in guesses:  # those that fail count when they have
                made = await at_once(lambda: api_harness.anonymous.get("/tasks", headers=guessed))
                guesses += [each.status_code for each in made]
        assert (guesses.count(401) >= 5, set(guesses)) == (True, {401, 429})
        async with asyncio.timeout(TIMEOUT):
            while (await api_harness.alice.get("/tasks")).status_code == 429:  # noqa: ASYNC110 - a bucket sends no event
                await asyncio.sleep(0.2)
