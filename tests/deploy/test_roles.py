"""Each process with the rights that we tell people to give it, and no others, in PostgreSQL and RabbitMQ."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import aio_pika
import asyncpg
import httpx
import pytest
from aio_pika.exceptions import AMQPError

from taskherd.cli.diagnostics import FindingState, check_broker, check_database
from taskherd.dev.services import Services
from taskherd.dev.sources import Broker
from taskherd.messages.work import build_id
from taskherd.settings import Settings
from taskherd.store import migrate
from tests.harness.api import running_api, token_for
from tests.harness.runner import eventually, runner_harness
from tests.harness.worker import SECRET, TIMEOUT, VERSION, WorkerHarness, external_harness, make_report, running_worker

ROOT = Path(__file__).parents[2]
POSTGRES = ROOT / "deploy" / "postgres"
ROLES = ("taskherd_migrator", "taskherd_worker", "taskherd_api")
USERS = ("worker", "api", "runner", "provisioner")
PASSWORD = "correct-horse-battery"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@dataclass(frozen=True, slots=True)
class Installation:
    """A database and a vhost, set up as the documents say; URLs of its owner and of each part."""

    database: str
    amqp: str

    def database_as(self, role: str) -> str:
        """The database's URL for one role."""
        return _as(self.database, role)

    def amqp_as(self, user: str) -> str:
        """The broker's URL for one user."""
        return _as(self.amqp, f"taskherd-{user}")


def _as(url: str, user: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=f"{user}:{PASSWORD}@{parts.hostname}:{parts.port}").geturl()


async def _run(url: str, *scripts: str) -> None:
    connection = await asyncpg.connect(url, timeout=10, command_timeout=30)
    try:
        for script in scripts:
            await connection.execute(script)
    finally:
        await connection.close(timeout=5)


@pytest.fixture
async def installation(services: Services) -> AsyncIterator[Installation]:
    """Roles, schema and grants, made in the order of docs/operations.md, each script twice."""
    name = f"taskherd_roles_{uuid.uuid4().hex[:8]}"
    await _run(services.database_url, f'CREATE DATABASE "{name}"')
    own = Installation(urlsplit(services.database_url)._replace(path=f"/{name}").geturl(), services.amqp_url)
    roles, grants = ((POSTGRES / file).read_text() for file in ("roles.sql", "grants.sql"))
    passwords = [f"ALTER ROLE {role} PASSWORD '{PASSWORD}'" for role in ROLES]
    try:
        await _run(own.database, roles, roles, *passwords)
        await migrate.upgrade_async(own.database_as("taskherd_migrator"))
        await _run(own.database_as("taskherd_migrator"), grants, grants)
        yield own
    finally:
        await _run(
            services.database_url, f'DROP DATABASE "{name}" WITH (FORCE)', *(f"DROP ROLE {role}" for role in ROLES)
        )


def _node(services: Services) -> Broker:
    assert services.rabbit is not None, "users can be made only on a RabbitMQ of the test's own"
    return services.rabbit


async def _users(services: Services, folder: Path, prefix: str) -> None:
    """Make the users as an administrator would: one command's output into the other."""
    for user in USERS:
        (folder / user).write_text(PASSWORD + "\n")
    script = ROOT / "deploy" / "rabbitmq" / "users.py"
    command = [sys.executable, str(script), str(folder), prefix]
    made = await asyncio.to_thread(subprocess.run, command, capture_output=True, timeout=30, check=True)
    assert PASSWORD.encode() not in made.stdout
    await asyncio.to_thread(_node(services).define, made.stdout)


@pytest.fixture
async def watched(
    installation: Installation, services: Services, amqp_prefix: str, tmp_path: Path
) -> AsyncIterator[WorkerHarness]:
    """Users for this prefix, and somebody with all rights who listens."""
    await _users(services, tmp_path, amqp_prefix)
    async with external_harness(installation.database, installation.amqp, amqp_prefix) as own:
        yield own


async def test_a_worker_with_its_own_rights_does_all_its_work(
    installation: Installation, watched: WorkerHarness
) -> None:
    """Create, reports, logs, send, dead letters and delete, with the role and the user that are a worker's."""
    rights = (installation.database_as("taskherd_worker"), installation.amqp_as("worker"))
    all_rights, watched.urls = watched.urls, rights
    async with running_worker(watched, migrate="never", report_partitions=2):
        task = await watched.active()
        await watched.report(
            make_report(
                "task.log", task, build_number=1, entries=[{"id": 0, "type": "output", "content": "hi", "time": NOW}]
            ),
            make_report("app.status", task, state="idle", message="Done"),
            {"type": "nonsense"},
        )
        await watched.until(lambda: watched.reasons() == ["unknown_type"])
        assert (await watched.command("task.send", task, input="More"))["ok"]
        assert (await watched.command("task.delete", task))["ok"]
        await watched.until_row("SELECT count(*) FROM task_logs", is_=1)
        await watched.until_metric(1, "taskherd_drained")
        findings = [
            finding
            for look in (check_database, check_broker)
            async for finding in look(
                Settings(
                    database_url=rights[0], amqp_url=rights[1], amqp_prefix=watched.prefix, report_partitions=2,
                    secret_key=SECRET,
                )
            )
        ]  # fmt: skip
        assert [finding for finding in findings if finding.state is FindingState.ERROR] == []
    watched.urls = all_rights


