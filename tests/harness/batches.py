"""Batches of reports and commands, reconciled with a real database by the parts of a worker, without its loops."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

from taskherd.domain.commands import Create
from taskherd.domain.reports import AgentHeartbeat, AgentLifecycle, JobStatus, Lifecycle, Transition, WorkspaceBuild
from taskherd.domain.updates import TimerCheck
from taskherd.settings import Settings
from taskherd.store.engine import dispose, open_engine, transaction
from taskherd.worker import reconcile
from taskherd.worker.app import Worker
from taskherd.worker.batch import Batch, BatchResult
from taskherd.worker.context import WorkerContext
from taskherd.worker.save import save_batch
from tests.harness.databases import connected
from tests.harness.tasks import prompt_of
from tests.harness.worker import ALICE, DIRECTORY, ORGANIZATION, SECRET, TIMEOUT, VERSION

BOB, GPU, GPU_V1 = UUID(int=0xB2), UUID(int=0xB3), UUID(int=0xB4)
NOW = datetime.now(UTC).replace(microsecond=123456)
LATER = NOW + timedelta(minutes=1)

BOBS = f"""
INSERT INTO users (id, username, name, email, avatar_url) VALUES ('{BOB}', 'bob', 'Bob', 'bob@example.com', '');
INSERT INTO memberships (user_id, organization_id, role) VALUES ('{BOB}', '{ORGANIZATION}', 'member');
INSERT INTO templates (id, organization_id, name, display_name, icon, active_version_id)
    VALUES ('{GPU}', '{ORGANIZATION}', 'codex', 'Codex', '/icon/codex.svg', '{GPU_V1}');
INSERT INTO template_versions (id, template_id, name, run) VALUES ('{GPU_V1}', '{GPU}', 'v7', '{{"pool": "gpu"}}');
"""

TABLES = (
    "tasks", "task_prompts", "task_events", "outbox", "task_deadlines", "task_index_changes", "task_builds",
    "work_requests", "running_tasks", "leases", "inputs", "agent_requests", "command_log",
)  # fmt: skip


def key(table: str) -> str:
    """Return the name of the column with the id of the task."""
    return "id" if table == "tasks" else "task_id"


CONTENTS = (
    " UNION ALL ".join(
        f"SELECT '{table}' AS name, CAST(t AS text) AS row FROM {table} AS t WHERE {key(table)} = $1"
        for table in TABLES
    )
    + " ORDER BY name, row"
)
WRITES = re.compile(r"\b(INSERT INTO|UPDATE|DELETE FROM) (\w+)")


class NotedSave:
    """``save_batch``, with what each statement writes first that it runs, SELECT for one that only reads."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    async def __call__(self, connection: Any, *arguments: Any) -> None:
        """Save a batch, and note its statements as those of another call."""
        statements: list[str] = []
        self.calls.append(statements)

        def note(*given: Any) -> None:
            found = WRITES.search(given[2])
            statements.append(found[0] if found else "SELECT")

        def note_direct(executed: Any) -> None:
            found = WRITES.search(executed.query)
            if found:  # asyncpg also reads about types
                statements.append(found[0])

        executing = (connection.sync_connection, "before_cursor_execute", note)
        event.listen(*executing)
        with (await connection.get_raw_connection()).driver_connection.query_logger(note_direct):
            await save_batch(connection, *arguments)
        event.remove(*executing)


