"""A worker in this process, and a test client that talks to it through a real RabbitMQ."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any

import aio_pika
import asyncpg
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

from taskherd.broker.topology import TopologyNames, declare
from taskherd.settings import Settings
from taskherd.worker.app import Worker
from tests.harness.tasks import prompt_of

ORGANIZATION = uuid.UUID("00000000-0000-4000-8000-000000000001")
ALICE = uuid.UUID("00000000-0000-4000-8000-0000000000a1")
TEMPLATE = uuid.UUID("00000000-0000-4000-8000-0000000000b1")
VERSION = uuid.UUID("00000000-0000-4000-8000-0000000000c1")
PRESET = uuid.UUID("00000000-0000-4000-8000-0000000000d1")
SECRET = "0123456789abcdef" * 4
TIMEOUT = 45.0
"""Maximum time in seconds that a test waits for a condition; less than pytest's timeout, so that it says for which."""

STATUSES = ("pending", "initializing", "active", "paused", "unknown", "error")

DIRECTORY = f"""
INSERT INTO organizations (id, name, display_name) VALUES ('{ORGANIZATION}', 'acme', 'Acme');
INSERT INTO users (id, username, name, email, avatar_url) VALUES ('{ALICE}', 'alice', 'Alice', 'alice@example.com', '');
INSERT INTO memberships (user_id, organization_id, role) VALUES ('{ALICE}', '{ORGANIZATION}', 'member');
INSERT INTO templates (id, organization_id, name, display_name, icon, active_version_id)
    VALUES ('{TEMPLATE}', '{ORGANIZATION}', 'claude', 'Claude Code', '/icon/claude.svg', '{VERSION}');
INSERT INTO template_versions (id, template_id, name, run) VALUES ('{VERSION}', '{TEMPLATE}', 'v1', '{{}}');
INSERT INTO presets (id, template_version_id, name, is_default, parameters)
    VALUES ('{PRESET}', '{VERSION}', 'Default', true, '{{"size": "small"}}');
"""


