"""Batches that are loaded on a real database, with what this reads and locks: seen from another connection."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from taskherd.backoff import Backoff
from taskherd.domain import builds
from taskherd.domain.commands import Create
from taskherd.domain.directory import TemplatePool
from taskherd.domain.fold import fold
from taskherd.domain.lease import Lease
from taskherd.domain.liveness import Timeouts
from taskherd.domain.reports import (
    AgentState,
    AppStatus,
    InputOutcome,
    InputOutcomeReport,
    JobStatus,
    Transition,
    WorkspaceBuild,
)
from taskherd.domain.value import replace
from taskherd.messages.run_policy import default_policy
from taskherd.retry import until_stopped
from taskherd.store import inputs, parked_reports, running_tasks, tasks
from taskherd.store.engine import dispose, open_engine, transaction
from taskherd.store.tables import METADATA
from taskherd.store.task_creation import insert_tasks
from taskherd.store.tasks import StoredTask
from taskherd.worker.batch import Batch
from taskherd.worker.context import WorkerContext
from taskherd.worker.directory_cache import DirectoryCache
from taskherd.worker.load import LoadedBatch, load_batch
from tests.harness.contexts import partial_context
from tests.harness.histories import NOON
from tests.harness.tasks import make_task
from tests.harness.worker import ALICE, DIRECTORY, ORGANIZATION, TEMPLATE, TIMEOUT, VERSION
from tests.store.conftest import execute_script, waits_for_lock

T = TypeVar("T")

ONE, TWO, THREE, FOUR = TASKS = tuple(UUID(int=number) for number in (11, 12, 13, 14))
BOB, CAROL = UUID(int=0xB1), UUID(int=0xC1)
SENT, QUEUED, FAILED, OTHERS, UNASKED = (UUID(int=number) for number in range(0x51, 0x56))
POLICY = default_policy(60)
RUN = {"pool": "gpu", "stalled_after": 7}
POOL = TemplatePool("claude", "gpu")
TIMEOUTS = Timeouts(
    agent_lost_after=timedelta(seconds=30),
    agent_connect_timeout=timedelta(seconds=120),
    build_timeout=timedelta(minutes=30),
    request_ttl=timedelta(minutes=10),
    mass_silence_hold=timedelta(minutes=5),
    interrupt_timeout=timedelta(seconds=60),
)
PEOPLE = f"""{DIRECTORY}
INSERT INTO users (id, username, name, email, avatar_url, active) VALUES
    ('{BOB}', 'bob', 'Bob', 'bob@example.com', '', false);
UPDATE template_versions SET run = '{json.dumps(RUN)}';
"""

# A key is that of a task or of an owner; an oid is the key as an unsigned number.
LOCKED = text(f"""
WITH free_tasks AS MATERIALIZED (SELECT id FROM tasks FOR UPDATE SKIP LOCKED),
     free_leases AS MATERIALIZED (SELECT task_id FROM leases FOR UPDATE SKIP LOCKED),
     free_parked AS MATERIALIZED (SELECT id FROM parked FOR UPDATE SKIP LOCKED),
     keys AS (
         SELECT CAST(classid AS bigint) AS class, CAST(objid AS bigint) AS key FROM pg_locks
         WHERE locktype = 'advisory' AND granted
           AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
     )
SELECT 'tasks', id FROM tasks WHERE id NOT IN (SELECT id FROM free_tasks)
UNION ALL SELECT 'leases', task_id FROM leases WHERE task_id NOT IN (SELECT task_id FROM free_leases)
UNION ALL SELECT 'parked', task_id FROM parked WHERE id NOT IN (SELECT id FROM free_parked)
UNION ALL SELECT 'ids', id FROM unnest(CAST(:tasks AS uuid[])) AS id JOIN keys
    ON class = {parked_reports.LOCK_CLASS} AND key = hashtext(CAST(id AS text)) & {parked_reports.BUCKETS - 1}
UNION ALL SELECT 'owners', id FROM unnest(CAST(:owners AS uuid[])) AS id JOIN keys
    ON class = {running_tasks.LOCK_CLASS} AND key = CAST(hashtext(CAST(id AS text)) AS bigint) & 4294967295
""")


LOCKS = "advisory locks"
_TABLES = re.compile(rf"FROM ({'|'.join(METADATA.tables)})\b")


class Seen(NamedTuple):
    """What a transaction has read and locked.

    ``read`` has for each statement the first table that it reads, or ``LOCKS``, in the order of the alphabet.
    ``locked`` has the ids of the tasks whose rows are locked, by table, and under "ids" and "owners" the ids of those
    tasks and owners whose advisory locks are held. ``looked_up`` has the tasks that each lock of their rows asked for.
    """

    read: list[str]
    locked: dict[str, set[UUID]]
    looked_up: list[set[UUID]]


CONNECTIONS = 4
"""As many as a test has at a time: one that loads, one that holds it up, and two that look at what it does."""


@asynccontextmanager
async def opened_engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    """Open an engine on a database with a directory of two people, until the end of the block."""
    opened = open_engine(
        database_url, size=CONNECTIONS, application_name="taskherd-tests", command_timeout=TIMEOUT, lock_timeout=TIMEOUT
    )
    await until_stopped(lambda: connect_all(opened), asyncio.Event(), lambda _: None)
    await execute_script(opened, PEOPLE)
    yield opened
    await dispose(opened)


async def connect_all(engine: AsyncEngine) -> None:
    """Open all connections of an engine: on a busy machine one may take too long, and is tried again here."""
    async with AsyncExitStack() as stack:
        for _ in range(CONNECTIONS):
            await stack.enter_async_context(transaction(engine))


Noted = tuple[str, Sequence[Any]]
"""A statement and its arguments."""


@contextmanager
def noting_statements(driver: Any, connection: AsyncConnection, noted: list[Noted]) -> Iterator[None]:
    """Note the statements that are executed by asyncpg alone, and those that SQLAlchemy executes with it."""
    event.listen(connection.sync_connection, "before_cursor_execute", lambda *by: noted.append((by[2], by[3])))
    with driver.query_logger(lambda executed: noted.append((executed.query, executed.args))):
        yield


def tables_read_by(statements: Iterable[str]) -> list[str]:
    """Return for each statement the first table that it reads, or ``LOCKS``; asyncpg's reads of types are left out."""
    found = (next(iter(_TABLES.findall(each)), LOCKS if "advisory" in each else "") for each in statements)
    return sorted(filter(None, found))


