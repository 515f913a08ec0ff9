"""Tokens: which are valid, which of them a client may use, who may have one issued for whom, and which are deleted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from taskherd.store import access_queries, tokens
from taskherd.store.access_queries import AccessKey
from taskherd.store.engine import transaction
from taskherd.store.read_pool import ReadPool
from taskherd.store.task_creation import insert_tasks
from taskherd.store.tokens import NewToken
from tests.store.conftest import NOW, execute_script, next_version, task_row

ACME, BETA = UUID(int=0xA), UUID(int=0xB)
ALICE, BOB, CAROL, EVE = (UUID(int=number) for number in (0xA1, 0xB1, 0xC1, 0xE1))
HOUR, WEEK = timedelta(hours=1), timedelta(days=7)

DIRECTORY = f"""
INSERT INTO organizations (id, name, display_name) VALUES ('{ACME}', 'acme', ''), ('{BETA}', 'beta', '');
INSERT INTO users (id, username, name, email, avatar_url, active) VALUES
    ('{ALICE}', 'alice', '', '', '', true), ('{BOB}', 'bob', '', '', '', true),
    ('{CAROL}', 'carol', '', '', '', true), ('{EVE}', 'eve', '', '', '', false);
INSERT INTO memberships (user_id, organization_id, role, active) VALUES
    ('{ALICE}', '{ACME}', 'member', true), ('{ALICE}', '{BETA}', 'member', false),
    ('{BOB}', '{ACME}', 'member', true), ('{BOB}', '{BETA}', 'member', true),
    ('{CAROL}', '{ACME}', 'admin', true), ('{EVE}', '{ACME}', 'member', true);
"""
TOKENS = f"""
INSERT INTO api_tokens (id, user_id, secret_hash, created_at, expires_at, revoked_at, last_used_at) VALUES
    ('forever', '{ALICE}', 'f', now() - interval '9 h', NULL, NULL, now() - interval '1 h'),
    ('ending', '{ALICE}', 'e', now() - interval '2 h', now() + interval '1 h', NULL, NULL),
    ('expired', '{BOB}', 'x', now() - interval '3 h', now(), NULL, NULL),
    ('revoked', '{BOB}', 'r', now() - interval '4 h', now(), now(), NULL),
    ('of-eve', '{EVE}', 'v', now() - interval '5 h', NULL, NULL, NULL),
    ('of-carol', '{CAROL}', 'c', now() - interval '6 h', NULL, NULL, now() - interval '8 h');
"""
CHILDREN = f"""
INSERT INTO api_tokens (id, user_id, secret_hash, created_at, issued_from, issued_by) VALUES
    ('own', '{ALICE}', 'o', now() - interval '7 h', 'forever', '{ALICE}'),
    ('own-of-own', '{ALICE}', 'oo', now() - interval '7 h', 'own', '{ALICE}'),
    ('by-admin', '{ALICE}', 'a', now() - interval '7 h', 'of-carol', '{CAROL}'),
    ('by-former-admin', '{BOB}', 'b', now() - interval '7 h', 'of-carol', '{CAROL}'),
    ('of-expired', '{BOB}', 'p', now() - interval '7 h', 'expired', '{BOB}'),
    ('of-of-expired', '{BOB}', 'pp', now() - interval '7 h', 'of-expired', '{BOB}'),
    ('of-revoked', '{BOB}', 'q', now() - interval '7 h', 'revoked', '{BOB}');
