"""Who a token signs in, for how long that is remembered, and what is asked of the database for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, cast
from uuid import UUID

import pytest

from taskherd.api.http import authenticator
from taskherd.api.http.authenticator import Authenticator, Caller
from taskherd.api.http.sign_in_failures import SignInFailure
from taskherd.api.http.user_tokens import ParsedToken
from taskherd.errors import Unavailable
from taskherd.store import tokens

ALICE = UUID(int=1)
TOKEN, OTHER = ParsedToken("token", b"right"), ParsedToken("other", b"right")
WRONG = ParsedToken("token", b"wrong")
CALLER = Caller(ALICE, "alice", "token")

Holder = tuple[bytes, UUID, str, float | None, str | None, bool]


def holder(expires_in: float | None = None, problem: str | None = None, *, issued: bool = False) -> Holder:
    """Return what the database says of a token of Alice."""
    return b"right", ALICE, "alice", expires_in, problem, issued


class Database:
    """What the database knows of tokens, and what it was asked."""

    def __init__(self, holders: Mapping[str, Holder]) -> None:
        self.holders = dict(holders)
        self.backed: bool | None = True
        self.asked: list[str] = []
        self.snapshot: list[tuple[str, bytes]] = []
        self.is_away = False
        self.time = 100.0
        self.seconds_of_a_lookup = 0.0
        self.authenticator = Authenticator(cast("Any", self), lambda: self.time)

    async def fetch_one(self, statement: str, token_id: str) -> Any:
        """Answer a lookup."""
        self.asked.append(token_id if statement == tokens.HOLDER else f"backing of {token_id}")
        self.time += self.seconds_of_a_lookup
        await asyncio.sleep(0)
        if statement == tokens.BACKED:
            return None if self.backed is None else {"backed": self.backed}
        return self.holders.get(token_id)

    async def fetch(self, statement: str, *values: Any) -> Any:
        """Answer a read of all valid tokens."""
        assert statement == tokens.VALID_HASHES
        self.asked.append(f"up to {values[0]}")
        await asyncio.sleep(0)
        if self.is_away:
            raise Unavailable("away")
        return self.snapshot


async def test_the_numbers_that_limit_what_is_remembered() -> None:
    """A revoked token counts for a second at most."""
    most = authenticator
    assert (most.CACHE_TTL, most.SNAPSHOT_INTERVAL, most.NOTE_USE_INTERVAL) == (1, 5, 30)
    assert (most.MAX_CACHED, most.MAX_SNAPSHOT) == (10_000, 20_000)


@pytest.mark.parametrize(("expires_in", "remembered"), [(None, 1.0), (5.0, 1.0), (0.25, 0.25)])
async def test_a_token_is_looked_up_once_in_a_while(expires_in: float | None, remembered: float) -> None:
    """The time counts from before the lookup; a token is forgotten when it expires."""
    database = Database({"token": holder(expires_in)})
    database.seconds_of_a_lookup = 0.125
    found = database.authenticator
    assert found.cached(TOKEN) is None
    assert await found.authenticate(TOKEN) == CALLER
    database.time = 100 + remembered - 0.01
    assert found.cached(TOKEN) == CALLER
    assert await found.authenticate(TOKEN) == CALLER
    assert found.cached(WRONG) is None
    assert database.asked == ["token"]
    database.time = 100 + remembered
    assert found.cached(TOKEN) is None
    assert await found.authenticate(TOKEN) == CALLER
    assert database.asked == ["token", "token"]


async def test_requests_at_the_same_time_share_a_lookup() -> None:
    """Later ones do not; one that gives up does not stop it for the others."""
    database = Database({})
    authenticate = database.authenticator.authenticate
    first, second, third = (asyncio.create_task(authenticate(token)) for token in (TOKEN, TOKEN, OTHER))
    await asyncio.sleep(0)
    first.cancel()
    assert [*await asyncio.gather(second, third)] == [SignInFailure.UNKNOWN] * 2
    assert database.asked == ["token", "other"]
    await authenticate(TOKEN)
    assert database.asked == ["token", "other", "token"]


@pytest.mark.parametrize("problem", ["expired", "revoked", "deactivated"])
async def test_why_a_token_is_not_valid_is_told_to_its_holder_only(problem: str) -> None:
    """Whoever has another secret must not learn that it exists."""
    database = Database({"token": holder(problem=problem)})
    assert await database.authenticator.authenticate(TOKEN) is SignInFailure(problem)
    assert await database.authenticator.authenticate(WRONG) is SignInFailure.UNKNOWN
    assert await database.authenticator.authenticate(OTHER) is SignInFailure.UNKNOWN
    valid = Database({"token": holder()})
    assert await valid.authenticator.authenticate(WRONG) is SignInFailure.UNKNOWN


@pytest.mark.parametrize(
    ("backed", "problem", "expected"),
    [
        (True, None, CALLER),
        (False, None, SignInFailure.REVOKED),
        (None, None, SignInFailure.REVOKED),
        (True, "expired", SignInFailure.EXPIRED),
    ],
)
async def test_an_issued_token_needs_the_one_that_it_was_issued_from(
    problem: str | None, expected: object, *, backed: bool | None
) -> None:
    """That is only asked of one that is valid otherwise."""
    database = Database({"token": holder(problem=problem, issued=True)})
    database.backed = backed
    assert await database.authenticator.authenticate(TOKEN) == expected
    assert database.asked == (["token"] if problem else ["token", "backing of token"])


@pytest.mark.parametrize("after", [None, holder(problem="revoked")])
async def test_a_token_that_ended_is_not_known_any_more(after: Holder | None) -> None:
    """The lookup that finds that it has ended forgets it."""
    database = Database({"token": holder()})
    found = database.authenticator
    await found.authenticate(TOKEN)
    assert await found.is_known(TOKEN)
    assert not await found.is_known(WRONG)
    database.time += 60
    assert await found.is_known(TOKEN)
    database.holders = {} if after is None else {"token": after}
    assert isinstance(await found.authenticate(TOKEN), SignInFailure)
    assert not await found.is_known(TOKEN)


async def test_tokens_that_are_not_remembered_are_read_together() -> None:
    """At most once in an interval, by requests at the same time once; after a failure not at once again."""
    database = Database({})
    database.snapshot = [("token", b"right")]
    is_known = database.authenticator.is_known
    assert [*await asyncio.gather(*(is_known(token) for token in (TOKEN, WRONG, OTHER)))] == [True, False, False]
    database.snapshot = [("other", b"right")]
    database.time += 4.9
    assert [*await asyncio.gather(is_known(TOKEN), is_known(OTHER))] == [True, False]
    assert database.asked == ["up to 20000"]
    database.time += 0.1
    assert [*await asyncio.gather(is_known(TOKEN), is_known(OTHER))] == [False, True]
    assert database.asked == ["up to 20000"] * 2
    database.is_away = True
    database.time += 5
    with pytest.raises(Unavailable):
        await is_known(TOKEN)
    assert await is_known(OTHER)
    assert database.asked == ["up to 20000"] * 3


async def test_no_token_is_known_before_the_first_read() -> None:
    """If that fails, all are unknown until the next one."""
    database = Database({})
    database.is_away = True
    with pytest.raises(Unavailable):
        await database.authenticator.is_known(TOKEN)
    assert not await database.authenticator.is_known(TOKEN)


async def test_of_too_many_tokens_those_looked_up_last_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is looked up again is among the last."""
    monkeypatch.setattr(authenticator, "MAX_CACHED", 2)
    parsed = {name: ParsedToken(name, b"right") for name in ("a", "b", "c")}
    database = Database({name: holder() for name in parsed})
    found = database.authenticator
    for name in ("a", "b"):
        await found.authenticate(parsed[name])
    database.time += 2
    for name in ("a", "c"):
        await found.authenticate(parsed[name])
    assert [found.cached(each) is not None for each in parsed.values()] == [True, False, True]


async def test_when_tokens_were_used_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last time of each since the note before, of so many; a wrong secret is no use."""
    noted: list[Mapping[str, float]] = []

    @asynccontextmanager
    async def transaction(engine: object) -> AsyncIterator[object]:
        yield engine

    async def record_use(_connection: object, seconds_ago: Mapping[str, float]) -> None:
        noted.append(seconds_ago)

    monkeypatch.setattr(authenticator, "MAX_CACHED", 2)
    monkeypatch.setattr(authenticator, "transaction", transaction)
    monkeypatch.setattr(tokens, "record_use", record_use)
    parsed = {name: ParsedToken(name, b"right") for name in ("a", "b", "c")}
    database = Database({name: holder() for name in parsed})
    found = database.authenticator
    await found.note_uses(cast("Any", None))
    assert noted == []
    for token in (*parsed.values(), ParsedToken("a", b"wrong")):
        await found.authenticate(token)
    database.time += 3
    await found.authenticate(parsed["b"])
    database.time += 1
    await found.note_uses(cast("Any", None))
    await found.note_uses(cast("Any", None))
    assert noted == [{"a": 4.0, "b": 1.0}]
