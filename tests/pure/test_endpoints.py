"""Endpoints: each has its own time limit, the last good one is first, and those that failed come after the others."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Sequence

import asyncpg
import pytest

from taskherd.endpoints import MAX_ADDRESSES, Endpoint, Endpoints, Host
from taskherd.errors import Unavailable

HUNG, GOOD, OTHER = Host("192.0.2.1", 1), Host("192.0.2.2", 2), Host("192.0.2.3", 3)
LIMIT = 0.05


class Servers:
    """Servers of which some are hung or refuse; it records which were tried."""

    def __init__(self, *, hung: Sequence[str] = (), refusing: Sequence[str] = ()) -> None:
        self.hung = set(hung)
        self.refusing = set(refusing)
        self.tried: list[str] = []

    async def attempt(self, endpoint: Endpoint) -> str:
        """Connect to an endpoint as a client would."""
        self.tried.append(endpoint.address)
        if endpoint.address in self.hung:
            await asyncio.Event().wait()
        if endpoint.address in self.refusing:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed")
        return endpoint.address

    async def connect(self, endpoints: Endpoints) -> list[str]:
        """Connect and return which addresses were tried for it, the good one last."""
        self.tried.clear()
        found, endpoint = await endpoints.connect(self.attempt, (OSError,))
        assert found == endpoint.address == self.tried[-1]
        return list(self.tried)


async def test_a_hung_host_costs_its_limit_once() -> None:
    """Of several hosts, one that does not answer is tried once; from then on the good one is first."""
    endpoints, servers = Endpoints([HUNG, GOOD], LIMIT), Servers(hung=[HUNG.name])
    assert await servers.connect(endpoints) == [HUNG.name, GOOD.name]
    assert await servers.connect(endpoints) == [GOOD.name]
    servers.hung = {GOOD.name}
    assert await servers.connect(endpoints) == [GOOD.name, HUNG.name]
    assert await servers.connect(endpoints) == [HUNG.name]


async def test_a_failed_host_comes_after_those_that_did_not_fail() -> None:
    """Without a good host, the next attempt begins with one that has not failed, then the one that failed first."""
    endpoints, servers = Endpoints([HUNG, GOOD, OTHER], LIMIT), Servers(refusing=[HUNG.name, GOOD.name])
    assert await servers.connect(endpoints) == [HUNG.name, GOOD.name, OTHER.name]
    servers.refusing = {OTHER.name}
    assert await servers.connect(endpoints) == [OTHER.name, HUNG.name]


async def test_a_lost_connection_counts_against_its_server() -> None:
    """A server whose connection turned out to be dead is tried last, though connecting to it had succeeded."""
    endpoints, servers = Endpoints([GOOD, OTHER], LIMIT), Servers()
    assert await servers.connect(endpoints) == [GOOD.name]
    endpoints.mark_failed(Endpoint(GOOD, GOOD.name))
    assert await servers.connect(endpoints) == [OTHER.name]


async def test_two_that_keep_apart_begin_at_different_servers() -> None:
    """A good server is kept, wherever the other one is, and is shared rather than one that failed tried again."""
    one, two, servers = Endpoints([HUNG, GOOD, OTHER], LIMIT), Endpoints([HUNG, GOOD, OTHER], LIMIT), Servers()
    one.keep_apart(two)
    assert await servers.connect(one) == [HUNG.name]
    assert await servers.connect(two) == [GOOD.name]
    servers.hung = {HUNG.name}
    one.mark_failed(Endpoint(HUNG, HUNG.name))
    assert await servers.connect(one) == [OTHER.name]
    one.mark_failed(Endpoint(OTHER, OTHER.name))
    assert await servers.connect(one) == [GOOD.name]
    assert await servers.connect(two) == [GOOD.name]


async def test_two_that_keep_apart_choose_different_names() -> None:
    """Also at the same time, while their addresses are not known yet."""
    chosen, both = list[str](), asyncio.Event()

    async def resolve(host: Host) -> list[str]:
        chosen.append(host.name)
        if len(chosen) == 2:
            both.set()
        await both.wait()
        return [f"192.0.2.{len(host.name)}"]

    hosts = [Host("a.example", 1), Host("bb.example", 1)]
    one, two = Endpoints(hosts, 60, resolve), Endpoints(hosts, 60, resolve)
    two.keep_apart(one)
    servers = Servers()
    found = await asyncio.gather(one.connect(servers.attempt, (OSError,)), two.connect(servers.attempt, (OSError,)))
    assert (chosen, [endpoint.host for _, endpoint in found]) == (["a.example", "bb.example"], hosts)


async def test_each_address_of_a_name_has_its_own_limit() -> None:
    """A DNS name with several addresses counts as several servers, and the last good address is tried first."""

    async def resolve(host: Host) -> list[str]:
        assert host.name == "db.example"
        return ["192.0.2.1", "192.0.2.2", "192.0.2.3"]

    endpoints = Endpoints([Host("db.example", 5432)], LIMIT, resolve)
    servers = Servers(hung=["192.0.2.1"], refusing=["192.0.2.2"])
    assert await servers.connect(endpoints) == ["192.0.2.1", "192.0.2.2", "192.0.2.3"]
    assert await servers.connect(endpoints) == ["192.0.2.3"]


async def test_a_name_that_does_not_resolve_costs_its_limit() -> None:
    """A resolver that fails or does not answer is the failure of its host only; the number of addresses is limited."""

    async def resolve(host: Host) -> list[str]:
        if host.name == "hung.example":
            await asyncio.Event().wait()
        if host.name == "unknown.example":
            message = "Name or service not known"
            raise OSError(message)
        return [f"192.0.2.{number}" for number in range(100, 200)]

    hosts = [Host("hung.example", 1), Host("unknown.example", 1), Host("many.example", 1)]
    endpoints, servers = Endpoints(hosts, LIMIT, resolve), Servers()
    assert await servers.connect(endpoints) == ["192.0.2.100"]
    servers.refusing = {f"192.0.2.{number}" for number in range(100, 200)}
    servers.tried.clear()
    with pytest.raises(Unavailable) as raised:
        await endpoints.connect(servers.attempt, (OSError,))
    assert len(servers.tried) == MAX_ADDRESSES
    assert "hung.example:1: no answer within 0.05 s" in str(raised.value)
    assert "unknown.example:1: Name or service not known" in str(raised.value)
    assert "many.example:1 (192.0.2.100): Connection refused" in str(raised.value)


async def test_a_caller_that_gives_up_first_continues_elsewhere_next_time() -> None:
    """If a caller waits less than the limit, the server that it waited for is last the next time."""
    endpoints, servers = Endpoints([HUNG, GOOD], 60), Servers(hung=[HUNG.name])
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(servers.connect(endpoints), LIMIT)
    assert await servers.connect(endpoints) == [GOOD.name]


async def test_the_answer_of_an_only_server_is_its_own() -> None:
    """What a single server answered is raised unchanged, so that it can be classified; a bug ends the search."""
    endpoints, servers = Endpoints([GOOD], LIMIT), Servers(refusing=[GOOD.name])

    async def attempt(_: Endpoint) -> None:
        raise asyncpg.InvalidPasswordError

    with pytest.raises(asyncpg.InvalidPasswordError):
        await endpoints.connect(attempt, (asyncpg.PostgresError,))
    with pytest.raises(ConnectionRefusedError):
        await Endpoints([GOOD, OTHER], LIMIT).connect(servers.attempt, (KeyError,))


async def test_a_server_that_cannot_be_reached_is_named() -> None:
    """One that refuses connections or does not answer is named with the reason, also if it is the only one."""
    endpoints, servers = Endpoints([GOOD], LIMIT), Servers(refusing=[GOOD.name])
    with pytest.raises(Unavailable, match=r"^192\.0\.2\.2:2: Connection refused$"):
        await servers.connect(endpoints)
    servers.hung = {GOOD.name}
    with pytest.raises(Unavailable, match=r"^192\.0\.2\.2:2: no answer within 0\.05 s$"):
        await servers.connect(endpoints)


async def test_a_name_that_took_too_long_to_resolve_comes_last() -> None:
    """A caller whose own limit is shorter than the resolver's begins with another host at its next attempt."""
    slow, servers = Host("slow.example", 5432), Servers()
    asked: asyncio.Queue[Host] = asyncio.Queue()

    async def resolve(host: Host) -> list[str]:
        asked.put_nowait(host)
        await asyncio.Event().wait()
        return []

    endpoints = Endpoints([slow, GOOD], LIMIT * 100, resolve)
    attempt = asyncio.create_task(endpoints.connect(servers.attempt, (OSError,)))
    assert await asked.get() == slow
    attempt.cancel()
    await asyncio.gather(attempt, return_exceptions=True)
    assert await servers.connect(endpoints) == [GOOD.name]
    assert asked.empty()