"""
END_ROOTS = "UPDATE api_tokens SET revoked_at = now() WHERE id IN ('forever', 'of-carol')"
VALID = {"forever", "ending", "of-carol", "own", "own-of-own", "by-admin"}


@pytest.fixture
async def reader(database_url: str, engine: AsyncEngine) -> AsyncIterator[ReadPool]:
    """Yield a pool for readers, with users and their tokens."""
    await execute_script(engine, DIRECTORY + TOKENS + CHILDREN)
    pool = ReadPool(database_url, size=1, application_name="taskherd-tests")
    yield pool
    await pool.close()


async def execute(engine: AsyncEngine, statement: str) -> None:
    """Execute a statement in a transaction of its own."""
    async with transaction(engine) as connection:
        await connection.execute(text(statement))


async def test_a_token_is_valid_while_all_that_it_depends_on_is(engine: AsyncEngine, reader: ReadPool) -> None:
    """Its own end, its user, and the tokens and rights with which it was issued, however far back."""
    states = dict.fromkeys(VALID, "active") | {
        "expired": "expired", "of-eve": "deactivated", "by-former-admin": "suspended",
    }  # fmt: skip
    async with transaction(engine) as connection:
        listed = await tokens.list_tokens(connection, None, 100)
        assert {row.id: row.state for row in listed} == {
            **dict.fromkeys((row.id for row in listed), "revoked"), **states,
        }  # fmt: skip
        assert {row.id for row in listed if await tokens.is_valid(connection, row.id)} == VALID
        assert not await tokens.is_valid(connection, "unknown")
        users = (ALICE, BOB, CAROL, EVE)
        assert [await tokens.count_valid(connection, user) for user in users] == [5, 0, 1, 0]
        assert [await tokens.depth(connection, each) for each in ("forever", "own", "own-of-own")] == [0, 1, 2]
    rows = await reader.fetch(tokens.VALID_HASHES, 100)
    assert {row["id"] for row in rows} == VALID
    backed = {row.id: bool((await reader.fetch(tokens.BACKED, row.id))[0]["backed"]) for row in listed}
    assert {token for token, is_backed in backed.items() if not is_backed} == {
        "by-former-admin", "of-expired", "of-of-expired", "of-revoked",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "lost"),
    [
        ("UPDATE api_tokens SET revoked_at = now() WHERE id = 'forever'", {"forever", "own", "own-of-own"}),
        ("UPDATE api_tokens SET expires_at = now() WHERE id = 'own'", {"own", "own-of-own"}),
        (f"UPDATE users SET active = false WHERE id = '{CAROL}'", {"of-carol", "by-admin"}),
        (f"UPDATE memberships SET active = false WHERE user_id = '{CAROL}'", {"by-admin"}),
        (f"UPDATE memberships SET role = 'member' WHERE user_id = '{CAROL}'", {"by-admin"}),
        (f"UPDATE memberships SET active = true WHERE user_id = '{ALICE}'", {"by-admin"}),
        (f"UPDATE memberships SET active = false WHERE user_id = '{ALICE}'", {"by-admin"}),
        (f"UPDATE memberships SET active = false WHERE user_id = '{BOB}'", set()),
    ],
)
async def test_what_ends_ends_what_was_issued_from_it(
    engine: AsyncEngine, reader: ReadPool, change: str, lost: set[str]
) -> None:
    """Another's token also ends with the right to it: an admin of all organizations that the user is in has it."""
    await execute(engine, change)
    assert {row["id"] for row in await reader.fetch(tokens.VALID_HASHES, 100)} == VALID - lost


@pytest.mark.parametrize(
    ("change", "ended", "undo"),
    [
        (
            f"UPDATE users SET active = false WHERE id = '{ALICE}'",
            dict.fromkeys(("forever", "ending", "own", "own-of-own", "by-admin"), "deactivated"),
            f"UPDATE users SET active = true WHERE id = '{ALICE}'",
        ),
        (
            f"UPDATE users SET active = false WHERE id = '{CAROL}'",
            {"of-carol": "deactivated", "by-admin": "suspended"},
            f"UPDATE users SET active = true WHERE id = '{CAROL}'",
        ),
        (
            f"UPDATE memberships SET role = 'member' WHERE user_id = '{CAROL}'",
            {"by-admin": "suspended"},
            f"UPDATE memberships SET role = 'admin' WHERE user_id = '{CAROL}'",
        ),
        (
            "UPDATE api_tokens SET expires_at = now() WHERE id = 'own'",
            {"own": "expired", "own-of-own": "revoked"},
            None,
        ),
        (
            f"UPDATE users SET active = false WHERE id = '{ALICE}';\n{END_ROOTS}",
            {
                **dict.fromkeys(("forever", "own", "own-of-own", "of-carol", "by-admin"), "revoked"),
                "ending": "deactivated",
            },
            None,
        ),
    ],
)
async def test_a_list_tells_what_may_be_valid_again(
    engine: AsyncEngine, reader: ReadPool, change: str, ended: dict[str, str], undo: str | None
) -> None:
    """Only what is revoked or expired is so for good; such a token, and none that may return, can be left as it is."""
    await execute_script(engine, f"{change};\n")
    async with transaction(engine) as connection:
        states = {row.id: row.state for row in await tokens.list_tokens(connection, None, 100) if row.id in VALID}
    assert states == dict.fromkeys(VALID, "active") | ended
    if undo is not None:
        await execute(engine, undo)
        assert {row["id"] for row in await reader.fetch(tokens.VALID_HASHES, 100)} == VALID