@dataclass
class WorkerHarness:
    """A client that sends messages to a worker and collects everything that it publishes."""

    channel: AbstractChannel
    database: asyncpg.Connection
    prefix: str
    urls: tuple[str, str]
    worker: Worker = field(init=False)
    stop_dead_letters: Callable[[], Awaitable[Any]] = field(init=False)
    replies: str = ""
    events: list[dict[str, Any]] = field(default_factory=list)
    dead_letters: list[AbstractIncomingMessage] = field(default_factory=list)
    messages: list[AbstractIncomingMessage] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)
    answers: dict[str, asyncio.Future[dict[str, Any]]] = field(default_factory=dict)
    received: asyncio.Event = field(default_factory=asyncio.Event)

    async def report(self, *reports: dict[str, Any], raw: bytes | None = None) -> None:
        """Publish one report, or several as an array, or raw bytes."""
        body = raw if raw is not None else json.dumps(reports[0] if len(reports) == 1 else reports).encode()
        exchange = await self.channel.get_exchange(f"{self.prefix}.reports", ensure=False)
        await exchange.publish(aio_pika.Message(body), "any", timeout=30)

    async def command(self, kind: str, task_id: uuid.UUID, **fields: Any) -> dict[str, Any]:
        """Send a command and return the reply."""
        return await self.send(make_command(kind, task_id, **fields))

    async def post_command(self, command: dict[str, Any], exchange: str = "commands") -> None:
        """Send a command, or a message of a runner, without reply_to."""
        target = await self.channel.get_exchange(f"{self.prefix}.{exchange}", ensure=False)
        await target.publish(aio_pika.Message(json.dumps(command).encode()), command["type"], timeout=30)

    async def refused_command(self, kind: str, task_id: uuid.UUID, **fields: Any) -> dict[str, Any]:
        """Send a command, check that it is refused, and return the error."""
        return error_of(await self.command(kind, task_id, **fields))

    async def refused_create(self, task_id: uuid.UUID | None = None, **fields: Any) -> dict[str, Any]:
        """Send a create as ``create`` does, check that it is refused, and return the error."""
        return error_of(await self.send(make_create(task_id, **fields)))

    async def send(self, command: dict[str, Any] | bytes, exchange: str = "commands") -> dict[str, Any]:
        """Send a command, or any bytes, and return the reply."""
        reply = await self.post(command, exchange)
        async with asyncio.timeout(TIMEOUT):
            return await reply

    async def post(self, command: dict[str, Any] | bytes, exchange: str = "commands") -> asyncio.Future[dict[str, Any]]:
        """Send a command, or any bytes, and return the future of its reply."""
        correlation = uuid.uuid4().hex
        reply = self.answers[correlation] = asyncio.get_running_loop().create_future()
        body = command if isinstance(command, bytes) else json.dumps(command).encode()
        message = aio_pika.Message(body, reply_to=self.replies, correlation_id=correlation)
        target = await self.channel.get_exchange(f"{self.prefix}.{exchange}", ensure=False)
        await target.publish(message, "any", timeout=30)
        return reply

    async def ask(self, message: dict[str, Any] | bytes) -> dict[str, Any]:
        """Send a message of a runner, or any bytes, to the claims and return the reply."""
        return await self.send(message, exchange="claims")

    async def greet(self, runner: str = "r1", pool: str = "default") -> None:
        """Say hello for a runner, so that requests go to it."""
        assert await self.ask({"type": "runner.hello", "runner": runner, "pool": pool}) == {"ok": True}

    async def create(self, task_id: uuid.UUID | None = None, **fields: Any) -> uuid.UUID:
        """Create a task, whose prompt is ``prompt_of`` its id unless ``input`` is given, and return its id."""
        task_id = task_id or uuid.uuid4()
        reply = await self.send(make_create(task_id, **fields))
        assert reply["ok"], reply
        return task_id

    async def make_active(self, task_id: uuid.UUID | None = None, number: int = 1) -> uuid.UUID:
        """Make the task active, or a new task if no id is given, and return its id."""
        task_id = task_id or await self.create()
        build = {"transition": "start", "job_status": "succeeded", "agent_id": str(uuid.uuid4()), "runner": "r1"}
        await self.report(
            {"type": "workspace.build", "task_id": str(task_id), "build_number": number, **build},
            {"type": "agent.lifecycle", "task_id": str(task_id), "build_number": number, "lifecycle": "ready"},
            {"type": "agent.heartbeat", "task_id": str(task_id), "build_number": number},
        )
        await self.until(lambda: self.document(task_id).get("status") == "active")
        return task_id

    def document(self, task_id: uuid.UUID) -> dict[str, Any]:
        """Return the task's document from the event with the highest version, {} if there is none."""
        events = [event["data"] for event in self.events if event["subject"] == str(task_id)]
        document: dict[str, Any] = max(events, key=lambda data: data["version"], default={"task": {}})["task"]
        return document

    def state(self, task_id: uuid.UUID) -> dict[str, Any]:
        """Return the task's current state, {} if there is none."""
        return self.document(task_id).get("current_state") or {}

    def events_of(self, task_id: uuid.UUID) -> list[dict[str, Any]]:
        """Return the data of a task's events, each version once, in order."""
        events = {event["data"]["version"]: event["data"] for event in self.events if event["subject"] == str(task_id)}
        return [events[version] for version in sorted(events)]

    def causes(self, task_id: uuid.UUID, kind: str) -> set[str]:
        """Return the ids of the causes of this type that the task's events name."""
        causes = [data["cause"] for data in self.events_of(task_id)]
        return {cause["id"] for cause in causes if cause["type"] == kind and "id" in cause}

    def requests_of(self, task_id: uuid.UUID, kind: str = "") -> list[dict[str, Any]]:
        """Return the work requests received for a task, of all types or of those that start with ``kind``."""
        return [each for each in self.requests if each["task_id"] == str(task_id) and each["type"].startswith(kind)]

    def routes(self, task_id: uuid.UUID) -> set[str]:
        """Return the routing keys of the work requests received for a task."""
        return {key for key, each in zip(self.targets, self.requests, strict=True) if each["task_id"] == str(task_id)}

    def reasons(self) -> list[str]:
        """Return the reasons of the dead letters received."""
        return [str(letter.headers["x-taskherd-reason"]) for letter in self.dead_letters]

    def versions(self, task_id: uuid.UUID) -> list[int]:
        """Return the versions of a task's events, in the order received."""
        return [event["data"]["version"] for event in self.events if event["subject"] == str(task_id)]

    async def queue_counts(self, name: str) -> tuple[int, int]:
        """Return the number of messages and of consumers of a queue."""
        queue = await self.channel.declare_queue(f"{self.prefix}.{name}", passive=True, timeout=30)
        counts = queue.declaration_result
        return counts.message_count or 0, counts.consumer_count or 0

    async def block_writes(self, table: str) -> asyncpg.transaction.Transaction:
        """Let nobody write the table until the returned transaction is rolled back."""
        transaction = self.database.transaction()
        await transaction.start()
        await self.database.execute(f"LOCK TABLE {table} IN EXCLUSIVE MODE")
        return transaction

    async def until_delivered(self, name: str) -> None:
        """Wait until all messages of a queue are with its consumers, handled or not."""
        async with asyncio.timeout(TIMEOUT):
            while True:
                waiting, consumers = await self.queue_counts(name)
                if consumers and not waiting:
                    return
                await asyncio.sleep(0.05)

    async def until(self, condition: Callable[[], Any]) -> None:
        """Wait until the messages received make the condition true."""
        async with asyncio.timeout(TIMEOUT):
            while not condition():
                self.received.clear()
                await self.received.wait()

    async def until_row(self, query: str, *values: Any, is_: Any = True) -> None:
        """Poll until the query's single value equals ``is_``."""
        async with asyncio.timeout(TIMEOUT):
            while await self.database.fetchval(query, *values) != is_:  # noqa: ASYNC110 - a row sends no notification
                await asyncio.sleep(0.02)

    async def until_metric(self, value: float, name: str, **labels: str) -> None:
        """Poll until a metric has this value; the worker counts after the commit."""
        async with asyncio.timeout(TIMEOUT):
            while self.metric(name, **labels) != value:  # noqa: ASYNC110 - a counter sends no notification
                await asyncio.sleep(0.02)

    async def until_processed(self, count: int) -> None:
        """Poll until the worker has processed exactly ``count`` reports, with any outcome, as long as it progresses."""
        async with asyncio.timeout(TIMEOUT) as limit:
            processed = self._processed_count()
            while processed < count:
                await asyncio.sleep(0.02)
                before, processed = processed, self._processed_count()
                if processed > before:
                    limit.reschedule(asyncio.get_running_loop().time() + TIMEOUT)
        assert processed == count

    async def expire_parked(self, worker: Worker | None = None) -> int:
        """Expire the parked reports as if it were a day later, and return their number."""
        worker = worker or self.worker
        later = worker._context.now() + timedelta(days=1)
        return await worker._sweeper._maintenance.expire_parked_once(later)

    def _processed_count(self) -> float:
        families = self.worker.metrics.reports.collect()
        return sum(sample.value for family in families for sample in family.samples)

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of a metric's samples with these labels."""
        families = self.worker.metrics.registry.collect()
        samples = (sample for family in families for sample in family.samples if sample.name == name)
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())

    async def _on_events(self, message: AbstractIncomingMessage) -> None:
        self.messages.append(message)
        self.events.extend(json.loads(message.body))
        await self._ack(message)

    async def _on_dead_letter(self, message: AbstractIncomingMessage) -> None:
        self.dead_letters.append(message)
        await self._ack(message)

    async def _on_request(self, message: AbstractIncomingMessage) -> None:
        self.requests.append(json.loads(message.body))
        self.targets.append(message.routing_key or "")
        await self._ack(message)

    async def _on_reply(self, message: AbstractIncomingMessage) -> None:
        reply = self.answers[message.correlation_id or ""]
        if not reply.done():  # a worker that died before it acked the command replies again
            reply.set_result(json.loads(message.body))
        await self._ack(message)

    async def _ack(self, message: AbstractIncomingMessage) -> None:
        await message.ack()
        self.received.set()

    async def listen(self) -> None:
        """Consume everything that the worker publishes."""
        queue = await self.channel.declare_queue(exclusive=True)
        await queue.bind(f"{self.prefix}.events", "#")
        await queue.consume(self._on_events)
        work = await self.channel.declare_queue(exclusive=True)
        await work.bind(f"{self.prefix}.work", "#")
        await work.consume(self._on_request)
        dead = await self.channel.get_queue(f"{self.prefix}.dead", ensure=False)
        self.stop_dead_letters = partial(dead.cancel, await dead.consume(self._on_dead_letter))
        replies = await self.channel.declare_queue(exclusive=True)
        self.replies = replies.name
        await replies.consume(self._on_reply)


