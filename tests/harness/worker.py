"""A real worker in this process, and the outside world that speaks with it over a real RabbitMQ."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aio_pika
import asyncpg
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

from taskherd.broker.topology import TopologyNames, declare
from taskherd.settings import Settings
from taskherd.worker.app import Worker

ORGANIZATION = uuid.UUID("00000000-0000-4000-8000-000000000001")
ALICE = uuid.UUID("00000000-0000-4000-8000-0000000000a1")
TEMPLATE = uuid.UUID("00000000-0000-4000-8000-0000000000b1")
VERSION = uuid.UUID("00000000-0000-4000-8000-0000000000c1")
PRESET = uuid.UUID("00000000-0000-4000-8000-0000000000d1")
SECRET = "0123456789abcdef" * 4
TIMEOUT = 20.0
"""Seconds after which a condition that a test waits for is not going to come true."""

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
    """What a test does to the worker and sees of it."""

    channel: AbstractChannel
    database: asyncpg.Connection
    prefix: str
    urls: tuple[str, str]
    worker: Worker = field(init=False)
    replies: str = ""
    events: list[dict[str, Any]] = field(default_factory=list)
    dead_letters: list[AbstractIncomingMessage] = field(default_factory=list)
    messages: list[AbstractIncomingMessage] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)
    answers: dict[str, asyncio.Future[dict[str, Any]]] = field(default_factory=dict)
    noticed: asyncio.Event = field(default_factory=asyncio.Event)

    async def report(self, *reports: dict[str, Any], raw: bytes | None = None) -> None:
        """Publish one report, or several as an array, or raw bytes."""
        body = raw if raw is not None else json.dumps(reports[0] if len(reports) == 1 else reports).encode()
        exchange = await self.channel.get_exchange(f"{self.prefix}.reports", ensure=False)
        await exchange.publish(aio_pika.Message(body), "any", timeout=5)

    async def command(self, kind: str, task_id: uuid.UUID, **fields: Any) -> dict[str, Any]:
        """Give a command and return the reply."""
        return await self.send(make_command(kind, task_id, **fields))

    async def post_command(self, command: dict[str, Any]) -> None:
        """Send a command that nobody waits for the answer of."""
        exchange = await self.channel.get_exchange(f"{self.prefix}.commands", ensure=False)
        await exchange.publish(aio_pika.Message(json.dumps(command).encode()), command["type"], timeout=5)

    async def refused(self, kind: str, task_id: uuid.UUID, **fields: Any) -> dict[str, Any]:
        """Give a command that is refused and return the error."""
        reply = await self.command(kind, task_id, **fields)
        assert reply["ok"] is False, reply
        error: dict[str, Any] = reply["error"]
        return error

    async def send(self, command: dict[str, Any] | bytes) -> dict[str, Any]:
        """Send a command, or any bytes, as it is and return the reply."""
        correlation = uuid.uuid4().hex
        self.answers[correlation] = asyncio.get_running_loop().create_future()
        body = command if isinstance(command, bytes) else json.dumps(command).encode()
        message = aio_pika.Message(body, reply_to=self.replies, correlation_id=correlation)
        exchange = await self.channel.get_exchange(f"{self.prefix}.commands", ensure=False)
        await exchange.publish(message, "any", timeout=5)
        async with asyncio.timeout(TIMEOUT):
            return await self.answers[correlation]

    async def create(self, task_id: uuid.UUID | None = None, **fields: Any) -> uuid.UUID:
        """Create a task and return its id."""
        task_id = task_id or uuid.uuid4()
        wanted = {"owner_id": str(ALICE), "template_version_id": str(VERSION), "input": "Fix the flaky test"}
        reply = await self.command("task.create", task_id, **{**wanted, **fields})
        assert reply["ok"], reply
        return task_id

    async def active(self, task_id: uuid.UUID | None = None, number: int = 1) -> uuid.UUID:
        """A task whose build, agent and app are up."""
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
        """The task as the events tell it: of the highest version that came."""
        own = [event["data"] for event in self.events if event["subject"] == str(task_id)]
        found: dict[str, Any] = max(own, key=lambda data: data["version"], default={"task": {}})["task"]
        return found

    def state(self, task_id: uuid.UUID) -> dict[str, Any]:
        """The task's current state, empty while it has none."""
        return self.document(task_id).get("current_state") or {}

    def events_of(self, task_id: uuid.UUID) -> list[dict[str, Any]]:
        """What the events said of a task, each version once, in order."""
        own = {event["data"]["version"]: event["data"] for event in self.events if event["subject"] == str(task_id)}
        return [own[version] for version in sorted(own)]

    def requests_of(self, task_id: uuid.UUID, kind: str = "") -> list[dict[str, Any]]:
        """The requests for a task that came, of one type or of any."""
        return [each for each in self.requests if each["task_id"] == str(task_id) and each["type"].startswith(kind)]

    def routes(self, task_id: uuid.UUID) -> set[str]:
        """The routing keys under which requests for a task came."""
        return {key for key, each in zip(self.targets, self.requests, strict=True) if each["task_id"] == str(task_id)}

    def reasons(self) -> list[str]:
        """The reasons of the dead letters that came."""
        return [str(letter.headers["x-taskherd-reason"]) for letter in self.dead_letters]

    def versions(self, task_id: uuid.UUID) -> list[int]:
        """The versions that were told of a task, in order of arrival."""
        return [event["data"]["version"] for event in self.events if event["subject"] == str(task_id)]

    async def queue(self, name: str) -> tuple[int, int]:
        """How many messages wait in a queue, and how many consume it."""
        held = (await self.channel.declare_queue(f"{self.prefix}.{name}", passive=True, timeout=5)).declaration_result
        return held.message_count or 0, held.consumer_count or 0

    async def until(self, condition: Callable[[], Any]) -> None:
        """Wait until something that came makes the condition true."""
        async with asyncio.timeout(TIMEOUT):
            while not condition():
                self.noticed.clear()
                await self.noticed.wait()

    async def until_row(self, query: str, *values: Any, is_: Any = True) -> None:
        """Wait until a query's single value is as wanted; looked at whenever PostgreSQL has answered."""
        async with asyncio.timeout(TIMEOUT):
            while await self.database.fetchval(query, *values) != is_:  # noqa: ASYNC110 - a row tells nobody
                await asyncio.sleep(0.02)

    async def until_metric(self, value: float, name: str, **labels: str) -> None:
        """Wait until a metric has this value; the worker counts a little after it has committed."""
        async with asyncio.timeout(TIMEOUT):
            while self.metric(name, **labels) != value:  # noqa: ASYNC110 - a counter tells nobody
                await asyncio.sleep(0.02)

    async def until_processed(self, count: int) -> None:
        """Wait until the worker has taken so many reports, whatever became of them."""
        async with asyncio.timeout(TIMEOUT):
            while self._processed_count() < count:  # noqa: ASYNC110 - a counter tells nobody
                await asyncio.sleep(0.02)
        assert self._processed_count() == count

    def _processed_count(self) -> float:
        families = self.worker.metrics.reports.collect()
        return sum(sample.value for family in families for sample in family.samples)

    def metric(self, name: str, **labels: str) -> float:
        """A metric of the worker, 0 where it has not been counted."""
        return self.worker.metrics.registry.get_sample_value(name, labels) or 0.0

    async def _on_events(self, message: AbstractIncomingMessage) -> None:
        self.messages.append(message)
        self.events.extend(json.loads(message.body))
        await self._note(message)

    async def _on_dead_letter(self, message: AbstractIncomingMessage) -> None:
        self.dead_letters.append(message)
        await self._note(message)

    async def _on_request(self, message: AbstractIncomingMessage) -> None:
        self.requests.append(json.loads(message.body))
        self.targets.append(message.routing_key or "")
        await self._note(message)

    async def _on_reply(self, message: AbstractIncomingMessage) -> None:
        self.answers[message.correlation_id or ""].set_result(json.loads(message.body))
        await self._note(message)

    async def _note(self, message: AbstractIncomingMessage) -> None:
        await message.ack()
        self.noticed.set()

    async def listen(self) -> None:
        """Consume everything that the worker sends out."""
        queue = await self.channel.declare_queue(exclusive=True)
        await queue.bind(f"{self.prefix}.events", "#")
        await queue.consume(self._on_events)
        work = await self.channel.declare_queue(exclusive=True)
        await work.bind(f"{self.prefix}.work", "#")
        await work.consume(self._on_request)
        dead = await self.channel.get_queue(f"{self.prefix}.dead", ensure=False)
        await dead.consume(self._on_dead_letter)
        replies = await self.channel.declare_queue(exclusive=True)
        self.replies = replies.name
        await replies.consume(self._on_reply)