async def test_tokens_that_are_kept_while_a_user_is_away(engine: AsyncEngine, reader: ReadPool) -> None:
    """Those that have not ended, of active users and others; one that is revoked meanwhile does not return."""
    assert reader is not None
    async with transaction(engine) as connection:
        assert [await tokens.count_kept(connection, of) for of in ((EVE,), (BOB,), (ALICE, EVE), ())] == [1, 1, 6, 0]
        assert await tokens.revoke(connection, "of-eve")
        assert await tokens.count_kept(connection, (EVE,)) == 0


async def test_who_is_an_admin_of_all_organizations_of_a_user_keeps_a_token(
    engine: AsyncEngine, reader: ReadPool
) -> None:
    """One more organization ends it, unless the issuer is an admin of that one too."""
    admin = f"INSERT INTO memberships (user_id, organization_id, role) VALUES ('{CAROL}', '{BETA}', 'admin')"
    await execute(engine, admin)
    found = {row["id"] for row in await reader.fetch(tokens.VALID_HASHES, 100)}
    assert found == VALID | {"by-former-admin"}


async def test_the_holder_of_a_token(reader: ReadPool) -> None:
    """With why it is not valid, its remaining lifetime, and whether it was issued from another one."""
    for token, user, problem, issued in (
        ("forever", "alice", None, False), ("ending", "alice", None, False), ("expired", "bob", "expired", False),
        ("revoked", "bob", "revoked", False), ("of-eve", "eve", "deactivated", False), ("own", "alice", None, True),
    ):  # fmt: skip
        row = await reader.fetch_one(tokens.HOLDER, token)
        assert row is not None
        assert (row["username"], row["problem"], row["issued"]) == (user, problem, issued), token
        if token == "ending":
            assert 0 < row["holds"] <= HOUR.total_seconds()
        elif token not in {"expired", "revoked"}:
            assert row["holds"] is None
    assert await reader.fetch_one(tokens.HOLDER, "unknown") is None


async def test_of_many_valid_tokens_those_are_known_that_were_used_or_made_last(reader: ReadPool) -> None:
    """Up to the limit."""
    rows = await reader.fetch(tokens.VALID_HASHES, 3)
    assert [row["id"] for row in rows] == ["forever", "ending", "of-carol"]
    assert rows[0]["secret_hash"] == b"f"


async def test_a_list_has_the_newest_tokens_first(engine: AsyncEngine, reader: ReadPool) -> None:
    """Those of one moment by their ids; of one user, whose name is written in any way, or of all; up to the limit."""
    assert reader is not None
    async with transaction(engine) as connection:
        listed = [row.id for row in await tokens.list_tokens(connection, None, 100)]
        assert listed == [
            "ending", "expired", "revoked", "of-eve", "of-carol", "by-admin", "by-former-admin", "of-expired",
            "of-of-expired", "of-revoked", "own", "own-of-own", "forever",
        ]  # fmt: skip
        assert [row.id for row in await tokens.list_tokens(connection, None, 2)] == listed[:2]
        (of_carol,) = await tokens.list_tokens(connection, "CAROL", 100)
        assert (of_carol.id, of_carol.username) == ("of-carol", "carol")
        assert of_carol.last_used_at is not None


