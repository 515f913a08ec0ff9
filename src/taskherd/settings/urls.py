"""Check the URLs of the database and the broker, and hide their passwords."""

from __future__ import annotations

from urllib.parse import parse_qsl, unquote, urlsplit

HIDDEN = "********"
_POSTGRES = frozenset({"postgresql", "postgres", "postgresql+asyncpg"})
_POSTGRES_OPTIONS = frozenset({"sslmode", "ssl", "host", "port", "passfile", "target_session_attrs"})

_AMQP_PORT, _AMQPS_PORT = 5672, 5671
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


def check_database(url: str) -> str:
    """Return ``url``; raise ``ValueError`` unless it is a PostgreSQL URL that asyncpg accepts unchanged."""
    parts = urlsplit(url)
    options = {name for name, _ in parse_qsl(parts.query, keep_blank_values=True)}
    if parts.scheme not in _POSTGRES:
        problem = f"the scheme is {parts.scheme or 'missing'}"
    elif not parts.hostname and "host" not in options:
        problem = "there is no host"
    elif len(parts.path) < len("/x"):
        problem = "there is no database name"
    elif unknown := sorted(options - _POSTGRES_OPTIONS):
        problem = f"unknown option {unknown[0]} (known: {', '.join(sorted(_POSTGRES_OPTIONS))})"
    else:
        return _with_valid_port(url)
    raise ValueError(problem)


def check_amqp(url: str) -> str:
    """Return ``url``; raise ``ValueError`` unless it is an AMQP URL that leaves certificate checks on.

    With ``no_verify_ssl`` in the URL aiormq would silently accept any server (aiormq 7.2, ``connection.py``).
    """
    parts = urlsplit(url)
    options = {name.lower() for name, _ in parse_qsl(parts.query, keep_blank_values=True)}
    if parts.scheme not in {"amqp", "amqps"}:
        problem = f"the scheme is {parts.scheme or 'missing'}"
    elif not parts.hostname:
        problem = "there is no host"
    elif "no_verify_ssl" in options:
        problem = "no_verify_ssl is not allowed: name the authority's certificate with cafile instead"
    else:
        return _with_valid_port(url)
    raise ValueError(problem)


def without_password(url: str) -> str:
    """Return ``url`` with its password, if any, replaced by asterisks."""
    parts = urlsplit(url)
    userinfo, at, host = parts.netloc.rpartition("@")
    user, colon, _ = userinfo.partition(":")
    netloc = f"{user}:{HIDDEN}@{host}" if at and colon else parts.netloc
    rest = url.partition(parts.netloc)[2] if parts.netloc else parts.path
    return f"{parts.scheme}://{netloc}{rest}"


def password(url: str) -> str:
    """Return the password in ``url``, percent-decoded, or "" if there is none."""
    return unquote(urlsplit(url).password or "")


def broker_address(url: str) -> str:
    """Return host, port and vhost of an AMQP URL as ``host:port/vhost``; every name of this machine is 127.0.0.1."""
    parts = urlsplit(url)
    host = (parts.hostname or "").lower()
    port = parts.port or (_AMQPS_PORT if parts.scheme == "amqps" else _AMQP_PORT)
    vhost = unquote(parts.path[1:]) or "/"
    return f"{'127.0.0.1' if host in _LOOPBACK else host}:{port}/{vhost}"


def _with_valid_port(url: str) -> str:
    """Return ``url``; ``urlsplit`` raises ``ValueError`` if its port is not a number up to 65535."""
    _ = urlsplit(url).port
    return url