def make_command(kind: str, task_id: uuid.UUID, **fields: Any) -> dict[str, Any]:
    """A command under an id of its own."""
    command = {"type": kind, "command_id": str(uuid.uuid4()), "task_id": str(task_id), "actor_id": str(ALICE)}
    return {**command, **fields}


def make_report(kind: str, task_id: uuid.UUID, **fields: Any) -> dict[str, Any]:
    """A report."""
    return {"type": kind, "task_id": str(task_id), **fields}


def build_report(task_id: uuid.UUID, number: int, transition: str, job_status: str, **fields: Any) -> dict[str, Any]:
    """A report of a workspace build."""
    named = {"build_number": number, "transition": transition, "job_status": job_status}
    return make_report("workspace.build", task_id, **named, **fields)


async def in_status(flock: WorkerHarness, wanted: str, of: uuid.UUID | None = None) -> uuid.UUID:
    """A task of this status, a new one unless its id is given."""
    task_id = of or await flock.create()
    if wanted in {"active", "unknown", "paused"}:
        await flock.active(task_id)
    match wanted:
        case "initializing":
            await flock.report(build_report(task_id, 1, "start", "running"))
        case "error":
            await flock.report(build_report(task_id, 1, "start", "failed", error="No space left"))
        case "unknown" | "paused":
            assert (await flock.command("task.pause", task_id))["ok"]
            if wanted == "paused":
                await flock.report(build_report(task_id, 2, "stop", "succeeded"))
        case _:
            pass
    await flock.until(lambda: flock.document(task_id).get("status") == wanted)
    return task_id