async def test_a_token_is_added_for_an_active_user(engine: AsyncEngine, reader: ReadPool) -> None:
    """It ends after its lifetime, or never; nobody else gets one."""
    async with transaction(engine) as connection:
        assert await tokens.add(connection, "new", b"n", "ALICE", None) == ALICE
        assert await tokens.add(connection, "short", b"s", "bob", HOUR) == BOB
        for name in ("eve", "nobody"):
            assert await tokens.add(connection, name, b"x", name, None) is None
    ends = "SELECT id, expires_at - now() AS ends FROM api_tokens WHERE id = ANY($1) ORDER BY id"
    new, short = await reader.fetch(ends, ["eve", "new", "nobody", "short"])
    assert (new["id"], new["ends"]) == ("new", None)
    assert timedelta(minutes=50) < short["ends"] <= HOUR


@pytest.mark.parametrize(
    ("presented", "user", "is_issued"),
    [
        ("forever", ALICE, True),
        ("own-of-own", ALICE, True),
        ("of-carol", ALICE, True),
        ("of-carol", BOB, False),
        ("of-carol", EVE, False),
        ("forever", BOB, False),
        ("forever", CAROL, False),
        ("expired", BOB, False),
        ("revoked", BOB, False),
        ("of-eve", EVE, False),
        ("of-expired", BOB, False),
        ("unknown", ALICE, False),
    ],
)
async def test_whose_token_may_be_issued_from_which(
    engine: AsyncEngine, reader: ReadPool, presented: str, user: UUID, *, is_issued: bool
) -> None:
    """From a valid one: for its own user, and for members of whose organizations its user is an admin."""
    async with transaction(engine) as connection:
        assert await tokens.issue(connection, NewToken("new", b"n", user, presented), WEEK) is is_issued
    row = await reader.fetch_one("SELECT * FROM api_tokens WHERE id = 'new'")
    assert (row is not None) is is_issued
    if row is not None:
        issuer = CAROL if presented == "of-carol" else ALICE
        assert (row["user_id"], row["issued_from"], row["issued_by"]) == (user, presented, issuer)


async def test_a_user_without_an_organization_belongs_to_no_admin(engine: AsyncEngine, reader: ReadPool) -> None:
    """Nobody but the user may have a token issued, though nobody lacks the right in any organization."""
    await execute(engine, f"UPDATE memberships SET active = false WHERE user_id = '{ALICE}'")
    async with transaction(engine) as connection:
        assert not await tokens.issue(connection, NewToken("new", b"n", ALICE, "of-carol"), WEEK)
        assert await tokens.issue(connection, NewToken("new", b"n", ALICE, "forever"), WEEK)
    assert await reader.fetch_one(tokens.HOLDER, "new")


async def test_a_token_ends_no_later_than_the_one_that_it_was_issued_from(
    engine: AsyncEngine, reader: ReadPool
) -> None:
    """Nor later than it should itself."""
    async with transaction(engine) as connection:
        assert await tokens.issue(connection, NewToken("week", b"w", ALICE, "ending"), WEEK)
        assert await tokens.issue(connection, NewToken("minute", b"m", ALICE, "ending"), timedelta(minutes=1))
        assert await tokens.issue(connection, NewToken("of-forever", b"f", ALICE, "forever"), HOUR)
    ends = "SELECT id, expires_at - now() AS ends FROM api_tokens WHERE id = ANY($1)"
    found = {row["id"]: row["ends"] for row in await reader.fetch(ends, ["week", "minute", "of-forever"])}
    assert found["minute"] <= timedelta(minutes=1) < timedelta(minutes=50) < found["week"] <= HOUR
    assert timedelta(minutes=50) < found["of-forever"] <= HOUR


async def test_a_token_is_revoked_once(engine: AsyncEngine, reader: ReadPool) -> None:
    """A second time there is nothing to revoke, and when it was is kept."""
    async with transaction(engine) as connection:
        for token, is_revoked in (("forever", True), ("forever", False), ("revoked", False), ("unknown", False)):
            assert await tokens.revoke(connection, token) is is_revoked
    revoked = await reader.fetch("SELECT id FROM api_tokens WHERE revoked_at IS NOT NULL ORDER BY id")
    assert [row["id"] for row in revoked] == ["forever", "revoked"]


