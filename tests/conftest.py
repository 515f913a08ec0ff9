"""Real RabbitMQ and PostgreSQL for tests: started once per run, separated by database and AMQP prefix."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import tempfile
import uuid
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import aio_pika
import pytest
from hypothesis import HealthCheck, settings

from taskherd.dev.services import Services, start
from tests.harness import broker_health, lent_rabbitmq
from tests.harness.pgbouncer import StartPgBouncer, running_pgbouncer

if TYPE_CHECKING:
    from tests.harness.databases import Databases

EXCHANGES = ("reports", "commands", "claims", "events", "wakeups", "work", "dead")
QUEUES = ("reports", "commands", "claims", "dead", "work.default")

settings.register_profile("taskherd", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("taskherd")  # how long an example takes says how busy the machine is


def pytest_configure() -> None:
    """Let processes end when they are interrupted, also if ``nohup`` or a shell has the tests ignore that signal."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run first the files whose tests may take longest, so that no process has one left when the others are done.

    That is the sum of the limits of those that have one of their own, then the number of tests. xdist would sort by the
    latter alone, and run the few long tests of a file last.
    """
    limits: dict[Path, float] = defaultdict(float)
    for item in items:
        mark = item.get_closest_marker("timeout")
        limits[item.path] += mark.args[0] if mark else 0
    counts = Counter(item.path for item in items)
    items.sort(key=lambda item: (-limits[item.path], -counts[item.path], str(item.path)))


def pytest_collection_finish() -> None:
    """Exclude what was imported from the garbage collector, which else looks at a million objects again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def announce(pytestconfig: pytest.Config) -> Callable[[str], None]:
    """Return a function that prints a line to the terminal, even while pytest captures output."""
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    reporter = pytestconfig.pluginmanager.getplugin("terminalreporter")

    def write(line: str) -> None:
        if capture is None or reporter is None:
            return
        with capture.global_and_fixture_disabled():
            reporter.write_line(line)

    return write


@pytest.fixture
async def loop_errors() -> AsyncIterator[list[str]]:
    """Yield what is told to the event loop's exception handler during the test, but not about earlier ones' garbage."""
    errors: list[str] = []
    loop = asyncio.get_running_loop()
    gc.collect()
    before = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: errors.append(context["message"]))
    yield errors
    loop.set_exception_handler(before)


@pytest.fixture(scope="session")
def services(announce: Callable[[str], None]) -> Iterator[Services]:
    """Yield one RabbitMQ and one PostgreSQL for the whole run, deleted with their data at its end."""
    with (
        tempfile.TemporaryDirectory(prefix="taskherd-tests-") as folder,
        start(Path(folder), announce=announce, fast=True) as running,
    ):
        lent = os.environ.get(lent_rabbitmq.FOLDER)
        yield replace(running, rabbit=lent_rabbitmq.attach(Path(lent), Path(folder) / "lent")) if lent else running


@pytest.fixture(scope="session")
async def databases(services: Services) -> AsyncIterator[Databases]:
    """Yield the databases of the whole run."""
    from tests.harness.databases import open_databases  # noqa: PLC0415 - only tests that use a database load the migrations

    async with open_databases(services.database_url) as opened:
        yield opened


@pytest.fixture
async def database_url(databases: Databases) -> AsyncIterator[str]:
    """Yield the URL of a migrated database for this test alone."""
    async with databases.lend() as url:
        yield url


@pytest.fixture
def start_pgbouncer(database_url: str, tmp_path: Path, announce: Callable[[str], None]) -> StartPgBouncer:
    """Return a function that runs a PgBouncer with these settings in front of the database until its block ends."""
    return partial(running_pgbouncer, database_url, tmp_path / "pgbouncer", announce)


@pytest.fixture
def amqp_url(services: Services, request: pytest.FixtureRequest) -> str:
    """Return the URL of the RabbitMQ of this run, which must work: it is looked at once a test has failed."""
    if request.session.testsfailed and (problem := broker_health.problem(services)) is not None:
        pytest.fail(problem, pytrace=False)
    return services.amqp_url


@asynccontextmanager
async def open_amqp_prefix(amqp_url: str) -> AsyncIterator[str]:
    """Yield a prefix for AMQP names that nobody else uses; its exchanges and shared queues are deleted afterwards."""
    prefix = f"t{uuid.uuid4().hex[:8]}"
    try:
        yield prefix
    finally:
        async with await aio_pika.connect(amqp_url, timeout=30) as connection:
            channel = await connection.channel()
            for queue in QUEUES:
                await channel.queue_delete(f"{prefix}.{queue}", timeout=30)
            for exchange in EXCHANGES:
                await channel.exchange_delete(f"{prefix}.{exchange}", timeout=30)


@pytest.fixture
async def amqp_prefix(amqp_url: str) -> AsyncIterator[str]:
    """Yield a prefix for AMQP names for this test alone."""
    async with open_amqp_prefix(amqp_url) as prefix:
        yield prefix
