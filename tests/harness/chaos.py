"""The stage of a chaos test: worker processes on a database and an AMQP prefix of its own, a sender, and the ledger."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import aio_pika
import asyncpg
from prometheus_client.parser import text_string_to_metric_families

from taskherd.broker import topology
from taskherd.broker.connection import SupervisedConnection
from taskherd.broker.publish import OutgoingMessage, Publisher, PublishOutcome
from taskherd.broker.topology import TopologyNames
from taskherd.dev.sources import Broker
from taskherd.store import directory
from taskherd.store.engine import dispose, open_engine, transaction
from tests.chaos import workload
from tests.chaos.ledger import Ledger
from tests.chaos.workload import Workload

T = TypeVar("T")

HOURS = "1h"
SETTINGS = {
    "TASKHERD_SECRET_KEY": "chaos" * 8,
    "TASKHERD_OPS_PORT": "0",
    "TASKHERD_LOG_FORMAT": "json",
    # Silence is not what these tests are about.
    "TASKHERD_AGENT_LOST_AFTER": HOURS,
    "TASKHERD_AGENT_CONNECT_TIMEOUT": HOURS,
}
GRACE = 25.0
SETTLES_WITHIN = 180.0
"""Far more than it takes, since the machine may be busy with other things; nothing waits for longer than it must."""

REDELIVERED = (
    "lists:sum([maps:get(messages_redelivered_total, C, 0) || C <- maps:values(rabbit_global_counters:overview())])."
)


async def until(look: Callable[[], Awaitable[T]], holds: Callable[[T], bool], within: float = 30.0) -> T:
    """Look again and again until what is seen `holds`, and return it."""
    async with asyncio.timeout(within):
        while not holds(seen := await look()):  # noqa: ASYNC110 - other processes can only be asked
            await asyncio.sleep(0.1)
        return seen


class WorkerProcess:
    """One `taskherd worker`, its log in a file."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self._process = process
        self.log = log

    @classmethod
    async def start(cls, environment: dict[str, str], log: Path) -> WorkerProcess:
        """Start it; it is on its way, not yet ready."""
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "taskherd", "worker", env=environment, stdout=output, stderr=output
            )
        return cls(process, log)

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.returncode is None

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    async def ended(self, within: float) -> int:
        """Wait until it has ended; its exit code, negative for a signal."""
        async with asyncio.timeout(within):
            return await self._process.wait()

    async def kill(self) -> None:
        """Kill -9, if it still runs."""
        with suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()

    async def readiness(self) -> int:
        """The status of its answer to whether it is ready; 0 without one."""
        return (await self._ask("/readyz"))[0]

    async def ready(self, within: float = 60.0) -> None:
        """Wait until it says that it is ready."""
        await until(self.readiness, lambda code: code == 200, within)

    async def unready(self, within: float = 40.0) -> None:
        """Wait until it says that it is not ready."""
        await until(self.readiness, lambda code: code == 503, within)

    async def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that carry these labels."""
        _, body = await self._ask("/metrics")
        return sum(
            sample.value
            for family in text_string_to_metric_families(body)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def lines(self) -> list[dict[str, object]]:
        """What it logged, but for what is no JSON."""
        said = []
        for line in self.log.read_text(errors="replace").splitlines():
            with suppress(ValueError):
                said.append(json.loads(line))
        return said

    async def _ask(self, path: str) -> tuple[int, str]:
        port = next((line["ops_port"] for line in self.lines() if "ops_port" in line), None)
        if port is None:
            return 0, ""
        try:
            async with asyncio.timeout(5):
                reader, writer = await asyncio.open_connection("127.0.0.1", int(str(port)))
                writer.write(f"GET {path} HTTP/1.1\r\nHost: worker\r\n\r\n".encode())
                answer = (await reader.read()).decode()
                writer.close()
        except OSError:
            return 0, ""
        head, _, body = answer.partition("\r\n\r\n")
        return int(head.split()[1]), body


@dataclass(slots=True)
class ChaosHarness:
    """Everything that one test works with."""

    names: TopologyNames
    ledger: Ledger
    folder: Path
    publisher: Publisher
    declared_at: float = field(default_factory=time.monotonic)
    workers: list[WorkerProcess] = field(default_factory=list)
    sent: int = 0
    """Messages that the broker has confirmed to this test."""

    rabbit: Broker | None = None
    """The broker, where it is one of our own."""

    redelivered_before: int = 0

    async def start(self, **settings: str) -> WorkerProcess:
        """Start a worker; `settings` as in the environment, without the prefix and in lower case."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TASKHERD_")}
        where = {
            "TASKHERD_DATABASE_URL": self.ledger.database_url,
            "TASKHERD_AMQP_URL": self.ledger.amqp_url,
            "TASKHERD_AMQP_PREFIX": self.names.prefix,
        }
        own = {f"TASKHERD_{name.upper()}": value for name, value in settings.items()}
        log = self.folder / f"worker-{len(self.workers)}.log"
        worker = await WorkerProcess.start({**inherited, **SETTINGS, **where, **own}, log)
        self.workers.append(worker)
        return worker

    async def dies(self, failpoint: str, within: float = 60.0) -> None:
        """Start a worker that kills itself at this place, and see it die there."""
        worker = await self.start(failpoint=f"{failpoint}:kill")
        code = await worker.ended(within)
        assert code == -signal.SIGKILL, f"ended with {code}: {self.log_tail(worker)}"

    async def stop_worker(self, worker: WorkerProcess, within: float = GRACE) -> None:
        """Ask a worker to leave, and see it do so in order."""
        worker.signal(signal.SIGTERM)
        code = await worker.ended(within)
        assert code == 0, f"ended with {code}: {self.log_tail(worker)}"
        errors = [line for line in worker.lines() if line.get("level") in {"error", "critical"}]
        assert errors == [], f"a fault that is only waited out was logged as an error: {errors[:3]}"

    async def send(self, messages: Sequence[OutgoingMessage], within: float = 60.0) -> None:
        """Send messages until the broker has confirmed every one as queued, some twice if need be."""
        async with asyncio.timeout(within):
            left = list(messages)
            while left:
                outcomes = await self.publisher.publish_many(left)
                left = [
                    one for one, outcome in zip(left, outcomes, strict=True) if outcome is not PublishOutcome.CONFIRMED
                ]
                if left:
                    await asyncio.sleep(0.1)
        self.sent += len(messages)

    def enter(self, work: Workload) -> None:
        """Put what will be sent into the ledger."""
        self.ledger.reports.update(work.reports)

    async def delete_existing(self, work: Workload) -> None:
        """Send the delete of every doomed task that exists by now."""
        there = (await self.ledger.rows()).tasks.keys() - self.ledger.deleted
        now = [task_id for task_id in work.doomed if task_id in there]
        await self.send([workload.command(self.names, "task.delete", task_id) for task_id in now])
        self.ledger.deleted.update(now)

    async def settled(self, within: float = SETTLES_WITHIN) -> None:
        """Wait until the ledger finds nothing wrong."""
        found: list[str] = []
        try:
            async with asyncio.timeout(within):
                while found := await self.ledger.violations():  # noqa: ASYNC110 - as above
                    await asyncio.sleep(0.2)
        except TimeoutError:
            told = "\n".join([*found, *(self.log_tail(worker) for worker in self.workers[-1:])])
            raise AssertionError(f"not settled within {within:g} s:\n{told}") from None

    async def delete_and_settle(self, work: Workload) -> None:
        """All is sent: delete the doomed, and wait until the ledger finds nothing wrong."""
        await until(self.ledger.rows, lambda rows: set(work.doomed) <= rows.tasks.keys(), SETTLES_WITHIN)
        await self.delete_existing(work)
        await self.settled()

    async def finished(self, work: Workload, worker: WorkerProcess) -> None:
        """All is sent: wind up, let the worker leave, and find everything right and nothing left after it."""
        await self.delete_and_settle(work)
        await self.stop_worker(worker)
        assert await self.remaining_messages() == []
        assert await self.ledger.violations() == []

    async def remaining_messages(self) -> list[bool]:
        """What waits in the queues of reports and commands, by whether it was handed out before; it stays there."""
        async with await aio_pika.connect(self.ledger.amqp_url, timeout=10) as connection:
            channel = await connection.channel()
            found = []
            for name in (self.names.reports, self.names.commands):
                queue = await channel.get_queue(name, ensure=False)
                while (message := await queue.get(fail=False, timeout=10)) is not None:
                    if b"taskherd.probe" not in message.body:
                        found.append(bool(message.redelivered))
            return found

    async def progress(self) -> int:
        """How many log entries are committed."""
        connection = await asyncpg.connect(self.ledger.database_url, timeout=5, command_timeout=10)
        try:
            return int(await connection.fetchval("SELECT count(*) FROM task_logs"))
        finally:
            await connection.close(timeout=5)

    def expected_entries(self) -> int:
        """How many log entries there will be when all is committed."""
        return sum(report.type == "task.log" for told in self.ledger.reports.values() for report in told)

    async def first_progress(self, before: int | None = None, within: float = SETTLES_WITHIN) -> float:
        """Seconds until more log entries are committed than `before`, or than at the first look; or until all are."""
        began = time.monotonic()
        known, everything = await self.progress() if before is None else before, self.expected_entries()
        async with asyncio.timeout(within):
            while known >= await self.progress() < everything:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.05)
        return time.monotonic() - began

    async def redelivered(self) -> int | None:
        """How often the broker has handed out a message again since the stage was set, over all queues."""
        if self.rabbit is None:
            return None
        counted = await asyncio.to_thread(self.rabbit.ctl, "eval", REDELIVERED, within=SETTLES_WITHIN)
        return int(counted) - self.redelivered_before

    async def survivable(self) -> None:
        """Wait until the quorum queues are old enough to outlive a crash of the broker: three seconds."""
        await asyncio.sleep(max(0.0, self.declared_at + 3.5 - time.monotonic()))

    def log_tail(self, worker: WorkerProcess, lines: int = 25) -> str:
        """The end of a worker's log."""
        return "\n".join(worker.log.read_text(errors="replace").splitlines()[-lines:])


