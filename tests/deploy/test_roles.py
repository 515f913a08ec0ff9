"""Each process works with exactly the privileges in PostgreSQL and RabbitMQ that docs/operations.md gives it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias
from urllib.parse import urlsplit

import aio_pika
import asyncpg
import httpx
import pytest
from aio_pika.exceptions import AMQPError
from pamqp.common import FieldTable

from taskherd.cli.diagnostics.broker import check_broker
from taskherd.cli.diagnostics.database import check_database
from taskherd.cli.diagnostics.findings import Finding, FindingState
from taskherd.cli.diagnostics.pools import check_own_queues
from taskherd.cli.diagnostics.roles import Role
from taskherd.dev.services import Services
from taskherd.dev.sources import Broker
from taskherd.messages.work import build_id
from taskherd.settings import Settings
from taskherd.store import migrate
from taskherd.store.engine import session_settings
from taskherd.store.sessions import deviations, settings_in_force
from tests.harness import fork_server
from tests.harness.api import running_api, token_for
from tests.harness.chaos import until
from tests.harness.replication import find_binaries
from tests.harness.runner import eventually, runner_harness
from tests.harness.worker import (
    ALICE,
    SECRET,
    TIMEOUT,
    VERSION,
    WorkerHarness,
    external_harness,
    make_command,
    make_report,
    running_worker,
)

ROOT = Path(__file__).parents[2]
POSTGRES = ROOT / "deploy" / "postgres"
ROLES = ("taskherd_migrator", "taskherd_worker", "taskherd_api")
USERS = ("worker", "api", "operator", "runner", "runner-other", "provisioner")
RUNNERS = ("--runner", "runner=default,r1", "--runner", "runner-other=default-2,r1-2")
PASSWORD = "correct-horse-battery"
ROLES_LOCK = 7_401_566
"""The advisory lock of whoever uses the roles, which belong to the whole server."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@dataclass(frozen=True, slots=True)
class Installation:
    """A database and a broker, set up as documented; ``database`` and ``amqp`` are the URLs of their owners."""

    database: str
    amqp: str
    prefix: str

    def database_as(self, role: str) -> str:
        """Return the database URL of a role."""
        return _as(self.database, role)

    def amqp_as(self, user: str) -> str:
        """Return the broker URL of a user."""
        return _as(self.amqp, f"{self.prefix}-{user}")


def _as(url: str, user: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=f"{user}:{PASSWORD}@{parts.hostname}:{parts.port}").geturl()


async def _run(url: str, *scripts: str) -> None:
    connection = await asyncpg.connect(url, timeout=30, command_timeout=30)
    try:
        for script in scripts:
            await connection.execute(script)
    finally:
        await connection.close(timeout=30)


@pytest.fixture
async def _roles(services: Services) -> AsyncIterator[None]:
    """Let nobody else use the roles, whose names are fixed, on a server that several runs share."""
    connection = await asyncpg.connect(services.database_url, timeout=30)
    try:
        await connection.execute("SELECT pg_advisory_lock($1)", ROLES_LOCK)
        yield
    finally:
        await connection.close(timeout=30)


@pytest.fixture
async def installation(services: Services, amqp_prefix: str, _roles: None) -> AsyncIterator[Installation]:
    """Create roles, schema and grants in the order of docs/operations.md, running each script twice."""
    name = f"taskherd_roles_{uuid.uuid4().hex[:8]}"
    await _run(services.database_url, f'CREATE DATABASE "{name}"')
    database = urlsplit(services.database_url)._replace(path=f"/{name}").geturl()
    installation = Installation(database, services.amqp_url, amqp_prefix)
    roles, grants = ((POSTGRES / file).read_text() for file in ("roles.sql", "grants.sql"))
    passwords = [f"ALTER ROLE {role} PASSWORD '{PASSWORD}'" for role in ROLES]
    try:
        await _run(installation.database, roles, roles, *passwords)
        await migrate.upgrade_async(installation.database_as("taskherd_migrator"))
        await _run(installation.database_as("taskherd_migrator"), grants, grants)
        yield installation
    finally:
        await _run(
            services.database_url, f'DROP DATABASE "{name}" WITH (FORCE)', *(f"DROP ROLE {role}" for role in ROLES)
        )


