"""The harness of a chaos test: worker processes on their own database and AMQP prefix, a sender, and the ledger."""

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
from taskherd.broker.publisher import OutgoingMessage, Publisher, PublishOutcome
from taskherd.broker.topology import TopologyNames
from taskherd.dev.sources import Broker
from taskherd.directory_file.parse import parse
from taskherd.store import directory
from taskherd.store.engine import dispose, open_engine, transaction
from tests.chaos import workload
from tests.chaos.ledger import Ledger
from tests.chaos.workload import ChaosWorkload
from tests.harness import fork_server
from tests.harness.fork_server import RunningProcess
from tests.harness.task_index import index_violations

T = TypeVar("T")

HOURS = "1h"
SETTINGS = {
    "TASKHERD_SECRET_KEY": "chaos" * 8,
    "TASKHERD_API_CREATE_RATE": "0",
    "TASKHERD_TASKS_RUNNING_MOST": "0",
    "TASKHERD_OPS_PORT": "0",
    "TASKHERD_LOG_FORMAT": "json",
    # Lost agents are not the subject of these tests.
    "TASKHERD_AGENT_LOST_AFTER": HOURS,
    "TASKHERD_AGENT_CONNECT_TIMEOUT": HOURS,
}
GRACE = 25.0
SETTLES_WITHIN = 180.0
"""Maximum time in seconds until all inputs are processed; generous, because the machine may be busy."""

REDELIVERED = (
    "lists:sum([maps:get(messages_redelivered_total, C, 0) || C <- maps:values(rabbit_global_counters:overview())])."
)


async def until(read: Callable[[], Awaitable[T]], holds: Callable[[T], bool], within: float = 60.0) -> T:
    """Poll a value until it ``holds``, and return it."""
    async with asyncio.timeout(within):
        while not holds(value := await read()):  # noqa: ASYNC110 - other processes must be polled
            await asyncio.sleep(0.1)
        return value