async def test_an_api_with_its_own_rights_does_all_its_work(installation: Installation, watched: WorkerHarness) -> None:
    """Over HTTP: create, read, list, follow, send and delete, agents' reports, and a token's use, as an api's role."""
    urls, watched.urls = watched.urls, (installation.database_as("taskherd_worker"), installation.amqp_as("worker"))
    token = await token_for(installation.database_as("taskherd_migrator"), "alice")
    rights = (installation.database_as("taskherd_api"), installation.amqp_as("api"))
    headers = {"Coder-Session-Token": token}
    async with (
        running_worker(watched, migrate="never"),
        running_api(*rights, watched.prefix, migrate="never") as api,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{api.port}/api/v2", headers=headers, timeout=TIMEOUT) as client,
    ):
        asked = {"template_version_id": str(VERSION), "input": "Say hello"}
        made = (await client.post("/tasks/me", json=asked)).raise_for_status().json()
        await watched.active(uuid.UUID(made["id"]))
        assert (await client.get(f"/tasks/me/{made['id']}")).json()["status"] == "active"
        assert [task["id"] for task in (await client.get("/tasks")).json()["tasks"]] == [made["id"]]
        assert (await client.get("/users/me")).json()["username"] == "alice"
        assert (await client.get(f"/tasks/me/{made['id']}/logs")).status_code == 200
        assert (await client.get(f"/workspacebuilds/{build_id(uuid.UUID(made['id']), 1)}")).status_code == 200
        async with client.stream("GET", f"/tasks/me/{made['id']}/watch") as stream:
            assert stream.status_code == 200
            async for line in stream.aiter_lines():
                if made["id"] in line:
                    break
        assert (await client.post(f"/tasks/me/{made['id']}/send", json={"input": "More"})).is_success
        assert (await client.delete(f"/tasks/me/{made['id']}")).is_success
    watched.urls = urls
    await watched.until_row("SELECT count(*) FROM api_tokens WHERE last_used_at IS NOT NULL", is_=1)


async def test_a_runner_with_its_own_rights_does_all_its_work(
    installation: Installation, watched: WorkerHarness, tmp_path: Path
) -> None:
    """It takes requests and reports, and after a restart asks for its tasks, as its RabbitMQ user, without database."""
    urls, watched.urls = watched.urls, (installation.database_as("taskherd_worker"), installation.amqp_as("worker"))
    async with running_worker(watched, migrate="never", request_backoff_first=0.5, request_backoff_most=1):
        watched.urls = (urls[0], installation.amqp_as("runner"))
        async with runner_harness(watched, tmp_path) as own:
            first = await own.start()
            task = await own.task("say:up", "sleep")
            await own.until_output(task, "up")
            assert not any(line["event"] == "claim unanswered" for line in first.lines())
            await first.kill()
            left = own.root / str(task)
            assert left.exists()
            await watched.database.execute("UPDATE tasks SET deleted_at = now() WHERE id = $1", task)
            second = await own.start()
            await eventually(lambda: not left.exists())
            assert await second.leave() == 0
    watched.urls = urls


async def test_what_a_role_need_not_do_it_may_not(installation: Installation) -> None:
    """A worker writes neither directory nor schema and sees no token; the api writes no task and makes no token."""
    refused = {
        "taskherd_worker": (
            "UPDATE users SET name = ''",
            "CREATE TABLE x ()",
            "DELETE FROM taskherd_schema",
            "SELECT * FROM api_tokens",
        ),
        "taskherd_api": (
            "DELETE FROM tasks",
            "INSERT INTO outbox VALUES (gen_random_uuid(), 1, now())",
            "UPDATE task_builds SET number = 1",
            "INSERT INTO api_tokens (id, user_id, secret_hash) VALUES ('x', gen_random_uuid(), '')",
            "UPDATE api_tokens SET revoked_at = NULL",
            "SELECT taskherd_drop_partitions('task_logs', 'today')",
        ),
    }
    for role, statements in refused.items():
        connection = await asyncpg.connect(installation.database_as(role), timeout=10)
        await connection.fetch("SELECT count(*) FROM tasks")
        for statement in statements:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(statement)
        await connection.close()


async def test_a_provisioner_reports_and_does_nothing_else(installation: Installation, watched: WorkerHarness) -> None:
    """It may publish reports; commands, reading reports and declaring are refused."""
    prefix = watched.prefix
    async with await aio_pika.connect(installation.amqp_as("provisioner"), timeout=10) as connection:
        channel = await connection.channel()
        reports = await channel.get_exchange(f"{prefix}.reports", ensure=False)
        await reports.publish(aio_pika.Message(b"{}"), "any", timeout=10)
        forbidden = (
            lambda own: own.declare_queue(f"{prefix}.mine"),
            lambda own: own.declare_exchange(f"{prefix}.mine"),
            lambda own: _get(own, f"{prefix}.reports"),
            lambda own: _publish(own, f"{prefix}.commands"),
        )
        for deed in forbidden:
            with pytest.raises(AMQPError):
                await deed(await connection.channel())


NOW = "2026-01-01T00:00:00Z"


async def _get(channel: aio_pika.abc.AbstractChannel, queue: str) -> None:
    await (await channel.get_queue(queue, ensure=False)).get(timeout=10)


async def _publish(channel: aio_pika.abc.AbstractChannel, exchange: str) -> None:
    await (await channel.get_exchange(exchange, ensure=False)).publish(aio_pika.Message(b"{}"), "any", timeout=10)