def make_command(kind: str, task_id: uuid.UUID, **fields: Any) -> dict[str, Any]:
    """Return a command with a new id."""
    command = {"type": kind, "command_id": str(uuid.uuid4()), "task_id": str(task_id), "actor_id": str(ALICE)}
    return {**command, **fields}


def make_create(task_id: uuid.UUID | None = None, **fields: Any) -> dict[str, Any]:
    """Return a create of a task of alice, whose prompt is ``prompt_of`` its id unless ``input`` is given."""
    task_id = task_id or uuid.uuid4()
    defaults = {"owner_id": str(ALICE), "template_version_id": str(VERSION), "input": prompt_of(task_id)}
    return make_command("task.create", task_id, **{**defaults, **fields})


def error_of(reply: dict[str, Any]) -> dict[str, Any]:
    """Check that a reply is a refusal, and return its error."""
    assert reply["ok"] is False, reply
    error: dict[str, Any] = reply["error"]
    return error


def make_report(kind: str, task_id: uuid.UUID, /, **fields: Any) -> dict[str, Any]:
    """Return a report."""
    return {"type": kind, "task_id": str(task_id), **fields}


def build_report(task_id: uuid.UUID, number: int, transition: str, job_status: str, **fields: Any) -> dict[str, Any]:
    """Return a report of a workspace build."""
    build = {"build_number": number, "transition": transition, "job_status": job_status}
    return make_report("workspace.build", task_id, **build, **fields)


