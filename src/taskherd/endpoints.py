"""Connect to the first of several servers that answers: each has its own time limit, and the last good one is first.

A server that accepts connections and never answers costs a client its limit once; then it is behind all others.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeAlias, TypeVar

from taskherd.errors import Unavailable

MAX_HOSTS: Final = 16
"""Maximum number of hosts in a URL."""

MAX_ADDRESSES: Final = 8
"""Maximum number of addresses of a host that are tried."""

_MAX_FAILED: Final = 256
"""Maximum number of failed servers that are remembered; addresses of a name may change for ever."""

_MAX_REASON: Final = 200
"""Maximum length of the reason why one server failed, in characters."""

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Host:
    """A host of a URL: a DNS name, an IP address, or the path of a Unix socket; without a port, it is the default."""

    name: str
    port: int | None = None

    def __str__(self) -> str:
        """Return it as in a URL."""
        name = f"[{self.name}]" if ":" in self.name and not self.is_socket else self.name
        return name if self.port is None else f"{name}:{self.port}"

    @property
    def is_socket(self) -> bool:
        """True if the name is the path of a Unix socket."""
        return self.name.startswith("/")

    @property
    def is_dns_name(self) -> bool:
        """True if the name must be resolved."""
        if self.is_socket:
            return False
        try:
            ipaddress.ip_address(self.name.partition("%")[0])
        except ValueError:
            return True
        return False


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One address of a host; of a host that is no DNS name, its name."""

    host: Host
    address: str

    def __str__(self) -> str:
        """Return the host, with its address if that says more."""
        return str(self.host) if self.address == self.host.name else f"{self.host} ({self.address})"


Resolve: TypeAlias = Callable[[Host], Awaitable[Sequence[str]]]
"""A function that returns the IP addresses of a DNS name."""


async def resolve(host: Host) -> Sequence[str]:
    """Return the addresses of a DNS name in the order of the system's resolver. Raise ``OSError`` if there is none."""
    found = await asyncio.get_running_loop().getaddrinfo(host.name, host.port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class _Preference(Generic[K]):
    """An order of alternatives: the one that succeeded last, those that did not fail, then the longest ago failed.

    Of those that did not fail, the one that ``other`` tried last comes last.
    """

    def __init__(self) -> None:
        self.other: _Preference[K] | None = None
        self.tried: K | None = None
        self._last_good: K | None = None
        self._failed: dict[K, None] = {}

    def order(self, alternatives: Iterable[K]) -> list[K]:
        ranks = {failed: rank for rank, failed in enumerate(self._failed, start=1)}
        taken = None if self.other is None else self.other.tried
        return sorted(alternatives, key=lambda each: (each != self._last_good, ranks.get(each, 0), each == taken))

    def succeeded(self, alternative: K) -> None:
        self._last_good = alternative
        self._failed.pop(alternative, None)

    def failed(self, alternative: K) -> None:
        if self._last_good == alternative:
            self._last_good = None
        self._failed.pop(alternative, None)
        self._failed[alternative] = None
        if len(self._failed) > _MAX_FAILED:
            del self._failed[next(iter(self._failed))]


class Endpoints:
    """The servers of one URL, and which of them to try first; shared by all connections to that URL in a pool."""

    def __init__(self, hosts: Sequence[Host], limit: float, resolve: Resolve = resolve) -> None:
        """Remember nothing yet; ``limit`` is in seconds, for resolving a name and for each address."""
        self.hosts = tuple(hosts)
        self._limit = limit
        self._resolve = resolve
        self._host_order: _Preference[Host] = _Preference()
        self._address_order: _Preference[Endpoint] = _Preference()

    def keep_apart(self, other: Endpoints) -> None:
        """Let each of the two begin elsewhere than at the server that the other one has tried last, if it can."""
        self._host_order.other, other._host_order.other = other._host_order, self._host_order
        self._address_order.other, other._address_order.other = other._address_order, self._address_order

    async def connect(
        self, attempt: Callable[[Endpoint], Awaitable[T]], errors: tuple[type[Exception], ...]
    ) -> tuple[T, Endpoint]:
        """Return the result of the first successful ``attempt``, and the endpoint that it was for.

        Raises:
            Unavailable: no endpoint could be reached; the message names each one with the reason.
            Exception: the only endpoint answered with this error, one of ``errors``, which the caller may classify.
        """
        expected: tuple[type[Exception], ...] = (*errors, TimeoutError)
        failures: list[tuple[str, Exception]] = []
        for host in self._host_order.order(self.hosts):
            self._host_order.tried = host
            try:
                endpoints = await self._endpoints(host)
            except OSError as error:
                failures.append((str(host), error))
                self._host_order.failed(host)
                continue
            except asyncio.CancelledError:
                self._host_order.failed(host)  # as below
                raise
            for endpoint in endpoints:
                self._address_order.tried = endpoint
                try:
                    async with asyncio.timeout(self._limit):
                        result = await attempt(endpoint)
                except expected as error:
                    failures.append((str(endpoint), error))
                    self.mark_failed(endpoint)
                except asyncio.CancelledError:
                    self.mark_failed(endpoint)  # the caller gave up before the limit: the next attempt begins elsewhere
                    raise
                else:
                    self._host_order.succeeded(host)
                    self._address_order.succeeded(endpoint)
                    return result, endpoint
        last = failures[-1][1]
        if len(failures) == 1 and not isinstance(last, (OSError, Unavailable)):
            raise last
        raise Unavailable("; ".join(f"{where}: {self._reason(error)}" for where, error in failures)) from last

    def mark_failed(self, endpoint: Endpoint) -> None:
        """Try the endpoint after all others from now on: connecting to it failed, or a connection to it was lost."""
        self._address_order.failed(endpoint)
        self._host_order.failed(endpoint.host)

    async def _endpoints(self, host: Host) -> list[Endpoint]:
        """Return the addresses of a host in the order in which to try them. Raise ``OSError`` if there is none."""
        if not host.is_dns_name:
            return [Endpoint(host, host.name)]
        async with asyncio.timeout(self._limit):
            addresses = await self._resolve(host)
        return self._address_order.order(Endpoint(host, each) for each in addresses)[:MAX_ADDRESSES]

    def _reason(self, error: Exception) -> str:
        if isinstance(error, TimeoutError) and not str(error):
            return f"no answer within {self._limit:g} s"
        if isinstance(error, ConnectionError) and error.errno:
            return os.strerror(error.errno)
        lines = str(error).splitlines()
        return (lines[0] if lines else type(error).__name__)[:_MAX_REASON]