def _node(services: Services) -> Broker:
    assert services.rabbit is not None, "users can be created only on a private RabbitMQ"
    return services.rabbit


async def _create_users(services: Services, folder: Path, prefix: str) -> None:
    """Create the users as an administrator would: import the output of users.py."""
    for user in USERS:
        (folder / user).write_text(PASSWORD + "\n")
    script = ROOT / "deploy" / "rabbitmq" / "users.py"
    command = [sys.executable, str(script), str(folder), prefix, *RUNNERS]
    process = await asyncio.to_thread(subprocess.run, command, capture_output=True, timeout=30, check=True)
    assert PASSWORD.encode() not in process.stdout
    await asyncio.to_thread(_node(services).import_definitions, process.stdout)


@pytest.fixture
async def harness(
    installation: Installation, services: Services, amqp_prefix: str, tmp_path: Path
) -> AsyncIterator[WorkerHarness]:
    """Yield a worker harness with all privileges, after the users for its prefix were created."""
    await _create_users(services, tmp_path, amqp_prefix)
    async with external_harness(installation.database, installation.amqp, amqp_prefix) as harness:
        yield harness


@pytest.mark.parametrize("role", ROLES)
async def test_each_role_has_the_settings_of_sessions(installation: Installation, role: str) -> None:
    """A session of a role has all settings of taskherd without asking for them, as behind a PgBouncer."""
    settings = session_settings("")
    connection = await asyncpg.connect(installation.database_as(role), timeout=30)
    try:
        assert deviations(settings, await settings_in_force(connection, settings)) == ()
    finally:
        await connection.close(timeout=30)


async def test_a_worker_works_with_its_privileges(installation: Installation, harness: WorkerHarness) -> None:
    """Create, reports, logs, send, dead letters and delete work with the role and the user of a worker."""
    worker_urls = (installation.database_as("taskherd_worker"), installation.amqp_as("worker"))
    owner_urls, harness.urls = harness.urls, worker_urls
    async with running_worker(harness, migrate="never", report_partitions=2):
        task = await harness.make_active()
        await harness.report(
            make_report(
                "task.log", task, build_number=1, entries=[{"id": 0, "type": "output", "content": "hi", "time": NOW}]
            ),
            make_report("app.status", task, state="idle", message="Done"),
            {"type": "nonsense"},
        )
        await harness.until(lambda: harness.reasons() == ["unknown_type"])
        assert (await harness.command("task.send", task, input="More"))["ok"]
        assert (await harness.command("task.delete", task))["ok"]
        await harness.until_row("SELECT count(*) FROM task_logs", is_=1)
        await harness.until_metric(1, "taskherd_drained")
        findings = [
            finding
            for check in (check_database, check_broker)
            async for finding in check(
                Settings(
                    database_url=worker_urls[0], amqp_url=worker_urls[1], amqp_prefix=harness.prefix,
                    report_partitions=2, secret_key=SECRET,
                )
            )
        ]  # fmt: skip
        assert [finding for finding in findings if finding.state is FindingState.ERROR] == []
        assert _spare_rights(findings) == "none"
    harness.urls = owner_urls