async def locked_rows(engine: AsyncEngine) -> dict[str, set[UUID]]:
    """Return what other transactions have locked, of each kind of which anything is locked."""
    locked: dict[str, set[UUID]] = {}
    async with transaction(engine) as connection:
        for kind, each in await connection.execute(LOCKED, {"tasks": TASKS, "owners": [ALICE, BOB, CAROL]}):
            locked.setdefault(kind, set()).add(each)
    return locked


async def see(engine: AsyncEngine, work: Callable[[AsyncConnection], Awaitable[T]]) -> tuple[T, Seen]:
    """Do work in a transaction, and return its result with what it has read and locked."""
    noted: list[Noted] = []
    async with transaction(engine) as connection:
        driver = (await connection.get_raw_connection()).driver_connection
        with noting_statements(driver, connection, noted):
            result = await work(connection)
        locked = await locked_rows(engine)
    looked_up = [set(arguments[0]) for statement, arguments in noted if statement == tasks.LOCK.sql]
    return result, Seen(tables_read_by(statement for statement, _ in noted), locked, looked_up)


def context_of(engine: AsyncEngine, **parts: Any) -> WorkerContext:
    """Return the context of a worker that has just started, as far as loading needs one."""
    defaults = {"max_running": 0, "strict_send": False, "timeouts": TIMEOUTS, "delete_backoff": Backoff(1, 2)}
    return partial_context(
        engine=engine, directory_cache=DirectoryCache(engine, POLICY),
        draw_names=lambda prompt: (f"{prompt}-1", f"{prompt}-2"), **{**defaults, **parts},
    )  # fmt: skip


async def load(context: WorkerContext, batch: Batch, indexes: Sequence[int] | None = None) -> tuple[LoadedBatch, Seen]:
    """Load a batch, by default with all its reports."""
    chosen = range(len(batch.reports)) if indexes is None else indexes
    return await see(context.engine, lambda connection: load_batch(connection, context, batch, chosen, NOON))


def task_row(task_id: UUID, owner_id: UUID = ALICE, *, name: str | None = None, **state: Any) -> StoredTask:
    """Return a task whose first build is running, with changes to its state."""
    build = WorkspaceBuild(
        task_id=task_id, build_number=1, seq=0, job_status=JobStatus.RUNNING, transition=Transition.START
    )
    folded = fold(builds.initial_state(task_id, NOON), build, NOON).state
    task = make_task(
        task_id, owner_id=owner_id, organization_id=ORGANIZATION, template_id=TEMPLATE, template_version_id=VERSION,
        name=name or f"task-{task_id.int}", state=replace(folded, **state),
    )  # fmt: skip
    return StoredTask(task, "active", f'{{"number":{task_id.int}}}', NOON)


async def store(engine: AsyncEngine, *rows: StoredTask) -> None:
    """Store tasks."""
    async with transaction(engine) as connection:
        await insert_tasks(connection, rows)


async def load_while_created(context: WorkerContext, batch: Batch, *rows: StoredTask) -> tuple[LoadedBatch, Seen]:
    """Load a batch while other tasks are created: from when it waits for the lock of their ids."""
    async with transaction(context.engine) as creating:
        await parked_reports.lock_task_ids(creating, [row.task.id for row in rows])
        loading = asyncio.create_task(load(context, batch))
        assert await waits_for_lock(context.engine, loading)
        await insert_tasks(creating, rows)
    return await loading


def status(task_id: UUID, seq: int = 0) -> AppStatus:
    """Return a report that says nothing about a connection."""
    return AppStatus(task_id=task_id, build_number=1, seq=seq, state=AgentState.IDLE, message=f"Idle {task_id.int}")


def outcome(task_id: UUID, input_id: UUID) -> InputOutcomeReport:
    """Return the report that an input of a task has failed."""
    return InputOutcomeReport(task_id=task_id, build_number=1, seq=0, input_id=input_id, outcome=InputOutcome.FAILED)


def command(kind: Any, task_id: UUID, number: int = 50, **fields: Any) -> Any:
    """Return a command of Alice."""
    return kind(command_id=UUID(int=number), task_id=task_id, actor_id=ALICE, **fields)


def create(task_id: UUID, number: int = 50, owner_id: UUID = ALICE, **fields: Any) -> Any:
    """Return the create of a task."""
    fields = {"input": f"sort-{task_id.int}", **fields}
    return command(Create, task_id, number, owner_id=owner_id, template_version_id=VERSION, **fields)


def new_input(task_id: UUID, input_id: UUID) -> inputs.NewInput:
    """Return an input of Bob to a task."""
    return inputs.NewInput(input_id, task_id, f"text {input_id.int}", NOON, BOB)


def lease(task_id: UUID, seq: int = 7) -> Lease:
    """Return the lease of the first build of a task, later than its state."""
    return Lease(task_id, 1, None, seq, None, NOON + timedelta(seconds=seq))