class WorkerProcess:
    """A ``taskherd worker`` process, or another one of taskherd, with its log in a file."""

    def __init__(self, process: RunningProcess, log: Path) -> None:
        self._process = process
        self.log = log

    @classmethod
    async def start(
        cls, environment: dict[str, str], log: Path, program: str = "worker", launch: Sequence[str] = ()
    ) -> WorkerProcess:
        """Start the process, with ``launch`` as Python's arguments if there are any; it is not ready yet."""
        with log.open("wb") as output:
            if launch:
                process: RunningProcess = await asyncio.create_subprocess_exec(
                    sys.executable, *launch, program, env=environment, stdout=output, stderr=output
                )
            else:
                process = await fork_server.start(program, environment, output=output, errors=output)
        return cls(process, log)

    @property
    def running(self) -> bool:
        """True until the process has exited."""
        return self._process.returncode is None

    @property
    def peak_resident(self) -> int:
        """The largest resident memory that the process has had, in bytes."""
        status = Path(f"/proc/{self._process.pid}/status").read_text(encoding="ascii")
        return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process."""
        self._process.send_signal(number)

    async def exit_code(self, within: float) -> int:
        """Wait until the process has exited and return its exit code, negative for a signal."""
        async with asyncio.timeout(within):
            return await self._process.wait()

    async def kill(self) -> None:
        """Kill the process with SIGKILL if it still runs."""
        with suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()

    async def readiness(self) -> int:
        """Return the status code of ``/readyz``, 0 without a response."""
        return (await self._get("/readyz"))[0]

    async def until_ready(self, within: float = 60.0) -> None:
        """Wait until the worker is ready."""
        await until(self.readiness, lambda code: code == 200, within)

    async def until_unready(self, within: float = 40.0) -> None:
        """Wait until the worker is not ready."""
        await until(self.readiness, lambda code: code == 503, within)

    async def metric(self, name: str, **labels: str) -> float:
        """Return the sum of a metric's samples with these labels."""
        _, body = await self._get("/metrics")
        return sum(
            sample.value
            for family in text_string_to_metric_families(body)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def lines(self) -> list[dict[str, object]]:
        """Return the log lines that are JSON."""
        lines = []
        for line in self.log.read_text(errors="replace").splitlines():
            with suppress(ValueError):
                lines.append(json.loads(line))
        return lines

    async def _get(self, path: str) -> tuple[int, str]:
        port = next((line["ops_port"] for line in self.lines() if "ops_port" in line), None)
        if port is None:
            return 0, ""
        try:
            async with asyncio.timeout(5):
                reader, writer = await asyncio.open_connection("127.0.0.1", int(str(port)))
                writer.write(f"GET {path} HTTP/1.1\r\nHost: worker\r\n\r\n".encode())
                response = (await reader.read()).decode()
                writer.close()
        except OSError:
            return 0, ""
        head, _, body = response.partition("\r\n\r\n")
        return int(head.split()[1]), body


@dataclass(slots=True)
class ChaosHarness:
    """The database, broker, workers and ledger of one test."""

    names: TopologyNames
    ledger: Ledger
    folder: Path
    publisher: Publisher
    declared_at: float = field(default_factory=time.monotonic)
    workers: list[WorkerProcess] = field(default_factory=list)
    sent: int = 0
    """Number of this test's messages that the broker has confirmed."""

    rabbit: Broker | None = None
    """The broker, if taskherd started its node."""

    redelivered_before: int = 0
    launch: Sequence[str] = ()

    async def start(self, program: str = "worker", **settings: str) -> WorkerProcess:
        """Start a worker or an API. ``settings`` are environment variables, in lower case and without the prefix."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TASKHERD_")}
        services = {
            "TASKHERD_DATABASE_URL": self.ledger.database_url,
            "TASKHERD_AMQP_URL": self.ledger.amqp_url,
            "TASKHERD_AMQP_PREFIX": self.names.prefix,
        }
        variables = {f"TASKHERD_{name.upper()}": value for name, value in settings.items()}
        log = self.folder / f"{program}-{len(self.workers)}.log"
        worker = await WorkerProcess.start(
            {**inherited, **SETTINGS, **services, **variables}, log, program, self.launch
        )
        self.workers.append(worker)
        return worker

    async def run_to_failpoint(self, failpoint: str, within: float = 60.0) -> None:
        """Start a worker that kills itself at this failpoint, and wait until it has."""
        worker = await self.start(failpoint=f"{failpoint}:kill")
        code = await worker.exit_code(within)
        assert code == -signal.SIGKILL, f"exited with {code}: {self.log_tail(worker)}"

    async def stop_worker(self, worker: WorkerProcess, within: float = GRACE) -> None:
        """Stop a worker with SIGTERM, and check that it exits with 0 and has logged no error."""
        worker.signal(signal.SIGTERM)
        code = await worker.exit_code(within)
        assert code == 0, f"exited with {code}: {self.log_tail(worker)}"
        errors = [line for line in worker.lines() if line.get("level") in {"error", "critical"}]
        assert errors == [], f"a fault that is retried was logged as an error: {errors[:3]}"

    async def send(self, messages: Sequence[OutgoingMessage], within: float = 60.0) -> None:
        """Send messages until the broker has confirmed each as queued; unconfirmed ones are sent again."""
        async with asyncio.timeout(within):
            unconfirmed = list(messages)
            while unconfirmed:
                outcomes = await self.publisher.publish_many(unconfirmed)
                unconfirmed = [
                    message
                    for message, outcome in zip(unconfirmed, outcomes, strict=True)
                    if outcome is not PublishOutcome.CONFIRMED
                ]
                if unconfirmed:
                    await asyncio.sleep(0.1)
        self.sent += len(messages)

    def add_to_ledger(self, work: ChaosWorkload) -> None:
        """Add the reports of a workload to the ledger, before they are sent."""
        self.ledger.reports.update(work.reports)

    async def delete_existing(self, work: ChaosWorkload) -> None:
        """Delete the existing tasks among those that the workload deletes."""
        existing = (await self.ledger.rows()).tasks.keys() - self.ledger.deleted
        task_ids = [task_id for task_id in work.to_delete if task_id in existing]
        await self.send([workload.command(self.names, "task.delete", task_id) for task_id in task_ids])
        self.ledger.deleted.update(task_ids)

    async def until_settled(self, within: float = SETTLES_WITHIN) -> None:
        """Wait until the ledger finds no violation."""
        violations: list[str] = []
        try:
            async with asyncio.timeout(within):
                while violations := await self.ledger.violations():  # noqa: ASYNC110 - as above
                    await asyncio.sleep(0.2)
        except TimeoutError:
            details = "\n".join([*violations, *(self.log_tail(worker) for worker in self.workers[-1:])])
            raise AssertionError(f"not settled within {within:g} s:\n{details}") from None

    async def delete_and_settle(self, work: ChaosWorkload) -> None:
        """Delete the tasks that the workload deletes, and wait until the ledger finds no violation."""
        await until(self.ledger.rows, lambda rows: set(work.to_delete) <= rows.tasks.keys(), SETTLES_WITHIN)
        await self.delete_existing(work)
        await self.until_settled()

    async def finish(self, work: ChaosWorkload, worker: WorkerProcess) -> None:
        """Delete and settle, stop the worker, and check that no message is left and no invariant is violated."""
        await self.delete_and_settle(work)
        await self.stop_worker(worker)
        assert await self.remaining_messages() == []
        assert await self.ledger.violations() == []
        connection = await asyncpg.connect(self.ledger.database_url, timeout=5, command_timeout=10)
        try:
            assert await index_violations(connection) == []
        finally:
            await connection.close(timeout=5)

    async def remaining_messages(self) -> list[bool]:
        """Return for each message in the queues of reports and commands whether it was delivered before; keep them."""
        async with await aio_pika.connect(self.ledger.amqp_url, timeout=10) as connection:
            channel = await connection.channel()
            redelivered = []
            for name in (self.names.reports, self.names.commands):
                queue = await channel.get_queue(name, ensure=False)
                while (message := await queue.get(fail=False, timeout=10)) is not None:
                    if b"taskherd.probe" not in message.body:
                        redelivered.append(bool(message.redelivered))
            return redelivered

    async def committed_entries(self) -> int:
        """Return the number of committed log entries."""
        connection = await asyncpg.connect(self.ledger.database_url, timeout=5, command_timeout=10)
        try:
            return int(await connection.fetchval("SELECT count(*) FROM task_logs"))
        finally:
            await connection.close(timeout=5)

    def expected_entries(self) -> int:
        """Return the number of log entries after everything is committed."""
        return sum(report.type == "task.log" for reports in self.ledger.reports.values() for report in reports)

    async def seconds_to_progress(self, before: int | None = None, within: float = SETTLES_WITHIN) -> float:
        """Wait until more log entries than ``before`` (default: than now) or all are committed; return the seconds."""
        started_at = time.monotonic()
        before, everything = await self.committed_entries() if before is None else before, self.expected_entries()
        async with asyncio.timeout(within):
            while before >= await self.committed_entries() < everything:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.05)
        return time.monotonic() - started_at

    async def redelivered(self) -> int | None:
        """Return the broker's number of redeliveries, over all queues, since the harness was created."""
        if self.rabbit is None:
            return None
        counted = await asyncio.to_thread(self.rabbit.ctl, "eval", REDELIVERED, within=SETTLES_WITHIN)
        return int(counted) - self.redelivered_before

    async def until_crash_safe(self) -> None:
        """Wait until the quorum queues are old enough to survive a crash of the broker: three seconds."""
        await asyncio.sleep(max(0.0, self.declared_at + 3.5 - time.monotonic()))

    def log_tail(self, worker: WorkerProcess, lines: int = 25) -> str:
        """Return the end of a worker's log."""
        return "\n".join(worker.log.read_text(errors="replace").splitlines()[-lines:])


@asynccontextmanager
async def chaos_harness(
    database_url: str, amqp_url: str, prefix: str, folder: Path, *, ledger_url: str = ""
) -> AsyncIterator[ChaosHarness]:
    """Create a harness on a migrated database and an AMQP prefix of the test; kill its workers at the end.

    The ledger needs a URL of its own, ``ledger_url``, if ``amqp_url`` has several hosts.
    """
    await _fill_directory(database_url)
    names = TopologyNames(prefix)
    connection = SupervisedConnection(amqp_url, "chaos sends")
    connection.start()
    await topology.declare(await connection.channel(), names)
    ledger = Ledger(database_url, ledger_url or amqp_url, names)
    await ledger.open()
    harness = ChaosHarness(names, ledger, folder, Publisher(connection))
    try:
        yield harness
    finally:
        for worker in harness.workers:
            await worker.kill()
        await harness.publisher.close()
        await connection.close()
        await ledger.close()


async def _fill_directory(database_url: str) -> None:
    engine = open_engine(database_url, size=1, application_name="chaos")
    async with transaction(engine) as connection:
        await directory.apply(connection, parse(workload.DIRECTORY.encode()))
    await dispose(engine)


async def create_database(server_url: str, name: str, template: str | None = None) -> str:
    """Create a database and return its URL."""
    connection = await asyncpg.connect(server_url, timeout=10, command_timeout=30)
    try:
        await connection.execute(f'CREATE DATABASE "{name}"' + (f' TEMPLATE "{template}"' if template else ""))
    finally:
        await connection.close(timeout=5)
    return urlsplit(server_url)._replace(path=f"/{name}").geturl()