async def test_an_api_works_with_its_privileges(installation: Installation, harness: WorkerHarness) -> None:
    """Create, read, list, watch, send and delete over HTTP work with the role and the user of an API."""
    owner_urls, harness.urls = (
        harness.urls,
        (installation.database_as("taskherd_worker"), installation.amqp_as("worker")),
    )
    token = await token_for(installation.database_as("taskherd_migrator"), "alice")
    api_urls = (installation.database_as("taskherd_api"), installation.amqp_as("api"))
    headers = {"Coder-Session-Token": token}
    async with (
        running_worker(harness, migrate="never"),
        running_api(*api_urls, harness.prefix, migrate="never") as api,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{api.port}/api/v2", headers=headers, timeout=TIMEOUT) as client,
    ):
        body = {"template_version_id": str(VERSION), "input": "Say hello"}
        created = (await client.post("/tasks/me", json=body)).raise_for_status().json()
        await harness.make_active(uuid.UUID(created["id"]))
        assert (await client.get(f"/tasks/me/{created['id']}")).json()["status"] == "active"
        assert [task["id"] for task in (await client.get("/tasks")).json()["tasks"]] == [created["id"]]
        assert (await client.get("/users/me")).json()["username"] == "alice"
        assert (await client.get(f"/tasks/me/{created['id']}/logs")).status_code == 200
        assert (await client.get(f"/workspacebuilds/{build_id(uuid.UUID(created['id']), 1)}")).status_code == 200
        async with client.stream("GET", f"/tasks/me/{created['id']}/watch") as stream:
            assert stream.status_code == 200
            async for line in stream.aiter_lines():
                if created["id"] in line:
                    break
        assert (await client.post(f"/tasks/me/{created['id']}/send", json={"input": "More"})).is_success
        action = await client.post("/task-actions", json={"action": "delete", "q": "owner:me"})
        assert action.status_code == 202, action.text
        await harness.until_row("SELECT succeeded FROM task_actions WHERE finished_at IS NOT NULL", is_=1)
        await harness.stop_dead_letters()
        await harness.database.execute("UPDATE memberships SET role = 'admin'")
        await harness.report({"type": "nonsense"})
        letters: list[dict[str, str]] = []
        while not letters:
            letters = (await client.get("/dead-letters")).raise_for_status().json()["dead_letters"]
        replayed = await client.post("/dead-letters/replay", json={"ids": [letters[0]["id"]]})
        assert replayed.json()["replayed"] == 1, replayed.text
        settings = Settings(database_url=api_urls[0], amqp_url=api_urls[1], amqp_prefix=harness.prefix)
        findings = [
            finding
            for check in (check_database(settings, (Role.API,)), check_broker(settings, (Role.API,)))
            async for finding in check
        ]
        assert [finding for finding in findings if finding.state is FindingState.ERROR] == []
        assert _spare_rights(findings) == "none"
    harness.urls = owner_urls
    await harness.until_row("SELECT count(*) FROM api_tokens WHERE last_used_at IS NOT NULL", is_=1)


async def test_a_runner_works_with_its_privileges(
    installation: Installation, harness: WorkerHarness, tmp_path: Path
) -> None:
    """A runner executes requests, reports, and after a restart finds deleted tasks, with its RabbitMQ user alone."""
    owner_urls, harness.urls = (
        harness.urls,
        (installation.database_as("taskherd_worker"), installation.amqp_as("worker")),
    )
    async with running_worker(harness, migrate="never", request_backoff_first=0.5, request_backoff_most=1):
        harness.urls = (owner_urls[0], installation.amqp_as("runner"))
        async with runner_harness(harness, tmp_path) as runners:
            first = await runners.start()
            settings = Settings(amqp_url=harness.urls[1], amqp_prefix=harness.prefix, runner_name="r1")
            checks = (check_broker(settings, (Role.RUNNER,)), check_own_queues(settings))
            findings = [finding for check in checks async for finding in check]
            assert [finding for finding in findings if finding.state is FindingState.ERROR] == []
            assert _spare_rights(findings) == "none"
            task = await runners.task("say:up", "sleep")
            await runners.until_output(task, "up")
            assert not any(line["event"] == "claim unanswered" for line in first.lines())
            await first.kill()
            folder = runners.root / str(task)
            assert folder.exists()
            await harness.database.execute("UPDATE tasks SET deleted_at = now() WHERE id = $1", task)
            second = await runners.start()
            await eventually(lambda: not folder.exists())
            assert await second.terminate() == 0
    harness.urls = owner_urls


async def test_the_doctor_notes_rights_to_spare(installation: Installation, harness: WorkerHarness) -> None:
    """A runner with the API's user, or with one that may do everything, is told which rights it does not need."""
    prefix = harness.prefix

    async def spare_rights(url: str) -> str:
        settings = Settings(amqp_url=url, amqp_prefix=prefix, runner_name="r1")
        return _spare_rights([finding async for finding in check_broker(settings, (Role.RUNNER,))])

    assert await spare_rights(installation.amqp_as("runner")) == "none"
    server_named = "amq.gen-taskherd-doctor"
    expected = f"configure {server_named}, write {prefix}.commands, read {server_named}"
    assert await spare_rights(installation.amqp_as("api")) == expected
    everything = await spare_rights(installation.amqp)
    for right in ("configure taskherd-doctor.nothing", "write amq.default", f"read {prefix}.work.taskherd-doctor"):
        assert right in everything