@asynccontextmanager
async def external_harness(database_url: str, amqp_url: str, prefix: str) -> AsyncIterator[WorkerHarness]:
    """Everything but a worker: the topology, a directory, and somebody who listens."""
    database = await asyncpg.connect(database_url, timeout=5, command_timeout=10)
    await database.execute(DIRECTORY)
    connection = await aio_pika.connect(amqp_url, timeout=5)
    channel = await connection.channel()
    await declare(await channel.get_underlay_channel(), TopologyNames(prefix))
    own = WorkerHarness(channel, database, prefix, (database_url, amqp_url))
    try:
        await own.listen()
        yield own
    finally:
        await connection.close()
        await database.close(timeout=5)


@asynccontextmanager
async def running_worker(own: WorkerHarness, **settings: Any) -> AsyncIterator[Worker]:
    """A worker in this process, until the block is left."""
    database_url, amqp_url = own.urls
    chosen = {"ops_port": 0, "amqp_prefix": own.prefix, "sweep_every": 0.1, "relay_every": 0.2, "probe_every": 0.1}
    worker = Worker(Settings(database_url=database_url, amqp_url=amqp_url, secret_key=SECRET, **{**chosen, **settings}))
    own.worker = worker
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
    """A worker on a database and a prefix of its own, with a directory, until the test is over."""
    async with external_harness(database_url, amqp_url, prefix) as own, running_worker(own, **settings):
        yield own
