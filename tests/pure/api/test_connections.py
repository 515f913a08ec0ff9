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

    def __init__(self, peer: Peer, on_close: Callable[[Peer], None], *, is_idle: bool = True) -> None:
        self._peer = peer
        self.is_idle = is_idle
        self._on_close = on_close

    def close_idle(self) -> None:
        """Report it."""
        assert self.is_idle
        self._on_close(self._peer)

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

    def open(self, host: str, *ports: int, holder: str = "", is_idle: bool = True) -> None:
        """Open connections of a client, each of which presents the token of a holder if one is given."""
        for port in ports:
            peer = (host, port)
            connection = FakeConnection(peer, lambda closed: self.closed.append(closed[1]), is_idle=is_idle)
            self.connections.open(peer, connection)
            if holder:
                self.connections.authenticated(peer, holder)


def test_one_clients_connections_without_a_token() -> None:
    """Of one client too many, the quietest is closed; another client's and those with a valid token are not."""
    opened = Opened(100, 3)
    opened.open(ALICE, 1)
    opened.open(MALLORY, 11, 12, 13)
    opened.connections.touch((MALLORY, 11))
    assert opened.closed == []
    opened.open(MALLORY, 14, 15)
    assert (opened.closed, opened.limits) == ([12, 13], ["client", "client"])
    opened.connections.authenticated((MALLORY, 11), "mallory")
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
    opened.connections.authenticated((MALLORY, 3), "mallory")
    opened.connections.lost((MALLORY, 3))
    opened.connections.lost((MALLORY, 3))
    assert (opened.closed, len(opened.connections)) == ([], 1)
    opened.connections.lost((MALLORY, 2))
    opened.open(PROXY, 4)
    opened.connections.lost((PROXY, 4))
    assert not vars(opened.connections)["_proxied"]
    for group in ("_anonymous", "_trusted"):  # nothing is remembered of clients without a connection
        assert not vars(vars(opened.connections)[group])["_by_holder"]


def test_half_is_reserved_for_valid_tokens() -> None:
    """Connections without a valid token of many clients use half of all at most."""
    opened = Opened(10, 5)
    for number in range(8):
        opened.open(f"198.51.100.{number}", number)
    assert (opened.closed, opened.limits) == ([0, 1, 2], ["anonymous"] * 3)
    for port in range(100, 105):
        opened.open(ALICE, port, holder="alice")
    assert opened.closed == [0, 1, 2, 3]
    opened.open(MALLORY, 200, 201, 202)
    assert opened.closed == [0, 1, 2, 3, 4, 5]


def test_one_holder_of_valid_tokens_cannot_keep_others_out() -> None:
    """Where there is no room, whoever has most connections loses the idle one that was used least recently."""
    opened = Opened(10, 5)
    opened.open(MALLORY, *range(7), holder="mallory")
    opened.open(ALICE, 10, 11, 12, holder="alice")
    opened.connections.touch((MALLORY, 0))
    opened.open(ALICE, 13, holder="alice")
    assert (opened.closed, opened.limits) == ([1], ["idle"])
    opened.open(PROXY, 20)
    assert (opened.closed, opened.limits) == ([1, 2], ["idle"] * 2)
    opened.open(MALLORY, 30, 31, 32, holder="mallory")
    assert opened.closed == [1, 2, 3, 4, 5]  # its new ones replace its own
    assert len(opened.connections) == 10


def test_a_connection_counts_for_the_holder_of_its_last_token() -> None:
    """Who presents several tokens over a connection hides behind none of them, and not behind a proxy."""
    opened = Opened(6, 6)
    opened.open(MALLORY, 1, 2, 3, 4, holder="alice")
    for port in (1, 2, 3, 4):
        opened.connections.authenticated((MALLORY, port), "mallory")
    opened.open(ALICE, 10, 11, holder="alice")
    opened.open(PROXY, 20, holder="alice")
    assert (opened.closed, opened.limits) == ([1], ["idle"])
    opened.open(PROXY, 21, 22, holder="alice")
    assert opened.closed == [1, 2, 10]


def test_what_is_in_progress_is_not_closed_for_others() -> None:
    """Where nothing is idle and nobody has many, a new one is closed, and none of the others."""
    opened = Opened(16, 5)
    for number in range(7):
        opened.open(f"198.51.100.{number}", 2 * number, 2 * number + 1, holder=f"user-{number}", is_idle=False)
    opened.open(MALLORY, 20, holder="mallory")
    opened.open(ALICE, 30, 31, holder="alice", is_idle=False)
    assert (opened.closed, opened.limits) == ([20], ["idle"])  # others have more, but mallory's is idle
    opened.open(MALLORY, 40)
    opened.open(PROXY, 50)
    assert (opened.closed, opened.limits) == ([20, 40, 50], ["idle", "total", "total"])
    assert len(opened.connections) == 16


