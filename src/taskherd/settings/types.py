"""Types of settings: what is checked when a value is read, and the values that texts stand for."""

from __future__ import annotations

import re
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator

from taskherd.durations import parse
from taskherd.settings import isolation, urls

MIN_SECRET_KEY = 32
"""Minimum length of a secret key, in characters; 32 hexadecimal digits are 128 bits."""
ANY_POOL = "*"
_POOL_NAME = re.compile(r"[a-z0-9-]{1,64}")
_MAX_DRAIN_WAIT = 24 * 3600.0


def _check_keys(keys: str) -> str:
    shortest = min((len(key.strip()) for key in keys.split(",")), default=0)
    if keys and shortest < MIN_SECRET_KEY:
        message = f"a key has only {shortest} characters"
        raise ValueError(message)
    return keys


def _check_networks(networks: str) -> str:
    parse_networks(networks)
    return networks


def parse_networks(networks: str) -> tuple[IPv4Network | IPv6Network, ...]:
    """Return the networks of a list separated by commas. Raise ``ValueError`` if one is malformed."""
    return tuple(ip_network(each.strip()) for each in networks.split(",") if each.strip())


def parse_senders(senders: str) -> frozenset[str]:
    """Return the RabbitMQ users of a list separated by commas."""
    return frozenset(name.strip() for name in senders.split(",") if name.strip())


def parse_sender_pools(senders: str) -> dict[str, frozenset[str] | None]:
    """Return the pools of each user, None for all of them. Raise ``ValueError`` if the text is malformed."""
    pools: dict[str, frozenset[str] | None] = {}
    for entry in filter(None, (part.strip() for part in senders.split(","))):
        user, equals, names = (part.strip() for part in entry.rpartition("="))
        if not user or not equals:
            message = "an entry has no user or no ="
            raise ValueError(message)
        if user in pools:
            message = f"user {user[:64]} has two entries"
            raise ValueError(message)
        chosen = frozenset(name.strip() for name in names.split("|"))
        if names != ANY_POOL and not all(_POOL_NAME.fullmatch(name) for name in chosen):
            message = f"user {user[:64]} has no pool, or one that is not up to 64 of a-z 0-9 -"
            raise ValueError(message)
        pools[user] = None if names == ANY_POOL else chosen
    return pools


def _check_senders(senders: str) -> str:
    if senders.strip() and not parse_senders(senders):
        message = "it names no user"
        raise ValueError(message)
    return senders


def _check_sender_pools(senders: str) -> str:
    if senders.strip() and not parse_sender_pools(senders):
        message = "it names no user"
        raise ValueError(message)
    return senders


def _check_drain(drain: str) -> str:
    if drain not in {"keep", "pause"}:
        mode, _, duration = drain.partition(":")
        if mode != "wait" or not 0 < parse(duration) <= _MAX_DRAIN_WAIT:
            message = "unknown mode, or not a duration from 1ms to 24h"
            raise ValueError(message)
    return drain


Seconds = Annotated[float, BeforeValidator(parse)]
"""A duration in seconds; settings accept every form that ``durations.parse`` reads."""
DatabaseUrl = Annotated[str, AfterValidator(lambda url: urls.check_database(url) if url else url)]
StandbyUrl = Annotated[str, AfterValidator(lambda url: urls.check_standby(url) if url else url)]
AmqpUrl = Annotated[str, AfterValidator(lambda url: urls.check_amqp(url) if url else url)]
SecretKeys = Annotated[str, AfterValidator(_check_keys)]
Networks = Annotated[str, AfterValidator(_check_networks)]
Senders = Annotated[str, AfterValidator(_check_senders)]
SenderPools = Annotated[str, AfterValidator(_check_sender_pools)]
Drain = Annotated[str, AfterValidator(_check_drain)]
UidRange = Annotated[str, AfterValidator(isolation.check_uids)]
SandboxPaths = Annotated[str, AfterValidator(isolation.check_paths)]
