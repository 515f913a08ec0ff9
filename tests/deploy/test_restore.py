"""A database restored to an earlier point in time, as in docs/operations.md, while RabbitMQ keeps its messages."""

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


async def _execute(services: Services, *statements: str) -> None:
    connection = await asyncpg.connect(services.database_url, timeout=30, command_timeout=60)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close(timeout=30)


async def _report_status(harness: WorkerHarness, task: uuid.UUID, seq: int, message: str) -> None:
    await harness.report(make_report("app.status", task, build_number=1, seq=seq, state="working", message=message))


async def test_reports_after_a_restore_bring_tasks_up_to_date(external: WorkerHarness, services: Services) -> None:
    """A restore loses what was acknowledged since the backup; queued and later reports bring the task up to date."""
    url = external.urls[0]
    name = urlsplit(url).path[1:]
    backup = f"{name}_backup"
    async with running_worker(external):
        task = await external.make_active()
        await _report_status(external, task, 10, "before the backup")
        await external.until(lambda: external.state(task).get("message") == "before the backup")
    await external.database.close(timeout=30)
    await _execute(services, f'CREATE DATABASE "{backup}" TEMPLATE "{name}"')

    external.database = await asyncpg.connect(url, timeout=30, command_timeout=10)
    async with running_worker(external):
        await _report_status(external, task, 20, "after the backup")
        lost = await external.create()
        await external.until(lambda: external.state(task).get("message") == "after the backup")
    max_version = max(external.versions(task))
    await _report_status(external, task, 15, "queued, and older than the lost report")
    await external.database.close(timeout=30)
    await _execute(services, f'DROP DATABASE "{name}" WITH (FORCE)', f'ALTER DATABASE "{backup}" RENAME TO "{name}"')

    command = [sys.executable, "-m", "taskherd", "db", "check"]
    assert (
        subprocess.run(command, env={**os.environ, "TASKHERD_DATABASE_URL": url}, timeout=60, check=False).returncode
        == 0
    )
    external.database = await asyncpg.connect(url, timeout=30, command_timeout=10)
    external.events.clear()
    async with running_worker(external):
        await external.until(lambda: external.state(task).get("message", "").startswith("queued"))
        assert max(external.versions(task)) <= max_version, "versions go back, so subscribers must discard their state"
        await _report_status(external, task, 30, "after the restore")
        await external.until(lambda: external.state(task).get("message") == "after the restore")
        assert (await external.refused_command("task.send", lost, input="x"))["status"] == 404
        assert external.dead_letters == []
