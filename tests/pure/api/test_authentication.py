"""Who a request is from: a user or an agent, by a token that is valid, within their rates."""

from __future__ import annotations

from hashlib import sha256
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import pytest

from taskherd.api.context import RequestContext
from taskherd.api.http.auth import authenticate, token_is_valid, token_of
from taskherd.api.http.authenticator import Authenticator, Caller
from taskherd.api.http.client_address import ClientAddresses
from taskherd.api.http.connections import ClientConnections, ConnectionLimits
from taskherd.api.http.errors import HTTPError
from taskherd.api.http.rate_limit import RateLimiter
from taskherd.api.http.route import Auth
from taskherd.api.http.sign_in_failures import SignInFailure, SignInFailures
from taskherd.messages.agent_tokens import agent_token
from taskherd.observability.metrics import Metrics
from taskherd.store import agent_queries, tokens

if TYPE_CHECKING:
    from taskherd.api.context import ApiContext

ALICE, OWNER, TASK = UUID(int=1), UUID(int=2), UUID(int=3)
SECRET = "s" * 32
TOKEN, UNKNOWN = f"{'a' * 10}-{'b' * 32}", f"{'c' * 10}-{'d' * 32}"
TOKEN_ID, TOKEN_HASH = "a" * 10, sha256(b"b" * 32).digest()
CALLER = Caller(ALICE, "alice", TOKEN_ID)
PEER = ("192.0.2.7", 4711)


class Database:
    """What is stored of one token of Alice and of an agent's task, and how often that was looked up."""

    def __init__(self) -> None:
        self.problem: str | None = None
        self.valid: list[tuple[str, bytes]] = []
        self.owner: UUID | None = OWNER
        self.lookups = 0

    async def fetch_one(self, statement: str, *values: Any) -> Any:
        """Look a token or a task up."""
        self.lookups += 1
        if statement == agent_queries.OWNER_OF_LATEST_START:
            return {"owner_id": self.owner} if values == (TASK, 3) and self.owner else None
        assert statement == tokens.HOLDER
        return (TOKEN_HASH, ALICE, "alice", None, self.problem, False) if values == (TOKEN_ID,) else None

    async def fetch(self, statement: str, _most: int) -> Any:
        """Return all valid tokens."""
        assert statement == tokens.VALID_HASHES
        return self.valid


class Server:
    """What an API authenticates requests with: of each user, agent and address, it accepts two in all."""

    def __init__(self) -> None:
        self.database = Database()
        self.metrics = Metrics()
        self.closed: list[str] = []
        self.limits = SimpleNamespace(
            requests=RateLimiter(1, 2, lambda: 0.0),
            reports=RateLimiter(1, 2, lambda: 0.0),
        )
        clients = ClientAddresses(())
        self.connections = ClientConnections(ConnectionLimits(100, 1), clients, self.closed.append)
        self.connections.open(PEER, cast("Any", SimpleNamespace(close_for_limit=lambda _: None)))
        self.api = SimpleNamespace(
            settings=SimpleNamespace(secret_keys=[SECRET]),
            reader=self.database,
            rate_limits=self.limits,
            authenticator=Authenticator(cast("Any", self.database), lambda: 0.0),
            sign_in_failures=SignInFailures(self.metrics),
            client_addresses=clients,
            connections=self.connections,
        )

    def request(self, token: str) -> RequestContext:
        """Return a request with this token."""
        headers = {"coder-session-token": token} if token else {}
        return RequestContext(cast("ApiContext", self.api), "GET", {}, {}, headers)

    async def sign_in(self, token: str, kind: Auth = Auth.USER, *, client: Any = PEER) -> RequestContext:
        """Authenticate a request with this token, and return it."""
        request = self.request(token)
        await authenticate(request, kind, {"type": "http", "client": client})
        return request

    async def refused(self, token: str, kind: Auth = Auth.USER) -> int:
        """Return the status with which a token is refused."""
        with pytest.raises(HTTPError) as raised:
            await self.sign_in(token, kind)
        return raised.value.response.status

    def failures(self) -> dict[str, float]:
        """Return how many failures were counted, by reason."""
        value = self.metrics.registry.get_sample_value
        counts = {each: value("taskherd_api_sign_in_failures_total", {"reason": each}) for each in SignInFailure}
        return {reason.value: count for reason, count in counts.items() if count}

    def is_a_strangers(self) -> bool:
        """Return whether the connection gives way to another one of its client that presents no token."""
        self.connections.open((PEER[0], 4712), cast("Any", None))
        return bool(self.closed)