async def test_the_uses_of_tokens_are_recorded_together(engine: AsyncEngine, reader: ReadPool) -> None:
    """Each as long ago as it was; others keep theirs, and one that is gone changes nothing."""
    async with transaction(engine) as connection:
        await tokens.record_use(connection, {"own": 120.0, "ending": 7_200.0, "gone": 1.0})
    used = "SELECT id, now() - last_used_at AS ago FROM api_tokens WHERE last_used_at IS NOT NULL"
    found: dict[str, Any] = {row["id"]: row["ago"] for row in await reader.fetch(used)}
    assert set(found) == {"own", "ending", "forever", "of-carol"}
    assert timedelta(minutes=2) <= found["own"] < timedelta(minutes=30) < 2 * HOUR <= found["ending"]


async def test_an_open_request_needs_its_token_and_its_task(engine: AsyncEngine, reader: ReadPool) -> None:
    """What it has lost is told apart; a deleted task is still seen, and without one only the token counts."""
    own, others, deleted = rows = [task_row(owner_id=each) for each in (ALICE, BOB, ALICE)]
    async with transaction(engine) as connection:
        await insert_tasks(connection, rows)
        await connection.execute(text("UPDATE tasks SET organization_id = :id"), {"id": ACME})
        changed = next_version(deleted, 2, deleted_at=NOW)
        await connection.execute(
            text("UPDATE tasks SET deleted_at = :at WHERE id = :id"), {"at": NOW, "id": changed.task.id}
        )
    keys = {
        AccessKey("forever", ALICE, None): None,
        AccessKey("forever", ALICE, own.task.id): None,
        AccessKey("forever", ALICE, deleted.task.id): None,
        AccessKey("forever", ALICE, others.task.id): True,
        AccessKey("forever", ALICE, UUID(int=7)): True,
        AccessKey("of-carol", CAROL, others.task.id): None,
        AccessKey("expired", BOB, None): False,
        AccessKey("revoked", BOB, others.task.id): False,
        AccessKey("of-expired", BOB, others.task.id): False,
        AccessKey("of-eve", EVE, own.task.id): False,
    }
    lost = await access_queries.lost(reader, list(keys))
    assert lost == {key: signed_in for key, signed_in in keys.items() if signed_in is not None}


DAYS = "now() - interval '1 day' *"
ENDED = f"""
INSERT INTO api_tokens (id, user_id, secret_hash, created_at, expires_at, revoked_at, issued_from, issued_by) VALUES
    ('revoked-9', '{BOB}', 'r', {DAYS} 20, now() + interval '70 days', {DAYS} 9, NULL, NULL),
    ('revoked-2', '{BOB}', 'r', {DAYS} 20, now() + interval '70 days', {DAYS} 2, NULL, NULL),
    ('expired-8', '{EVE}', 'x', {DAYS} 20, {DAYS} 8, NULL, NULL, NULL),
    ('expired-7', '{BOB}', 'x', {DAYS} 20, {DAYS} 7, {DAYS} 1, NULL, NULL),
    ('expired-2', '{BOB}', 'x', {DAYS} 20, {DAYS} 2, NULL, NULL, NULL),
    ('child', '{BOB}', 'c', {DAYS} 15, now() + interval '1 day', NULL, 'revoked-9', '{BOB}'),
    ('child-of-child', '{BOB}', 'c', {DAYS} 15, now() + interval '1 day', NULL, 'child', '{BOB}'),
    ('young-child', '{BOB}', 'c', {DAYS} 15, now() + interval '1 day', {DAYS} 2, 'revoked-9', '{BOB}'),
    ('child-of-young', '{BOB}', 'c', {DAYS} 15, now() + interval '1 day', NULL, 'revoked-2', '{BOB}'),
    ('old-child-of-young', '{BOB}', 'c', {DAYS} 15, {DAYS} 6, NULL, 'revoked-2', '{BOB}'),
    ('old-child-of-active', '{ALICE}', 'c', {DAYS} 15, {DAYS} 6, NULL, 'forever', '{ALICE}');
"""
GONE = {
    "revoked-9", "expired-8", "expired-7", "child", "child-of-child", "young-child", "old-child-of-young",
    "old-child-of-active",
}  # fmt: skip
FIVE_DAYS = text("SELECT now() - interval '5 days'")


