"""A database restored to an earlier point in time, as docs/operations.md tells it, with RabbitMQ left as it was."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from urllib.parse import urlsplit

import asyncpg
import pytest

from taskherd.dev.services import Services
from tests.harness.worker import WorkerHarness, make_report, running_worker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


async def _database(services: Services, *statements: str) -> None:
    connection = await asyncpg.connect(services.database_url, timeout=10, command_timeout=60)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close(timeout=5)


async def _status(herd: WorkerHarness, task: uuid.UUID, seq: int, message: str) -> None:
    await herd.report(make_report("app.status", task, build_number=1, seq=seq, state="working", message=message))


async def test_reports_put_right_what_a_restore_took_back(alone: WorkerHarness, services: Services) -> None:
    """Going back in time costs what was acknowledged since; what waited is taken, and the next report puts it right."""
    url = alone.urls[0]
    name = urlsplit(url).path[1:]
    backup = f"{name}_backup"
    async with running_worker(alone):
        task = await alone.active()
        await _status(alone, task, 10, "before the backup")
        await alone.until(lambda: alone.state(task).get("message") == "before the backup")
    await alone.database.close(timeout=5)
    await _database(services, f'CREATE DATABASE "{backup}" TEMPLATE "{name}"')

    alone.database = await asyncpg.connect(url, timeout=5, command_timeout=10)
    async with running_worker(alone):
        await _status(alone, task, 20, "after the backup")
        lost = await alone.create()
        await alone.until(lambda: alone.state(task).get("message") == "after the backup")
    seen = max(alone.versions(task))
    await _status(alone, task, 15, "waited, and older than what was taken back")
    await alone.database.close(timeout=5)
    await _database(services, f'DROP DATABASE "{name}" WITH (FORCE)', f'ALTER DATABASE "{backup}" RENAME TO "{name}"')

    check = [sys.executable, "-m", "taskherd", "db", "check"]
    assert (
        subprocess.run(check, env={**os.environ, "TASKHERD_DATABASE_URL": url}, timeout=60, check=False).returncode == 0
    )
    alone.database = await asyncpg.connect(url, timeout=5, command_timeout=10)
    alone.events.clear()
    async with running_worker(alone):
        await alone.until(lambda: alone.state(task).get("message", "").startswith("waited"))
        assert max(alone.versions(task)) <= seen, "versions go back, which is why readers must forget what they have"
        await _status(alone, task, 30, "since then")
        await alone.until(lambda: alone.state(task).get("message") == "since then")
        assert (await alone.refused("task.send", lost, input="x"))["status"] == 404
        assert alone.dead_letters == []
