"""Which client a request counts for: its peer, or what trusted proxies say."""

from __future__ import annotations

from ipaddress import IPv4Network

import pytest

from taskherd.api.http.client_address import UNKNOWN, ClientAddresses
from taskherd.settings import Settings


def client(trusted: str, peer: str | None, *forwarded: str) -> str:
    """Return the client of a request from ``peer`` with these headers."""
    headers = [(b"x-forwarded-for", each.encode("latin-1")) for each in forwarded]
    scope = {"client": None if peer is None else (peer, 50_000), "headers": headers}
    return ClientAddresses(Settings(api_trusted_proxies=trusted).trusted_proxies).client_of(scope)


@pytest.mark.parametrize("trusted", ["", "10.0.0.0/8"])
def test_what_an_untrusted_peer_says_is_ignored(trusted: str) -> None:
    """Without trusted proxies, or from a peer that is none, the header is ignored."""
    assert client(trusted, "192.0.2.7", "203.0.113.9") == "192.0.2.7"


@pytest.mark.parametrize(
    ("forwarded", "expected"),
    [
        (["203.0.113.9"], "203.0.113.9"),
        (["198.51.100.1, 203.0.113.9"], "203.0.113.9"),
        (["198.51.100.1", "203.0.113.9"], "203.0.113.9"),
        (["198.51.100.1, 203.0.113.9, 10.1.1.1"], "203.0.113.9"),
        (["10.2.2.2, 10.1.1.1"], "10.2.2.2"),
        (["203.0.113.9:4711"], "203.0.113.9"),
        (["198.51.100.1, nonsense, 10.1.1.1"], "10.1.1.1"),
        (["nonsense"], "10.0.0.1"),
        ([""], "10.0.0.1"),
        ([], "10.0.0.1"),
        (["[2001:db8:1:2:3:4:5:6]:443"], "2001:db8:1:2::/64"),
        (["\u00ff"], "10.0.0.1"),
    ],
)
def test_behind_a_trusted_proxy(forwarded: list[str], expected: str) -> None:
    """The client is the last address that is no trusted proxy; what stands before it may be invented."""
    assert client("10.0.0.0/8, 2001:db8:ffff::/48", "10.0.0.1", *forwarded) == expected


def test_ipv6_clients_are_networks() -> None:
    """All addresses of a /64 are one client, and an IPv4 address in IPv6 form is that IPv4 address."""
    assert client("", "2001:db8::1") == client("", "2001:db8::ffff:2") == "2001:db8::/64"
    assert client("", "2001:db8:0:1::1") == "2001:db8:0:1::/64"
    assert client("", "::ffff:192.0.2.7") == "192.0.2.7"
    assert client("10.0.0.0/8", "::ffff:10.0.0.1", "203.0.113.9") == "203.0.113.9"


def test_a_connection_without_an_address() -> None:
    """A Unix socket has no address: all its connections are one client."""
    assert client("10.0.0.0/8", None, "203.0.113.9") == UNKNOWN


@pytest.mark.parametrize(
    ("peer", "is_proxy", "expected"),
    [
        ("10.1.2.3", True, "10.1.2.3"),
        ("192.0.2.7", False, "192.0.2.7"),
        ("2001:db8:1:2:3::4", False, "2001:db8:1:2::/64"),
        ("nonsense", False, UNKNOWN),
        ("", False, UNKNOWN),
        (None, False, UNKNOWN),
    ],
)
def test_a_peer_of_which_no_request_is_known(peer: str | None, expected: str, *, is_proxy: bool) -> None:
    """It is a trusted proxy or not, by its own address."""
    addresses = ClientAddresses([IPv4Network("10.0.0.0/8")])
    assert (addresses.is_proxy(peer), addresses.client_of_peer(peer)) == (is_proxy, expected)
    assert not ClientAddresses([]).is_proxy(peer)
