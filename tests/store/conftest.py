"""An engine on a migrated database for each test, and rows to store in it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from taskherd.domain import builds
from taskherd.domain.value import replace
from taskherd.store.engine import dispose, open_engine, transaction
from taskherd.store.read_pool import ReadPool
from taskherd.store.tasks import StoredTask, TaskEventRow
from tests.harness.tasks import make_task

NOW = datetime.now(UTC).replace(microsecond=123456)


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    """Yield an engine of ten connections."""
    test_engine = open_engine(database_url, size=10, application_name="taskherd-tests")
    yield test_engine
    await dispose(test_engine)


WAITING = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()")


async def waits_for_lock(engine: AsyncEngine, work: asyncio.Task[Any]) -> bool:
    """Wait until ``work`` waits for a lock, or is done, and return whether it waits."""
    async with engine.connect() as observer:
        while not work.done() and (await observer.execute(WAITING)).scalar_one() == 0:
            await observer.rollback()
    return not work.done()


async def execute_script(engine: AsyncEngine, script: str) -> None:
    """Execute statements, each of which ends with a line, in one transaction."""
    async with transaction(engine) as connection:
        for statement in script.split(";\n")[:-1]:
            await connection.exec_driver_sql(statement)


_INDEX_SCANS = ("indexscan", "indexonlyscan", "bitmapscan")


async def empty(connection: AsyncConnection, table: str) -> None:
    """Give a table new storage, which has rows in the order in which they are written: no space is used again."""
    await connection.execute(text(f"TRUNCATE {table} CASCADE"))


async def ignore_indexes(connection: AsyncConnection) -> None:
    """Have this transaction read whole tables: the order of an index would hide that a statement asks for none."""
    await connection.execute(text("SET LOCAL enable_seqscan = on"))
    for kind in _INDEX_SCANS:
        await connection.execute(text(f"SET LOCAL enable_{kind} = off"))


@asynccontextmanager
async def reading_whole_tables(database_url: str) -> AsyncIterator[ReadPool]:
    """Return a pool for readers whose only connection joins whole tables without indexes, until the block ends."""
    pool = ReadPool(database_url, size=1, application_name="taskherd-tests")
    await pool.fetch("SET enable_seqscan = on")
    for kind in (*_INDEX_SCANS, "nestloop", "mergejoin"):
        await pool.fetch(f"SET enable_{kind} = off")
    yield pool
    await pool.close()


def rows_read(plan: Mapping[str, Any]) -> float:
    """Return how many rows the scans of a plan have read, also those that did not match."""
    own = 0.0
    if plan["Node Type"].endswith("Scan") and "Relation Name" in plan:
        removed = plan.get("Rows Removed by Filter", 0) + plan.get("Rows Removed by Index Recheck", 0)
        own = (plan["Actual Rows"] + removed) * plan["Actual Loops"]
    return own + sum(rows_read(part) for part in plan.get("Plans", ()))


def document_of(task_id: UUID, version: int, status: str) -> str:
    """Return a document that no other version of a task, and no other task, has."""
    return f'{{"id":"{task_id}","status":"{status}","version":{version}}}'


def task_row(task_id: UUID | None = None, owner_id: UUID | None = None, name: str | None = None) -> StoredTask:
    """Return a new task at version 1."""
    task_id = task_id or uuid4()
    task = make_task(
        task_id,
        owner_id=owner_id or uuid4(),
        name=name or f"task-{uuid4().hex[:12]}",
        created_at=NOW,
        updated_at=NOW,
        state=builds.initial_state(task_id, NOW),
    )
    return StoredTask(task, status="pending", document=document_of(task_id, 1, "pending"), due_at=NOW)


def next_version(
    row: StoredTask, version: int, *, due_at: datetime | None = NOW, due_changed: bool = False, **changes: Any
) -> StoredTask:
    """Return the task at another version, with changes to its fields."""
    document = document_of(row.task.id, version, "active")
    task = replace(row.task, version=version, **changes)
    return row._replace(task=task, status="active", document=document, due_at=due_at, due_changed=due_changed)


def event(task_id: UUID, version: int, at: datetime = NOW) -> TaskEventRow:
    """Return the change that led to this version."""
    return TaskEventRow(
        task=replace(task_row(task_id).task, version=version, updated_at=at),
        kind="created" if version == 1 else "updated",
        document=document_of(task_id, version, "active"),
        changes=("status", "current_state"),
        cause='{"kind":"report","type":"app.status"}',
    )