async def prune(engine: AsyncEngine, most: int = 100) -> int:
    """Delete up to ``most`` tokens that ended more than five days ago, and return how many were."""
    async with transaction(engine) as connection:
        return await tokens.prune(connection, (await connection.execute(FIVE_DAYS)).scalar_one(), most)


async def kept(engine: AsyncEngine) -> set[str]:
    """Return the ids of all tokens."""
    async with transaction(engine) as connection:
        return set((await connection.execute(text("SELECT id FROM api_tokens"))).scalars())


async def test_tokens_that_ended_long_ago_are_deleted(engine: AsyncEngine, reader: ReadPool) -> None:
    """Revoked or expired, with all that was issued from them; what may be valid again is kept, however old it is."""
    await execute_script(engine, ENDED)
    await execute(engine, "UPDATE api_tokens SET created_at = now() - interval '1 year', last_used_at = NULL")
    async with transaction(engine) as connection:
        states = {row.id: row.state for row in await tokens.list_tokens(connection, None, 100)}
    assert {states["of-eve"], states["by-former-admin"]} == {"deactivated", "suspended"}
    assert await prune(engine) == len(GONE)
    assert await kept(engine) == states.keys() - GONE
    assert await prune(engine) == 0
    assert {row["id"] for row in await reader.fetch(tokens.VALID_HASHES, 100)} == VALID
    assert await reader.fetch_one(tokens.HOLDER, "revoked-9") is None
    async with transaction(engine) as connection:
        assert not await tokens.is_valid(connection, "child")
        assert not await tokens.revoke(connection, "revoked-9")
        assert not await tokens.issue(connection, NewToken("new", b"n", BOB, "revoked-9"), WEEK)


