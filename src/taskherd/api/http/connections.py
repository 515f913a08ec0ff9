"""The connections of an API process, counted by client until they present a valid token, and then by its holder.

A connection that has presented none cannot keep others out: of one client, and of all clients, only a limited number is
kept. Beyond it the one that has been quiet for longest is closed, so that a new connection can still present its token.
Half of all connections is reserved for those that have.

Nor can connections with a valid token keep others out: when the limit for all is reached, the holder with the most of
them loses the one that has been idle longest. Its client opens another when it needs one. If none of anybody is idle,
the holder with the most loses one with a request in progress, unless it has few. Agents count for their task's owner.

A trusted proxy opens connections for many clients, and only once it has received a request. Its connections count as
trusted, each for the holder of the token of its current request. Those whose request has none are closed if they are
many and nothing is idle, the quietest first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    from taskherd.api.http.client_address import ClientAddresses

Peer: TypeAlias = tuple[str, int]
"""Address and port of the other end, which identify a connection."""
ANONYMOUS_SHARE: Final = 0.5
"""Share of all connections that those without a valid token may use."""
SIGN_IN_SHARE: Final = 0.1
"""Share of all connections within which those without a valid token are not closed for others; so for proxies."""
BUSY_SHARE: Final = 0.125
"""Share of all connections above which one holder loses also those with a request in progress, if none is idle."""


class ClosableConnection(Protocol):
    """A connection as far as it can be closed."""

    @property
    def is_idle(self) -> bool:
        """True if no request is in progress, and no response waits to be sent."""

    def close_idle(self) -> None:
        """Close the connection, which is idle, as after ``KEEP_ALIVE``."""

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

    @property
    def signing_in(self) -> int:
        """Number of connections without a valid token that are not closed for those that have one."""
        return max(1, int(self.total * SIGN_IN_SHARE))

    @property
    def busy_per_holder(self) -> int:
        """Number of connections above which one holder loses also those with a request in progress, if none is idle."""
        return max(1, int(self.total * BUSY_SHARE))


class ConnectionGroup:
    """Connections by holder, each with the time order of their requests."""

    def __init__(self) -> None:
        self._connections: OrderedDict[Peer, tuple[Hashable, ClosableConnection]] = OrderedDict()
        self._by_holder: dict[Hashable, OrderedDict[Peer, None]] = {}

    def __len__(self) -> int:
        """Return the number of connections."""
        return len(self._connections)

    def holder(self, peer: Peer) -> Hashable:
        """Return the holder of a connection, None if it is none of them."""
        entry = self._connections.get(peer)
        return None if entry is None else entry[0]

    def count(self, holder: Hashable) -> int:
        """Return the number of connections of a holder."""
        return len(self._by_holder.get(holder, ()))

    def add(self, peer: Peer, holder: Hashable, connection: ClosableConnection) -> None:
        """Add a connection, as the one that was used last."""
        self._connections[peer] = (holder, connection)
        self._by_holder.setdefault(holder, OrderedDict())[peer] = None

    def remove(self, peer: Peer) -> ClosableConnection | None:
        """Remove a connection, and return it if it was there."""
        entry = self._connections.pop(peer, None)
        if entry is None:
            return None
        holder, connection = entry
        own = self._by_holder[holder]
        del own[peer]
        if not own:
            del self._by_holder[holder]
        return connection

    def touch(self, peer: Peer) -> None:
        """Note that a connection is used now."""
        entry = self._connections.get(peer)
        if entry is not None:
            self._connections.move_to_end(peer)
            self._by_holder[entry[0]].move_to_end(peer)

    def replace(self, peer: Peer, connection: ClosableConnection) -> None:
        """Note that another protocol has taken a connection over."""
        entry = self._connections.get(peer)
        if entry is not None:
            self._connections[peer] = (entry[0], connection)

    def quietest(self, holder: Hashable | None = None) -> Peer | None:
        """Return the connection that has not been used for longest, of a holder or of all; None if there is none."""
        return next(iter(self._connections if holder is None else self._by_holder.get(holder, ())), None)

    def holders(self) -> list[Hashable]:
        """Return all holders, the one with most connections first."""
        return sorted(self._by_holder, key=self.count, reverse=True)

    def quietest_idle(self, holder: Hashable, but: Peer) -> Peer | None:
        """Return the idle connection of a holder that has not been used for longest; None if there is none."""
        own = self._by_holder[holder]
        return next((peer for peer in own if peer != but and self._connections[peer][1].is_idle), None)


class ClientConnections:
    """All client connections; ``on_closed`` is called with the limit for which one was closed."""

    def __init__(self, limits: ConnectionLimits, clients: ClientAddresses, on_closed: Callable[[str], None]) -> None:
        self._limits = limits
        self._clients = clients
        self._on_closed = on_closed
        self._trusted = ConnectionGroup()
        self._anonymous = ConnectionGroup()
        self._proxied: set[Peer] = set()

    def __len__(self) -> int:
        """Return the number of connections."""
        return len(self._trusted) + len(self._anonymous)

    def open(self, peer: Peer, connection: ClosableConnection) -> None:
        """Add a new connection, and close those that are too many, perhaps this one."""
        if self._clients.is_proxy(peer[0]):
            self._proxied.add(peer)
            self._trusted.add(peer, _NO_TOKEN, connection)
        else:
            self._add_anonymous(peer, self._clients.client_of_peer(peer[0]), connection)
        if len(self) > self._limits.total:
            self._make_room(peer)

    def touch(self, peer: Peer) -> None:
        """Note that a connection has sent a complete head, so that quieter ones are closed before it.

        That of a proxy has no valid token until this request presents one.
        """
        if peer in self._proxied:
            self._assign(peer, _NO_TOKEN)
        self._anonymous.touch(peer)
        self._trusted.touch(peer)

    def replace(self, peer: Peer, connection: ClosableConnection) -> None:
        """Note that another protocol has taken a connection over, as after the handshake of a WebSocket."""
        self._anonymous.replace(peer, connection)
        self._trusted.replace(peer, connection)

    def authenticated(self, peer: Peer, holder: Hashable) -> None:
        """Note that a connection has presented a valid token; it counts for the holder of its last one from now on.

        Args:
            peer: the connection.
            holder: the user, also for an agent of a task of theirs.
        """
        self._assign(peer, holder)

    def lost(self, peer: Peer) -> None:
        """Remove a connection that has ended."""
        self._proxied.discard(peer)
        self._trusted.remove(peer)
        self._anonymous.remove(peer)

    def _assign(self, peer: Peer, holder: Hashable) -> None:
        if self._trusted.holder(peer) == holder:
            return
        connection = self._anonymous.remove(peer) or self._trusted.remove(peer)
        if connection is not None:
            self._trusted.add(peer, holder, connection)

    def _add_anonymous(self, peer: Peer, client: str, connection: ClosableConnection) -> None:
        self._anonymous.add(peer, client, connection)
        if self._anonymous.count(client) > self._limits.anonymous_per_client:
            self._close(self._anonymous.quietest(client), "client")
        elif len(self._anonymous) > self._limits.anonymous:
            self._close(self._anonymous.quietest(), "anonymous")

    def _make_room(self, new: Peer) -> None:
        """Close one connection: the quietest without a valid token if there are many of those, else an idle one.

        An idle one is taken from the holder with the most connections. Without any, close the quietest of proxies
        without a valid token if they have many of those, else that of the holder with the most if that has many, else
        that without a valid token, or the new one.
        """
        if len(self._anonymous) > self._limits.signing_in:
            self._close(self._anonymous.quietest(), "total")
            return
        holders = self._trusted.holders()
        for holder in holders:
            idle = self._trusted.quietest_idle(holder, but=new)
            if idle is not None:
                self._close_idle(idle)
                return
        busiest = next((holder for holder in holders if holder is not _NO_TOKEN), None)
        if self._trusted.count(_NO_TOKEN) > self._limits.signing_in:
            self._close(self._trusted.quietest(_NO_TOKEN), "total")
        elif self._trusted.count(busiest) > self._limits.busy_per_holder:
            self._close(self._trusted.quietest(busiest), "busy")
        else:
            self._close(self._anonymous.quietest() or new, "total")

    def _close_idle(self, peer: Peer) -> None:
        connection = self._trusted.remove(peer)
        if connection is not None:
            self._on_closed("idle")
            connection.close_idle()

    def _close(self, peer: Peer | None, limit: str) -> None:
        connection = None if peer is None else self._anonymous.remove(peer) or self._trusted.remove(peer)
        if connection is not None:
            self._on_closed(limit)
            connection.close_for_limit(_MESSAGES[limit])


_NO_TOKEN: Final = object()
"""The holder of proxies' connections whose current request has presented no valid token."""
_MESSAGES: Final = {
    "client": "Too many connections of this client have presented no valid token. Please close some.",
    "anonymous": "Too many connections have presented no valid token. Please try again in a moment.",
    "busy": "You have more than an eighth of all connections open, and too many are. Please close some.",
    "total": "Too many connections are open. Please try again in a moment.",
}
LIMITS: Final = (*_MESSAGES, "idle")
"""The limits for which connections are closed."""