def test_one_holder_keeps_at_most_an_eighth_with_requests_in_progress() -> None:
    """Where nothing is idle, requests that never end keep nobody out either, also behind a trusted proxy."""
    opened = Opened(16, 5)
    opened.open(MALLORY, *range(9), holder="mallory", is_idle=False)
    opened.open(ALICE, *range(20, 27), holder="alice", is_idle=False)
    opened.open("198.51.100.1", 30, 31, holder="bob", is_idle=False)
    opened.open("198.51.100.2", 40, holder="eve", is_idle=False)
    assert (opened.closed, opened.limits) == ([0, 1, 2], ["busy"] * 3)
    opened = Opened(4, 5)
    opened.open(PROXY, 1, 2, 3, 4, holder="mallory", is_idle=False)
    opened.open(ALICE, 5)
    assert (opened.closed, opened.limits) == ([1], ["busy"])


def test_two_holders_with_nearly_half_in_progress_keep_nobody_out() -> None:
    """Where nothing is idle, the holder with most loses the quietest of its requests, however many hold as much."""
    opened = Opened(100, 5)
    opened.open(MALLORY, *range(49), holder="mallory", is_idle=False)
    opened.open("192.0.2.67", *range(100, 149), holder="eve", is_idle=False)
    for port in range(200, 206):
        opened.open(ALICE, port, holder="alice", is_idle=False)
    assert (opened.closed, opened.limits) == ([0, 100, 1, 101], ["busy"] * 4)


def test_those_that_sign_in_are_not_closed_for_others() -> None:
    """While strangers have few connections, a new one does not take the place of one that is about to sign in."""
    opened = Opened(20, 20)
    opened.open(MALLORY, *range(19), holder="mallory")
    opened.open(ALICE, 30, 31)
    assert (opened.closed, opened.limits) == ([0], ["idle"])
    opened.open(ALICE, 32)
    assert (opened.closed, opened.limits) == ([0, 30], ["idle", "total"])


@pytest.mark.parametrize(("total", "anonymous"), [(1, 1), (2, 1), (3, 1), (4, 2)])
def test_at_least_one_connection_may_present_its_token(total: int, anonymous: int) -> None:
    """However few connections there may be, a new one can sign in; otherwise half of them are reserved."""
    assert ConnectionLimits(total, 5).anonymous == anonymous


@pytest.mark.parametrize(("total", "busy", "signing_in"), [(1, 1, 1), (8, 1, 1), (15, 1, 1), (16, 2, 1), (80, 10, 8)])
def test_a_part_of_the_connections_may_be_busy_or_about_to_sign_in(total: int, busy: int, signing_in: int) -> None:
    """An eighth of one holder's, and a tenth of all strangers'; at least one of each."""
    limits = ConnectionLimits(total, 5)
    assert (limits.busy_per_holder, limits.signing_in) == (busy, signing_in)


def test_a_trusted_proxy_opens_connections_for_many_clients() -> None:
    """The connections of a trusted proxy are limited only together with all."""
    opened = Opened(10, 2)
    opened.open(PROXY, *range(10))
    assert opened.closed == []


def test_requests_without_a_token_behind_a_proxy_keep_nobody_out() -> None:
    """Where all places are those of a proxy, the quietest request in progress without a token makes room for others."""
    opened = Opened(20, 5)
    opened.open(PROXY, *range(20), is_idle=False)
    opened.connections.touch((PROXY, 0))
    opened.open(ALICE, 30)
    opened.open(PROXY, 31)
    assert (opened.closed, opened.limits) == ([1, 2], ["total"] * 2)
    for port in (*range(3, 20), 0):
        opened.connections.authenticated((PROXY, port), f"user-{port}")
    opened.open(ALICE, 40, 41, is_idle=False)
    assert opened.closed == [1, 2, 31, 30]  # the idle one first; then those with a token stay


def test_each_request_behind_a_proxy_counts_by_itself() -> None:
    """A connection of a proxy whose next request has no valid token keeps nothing of the token before."""
    opened = Opened(10, 5)
    opened.open(PROXY, *range(10), is_idle=False)
    for port in range(10):
        opened.connections.authenticated((PROXY, port), f"user-{port}")
    opened.connections.touch((PROXY, 4))
    opened.connections.touch((PROXY, 5))
    opened.open(ALICE, 20, 21, is_idle=False)
    assert (opened.closed, opened.limits) == ([4, 20], ["total"] * 2)


def test_a_websocket_takes_its_connection_over() -> None:
    """The protocol that took a connection over is the one that is closed."""
    opened = Opened(100, 1)
    opened.open(MALLORY, 1)
    opened.connections.replace((MALLORY, 1), FakeConnection((MALLORY, 99), lambda peer: opened.closed.append(peer[1])))
    opened.open(MALLORY, 2)
    assert opened.closed == [99]
