"""The network address of a request's client: its rate limits and connections are counted by it.

Behind a trusted proxy, the client is the last address in ``X-Forwarded-For`` that is not a trusted proxy itself: each
proxy appends the address that it was called from, and what is before that may be invented by the client. From any other
peer the header is ignored.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence
    from ipaddress import IPv4Network

    from starlette.types import Scope

IPV6_PREFIX: Final = 64
"""Leading bits by which IPv6 clients are told apart: a client usually has all addresses of such a network."""
FORWARDED_FOR: Final = b"x-forwarded-for"
UNKNOWN: Final = "unknown"
"""The client of a connection without an address, as of a Unix socket."""


class ClientAddresses:
    """The rule by which the client of a request is found; ``trusted`` are the networks of the trusted proxies."""

    def __init__(self, trusted: Sequence[IPv4Network | IPv6Network]) -> None:
        self._trusted = tuple(trusted)

    def is_proxy(self, peer: str | None) -> bool:
        """Return whether a peer is a trusted proxy."""
        address = _parse(peer or "")
        return address is not None and self._is_trusted(address)

    def client_of(self, scope: Scope) -> str:
        """Return the client of a request: an IPv4 address, an IPv6 network, or ``UNKNOWN``."""
        peer = scope.get("client")
        address = _parse(peer[0] if peer else "")
        if address is None:
            return UNKNOWN
        if self._is_trusted(address):
            for entry in reversed(_forwarded_for(scope)):
                forwarded = _parse(entry)
                if forwarded is None:
                    break  # what is before it cannot be trusted either
                address = forwarded
                if not self._is_trusted(address):
                    break
        return _key(address)

    def client_of_peer(self, peer: str | None) -> str:
        """Return the client of a connection of which no request is known yet."""
        address = _parse(peer or "")
        return UNKNOWN if address is None else _key(address)

    def _is_trusted(self, address: IPv4Address | IPv6Address) -> bool:
        return any(address in network for network in self._trusted)


def _forwarded_for(scope: Scope) -> list[str]:
    """Return the entries of all ``X-Forwarded-For`` headers, in order."""
    values = [value.decode("latin-1") for name, value in scope["headers"] if name == FORWARDED_FOR]
    return [entry.strip() for entry in ",".join(values).split(",")] if values else []


def _parse(text: str) -> IPv4Address | IPv6Address | None:
    """Parse an address, with or without a port and brackets; an IPv4 address in IPv6 form becomes IPv4."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        return address.ipv4_mapped or address
    return address


def _key(address: IPv4Address | IPv6Address) -> str:
    if isinstance(address, IPv4Address):
        return str(address)
    return str(IPv6Network((int(address), IPV6_PREFIX), strict=False))
