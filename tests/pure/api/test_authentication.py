"""Who a request is from: a user or an agent, by a token that is valid, within their rates."""

from __future__ import annotations

from hashlib import sha256
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import pytest

from taskherd.api.context import RequestContext
from taskherd.api.http import auth
from taskherd.api.http.auth import authenticate, token_is_valid
from taskherd.api.http.authenticator import Caller
from taskherd.api.http.errors import HTTPError
from taskherd.api.http.rate_limit import RateLimiter
from taskherd.api.http.route import Auth
from taskherd.api.http.sign_in_failures import SignInFailure
from taskherd.api.http.user_tokens import ParsedToken
from taskherd.messages.agent_tokens import agent_token
from taskherd.store import agent_queries

if TYPE_CHECKING:
    from taskherd.api.context import ApiContext

ALICE, OWNER, TASK = UUID(int=1), UUID(int=2), UUID(int=3)
SECRET = "s" * 32
TOKEN, UNKNOWN = f"{'a' * 10}-{'b' * 32}", f"{'c' * 10}-{'d' * 32}"
PARSED = ParsedToken("a" * 10, sha256(b"b" * 32).digest())
CALLER = Caller(ALICE, "alice", PARSED.id)
PEER = ("192.0.2.7", 4711)


class Server:
    """A server with one valid token of Alice, and limits of two requests."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_cached = False
        self.known = False
        self.found: Caller | SignInFailure = CALLER
        self.lookups = 0
        self.owner: UUID | None = OWNER
        self.failures: list[tuple[str, SignInFailure]] = []
        self.holders: list[tuple[Any, UUID]] = []
        self.limits = SimpleNamespace(
            requests=RateLimiter(1, 2, lambda: 0.0),
            reports=RateLimiter(1, 2, lambda: 0.0),
        )
        self.api = SimpleNamespace(
            settings=SimpleNamespace(secret_keys=[SECRET]),
            reader="reader",
            rate_limits=self.limits,
            authenticator=self,
            sign_in_failures=self,
            client_addresses=self,
            connections=self,
        )
        monkeypatch.setattr(agent_queries, "owner_of_latest_start", self._owner_of_latest_start)

    async def sign_in(self, token: str, kind: Auth = Auth.USER, *, client: Any = PEER) -> RequestContext:
        """Authenticate a request with this token, and return it."""
        headers = {"coder-session-token": token} if token else {}
        request = RequestContext(cast("ApiContext", self.api), "GET", {}, {}, headers)
        await authenticate(request, kind, {"type": "http", "client": client})
        return request

    async def refused(self, token: str, kind: Auth = Auth.USER) -> int:
        """Return the status with which a token is refused."""
        with pytest.raises(HTTPError) as raised:
            await self.sign_in(token, kind)
        return raised.value.response.status

    def cached(self, token: ParsedToken) -> Caller | None:
        """Return the caller, if the token is cached."""
        return CALLER if self.is_cached and token == PARSED else None

    async def is_known(self, token: ParsedToken) -> bool:
        """Return whether the token was valid a short time ago."""
        return self.known and token == PARSED

    async def authenticate(self, token: ParsedToken) -> Caller | SignInFailure:
        """Look a token up."""
        self.lookups += 1
        return self.found if token == PARSED else SignInFailure.UNKNOWN

    def record(self, client: str, reason: SignInFailure) -> None:
        """Record a failure."""
        self.failures.append((client, reason))

    def client_of(self, scope: Any) -> str:
        """Return the client of a request."""
        return str(scope["client"][0])

    def authenticated(self, peer: tuple[str, int], holder: UUID) -> None:
        """Note whose connection it is."""
        self.holders.append((peer, holder))

    async def _owner_of_latest_start(self, reader: object, task_id: UUID, build_number: int) -> UUID | None:
        assert (reader, task_id, build_number) == ("reader", TASK, 3)
        self.lookups += 1
        return self.owner


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    """Return a server."""
    return Server(monkeypatch)


async def test_a_route_without_a_token_asks_for_none(server: Server) -> None:
    """Its connection stays one of a stranger."""
    await server.sign_in("", Auth.NONE)
    assert (server.holders, server.lookups, server.failures) == ([], 0, [])


@pytest.mark.parametrize("is_cached", [True, False])
async def test_a_valid_token_is_of_its_user(server: Server, *, is_cached: bool) -> None:
    """Looked up only if it is not cached; the connection is the user's then, if it has an address."""
    server.is_cached = is_cached
    request = await server.sign_in(TOKEN)
    assert (request.caller, request.agent, server.lookups) == (CALLER, None, 0 if is_cached else 1)
    assert server.holders == [(PEER, ALICE)]
    server.is_cached = True
    await server.sign_in(TOKEN, client=None)
    assert len(server.holders) == 1
    assert await server.refused(TOKEN) == 429  # the third request
    assert (len(server.holders), server.failures) == (1, [])
    assert server.limits.requests.retry_after(("address", PEER[0])) == 0