@pytest.mark.parametrize("most", [1, 2, 3])
async def test_a_call_deletes_no_more_tokens_than_it_may(engine: AsyncEngine, reader: ReadPool, most: int) -> None:
    """As many as there are, though, and never one of which there are others left."""
    assert reader is not None
    await execute_script(engine, ENDED)
    everything = await kept(engine)
    deleted = [await prune(engine, most) for _ in range(len(GONE) // most + 1)]
    assert deleted == [most] * (len(GONE) // most) + [len(GONE) % most]
    assert await kept(engine) == everything - GONE


async def test_the_tokens_that_ended_first_are_deleted_first(engine: AsyncEngine, reader: ReadPool) -> None:
    """After those that were issued from them."""
    assert reader is not None
    await execute_script(engine, ENDED)
    gone: list[str] = []
    before = await kept(engine)
    while await prune(engine, 1):
        after = await kept(engine)
        gone += before - after
        before = after
    assert set(gone[:3]) == {"child-of-child", "child", "young-child"}
    assert gone[3:6] == ["revoked-9", "expired-8", "expired-7"]
    assert set(gone[6:]) == {"old-child-of-young", "old-child-of-active"}


async def test_a_token_with_many_others_is_deleted_in_parts(engine: AsyncEngine, reader: ReadPool) -> None:
    """Of each part none is left out, on whichever level there is more than fits into it, and others go after it."""
    assert reader is not None
    everything = await kept(engine)
    await execute_script(engine, ENDED)
    await execute(
        engine,
        f"""
        INSERT INTO api_tokens (id, user_id, secret_hash, issued_from, issued_by)
        SELECT 'many-' || n, '{BOB}', 'm', 'revoked-9', '{BOB}' FROM generate_series(1, 50) AS n""",
    )
    await execute(
        engine,
        f"""
        INSERT INTO api_tokens (id, user_id, secret_hash, issued_from, issued_by)
        SELECT 'more-' || n || '-' || m, '{BOB}', 'm', 'many-' || n, '{BOB}'
        FROM generate_series(1, 50) AS n, generate_series(1, n % 3 * 5) AS m""",
    )
    for _ in range(8):  # one from the other, as deep as they may be
        await execute(
            engine,
            f"""
            INSERT INTO api_tokens (id, user_id, secret_hash, issued_from, issued_by)
            SELECT id || '+', '{BOB}', 'm', id, '{BOB}' FROM api_tokens
            WHERE id LIKE 'more-7%' AND NOT EXISTS (SELECT FROM api_tokens AS c WHERE c.issued_from = api_tokens.id)""",
        )
    count = len(await kept(engine) - everything) - len({"revoked-2", "expired-2", "child-of-young"})
    deleted = [await prune(engine, 10) for _ in range(count // 10 + 1)]
    assert deleted == [10] * (count // 10) + [count % 10]
    assert await kept(engine) == everything | {"revoked-2", "expired-2", "child-of-young"}


@pytest.mark.parametrize("most", [1, 2, 100])
async def test_a_token_that_somebody_has_locked_keeps_no_others(
    engine: AsyncEngine, reader: ReadPool, most: int
) -> None:
    """It is left for later, with those that it was issued from, also if these come first; nobody waits for anybody."""
    assert reader is not None
    await execute_script(engine, ENDED)
    everything = await kept(engine)
    left = {"child-of-child", "child", "revoked-9", "expired-7"}
    locked = "SELECT FROM api_tokens WHERE id IN ('child-of-child', 'expired-7') FOR NO KEY UPDATE"
    async with transaction(engine) as connection:
        await connection.execute(text(locked))
        while await prune(engine, most):
            continue
        assert await kept(engine) == everything - (GONE - left)
    assert sum([await prune(engine, most) for _ in left]) == len(left)
    assert await kept(engine) == everything - GONE


async def test_a_token_that_is_being_issued_keeps_the_one_that_it_is_issued_from(
    engine: AsyncEngine, reader: ReadPool
) -> None:
    """Also if that ended long ago: the other one goes with it later."""
    assert reader is not None
    issued = f"""
        INSERT INTO api_tokens (id, user_id, secret_hash, issued_from, issued_by)
        VALUES ('new', '{EVE}', 'n', 'expired-8', '{EVE}')"""
    await execute_script(engine, ENDED)
    async with transaction(engine) as connection:
        await connection.execute(text(issued))
        assert await prune(engine) == len(GONE) - 1
    assert {"expired-8", "new"} <= await kept(engine)
    assert await prune(engine) == 2


async def test_tokens_are_deleted_once_by_workers_side_by_side(engine: AsyncEngine, reader: ReadPool) -> None:
    """All of them, however the workers share them."""
    assert reader is not None
    await execute_script(engine, ENDED)
    everything = await kept(engine)
    assert sum(await asyncio.gather(*(prune(engine, 3) for _ in range(8)))) <= len(GONE)
    while await prune(engine, 3):
        continue
    assert await kept(engine) == everything - GONE


async def test_no_token_is_deleted_that_has_not_ended(engine: AsyncEngine, reader: ReadPool) -> None:
    """Whatever time the caller gives: a worker's role may end none by that."""
    assert reader is not None
    await execute_script(engine, ENDED)
    ended = GONE | {"revoked-2", "expired-2", "child-of-young", "of-expired", "of-of-expired", "of-revoked"}
    everything = await kept(engine)
    async with transaction(engine) as connection:
        count = (await connection.execute(text("SELECT taskherd_prune_tokens('infinity', 100)"))).scalar_one()
    assert count == len(ended | {"expired", "revoked"})
    assert await kept(engine) == everything - ended - {"expired", "revoked"}
    async with transaction(engine) as connection:
        for arguments in ("NULL, 100", "'infinity', NULL", "'infinity', 0", "'infinity', -1"):
            count = (await connection.execute(text(f"SELECT taskherd_prune_tokens({arguments})"))).scalar_one()
            assert not count