class Batches:
    """The batches of one database: reconciled one after the other, with the result of the last one."""

    def __init__(self, context: WorkerContext, database: asyncpg.Connection, noted: NotedSave) -> None:
        self.context = context
        self.database = database
        self._noted = noted
        self.result = BatchResult(NOW, [])

    async def save(
        self, *messages: Any, at: datetime = NOW, erased: Iterable[UUID] = (), checked: Iterable[UUID] = ()
    ) -> list[list[str]]:
        """Reconcile reports and commands as one batch; return the statements that save it, by transaction, sorted."""
        self._noted.calls.clear()
        checks = {task_id: TimerCheck(None, erase=True) for task_id in erased}
        checks |= {task_id: TimerCheck(None) for task_id in checked}
        self.result = await reconcile.reconcile(self.context, batch_of(*messages, checks=checks), at)
        return [sorted(statements) for statements in self._noted.calls]

    async def replies(self, *commands: Any, at: datetime = NOW) -> list[dict[str, Any]]:
        """Execute commands as one batch, and return the bodies of their replies."""
        await self.save(*commands, at=at)
        return [json.loads(reply.body) for reply in self.result.replies]

    async def make_active(self, *task_ids: UUID) -> None:
        """Create tasks of Alice, and let their agents start and connect."""
        await self.save(*map(create, task_ids))
        await self.save(*(report for task_id in task_ids for report in starting(task_id)))

    async def column(self, query: str, *values: Any) -> list[Any]:
        """Return the values of a query of one column."""
        return [row[0] for row in await self.database.fetch(query, *values)]

    async def row(self, table: str, task_id: UUID) -> dict[str, Any]:
        """Return the only row of a task in a table."""
        rows = await self.database.fetch(f"SELECT * FROM {table} WHERE {key(table)} = $1", task_id)
        assert len(rows) == 1, (table, rows)
        return dict(rows[0])

    async def contents(self, task_id: UUID) -> dict[str, list[str]]:
        """Return all rows of a task, by table."""
        rows: dict[str, list[str]] = {table: [] for table in TABLES}
        for table, row in await self.database.fetch(CONTENTS, task_id):
            rows[table].append(row)
        return rows

    async def changed(self, task_id: UUID, before: dict[str, list[str]]) -> set[str]:
        """Return in which tables the rows of a task are others than before."""
        after = await self.contents(task_id)
        return {table for table in TABLES if after[table] != before[table]}


def batch_of(*messages: Any, checks: dict[UUID, TimerCheck] | None = None) -> Batch:
    """Return the batch with these reports and commands."""
    commands = [each for each in messages if hasattr(each, "command_id")]
    return Batch([each for each in messages if each not in commands], commands, timer_checks=checks or {})


async def connect_twice(engine: AsyncEngine) -> None:
    """Have two connections in the pool."""
    async with transaction(engine), transaction(engine):
        pass


@asynccontextmanager
async def opened_batches(database_url: str, amqp_url: str, noted: NotedSave) -> AsyncIterator[Batches]:
    """Provide batches on a database with Alice, Bob and a template for each, saved by ``noted``.

    A batch is reconciled once, but its consumer would repeat it: so a statement may take long, and the connections are
    there from the start.
    """
    settings = Settings(database_url=database_url, amqp_url=amqp_url, secret_key=SECRET, tasks_running_most=0)
    engine = open_engine(
        database_url, size=2, application_name="taskherd-tests", command_timeout=TIMEOUT, lock_timeout=TIMEOUT
    )
    context = replace(Worker(settings)._context, engine=engine)
    async with connected(database_url) as database:
        await database.execute(DIRECTORY + BOBS)
        await context.until_stopped(lambda: connect_twice(engine), "database")
        yield Batches(context, database, noted)
    await dispose(engine)


def command(kind: Any, task_id: UUID, number: int = 0, **fields: Any) -> Any:
    """Return a command of Alice; its id is made of that of the task and a number."""
    return kind(command_id=UUID(int=(task_id.int << 16) + number), task_id=task_id, actor_id=ALICE, **fields)


def create(task_id: UUID, **fields: Any) -> Create:
    """Return the create of a task of Alice."""
    wanted = {"owner_id": ALICE, "template_version_id": VERSION, "input": prompt_of(task_id), **fields}
    made: Create = command(Create, task_id, **wanted)
    return made


def build(task_id: UUID, number: int = 1, transition: Transition = Transition.START, **fields: Any) -> WorkspaceBuild:
    """Return the report of a build, which runs by default."""
    given: dict[str, Any] = {"seq": number, "job_status": JobStatus.RUNNING, **fields}
    return WorkspaceBuild(task_id=task_id, build_number=number, transition=transition, **given)


def starting(task_id: UUID, number: int = 1) -> list[Any]:
    """Return the reports of a build whose agent is ready and connected."""
    of: dict[str, Any] = {"task_id": task_id, "build_number": number, "seq": number}
    started = build(task_id, number, job_status=JobStatus.SUCCEEDED, runner="r1")
    return [started, AgentLifecycle(lifecycle=Lifecycle.READY, **of), AgentHeartbeat(**of)]
