"""Connecting to PostgreSQL: the hosts of its URL one after the other, each address with its own time limit.

asyncpg's ``timeout`` covers all hosts together and always begins with the first one, so that a frozen one takes all of
it, for ever; of a DNS name it tries only the first address that accepts a connection (asyncpg 0.32,
``connect_utils._connect``). Here it connects to one address at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final
from weakref import WeakKeyDictionary, WeakSet

import asyncpg
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import SQLAlchemyError

from taskherd.endpoints import Endpoint, Endpoints, Resolve, resolve
from taskherd.errors import Misconfigured, Unavailable
from taskherd.settings import urls
from taskherd.store.sessions import Pooling, SessionFactory, pooling_of

CONNECT_TIMEOUT: Final = 3.0
"""Seconds until an attempt to connect to one address fails; TLS, the password and the check of the target included."""

STANDBY_INTERVAL: Final = 2.0
"""Seconds that a pool which expects a primary stays with a standby that may be the only server."""

FAILURES: Final = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""All errors of asyncpg; ``engine.classify`` tells which of them are bugs of the caller."""

EXAMPLE: Final = "postgresql://user:password@host/database"


def sqlalchemy_url(database_url: str) -> URL:
    """Return a ``postgresql://`` URL with its first host for asyncpg, and libpq's ``sslmode`` as asyncpg's ``ssl``."""
    url, _ = pooling_of(_with_first_host(database_url))
    if url.get_backend_name() not in {"postgresql", "postgres"}:
        raise Misconfigured("database_url", f"expected a postgresql:// URL, got the scheme {url.drivername!r}")
    query = dict(url.query)
    if "sslmode" in query:
        query["ssl"] = query.pop("sslmode")
    return url.set(drivername="postgresql+asyncpg", query=query)


def _with_first_host(database_url: str) -> URL:
    try:
        first, *_ = urls.database_hosts(database_url)
        return make_url(urls.with_host(database_url, first))
    except (SQLAlchemyError, ValueError):
        raise Misconfigured("database_url", f"expected a URL like {EXAMPLE}") from None


def _pooling(database_url: str) -> Pooling:
    return pooling_of(_with_first_host(database_url))[1]


