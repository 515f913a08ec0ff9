"""Which connections are closed when there are too many."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from taskherd.api.http.client_address import ClientAddresses
from taskherd.api.http.connections import ClientConnections, ConnectionLimits, Peer
from taskherd.settings import Settings

MALLORY, ALICE, PROXY = "192.0.2.66", "192.0.2.1", "10.0.0.1"


class FakeConnection:
    """A connection that reports that it was closed."""

    def __init__(self, peer: Peer, on_close: Callable[[Peer], None]) -> None:
        self._peer = peer
        self._on_close = on_close

    def close_for_limit(self, message: str) -> None:
        """Report it."""
        assert message
        self._on_close(self._peer)


class Opened:
    """Connections of clients, with the ports of those that were closed and the limits for which they were."""

    def __init__(self, total: int, per_client: int) -> None:
        self.closed: list[int] = []
        self.limits: list[str] = []
        clients = ClientAddresses(Settings(api_trusted_proxies="10.0.0.0/8").trusted_proxies)
        self.connections = ClientConnections(ConnectionLimits(total, per_client), clients, self.limits.append)

    def open(self, host: str, *ports: int) -> None:
        """Open connections of a client."""
        for port in ports:
            peer = (host, port)
            self.connections.open(peer, FakeConnection(peer, lambda closed: self.closed.append(closed[1])))


def test_one_clients_connections_without_a_token() -> None:
    """Of one client too many, the quietest is closed; another client's and those with a valid token are not."""
    opened = Opened(100, 3)
    opened.open(ALICE, 1)
    opened.open(MALLORY, 11, 12, 13)
    opened.connections.touch((MALLORY, 11))
    assert opened.closed == []
    opened.open(MALLORY, 14, 15)
    assert (opened.closed, opened.limits) == ([12, 13], ["client", "client"])
    opened.connections.authenticated((MALLORY, 11))
    opened.open(MALLORY, 16)
    assert opened.closed == [12, 13]
    opened.open(MALLORY, *range(20, 40))
    assert 11 not in opened.closed
    assert 1 not in opened.closed
    assert len(opened.connections) == 1 + 1 + 3


def test_a_connection_that_ended_counts_no_longer() -> None:
    """The end of a connection makes room for another, whether it presented a token or not."""
    opened = Opened(4, 2)
    opened.open(MALLORY, 1, 2)
    opened.connections.lost((MALLORY, 1))
    opened.open(MALLORY, 3)
    opened.connections.authenticated((MALLORY, 3))
    opened.connections.lost((MALLORY, 3))
    opened.connections.lost((MALLORY, 3))
    assert (opened.closed, len(opened.connections)) == ([], 1)
    opened.connections.lost((MALLORY, 2))
    assert not vars(opened.connections)["_by_client"]  # nothing is remembered of clients without a connection


def test_half_is_reserved_for_valid_tokens() -> None:
    """Connections without a valid token of many clients use half of all at most."""
    opened = Opened(10, 5)
    for number in range(8):
        opened.open(f"198.51.100.{number}", number)
    assert (opened.closed, opened.limits) == ([0, 1, 2], ["anonymous"] * 3)
    for port in range(100, 105):
        opened.open(ALICE, port)
        opened.connections.authenticated((ALICE, port))
    assert opened.closed == [0, 1, 2, 3]
    opened.open(MALLORY, 200, 201, 202)
    assert opened.closed == [0, 1, 2, 3, 4, 5]


def test_no_more_than_all() -> None:
    """Where all connections have presented a valid token, a new one is closed, and none of the others."""
    opened = Opened(2, 5)
    for port in (1, 2):
        opened.open(ALICE, port)
        opened.connections.authenticated((ALICE, port))
    opened.open(MALLORY, 3)
    opened.open(PROXY, 4)
    assert (opened.closed, opened.limits) == ([3, 4], ["total", "total"])
    assert len(opened.connections) == 2


@pytest.mark.parametrize(("total", "anonymous"), [(1, 1), (2, 1), (3, 1), (4, 2)])
def test_at_least_one_connection_may_present_its_token(total: int, anonymous: int) -> None:
    """However few connections there may be, a new one can sign in; otherwise half of them are reserved."""
    assert ConnectionLimits(total, 5).anonymous == anonymous


def test_a_trusted_proxy_opens_connections_for_many_clients() -> None:
    """The connections of a trusted proxy are limited only together with all."""
    opened = Opened(10, 2)
    opened.open(PROXY, *range(10))
    assert opened.closed == []


def test_a_websocket_takes_its_connection_over() -> None:
    """The protocol that took a connection over is the one that is closed."""
    opened = Opened(100, 1)
    opened.open(MALLORY, 1)
    opened.connections.replace((MALLORY, 1), FakeConnection((MALLORY, 99), lambda peer: opened.closed.append(peer[1])))
    opened.open(MALLORY, 2)
    assert opened.closed == [99]