async def test_a_role_has_no_other_privileges(installation: Installation) -> None:
    """A worker cannot write directory or schema or read tokens; an API cannot write tasks or revive tokens."""
    forbidden = {
        "taskherd_worker": (
            "UPDATE users SET name = ''",
            "CREATE TABLE x ()",
            "DELETE FROM taskherd_schema",
            "SELECT * FROM api_tokens",
            "DELETE FROM api_tokens",
        ),
        "taskherd_api": (
            "DELETE FROM tasks",
            "INSERT INTO outbox VALUES (gen_random_uuid(), 1, now())",
            "UPDATE task_builds SET number = 1",
            "UPDATE api_tokens SET secret_hash = ''",
            "UPDATE api_tokens SET revoked_at = NULL",
            "DELETE FROM task_actions",
            "SELECT taskherd_drop_partitions('task_logs', 'today')",
            "SELECT taskherd_prune_tokens('today', 1)",
        ),
    }
    for role, statements in forbidden.items():
        connection = await asyncpg.connect(installation.database_as(role), timeout=30)
        await connection.fetch("SELECT count(*) FROM tasks")
        for statement in statements:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(statement)
        await connection.close()


async def test_a_worker_deletes_tokens_that_ended_long_ago(installation: Installation, harness: WorkerHarness) -> None:
    """With the privilege on the function alone."""
    owner_urls, harness.urls = (
        harness.urls,
        (installation.database_as("taskherd_worker"), installation.amqp_as("worker")),
    )
    await harness.database.execute(
        "INSERT INTO api_tokens (id, user_id, secret_hash, expires_at)"
        " VALUES ('old', $1, '', now() - interval '1 year'), ('young', $1, '', now())",
        ALICE,
    )
    async with running_worker(harness, migrate="never"):
        await harness.until_row("SELECT array_agg(id) FROM api_tokens", is_=["young"])
    harness.urls = owner_urls


async def test_a_provisioner_may_only_publish_reports(installation: Installation, harness: WorkerHarness) -> None:
    """Publishing reports is permitted; commands, reading reports and declaring are refused."""
    prefix = harness.prefix
    async with await aio_pika.connect(installation.amqp_as("provisioner"), timeout=30) as connection:
        channel = await connection.channel()
        reports = await channel.get_exchange(f"{prefix}.reports", ensure=False)
        await reports.publish(aio_pika.Message(b"{}"), "any", timeout=30)
        forbidden = (
            lambda channel: channel.declare_queue(f"{prefix}.mine"),
            lambda channel: channel.declare_exchange(f"{prefix}.mine"),
            lambda channel: _get(channel, f"{prefix}.reports"),
            lambda channel: _publish(channel, f"{prefix}.commands"),
        )
        for operation in forbidden:
            with pytest.raises(AMQPError):
                await operation(await connection.channel())


async def test_a_migration_applies_the_grants(installation: Installation, tmp_path: Path) -> None:
    """``db upgrade --grants FILE`` executes the file after the migration, and names a role that is missing."""
    await _run(installation.database, "GRANT INSERT ON users TO taskherd_worker")

    async def upgrade(file: Path) -> tuple[int, str]:
        environment = {"TASKHERD_DATABASE_URL": installation.database_as("taskherd_migrator"), "PATH": ""}
        command = ["db", "upgrade", "--grants", str(file)]
        done = await asyncio.to_thread(fork_server.run, command, environment, folder=tmp_path)
        return done.returncode, done.stderr.decode()

    assert await upgrade(POSTGRES / "grants.sql") == (0, "")
    connection = await asyncpg.connect(installation.database_as("taskherd_worker"), timeout=30)
    try:
        assert not await connection.fetchval("SELECT has_table_privilege('users', 'INSERT')")
    finally:
        await connection.close(timeout=30)
    (tmp_path / "wrong.sql").write_text("GRANT SELECT ON users TO taskherd_nobody")
    code, output = await upgrade(tmp_path / "wrong.sql")
    assert code == 2
    assert "taskherd_nobody" in output
    assert "roles.sql" in output
    assert "Traceback" not in output


