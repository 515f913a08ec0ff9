"""The connections of an API process, counted by client until they present a valid token.

A connection that has presented none cannot keep others out: of one client, and of all clients, only a limited number is
kept. Beyond it the one that has been quiet for longest is closed, so that a new connection can still present its token.
Half of all connections is reserved for those that have.

A trusted proxy opens connections for many clients, and only once it has received a request. Its own count as trusted.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    from taskherd.api.http.client_address import ClientAddresses

Peer: TypeAlias = tuple[str, int]
"""Address and port of the other end, which identify a connection."""
ANONYMOUS_SHARE: Final = 0.5
"""Share of all connections that those without a valid token may use."""


class ClosableConnection(Protocol):
    """A connection as far as it can be closed."""

    def close_for_limit(self, message: str) -> None:
        """Close the connection, with an error that has this message if a response can be sent."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """The maximum numbers of connections: of all, and of those of one client that have presented no valid token."""

    total: int
    anonymous_per_client: int

    @property
    def anonymous(self) -> int:
        """Maximum number of connections of all clients that have presented no valid token."""
        return max(1, int(self.total * ANONYMOUS_SHARE))


class ClientConnections:
    """All client connections; ``on_closed`` is called with the limit for which one was closed."""

    def __init__(self, limits: ConnectionLimits, clients: ClientAddresses, on_closed: Callable[[str], None]) -> None:
        self._limits = limits
        self._clients = clients
        self._on_closed = on_closed
        self._trusted: set[Peer] = set()
        self._anonymous: OrderedDict[Peer, tuple[str, ClosableConnection]] = OrderedDict()
        self._by_client: dict[str, OrderedDict[Peer, None]] = {}

    def __len__(self) -> int:
        """Return the number of connections."""
        return len(self._trusted) + len(self._anonymous)

    def open(self, peer: Peer, connection: ClosableConnection) -> None:
        """Add a new connection, and close those that are too many, perhaps this one."""
        if self._clients.is_proxy(peer[0]):
            self._trusted.add(peer)
        else:
            self._add_anonymous(peer, self._clients.client_of_peer(peer[0]), connection)
        if len(self) > self._limits.total:
            self._close_quietest(peer, connection)

    def touch(self, peer: Peer) -> None:
        """Note that a connection has sent a complete head, so that quieter ones are closed before it."""
        entry = self._anonymous.get(peer)
        if entry is not None:
            self._anonymous.move_to_end(peer)
            self._by_client[entry[0]].move_to_end(peer)

    def replace(self, peer: Peer, connection: ClosableConnection) -> None:
        """Note that another protocol has taken a connection over, as after the handshake of a WebSocket."""
        entry = self._anonymous.get(peer)
        if entry is not None:
            self._anonymous[peer] = (entry[0], connection)

    def authenticated(self, peer: Peer) -> None:
        """Note that a connection has presented a valid token; it is not limited from now on."""
        if self._forget_anonymous(peer) is not None:
            self._trusted.add(peer)

    def lost(self, peer: Peer) -> None:
        """Remove a connection that has ended."""
        self._trusted.discard(peer)
        self._forget_anonymous(peer)

    def _add_anonymous(self, peer: Peer, client: str, connection: ClosableConnection) -> None:
        self._anonymous[peer] = (client, connection)
        own = self._by_client.setdefault(client, OrderedDict())
        own[peer] = None
        if len(own) > self._limits.anonymous_per_client:
            self._close(next(iter(own)), "client")
        elif len(self._anonymous) > self._limits.anonymous:
            self._close(next(iter(self._anonymous)), "anonymous")

    def _close_quietest(self, peer: Peer, connection: ClosableConnection) -> None:
        """Close the quietest anonymous connection or, if there is no other, the new one."""
        quietest = next(iter(self._anonymous), None)
        if quietest is not None:
            self._close(quietest, "total")
            return
        self._trusted.discard(peer)
        self._on_closed("total")
        connection.close_for_limit(_MESSAGES["total"])

    def _close(self, peer: Peer, limit: str) -> None:
        connection = self._forget_anonymous(peer)
        if connection is not None:
            self._on_closed(limit)
            connection.close_for_limit(_MESSAGES[limit])

    def _forget_anonymous(self, peer: Peer) -> ClosableConnection | None:
        entry = self._anonymous.pop(peer, None)
        if entry is None:
            return None
        client, connection = entry
        own = self._by_client[client]
        del own[peer]
        if not own:
            del self._by_client[client]
        return connection


_MESSAGES: Final = {
    "client": "Too many connections of this client have presented no valid token. Please close some.",
    "anonymous": "Too many connections have presented no valid token. Please try again in a moment.",
    "total": "Too many connections are open. Please try again in a moment.",
}
LIMITS: Final = tuple(_MESSAGES)
"""The limits for which connections are closed."""
