"""Keys: a key counts only while the token with which it was requested does, and while who requested it may hold it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import httpx
import pytest
from structlog.testing import capture_logs

from taskherd.api.http import authenticator
from taskherd.store import tokens
from taskherd.store.engine import dispose, open_engine, transaction
from tests.api.test_access import until_refused
from tests.api.test_open_requests import BOUND
from tests.api.test_sse import until_subscribers
from tests.api.test_strangers import failures
from tests.harness.api import ALICE, BOB, CAROL, OTHER, ApiHarness

REVOKE = "UPDATE api_tokens SET revoked_at = now() WHERE id = $1"


async def key_of(client: httpx.AsyncClient, user: str = "me") -> str:
    """Create a key of a user and return it."""
    response = await client.post(f"/users/{user}/keys")
    assert response.status_code == 201, response.text
    key: str = response.json()["key"]
    return key


def client_with(api_harness: ApiHarness, token: str) -> httpx.AsyncClient:
    """Return a new client of the API with this token."""
    headers = {"Coder-Session-Token": token}
    return httpx.AsyncClient(base_url=api_harness.alice.base_url, headers=headers, verify=False)  # noqa: S501 - http


async def states(api_harness: ApiHarness) -> dict[str, str]:
    """Return the states of all tokens by id, as ``taskherd token list`` shows them."""
    engine = open_engine(api_harness.worker.urls[0], size=1, application_name="tests")
    async with transaction(engine) as connection:
        rows = await tokens.list_tokens(connection, None, 100)
    await dispose(engine)
    return {row.id: row.state for row in rows}


async def test_a_key_ends_with_the_token_that_requested_it(api_harness: ApiHarness) -> None:
    """A key that a stolen token made, and one that this key made, end with the token, and so do their streams."""
    first = await key_of(api_harness.alice)
    async with client_with(api_harness, first) as client, client_with(api_harness, await key_of(client)) as second:
        assert (await second.get("/tasks")).status_code == 200
        async with client.stream("GET", "/tasks/watch"), second.stream("GET", "/tasks/watch"):
            await until_subscribers(api_harness, 2)
            await api_harness.worker.database.execute(REVOKE, api_harness.tokens["alice"][:10])
            async with asyncio.timeout(BOUND):
                await until_subscribers(api_harness, 0)
        for each in (client, second):
            await until_refused(each)
            assert (await each.get("/tasks")).status_code == 401
    assert set((await states(api_harness)).values()) == {"active", "revoked"}
    assert (await states(api_harness))[first[:10]] == "revoked"


async def expire(api_harness: ApiHarness) -> None:
    """Let the token of the admin expire."""
    token = api_harness.tokens["carol"][:10]
    await api_harness.worker.database.execute("UPDATE api_tokens SET expires_at = now() WHERE id = $1", token)


async def deactivate(api_harness: ApiHarness) -> None:
    """Deactivate the admin."""
    await api_harness.worker.database.execute("UPDATE users SET active = false WHERE id = $1", CAROL)


async def demote(api_harness: ApiHarness) -> None:
    """Make the admin a member."""
    await api_harness.worker.database.execute("UPDATE memberships SET role = 'member' WHERE user_id = $1", CAROL)


async def leave(api_harness: ApiHarness) -> None:
    """Let the admin leave the organization."""
    await api_harness.worker.database.execute("UPDATE memberships SET active = false WHERE user_id = $1", CAROL)


async def join(api_harness: ApiHarness) -> None:
    """Let the user of the key join another organization."""
    await api_harness.worker.database.execute(
        "INSERT INTO memberships (user_id, organization_id, role) VALUES ($1, $2, 'member')", BOB, OTHER
    )


@pytest.mark.parametrize("change", [expire, deactivate, demote, leave, join], ids=lambda each: each.__name__)
async def test_an_admins_key_of_a_user_ends_with_the_right_to_it(
    api_harness: ApiHarness, change: Callable[[ApiHarness], Awaitable[None]]
) -> None:
    """An admin's key of a member, and a key made with it, end once the admin could create it no more."""
    key = await key_of(api_harness.carol, "bob")
    async with client_with(api_harness, key) as client, client_with(api_harness, await key_of(client)) as child:
        async with child.stream("GET", "/tasks/watch"):
            await until_subscribers(api_harness, 1)
            await change(api_harness)
            async with asyncio.timeout(BOUND):
                await until_subscribers(api_harness, 0)
        await until_refused(client)
        await until_refused(child)
    assert (await api_harness.bob.get("/tasks")).status_code == 200, "the user's own token goes on"