async def bring_to_status(harness: WorkerHarness, status: str, of: uuid.UUID | None = None) -> uuid.UUID:
    """Bring the task into this status, or a new task if no id is given, and return its id."""
    task_id = of or await harness.create()
    if status in {"active", "unknown", "paused"}:
        await harness.make_active(task_id)
    match status:
        case "initializing":
            await harness.report(build_report(task_id, 1, "start", "running"))
        case "error":
            await harness.report(build_report(task_id, 1, "start", "failed", error="No space left"))
        case "unknown" | "paused":
            assert (await harness.command("task.pause", task_id))["ok"]
            if status == "paused":
                await harness.report(build_report(task_id, 2, "stop", "succeeded"))
        case _:
            pass
    await harness.until(lambda: harness.document(task_id).get("status") == status)
    return task_id


@asynccontextmanager
async def external_harness(database_url: str, amqp_url: str, prefix: str) -> AsyncIterator[WorkerHarness]:
    """Provide everything except a worker: the topology, a directory, and a harness that consumes."""
    database = await asyncpg.connect(database_url, timeout=30, command_timeout=30)
    await database.execute(DIRECTORY)
    connection = await aio_pika.connect(amqp_url, timeout=30)
    channel = await connection.channel()
    await declare(await channel.get_underlay_channel(), TopologyNames(prefix))
    harness = WorkerHarness(channel, database, prefix, (database_url, amqp_url))
    try:
        await harness.listen()
        yield harness
    finally:
        await connection.close()
        await database.close(timeout=30)


@asynccontextmanager
async def running_worker(harness: WorkerHarness, **settings: Any) -> AsyncIterator[Worker]:
    """Run a worker in this process until the end of the block."""
    database_url, amqp_url = harness.urls
    defaults = {
        "ops_port": 0,
        "amqp_prefix": harness.prefix,
        "sweep_every": 0.5,
        "relay_every": 0.5,
        "probe_every": 0.5,
        "tasks_running_most": 0,
    }
    worker = Worker(
        Settings(database_url=database_url, amqp_url=amqp_url, secret_key=SECRET, **{**defaults, **settings})
    )
    harness.worker = worker
    running = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        worker.stop()
        await asyncio.wait_for(running, TIMEOUT)


@asynccontextmanager
async def worker_harness(
    database_url: str, amqp_url: str, prefix: str, **settings: Any
) -> AsyncIterator[WorkerHarness]:
    """Run a worker on this database and AMQP prefix, with a directory, until the end of the block."""
    async with external_harness(database_url, amqp_url, prefix) as harness, running_worker(harness, **settings):
        yield harness