async def test_an_operator_replays_dead_letters_and_no_more(installation: Installation, harness: WorkerHarness) -> None:
    """A refused command is listed, replayed and then executed; other exchanges and queues are closed."""
    prefix, task_id = harness.prefix, uuid.uuid4()
    harness.urls, owner_urls = (
        (installation.database_as("taskherd_worker"), installation.amqp_as("worker")),
        harness.urls,
    )
    await harness.stop_dead_letters()
    command = make_command("task.create", task_id, owner_id=str(ALICE), template_version_id=str(VERSION), input="Hi")
    async with running_worker(harness, migrate="never", command_senders=f"{prefix}-api,{prefix}-operator"):
        async with await aio_pika.connect(installation.amqp, timeout=30) as connection:
            commands = await (await connection.channel()).get_exchange(f"{prefix}.commands", ensure=False)
            await commands.publish(aio_pika.Message(json.dumps(command).encode()), "any", timeout=30)
        listed = await until(
            lambda: _dead(installation, prefix, "list", "-o", "json"), lambda found: bool(json.loads(found))
        )
        [letter] = json.loads(listed)
        assert letter["reason"] == "untrusted_sender"
        assert await _dead(installation, prefix, "replay", letter["id"]) == "1 replayed\n"
        await harness.until_row("SELECT count(*) FROM tasks WHERE id = $1", task_id, is_=1)
    harness.urls = owner_urls
    async with await aio_pika.connect(installation.amqp_as("operator"), timeout=30) as connection:
        forbidden: list[Operation] = [
            *(partial(_get, queue=f"{prefix}.{queue}") for queue in ("commands", "reports", "claims")),
            *(partial(_publish, exchange=f"{prefix}.{exchange}") for exchange in ("work", "events", "dead", "wakeups")),
            lambda channel: channel.declare_queue(f"{prefix}.mine"),
            lambda channel: channel.queue_delete(f"{prefix}.dead"),
        ]
        assert [await _is_refused(connection, operation) for operation in forbidden] == [True] * len(forbidden)


async def _dead(installation: Installation, prefix: str, *arguments: str) -> str:
    """Return what ``taskherd dead`` prints when an operator runs it, with the settings of the worker's senders."""
    environment = {
        "TASKHERD_AMQP_URL": installation.amqp_as("operator"), "TASKHERD_AMQP_PREFIX": prefix, "PATH": "",
        "TASKHERD_COMMAND_SENDERS": f"{prefix}-api,{prefix}-operator",
    }  # fmt: skip
    done = await asyncio.to_thread(fork_server.run, ["dead", *arguments], environment)
    done.check_returncode()
    return done.stdout.decode()


