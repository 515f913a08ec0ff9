"""Check the URLs of the database and the broker, split them into hosts, and hide their passwords.

Both may name several hosts, separated by commas: PostgreSQL's as libpq reads them
(https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING-URIS), RabbitMQ's likewise.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, NamedTuple
from urllib.parse import parse_qsl, unquote, urlencode

from taskherd.endpoints import MAX_HOSTS, Host

HIDDEN = "********"
READ_WRITE: Final = "read-write"
PRIMARY: Final = "primary"
TARGETS: Final = (READ_WRITE, PRIMARY, "any")
"""Values of ``target_session_attrs``; the others are servers to which taskherd cannot write."""
STANDBY_TARGETS: Final = ("standby", "read-only", "any")
"""Its values in the URL of a standby; with the others it would never be used."""

_SSL_MODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_POOL_MODES: Final = ("session", "transaction")
"""The modes of a PgBouncer, in the option ``pgbouncer`` of a database URL."""
_CHOICES: Final = {"sslmode": _SSL_MODES, "ssl": _SSL_MODES, "pgbouncer": _POOL_MODES}
_POSTGRES = frozenset({"postgresql", "postgres", "postgresql+asyncpg"})
_POSTGRES_OPTIONS = frozenset({"sslmode", "ssl", "host", "port", "passfile", "target_session_attrs", "pgbouncer"})
_AMQP_PORTS: Final = {"amqp": 5672, "amqps": 5671}
_MAX_PORT = 65_535
_ENCODE: Final = "; special characters of a password must be percent-encoded"
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_NETLOC = re.compile(r"[^/?#]*")


class _Url(NamedTuple):
    """The parts of a URL as they are written; ``urllib`` rejects several hosts."""

    scheme: str
    userinfo: str | None
    hosts: str
    path: str
    query: str

    def __str__(self) -> str:
        netloc = self.hosts if self.userinfo is None else f"{self.userinfo}@{self.hosts}"
        return f"{self.scheme}://{netloc}{self.path}{'?' if self.query else ''}{self.query}"


def check_database(url: str, targets: Sequence[str] = TARGETS) -> str:
    """Return ``url``; raise ``ValueError`` unless it is a PostgreSQL URL that taskherd can connect to.

    ``targets`` are the possible values of ``target_session_attrs``.
    """
    parts = _split(url)
    choices = {**_CHOICES, "target_session_attrs": targets}
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if parts.scheme not in _POSTGRES:
        problem = f"the scheme is {parts.scheme or 'missing'}"
    elif database_hosts(url) and (unknown := sorted(options.keys() - _POSTGRES_OPTIONS)):
        name = unknown[0] if unknown[0].isidentifier() else ""  # else perhaps a part of a password
        problem = f"unknown option {name} (known: {', '.join(sorted(_POSTGRES_OPTIONS))})"
    elif wrong := [each for each in choices if options.get(each, choices[each][0]) not in choices[each]]:
        problem = f"{wrong[0]} is {options[wrong[0]][:64]!r} (possible: {', '.join(choices[wrong[0]])})"
    elif len(parts.path) < len("/x"):
        problem = "there is no database name"
    else:
        return url
    raise ValueError(problem)


def check_standby(url: str) -> str:
    """Return ``url``; raise ``ValueError`` unless it is the PostgreSQL URL of one standby.

    Several standbys have not replayed equally far, so that a caller would see an older state after a newer one.
    """
    if len(database_hosts(check_database(url, STANDBY_TARGETS))) > 1:
        message = "there are several hosts: reads are served from one standby"
        raise ValueError(message)
    return url


def check_amqp(url: str) -> str:
    """Return ``url``; raise ``ValueError`` unless it is an AMQP URL that leaves certificate checks on.

    With ``no_verify_ssl`` in the URL aiormq would silently accept any server (aiormq 7.2, ``connection.py``).
    """
    parts = _split(url)
    options = {name.lower() for name, _ in parse_qsl(parts.query, keep_blank_values=True)}
    if parts.scheme not in _AMQP_PORTS:
        problem = f"the scheme is {parts.scheme or 'missing'}"
    elif "no_verify_ssl" in options:
        problem = "no_verify_ssl is not allowed: name the authority's certificate with cafile instead"
    else:
        amqp_hosts(url)
        return url
    raise ValueError(problem)


def database_hosts(url: str) -> tuple[Host, ...]:
    """Return the hosts of a PostgreSQL URL, in order. Raise ``ValueError`` with the problem if they are malformed.

    As in libpq, the options ``host`` and ``port`` replace those before the path; one port counts for all hosts. The
    option ``host`` may also be repeated, with a port in each, as SQLAlchemy writes it.
    """
    parts = _split(url)
    options = parse_qsl(parts.query, keep_blank_values=True)
    named = [value for name, value in options if name == "host"]
    hosts = _parse_hosts(",".join(named)) if named else _parse_hosts(parts.hosts, quoted=True)
    ports = [port for name, value in options if name == "port" for port in value.split(",")]
    if not ports:
        return hosts
    if len(ports) not in {1, len(hosts)}:
        message = f"there are {len(ports)} ports for {len(hosts)} hosts"
        raise ValueError(message)
    shared = ports * len(hosts) if len(ports) == 1 else ports
    return tuple(Host(host.name, _parse_port(port)) for host, port in zip(hosts, shared, strict=True))


def amqp_hosts(url: str) -> tuple[Host, ...]:
    """Return the hosts of an AMQP URL, in order, each with its port. Raise ``ValueError`` if they are malformed."""
    parts = _split(url)
    default = _AMQP_PORTS.get(parts.scheme)
    hosts = _parse_hosts(parts.hosts, quoted=True)
    if any(host.is_socket for host in hosts):
        message = "RabbitMQ has no Unix socket"
        raise ValueError(message)
    return tuple(Host(host.name, host.port or default) for host in hosts)


def with_host(url: str, host: Host) -> str:
    """Return ``url`` with this host instead of its own."""
    parts = _split(url)
    options = [each for each in parse_qsl(parts.query, keep_blank_values=True) if each[0] not in {"host", "port"}]
    if not host.is_socket:
        return str(parts._replace(hosts=str(host), query=urlencode(options)))
    port = [] if host.port is None else [("port", str(host.port))]
    return str(parts._replace(hosts="", query=urlencode([("host", host.name), *port, *options])))


def database_target(url: str) -> str | None:
    """Return the ``target_session_attrs`` of a PostgreSQL URL, None for libpq's default.

    Of several hosts, only one that is writable is chosen by default: on a standby no worker could work.
    """
    chosen = dict(parse_qsl(_split(url).query)).get("target_session_attrs")
    return chosen or (READ_WRITE if len(database_hosts(url)) > 1 else None)


def without_password(url: str) -> str:
    """Return ``url`` with its password, if any, replaced by asterisks."""
    parts = _split(url)
    user, colon, _ = (parts.userinfo or "").partition(":")
    return str(parts._replace(userinfo=f"{user}:{HIDDEN}")) if colon else url


def password(url: str) -> str:
    """Return the password in ``url``, percent-decoded, or "" if there is none."""
    return unquote((_split(url).userinfo or "").partition(":")[2])


def broker_address(url: str) -> str:
    """Return hosts, ports and vhost of an AMQP URL as ``host:port/vhost``; every name of this machine is 127.0.0.1.

    Several hosts are sorted and separated by commas, so that their order does not matter.
    """
    vhost = unquote(_split(url).path[1:]) or "/"
    addresses = {f"{'127.0.0.1' if _is_local(host) else host.name}:{host.port}" for host in amqp_hosts(url)}
    return f"{','.join(sorted(addresses))}/{vhost}"


def _is_local(host: Host) -> bool:
    return host.name in _LOOPBACK


def _split(url: str) -> _Url:
    scheme, separator, rest = url.partition("://")
    if not separator:
        return _Url("", None, "", url, "")
    netloc = _NETLOC.match(rest)
    assert netloc is not None  # it matches an empty text too
    userinfo, at, hosts = netloc.group().rpartition("@")
    path, _, query = rest[netloc.end() :].partition("#")[0].partition("?")
    return _Url(scheme.lower(), userinfo if at else None, hosts, path, query)


def _parse_hosts(hosts: str, *, quoted: bool = False) -> tuple[Host, ...]:
    """Return the hosts in a list separated by commas, percent-decoded if it is ``quoted``."""
    if not hosts:
        message = "there is no host"
        raise ValueError(message)
    listed = hosts.split(",")
    if len(listed) > MAX_HOSTS:
        message = f"there are {len(listed)} hosts, more than {MAX_HOSTS}"
        raise ValueError(message)
    return tuple(_parse_host(each, quoted=quoted) for each in listed)


def _parse_host(host: str, *, quoted: bool) -> Host:
    text = host.strip()
    if text.startswith("["):
        name, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            message = "an IPv6 address needs brackets, as in [::1]:5432"
            raise ValueError(message)
        port = rest[1:]
    elif text.startswith("/") or text.count(":") > 1:  # a Unix socket, or in an option an IPv6 address
        name, port = text, ""
    else:
        name, _, port = text.partition(":")
    if not name:
        message = "a host is missing"
        raise ValueError(message)
    parsed = Host(_host_name(unquote(name) if quoted else name), _parse_port(port) if port else None)
    if parsed.is_dns_name:
        _check_dns_name(parsed.name)
    return parsed


def _host_name(name: str) -> str:
    return name if name.startswith("/") else name.lower()


def _check_dns_name(name: str) -> None:
    try:
        name.encode("idna")  # as the resolver does, whose error would be no ``OSError``
    except UnicodeError:
        message = "one of the hosts is no host name"
        raise ValueError(message) from None


def _parse_port(port: str) -> int:
    """Return the port. The errors do not quote it: it may be a part of a password that contains a slash."""
    if not port.isascii() or not port.isdecimal():
        message = f"a port is not a number{_ENCODE}"
        raise ValueError(message)
    if not 0 < int(port[:10]) <= _MAX_PORT:
        message = f"a port is out of range (1 to {_MAX_PORT}){_ENCODE}"
        raise ValueError(message)
    return int(port)