@pytest.fixture
def server() -> Server:
    """Return a server with one connection."""
    return Server()


async def test_a_route_without_a_token_asks_for_none(server: Server) -> None:
    """Nothing is looked up for it, and its connection stays one of a stranger."""
    await server.sign_in(TOKEN, Auth.NONE)
    assert (server.database.lookups, server.failures(), server.is_a_strangers()) == (0, {}, True)


async def test_a_valid_token_is_of_its_user(server: Server) -> None:
    """It is looked up once, its connection is no stranger's, and its requests count for the user, not the address."""
    for client in (PEER, None):
        request = await server.sign_in(TOKEN, client=client)
        assert (request.caller, request.agent, server.database.lookups) == (CALLER, None, 1)
    assert await server.refused(TOKEN) == 429
    assert (server.failures(), server.is_a_strangers()) == ({}, False)
    assert server.limits.requests.retry_after(("address", PEER[0])) == 0


@pytest.mark.parametrize(
    ("token", "problem", "reason", "lookups"),
    [
        ("", None, "missing", 0),
        ("nonsense", None, "malformed", 0),
        (UNKNOWN, None, "unknown", 2),
        (TOKEN, "expired", "expired", 2),
    ],
)
async def test_a_token_that_is_not_valid_counts_against_the_address(
    server: Server, token: str, problem: str | None, reason: str, lookups: int
) -> None:
    """The answer does not say why, but the counters do; beyond the rate it is not even looked up."""
    server.database.problem = problem
    assert [await server.refused(token) for _ in range(3)] == [401, 401, 429]
    assert server.failures() == {reason: 2, "rate_limited": 1}
    assert (server.database.lookups, server.is_a_strangers()) == (lookups, True)


async def test_others_behind_an_address_that_guesses_may_sign_in(server: Server) -> None:
    """Those with tokens that were valid a short time ago may; all others wait, and are not looked up."""
    server.database.valid = [(TOKEN_ID, TOKEN_HASH)]
    for _ in range(2):
        await server.refused("nonsense")
    assert await server.refused(UNKNOWN) == 429
    assert server.database.lookups == 0
    assert (await server.sign_in(TOKEN)).caller == CALLER
    assert await server.refused("nonsense") == 429


async def test_an_agent_is_known_by_its_own_token(server: Server) -> None:
    """That of the latest start of its task; its reports have a rate of their own, and failures do not count for it."""
    token = agent_token(SECRET, TASK, 3)
    request = await server.sign_in(token, Auth.AGENT)
    assert (request.agent, request.username, server.is_a_strangers()) == ((TASK, 3), None, False)
    server.database.owner = None
    assert await server.refused(token, Auth.AGENT) == 401
    assert await server.refused(token, Auth.AGENT) == 429
    assert server.database.lookups == 2
    assert [await server.refused(each, Auth.AGENT) for each in ("", TOKEN, agent_token("x" * 32, TASK, 3))] == [401] * 3
    assert server.failures() == {"revoked": 1, "missing": 1, "unknown": 2}
    assert server.limits.requests.retry_after(("address", PEER[0])) == 0


@pytest.mark.parametrize(
    ("token", "problem", "expected"), [(TOKEN, None, True), (TOKEN, "revoked", False), ("nonsense", None, False)]
)
async def test_the_token_of_a_long_request_is_looked_at_again(
    server: Server, token: str, problem: str | None, *, expected: bool
) -> None:
    """What a long request waited for is only for a user whose token is still valid then."""
    server.database.problem = problem
    request = server.request(token)
    assert (await token_is_valid(request), token_of(request)) == (expected, token)
    assert await token_is_valid(server.request("")) is False