async def test_a_runner_may_neither_command_nor_declare(installation: Installation, harness: WorkerHarness) -> None:
    """Claims and its own work queues are permitted; every other queue, exchange, binding and name is refused."""
    prefix = harness.prefix
    for target in ("default", "default-2", "r1", "r1-2"):
        queue = await harness.channel.declare_queue(f"{prefix}.work.{target}", durable=True, arguments=QUORUM)
        await queue.bind(f"{prefix}.work", f"*.*.{target}")
    async with await aio_pika.connect(installation.amqp_as("runner"), timeout=30) as connection:
        await _publish(await connection.channel(), f"{prefix}.claims")
        await _publish(await connection.channel(), f"{prefix}.reports")
        for target in ("default", "r1"):
            await _consume(await connection.channel(), f"{prefix}.work.{target}")
        forbidden: dict[str, Operation] = {
            "declare a queue with a name of RabbitMQ": lambda channel: channel.declare_queue(exclusive=True),
            "delete a queue with such a name": lambda channel: channel.queue_delete("amq.gen-any"),
            "declare a work queue": lambda channel: channel.declare_queue(f"{prefix}.work.mine", durable=True),
            "declare its own queue": lambda channel: channel.declare_queue(
                f"{prefix}.work.r1", durable=True, arguments=QUORUM
            ),
            "delete its own queue": lambda channel: channel.queue_delete(f"{prefix}.work.r1"),
            "empty its own exchange": lambda channel: channel.exchange_delete(f"{prefix}.claims"),
            "read claims": lambda channel: _get(channel, f"{prefix}.claims"),
            "read reports": lambda channel: _get(channel, f"{prefix}.reports"),
            "read commands": lambda channel: _get(channel, f"{prefix}.commands"),
            "read dead letters": lambda channel: _get(channel, f"{prefix}.dead"),
            "read another pool": lambda channel: _get(channel, f"{prefix}.work.default-2"),
            "consume from another pool": lambda channel: _consume(channel, f"{prefix}.work.default-2"),
            "read another runner": lambda channel: _get(channel, f"{prefix}.work.r1-2"),
            "bind its work queue to events": lambda channel: _bind(channel, f"{prefix}.work.r1", f"{prefix}.events"),
            "bind its work queue": lambda channel: _bind(channel, f"{prefix}.work.r1", f"{prefix}.work"),
            "bind the queue of reports": lambda channel: _bind(channel, f"{prefix}.reports", f"{prefix}.events"),
            "bind the queue of claims": lambda channel: _bind(channel, f"{prefix}.claims", f"{prefix}.commands"),
            "bind an exchange that it writes to": lambda channel: _bind_exchange(
                channel, f"{prefix}.reports", f"{prefix}.work"
            ),
            "bind another exchange": lambda channel: _bind_exchange(channel, f"{prefix}.work", f"{prefix}.reports"),
            "publish a command": lambda channel: _publish(channel, f"{prefix}.commands"),
            "publish a work request": lambda channel: _publish(channel, f"{prefix}.work"),
            "publish an event": lambda channel: _publish(channel, f"{prefix}.events"),
            "publish a wakeup": lambda channel: _publish(channel, f"{prefix}.wakeups"),
            "publish a dead letter": lambda channel: _publish(channel, f"{prefix}.dead"),
            "publish to any queue": lambda channel: channel.default_exchange.publish(
                aio_pika.Message(b"{}"), f"{prefix}.commands", timeout=10
            ),
            "name another user": lambda channel: _publish(channel, f"{prefix}.reports", user_id=f"{prefix}-api"),
        }
        permitted = [attack for attack, operation in forbidden.items() if not await _is_refused(connection, operation)]
        assert permitted == []


async def test_an_api_cannot_read_work_requests(installation: Installation, harness: WorkerHarness) -> None:
    """The API's user reads wakeups and dead letters, but no events and no other queue, and cannot bind to work."""
    prefix = harness.prefix
    await harness.channel.declare_queue(f"{prefix}.work.default", durable=True, arguments=QUORUM)
    async with await aio_pika.connect(installation.amqp_as("api"), timeout=30) as connection:
        own = await (await connection.channel()).declare_queue(exclusive=True)
        await _bind(await connection.channel(), own.name, f"{prefix}.wakeups")
        queues = ("work.default", "commands", "reports", "claims")
        forbidden: list[Operation] = [
            *(partial(_get, queue=f"{prefix}.{queue}") for queue in queues),
            lambda channel: _bind(channel, own.name, f"{prefix}.work"),
            lambda channel: _bind(channel, own.name, f"{prefix}.events"),
            lambda channel: _publish(channel, f"{prefix}.work"),
        ]
        assert [await _is_refused(connection, operation) for operation in forbidden] == [True] * len(forbidden)


Operation: TypeAlias = "Callable[[aio_pika.abc.AbstractChannel], Awaitable[object]]"


def _spare_rights(findings: Iterable[Finding]) -> str:
    return next(finding.found for finding in findings if finding.what == "broker permissions to spare")


async def _is_refused(connection: aio_pika.abc.AbstractConnection, operation: Operation) -> bool:
    try:
        await operation(await connection.channel())
    except AMQPError:
        return True
    return False


QUORUM: FieldTable = {"x-queue-type": "quorum", "x-delivery-limit": 200}
NOW = "2026-01-01T00:00:00Z"