class Connector:
    """Makes the connections of one pool, and remembers to which server each is and which servers to avoid."""

    def __init__(
        self,
        database_url: str,
        *,
        command_timeout: float,
        server_settings: Mapping[str, str],
        checked: bool = True,
        resolve: Resolve = resolve,
    ) -> None:
        """Remember what ``asyncpg.connect`` needs; the timeout is in seconds. Raise ``Misconfigured`` for a bad URL.

        Unless ``checked``, sessions may lack the settings.
        """
        url = sqlalchemy_url(database_url)
        self._options = {
            **url.get_dialect()().create_connect_args(url)[1],
            "command_timeout": command_timeout,
        }
        pooling = _pooling(database_url)
        self.sessions = SessionFactory(pooling, server_settings, checked=checked)
        target = urls.database_target(database_url)
        if target is not None:
            self._options["target_session_attrs"] = target
        self._target = target
        # PgBouncer does not tell clients what the server is that they have now.
        self._wants_primary = target in {urls.READ_WRITE, urls.PRIMARY} or (
            target is None and pooling is Pooling.DIRECT
        )
        self._endpoints = Endpoints(urls.database_hosts(database_url), CONNECT_TIMEOUT, resolve)
        self._connected: WeakKeyDictionary[Any, Endpoint] = WeakKeyDictionary()
        self._idle: WeakSet[Any] = WeakSet()
        self._to_close: WeakSet[Any] = WeakSet()
        self._stay_until = 0.0

    async def connect(self) -> Any:
        """Return an asyncpg connection to the first server that answers and matches ``target_session_attrs``.

        Raises:
            Misconfigured: the session lacks settings, see ``store.sessions``.
            asyncpg.PostgresError, asyncpg.InternalClientError: the answer of an only server.
            Unavailable: no server could be reached, or trusted; the message has the reason for each.
        """

        async def attempt(endpoint: Endpoint) -> Any:
            return await self.sessions.connect(**{**self._options, **_address_options(endpoint)})

        try:
            connection, endpoint = await self._endpoints.connect(attempt, FAILURES)
        except Unavailable as error:
            raise Unavailable(f"PostgreSQL can't be reached: {error}") from error
        except asyncpg.InterfaceError as error:
            raise Unavailable(f"PostgreSQL can't be reached: {error.args[0]}") from error
        self._connected[connection] = endpoint
        return connection

    def take(self, connection: Any) -> None:
        """Note that a pool hands out the connection."""
        self._idle.discard(connection)

    def give_back(self, connection: Any) -> None:
        """Note that a pool has the connection back, with no statement in progress; close it if its server is left."""
        if connection in self._to_close:
            connection.terminate()
        else:
            self._idle.add(connection)

    def avoid(self, connection: Any) -> None:
        """Leave the server of ``connection``, which does not answer or rejects writes: connect to others first.

        Its idle connections are closed at once, so that nothing waits for them, and the others when they come back:
        asyncpg fails with an ``AttributeError`` when a connection is closed while a statement is in progress.
        """
        endpoint = self._connected.get(connection)
        if endpoint is None:
            return
        self._endpoints.mark_failed(endpoint)
        for each in [other for other, to in self._connected.items() if to == endpoint]:
            if each in self._idle:
                each.terminate()
            else:
                self._to_close.add(each)

    def leave_demoted(self, connection: Any) -> None:
        """Leave the server of ``connection`` if it is demoted, for a pool that expects a primary.

        Without ``target_session_attrs`` the next connection may lead to it again, so it is left only every
        ``STANDBY_INTERVAL`` seconds.
        """
        if not self.is_demoted(connection):
            return
        if self._target is None:
            now = asyncio.get_running_loop().time()
            if now < self._stay_until:
                return
            self._stay_until = now + STANDBY_INTERVAL
        self.avoid(connection)

    def is_demoted(self, connection: Any) -> bool:
        """Return whether the server of ``connection`` has reported that it is no primary now, unless the URL takes any.

        Without ``target_session_attrs`` the only host may be a name that has moved. PostgreSQL reports changes
        of both settings without being asked
        (https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-ASYNC).
        """
        if not self._wants_primary:
            return False
        settings = connection.get_settings()
        if getattr(settings, "in_hot_standby", "off") == "on":
            return True
        return self._target == urls.READ_WRITE and getattr(settings, "default_transaction_read_only", "off") == "on"


def _address_options(endpoint: Endpoint) -> dict[str, Any]:
    """Return the arguments of ``asyncpg.connect`` that lead to one address."""
    host = endpoint.host
    options: dict[str, Any] = {"host": host.name}
    if host.port is not None:
        options["port"] = host.port
    if endpoint.address != host.name:
        options["loop"] = _RoutedLoop(asyncio.get_running_loop(), endpoint.address)
    return options


class _RoutedLoop:
    """An event loop for asyncpg whose TCP connections go to a given address of their DNS name.

    asyncpg must know the name, by which it checks certificates and finds passwords, and it has no argument for the
    address. It also connects through this loop to cancel a statement, which only the same server can do.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, address: str) -> None:
        self._loop = loop
        self._address = address
        self.call_later = loop.call_later  # these are called for each statement
        self.create_future = loop.create_future
        self.time = loop.time

    async def create_connection(
        self, factory: Callable[[], asyncio.Protocol], host: str, port: int, **options: Any
    ) -> tuple[asyncio.Transport, asyncio.Protocol]:
        """Connect to the given address instead of ``host``, whose certificate is still expected."""
        if options.get("ssl"):
            options["server_hostname"] = host
        connection: tuple[asyncio.Transport, asyncio.Protocol]
        connection = await self._loop.create_connection(factory, self._address, port, **options)
        return connection

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the real loop."""
        return getattr(self._loop, name)

    def __eq__(self, other: object) -> bool:
        """Return whether ``other`` is the same loop; ``asyncio.current_task`` looks it up."""
        return other is self or other == self._loop

    def __hash__(self) -> int:
        """Return the hash of the real loop."""
        return hash(self._loop)