@asynccontextmanager
async def chaos_harness(database_url: str, amqp_url: str, prefix: str, folder: Path) -> AsyncIterator[ChaosHarness]:
    """A stage on a migrated database and a prefix, both of the test's own; no worker outlives it."""
    await _fill_directory(database_url)
    names = TopologyNames(prefix)
    link = SupervisedConnection(amqp_url, "chaos sends")
    link.start()
    await topology.declare(await link.channel(), names)
    ledger = Ledger(database_url, amqp_url, names)
    await ledger.open()
    stage = ChaosHarness(names, ledger, folder, Publisher(link))
    try:
        yield stage
    finally:
        for worker in stage.workers:
            await worker.kill()
        await stage.publisher.close()
        await link.close()
        await ledger.close()


async def _fill_directory(database_url: str) -> None:
    engine = open_engine(database_url, size=1, application_name="chaos")
    async with transaction(engine) as connection:
        await directory.apply(connection, directory.parse(workload.DIRECTORY))
    await dispose(engine)


async def create_database(server_url: str, name: str, template: str | None = None) -> str:
    """Create a database, and return its URL."""
    connection = await asyncpg.connect(server_url, timeout=10, command_timeout=30)
    try:
        await connection.execute(f'CREATE DATABASE "{name}"' + (f' TEMPLATE "{template}"' if template else ""))
    finally:
        await connection.close(timeout=5)
    return urlsplit(server_url)._replace(path=f"/{name}").geturl()