@pytest.mark.parametrize(
    ("token", "reason", "lookups"),
    [
        ("", SignInFailure.MISSING, 0),
        ("nonsense", SignInFailure.MALFORMED, 0),
        (UNKNOWN, SignInFailure.UNKNOWN, 1),
    ],
)
async def test_a_token_that_is_not_valid_counts_against_the_address(
    server: Server, token: str, reason: SignInFailure, lookups: int
) -> None:
    """Why is only recorded; beyond the rate it is not even looked up."""
    assert [await server.refused(token) for _ in range(3)] == [401, 401, 429]
    assert server.failures == [(PEER[0], reason)] * 2 + [(PEER[0], SignInFailure.RATE_LIMITED)]
    assert (server.lookups, server.holders) == (2 * lookups, [])


@pytest.mark.parametrize("reason", [SignInFailure.EXPIRED, SignInFailure.REVOKED, SignInFailure.DEACTIVATED])
async def test_a_token_that_was_valid_is_refused_with_its_reason(server: Server, reason: SignInFailure) -> None:
    """In the log."""
    server.found = reason
    assert await server.refused(TOKEN) == 401
    assert server.failures == [(PEER[0], reason)]


async def test_others_behind_an_address_that_guesses_may_sign_in(server: Server) -> None:
    """With tokens that were valid a short time ago; others of them wait."""
    for _ in range(2):
        await server.refused("nonsense")
    assert await server.refused(TOKEN) == 429
    assert server.lookups == 0
    server.known = True
    assert (await server.sign_in(TOKEN)).caller == CALLER
    assert await server.refused("nonsense") == 429


async def test_an_agent_is_known_by_its_own_token(server: Server) -> None:
    """For the owner of its task; a user's token is none, nor is that of an earlier start."""
    token = agent_token(SECRET, TASK, 3)
    request = await server.sign_in(token, Auth.AGENT)
    assert (request.agent, request.username, server.holders) == ((TASK, 3), None, [(PEER, OWNER)])
    server.owner = None
    assert await server.refused(token, Auth.AGENT) == 401
    assert await server.refused(token, Auth.AGENT) == 429
    assert server.lookups == 2
    assert [await server.refused(each, Auth.AGENT) for each in ("", TOKEN, agent_token("x" * 32, TASK, 3))] == [401] * 3
    assert [reason for _, reason in server.failures] == [
        SignInFailure.REVOKED,
        SignInFailure.MISSING,
        SignInFailure.UNKNOWN,
        SignInFailure.UNKNOWN,
    ]
    assert server.limits.requests.retry_after(("address", PEER[0])) == 0


@pytest.mark.parametrize(
    ("token", "found", "expected"),
    [(TOKEN, CALLER, True), (TOKEN, SignInFailure.REVOKED, False), ("nonsense", CALLER, False), ("", CALLER, False)],
)
async def test_the_token_of_a_long_request_is_looked_at_again(
    server: Server, token: str, found: Caller | SignInFailure, *, expected: bool
) -> None:
    """At its end."""
    server.found = found
    headers = {"coder-session-token": token} if token else {}
    request = RequestContext(cast("ApiContext", server.api), "GET", {}, {}, headers)
    assert await token_is_valid(request) is expected
    assert auth.token_of(request) == token
