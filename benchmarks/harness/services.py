"""The services of every measurement: private servers, a fresh database with tasks, and a queue full of reports."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

import aio_pika
import asyncpg
from sqlalchemy import create_mock_engine
from sqlalchemy.schema import CreateTable

from benchmarks.harness import backlog, seed
from benchmarks.harness.workload import PREFIX, PROMPT_BYTES
from benchmarks.peers import schema
from taskherd.broker import topology
from taskherd.dev import services as private_services
from taskherd.store import migrate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from pamqp.common import FieldTable

    from benchmarks.harness.backlog import Backlog
    from benchmarks.harness.workload import Workload
    from taskherd.dev.sources import Database

TOPOLOGY_NAMES = topology.TopologyNames(PREFIX)
SECRET = "0" * 32
EVENTS_READER = f"{PREFIX}.events.reader"
READER_LENGTH = 10_000
"""Maximum length of the queue bound to the events, so that publishing them always costs a delivery."""

_SEED = "bench_seed"
_RUN = "bench_run"


@dataclass(slots=True)
class BenchmarkServices:
    """The running services, and the template databases and backlogs made so far.

    ``node`` is the database server if the benchmark started it.
    """

    amqp_url: str
    admin_url: str
    environ: Mapping[str, str]
    node: Database | None = None
    templates: set[str] = field(default_factory=set)
    backlogs: dict[Workload, Backlog] = field(default_factory=dict)

    @property
    def database_url(self) -> str:
        """The URL of the current measurement's database."""
        return with_database(self.admin_url, _RUN)

    def environment(self) -> dict[str, str]:
        """Return the environment of a contender."""
        return {
            **self.environ,
            "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
            "TASKHERD_DATABASE_URL": self.database_url,
            "TASKHERD_AMQP_URL": self.amqp_url,
            "TASKHERD_AMQP_PREFIX": PREFIX,
            "TASKHERD_SECRET_KEY": SECRET,
            "TASKHERD_API_CREATE_RATE": "0",
            "TASKHERD_API_FOLLOWERS_MOST": "4000",
            "TASKHERD_TASKS_RUNNING_MOST": "0",
            "TASKHERD_OPS_PORT": "0",
            "BENCH_AMQP_URL": self.amqp_url,
            "BENCH_DATABASE_URL": self.database_url,
            "BENCH_SQLALCHEMY_URL": self.database_url.replace("postgresql://", "postgresql+asyncpg://"),
            "BENCH_QUEUE": TOPOLOGY_NAMES.reports,
            "BENCH_EVENTS": TOPOLOGY_NAMES.events,
            "BENCH_PREFETCH": "4000",
        }

    async def prepare(self, work: Workload) -> None:
        """Create a fresh database with the workload's tasks, and empty queues."""
        await self.prepare_tasks(work.tasks)

    async def prepare_tasks(self, tasks: int, owners: int = 1) -> None:
        """Create a fresh database with ``tasks`` tasks of ``owners`` owners, and empty queues."""
        await self.copy(await self.template(tasks, owners), _RUN)
        await self.clear_queues()

    async def template(self, tasks: int, owners: int = 1) -> str:
        """Return the name of a database to copy, with ``tasks`` tasks of ``owners`` owners."""
        template = f"bench_tasks_{tasks}_of_{owners}"
        if template not in self.templates:
            await self._make(template, tasks, owners)
            self.templates.add(template)
        return template

    async def fill_queue(self, work: Workload) -> None:
        """Publish the workload's messages to the queue."""
        if work not in self.backlogs:
            self.backlogs[work] = await asyncio.to_thread(backlog.marshal, TOPOLOGY_NAMES.reports, work.messages())
        await backlog.publish(self.amqp_url, self.backlogs[work])

    async def _make(self, template: str, tasks: int, owners: int) -> None:
        if _SEED not in self.templates:
            await self._execute(f'CREATE DATABASE "{_SEED}"')
            url = with_database(self.admin_url, _SEED)
            await asyncio.to_thread(migrate.upgrade, url)
            await self.clear_queues()
            environment = {**self.environment(), "TASKHERD_DATABASE_URL": url}
            await seed.create_first(url, self.amqp_url, TOPOLOGY_NAMES, environment)
            self.templates.add(_SEED)
        await self.copy(_SEED, template)
        dialect = create_mock_engine("postgresql+asyncpg://", lambda *_: None).dialect
        async with connected(with_database(self.admin_url, template)) as connection:
            for table in (schema.tasks, schema.events):
                await connection.execute(str(CreateTable(table).compile(dialect=dialect)))
            await connection.execute("CREATE TABLE roundtrips (id bigint GENERATED ALWAYS AS IDENTITY, body text)")
            await connection.execute(schema.FILL % {"tasks": min(tasks, 100_000), "prompt": PROMPT_BYTES})
            await seed.multiply(connection, tasks, owners)
            await connection.execute("VACUUM (ANALYZE, FREEZE)")
            await connection.execute("CHECKPOINT")

    async def copy(self, template: str, name: str) -> None:
        """Replace the database ``name`` by a copy of ``template``."""
        await self.drop(name)
        await self._execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY file_copy')

    async def drop(self, name: str) -> None:
        """Drop a database if it exists."""
        await self._execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    async def _execute(self, statement: str) -> None:
        async with connected(self.admin_url) as connection:
            await connection.execute(statement)

    async def clear_queues(self) -> None:
        """Declare the topology and the reader's queue again, without messages."""
        async with await aio_pika.connect(self.amqp_url, timeout=10) as connection:
            channel = await connection.channel()
            for queue in (*TOPOLOGY_NAMES.queues, EVENTS_READER):
                await channel.queue_delete(queue, timeout=60)
            underlay = await channel.get_underlay_channel()
            await topology.declare(underlay, TOPOLOGY_NAMES)
            limits: FieldTable = {"x-max-length": READER_LENGTH, "x-overflow": "drop-head"}
            reader = await channel.declare_queue(EVENTS_READER, durable=True, arguments=limits, timeout=10)
            await reader.bind(TOPOLOGY_NAMES.events, "#", timeout=10)


def with_database(url: str, name: str) -> str:
    """Return the URL of another database of the same server."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    """Connect to the database; statements may take an hour, far longer than creating a million tasks."""
    connection = await asyncpg.connect(url, timeout=10, command_timeout=3600)
    try:
        yield connection
    finally:
        await connection.close(timeout=5)


@asynccontextmanager
async def benchmark_services() -> AsyncIterator[BenchmarkServices]:
    """Start private services with data on disk and fsync on; stop and delete them at the end."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("TASKHERD_")}
    with tempfile.TemporaryDirectory(prefix="taskherd-bench-", ignore_cleanup_errors=True) as folder:
        starting = private_services.start(Path(folder), announce=lambda _: None)
        running = await asyncio.to_thread(starting.__enter__)
        try:
            yield BenchmarkServices(running.amqp_url, running.database_url, environ, running.postgres)
        finally:
            await asyncio.to_thread(starting.__exit__, None, None, None)


def start_process(services: BenchmarkServices, module: str, **environment: str) -> subprocess.Popen[bytes]:
    """Run a module in a separate Python process with a pipe for its counts."""
    return subprocess.Popen(
        [sys.executable, "-m", module],
        env={**services.environment(), **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