async def test_an_admin_of_all_organizations_of_a_user_keeps_the_key(
    api_harness: ApiHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the user joins does not end the key of who is an admin there, too."""
    monkeypatch.setattr(authenticator, "CACHE_TTL", 0.0)
    await api_harness.worker.database.execute(
        "INSERT INTO memberships (user_id, organization_id, role) VALUES ($1, $2, 'admin')", CAROL, OTHER
    )
    async with client_with(api_harness, await key_of(api_harness.carol, "bob")) as client:
        await join(api_harness)
        organizations = await client.get("/users/me/organizations")
        assert organizations.status_code == 200
        assert {each["name"] for each in organizations.json()} == {"acme", "other"}


async def test_a_revoked_token_creates_no_key(api_harness: ApiHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that was revoked while a process still has it in its cache creates no key."""
    monkeypatch.setattr(authenticator, "CACHE_TTL", 3_600.0)
    assert (await api_harness.alice.get("/tasks")).status_code == 200
    await api_harness.worker.database.execute(REVOKE, api_harness.tokens["alice"][:10])
    assert (await api_harness.alice.get("/tasks")).status_code == 200, "it is still in the cache"
    assert (await api_harness.alice.post("/users/me/keys")).status_code == 401
    assert await api_harness.worker.database.fetchval("SELECT count(*) FROM api_tokens WHERE user_id = $1", ALICE) == 1


async def test_a_deleted_token_is_an_unknown_one(api_harness: ApiHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that ended, and the key that was made with it; those of others work on."""
    monkeypatch.setattr(authenticator, "CACHE_TTL", 0.0)
    database = api_harness.worker.database
    async with client_with(api_harness, await key_of(api_harness.alice)) as client:
        for each in (api_harness.alice, client):
            assert (await each.get("/tasks")).status_code == 200
        await database.execute(  # not so long ago that the worker deletes it first
            "UPDATE api_tokens SET revoked_at = now() - interval '1 hour' WHERE id = $1",
            api_harness.tokens["alice"][:10],
        )
        deleted = 0
        while deleted < 2:  # those are left whose use the API records at this moment
            deleted += await database.fetchval("SELECT taskherd_prune_tokens(now(), 10)")
        assert deleted == 2
        for each in (api_harness.alice, client):
            assert (await each.get("/tasks")).status_code == 401
            assert (await each.post("/users/me/keys")).status_code == 401
    assert (failures(api_harness, "unknown"), failures(api_harness, "revoked")) == (4, 0)
    assert (await api_harness.bob.get("/tasks")).status_code == 200
    assert ALICE not in {row[0] for row in await database.fetch("SELECT user_id FROM api_tokens")}


async def test_keys_are_made_from_few_others(api_harness: ApiHarness) -> None:
    """A chain of keys, each made with the one before, ends after eight; the refused key is not stored."""
    token = api_harness.tokens["alice"]
    for _ in range(8):
        async with client_with(api_harness, token) as client:
            token = await key_of(client)
    async with client_with(api_harness, token) as client:
        refused = await client.post("/users/me/keys")
        assert (refused.status_code, refused.json()["message"]) == (409, "The key was issued from too many others.")
    assert await api_harness.worker.database.fetchval("SELECT count(*) FROM api_tokens WHERE user_id = $1", ALICE) == 9


async def test_a_revoked_token_makes_room_for_what_it_made(
    api_harness: ApiHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys that ended with their token do not count as valid ones of their user."""
    monkeypatch.setattr("taskherd.api.directory.users.MAX_TOKENS", 2)
    async with client_with(api_harness, await key_of(api_harness.alice)) as client:
        assert (await client.post("/users/me/keys")).status_code == 409
        monkeypatch.setattr("taskherd.api.directory.users.MAX_TOKENS", 3)
        await key_of(client)
        assert (await client.post("/users/me/keys")).status_code == 409
        await api_harness.worker.database.execute(REVOKE, client.headers["Coder-Session-Token"][:10])
    await key_of(api_harness.alice)
    await key_of(api_harness.alice)


async def test_the_log_says_whose_key_was_created(api_harness: ApiHarness) -> None:
    """The line names the user, the new token and the one that requested it, and no secret."""
    with capture_logs() as lines:
        key = await key_of(api_harness.carol, "bob")
    (line,) = [each for each in lines if each["event"] == "key created"]
    assert line == {
        "event": "key created",
        "log_level": "info",
        "key_id": key[:10],
        "user": "bob",
        "user_id": str(BOB),
        "issued_from": api_harness.tokens["carol"][:10],
        "issued_by": "carol",
        "issued_by_id": str(CAROL),
    }
    assert key[11:] not in str(lines)