async def _get(channel: aio_pika.abc.AbstractChannel, queue: str) -> None:
    await (await channel.get_queue(queue, ensure=False)).get(timeout=30)


async def _consume(channel: aio_pika.abc.AbstractChannel, queue: str) -> None:
    async def ignore(_message: aio_pika.abc.AbstractIncomingMessage) -> None:
        """Leave it unacknowledged."""

    await (await channel.get_queue(queue, ensure=False)).consume(ignore, timeout=30)


async def _bind(channel: aio_pika.abc.AbstractChannel, queue: str, exchange: str) -> None:
    await (await channel.get_queue(queue, ensure=False)).bind(exchange, "#", timeout=30)


async def _bind_exchange(channel: aio_pika.abc.AbstractChannel, exchange: str, source: str) -> None:
    await (await channel.get_exchange(exchange, ensure=False)).bind(source, "#", timeout=30)


async def _publish(channel: aio_pika.abc.AbstractChannel, exchange: str, user_id: str | None = None) -> None:
    target = await channel.get_exchange(exchange, ensure=False)
    await target.publish(aio_pika.Message(b"{}", user_id=user_id), "any", timeout=30)


async def test_a_backup_is_restored_on_a_new_server(installation: Installation, tmp_path: Path) -> None:
    """With roles.sql before it, as documented, all privileges are there, and grants.sql changes none; else it fails."""
    dump, folder = tmp_path / "taskherd.dump", find_binaries().folder

    async def run(program: Path, *arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
        command = [str(program), *map(str, arguments)]
        return await asyncio.to_thread(subprocess.run, command, capture_output=True, timeout=60, check=False)

    dumped = await run(folder / "pg_dump", "-Fc", "-f", dump, installation.database)
    assert dumped.returncode == 0, dumped.stderr
    before = await _privileges(installation)
    address = urlsplit(installation.database)
    server = address._replace(path="/postgres").geturl()
    name = address.path[1:]
    empty = (f'DROP DATABASE "{name}" WITH (FORCE)', f'CREATE DATABASE "{name}"')
    await _run(server, *empty, *(f"DROP ROLE {role}" for role in ROLES))
    restore = (folder / "pg_restore", "-d", installation.database, "--exit-on-error", dump)
    without = await run(*restore)
    assert without.returncode != 0
    assert b'role "taskherd_migrator" does not exist' in without.stderr
    await _run(server, *empty)
    await _run(installation.database, (POSTGRES / "roles.sql").read_text())
    await _run(server, *(f"ALTER ROLE {role} PASSWORD '{PASSWORD}'" for role in ROLES))
    restored = await run(*restore)
    assert (restored.returncode, restored.stderr) == (0, b"")
    assert await _privileges(installation) == before
    await _run(installation.database_as("taskherd_migrator"), (POSTGRES / "grants.sql").read_text())
    assert await _privileges(installation) == before


def test_the_documented_restores_make_the_roles_first() -> None:
    """Each documented restore that needs the roles of roles.sql runs it before."""
    operations = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    blocks = [block for block in operations.split("```") if block.startswith("sh\n") and "--exit-on-error" in block]
    assert len(blocks) == 4
    with_roles = [block for block in blocks if "docker compose" not in block and "as_superuser" not in block]
    assert len(with_roles) == 2
    assert all(block.index("roles.sql") < block.index("pg_restore") for block in with_roles)


async def _privileges(installation: Installation) -> set[tuple[str, str, str]]:
    """Return every relation and function of the schema with its owner and its privileges."""
    acl = "(SELECT string_agg(one, ' ' ORDER BY one) FROM unnest({}::text[]) one)"
    query = f"""
        SELECT relname::text, relowner::regrole::text, {acl.format("relacl")}
        FROM pg_class WHERE relnamespace = 'public'::regnamespace
        UNION ALL
        SELECT proname::text, proowner::regrole::text, {acl.format("proacl")}
        FROM pg_proc WHERE pronamespace = 'public'::regnamespace
    """
    connection = await asyncpg.connect(installation.database, timeout=30)
    try:
        return {tuple(row) for row in await connection.fetch(query)}
    finally:
        await connection.close(timeout=30)
