"""What a PostgreSQL that is distributed by task could not do as it is: keys and statements without the task's id.

Citus and its like keep the rows of a task together on one node. A unique key must then contain the task's id, and a
statement without it goes to all nodes. ADR 45 says what would have to change for each entry of these lists.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from importlib import import_module
from inspect import getsource, iscoroutinefunction
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, Final
from uuid import UUID

import asyncpg
import orjson
import pytest
from sqlalchemy import TextClause
from sqlalchemy.dialects.postgresql import asyncpg as dialect

from taskherd import store
from taskherd.store import agent_request_queries, deleted_tasks, task_lists, task_queries, task_totals
from taskherd.store.direct import DirectStatement
from taskherd.store.read_pool import Reader, Row
from taskherd.store.task_lists import Listed
from taskherd.store.task_queries import TaskFilter, TaskRef

HOT: Final = {
    "agent_requests", "build_claims", "command_log", "inputs", "leases", "outbox", "parked", "running_tasks",
    "task_action_tasks", "task_builds", "task_deadlines", "task_events", "task_feed", "task_index",
    "task_index_changes", "task_log_heads", "task_logs", "task_prompts", "task_usage", "tasks", "work_requests",
}  # fmt: skip
"""Tables with rows of single tasks, whose size or rate of changes grows with the number of tasks."""

MODULES: Final = {
    "access_queries", "agent_queries", "agent_request_queries", "agent_requests", "build_claims", "builds",
    "command_log", "command_preconditions", "feed", "inputs", "leases", "logs", "outbox", "parked_reports",
    "running_tasks", "task_actions", "task_creation", "task_index", "task_queries", "tasks", "usage",
    "work_request_details", "work_requests",
}  # fmt: skip
"""Modules of the statements of a batch, a sweep, the relay, and requests to the API."""

RARE: Final = {
    "database_clock": "after the clock of the database was set back",
    "diagnostics": "`taskherd doctor`",
    "erasure": "once for each task, long after it was deleted",
    "fleet_queries": "a page of the fleet, of which a snapshot is kept for seconds",
    "partitions": "maintenance, by one worker",
    "prompts": "maintenance, by one worker, a few of them",
    "stats": "the metrics, by one worker",
}
"""The other modules with statements that read hot tables, and when."""

CALLER, TASK, OTHER = (UUID(int=number) for number in (1, 2, 3))
PLACE: Final = (datetime(2026, 1, 1, tzinfo=UTC), TASK)
LISTED: Final = Listed(status="active")

BUILT: Final[Mapping[str, Callable[[Reader], Awaitable[Any]]]] = {
    "agent_request_queries.of_task": lambda reader: agent_request_queries.of_task(reader, CALLER, TASK, 9, None),
    "agent_request_queries.waiting": lambda reader: agent_request_queries.waiting(
        reader, TaskFilter(CALLER, 9, listed=Listed(waiting=True)), 9, None
    ),
    "deleted_tasks.deleted_tasks": lambda reader: deleted_tasks.deleted_tasks(reader, CALLER, 9),
    "task_lists.by_name": lambda reader: task_lists.by_name(reader, CALLER, "fix", None, None),
    "task_queries.current_task_ids": lambda reader: task_queries.current_task_ids(
        reader, TaskFilter(CALLER, 9, listed=LISTED)
    ),
    "task_queries.explanation_facts": lambda reader: task_queries.explanation_facts(
        reader, TaskRef(CALLER, CALLER, TASK)
    ),
    "task_queries.find_deleted": lambda reader: task_queries.find_deleted(reader, TaskRef(CALLER, CALLER, TASK), OTHER),
    "task_queries.task": lambda reader: task_queries.task(reader, TaskRef(CALLER, CALLER, TASK)),
    "task_queries.task_ids": lambda reader: task_queries.task_ids(reader, TaskFilter(CALLER, 9)),
    "task_queries.task_ids, by index": lambda reader: task_queries.task_ids(
        reader, TaskFilter(CALLER, 9, listed=LISTED)
    ),
    "task_queries.tasks": lambda reader: task_queries.tasks(reader, TaskFilter(CALLER, 9, after=PLACE)),
    "task_queries.tasks, by index": lambda reader: task_queries.tasks(reader, TaskFilter(CALLER, 9, listed=LISTED)),
    "task_queries.tasks, of ids": lambda reader: task_queries.tasks(reader, TaskFilter(CALLER, 9, ids=[TASK, OTHER])),
    "task_totals.totals": lambda reader: task_totals.totals(reader, CALLER, LISTED),
}
"""Statements that are built for each request: a typical call of each function that builds one."""

KEYS: Final = {
    "command_log_pkey": "command_id",
    "inputs_pkey": "input_id",
    "parked_pkey": "id",
    "task_action_tasks_pkey": "action_id, ordinal",
    "task_builds_pkey": "build_id",
    "task_feed_pkey": "position",
    "tasks_owner_name_key": "owner_id, lower(name)",
    "work_requests_pkey": "request_id",
}
"""The unique keys without the task's id, and their columns."""

STATEMENTS: Final = {
    "agent_request_queries.waiting": "task_index, task_index_changes",
    "command_log.EXECUTED": "command_log",
    "command_log.FIND": "command_log",
    "command_log.PRUNE": "command_log",
    "command_log.RECORDED": "command_log",
    "command_preconditions.READ": "command_log, running_tasks, tasks",
    "deleted_tasks.deleted_tasks": "tasks",
    "feed.CATCH_UP": "task_feed",
    "feed.CHANGES_AFTER": "task_feed",
    "feed.LATEST": "task_feed",
    "feed.POSITION_EXISTS": "task_feed",
    "inputs.LOAD": "inputs",
    "inputs.MARK_SENT": "inputs",
    "inputs.REQUEUE": "inputs",
    "leases.SCAN": "leases",
    "outbox.MARK_PUBLISHED": "outbox",
    "outbox.STALE": "outbox",
    "parked_reports.DELETE": "parked",
    "parked_reports.LOCK_EXPIRED": "parked",
    "task_actions.PENDING": "task_action_tasks",
    "task_actions.PRUNE": "task_action_tasks",
    "task_actions.PRUNE_TASKS": "task_action_tasks",
    "task_actions.RECORD_ATTEMPTS": "task_action_tasks",
    "task_actions.SAVE": "task_action_tasks",
    "task_actions.SENT": "task_action_tasks",
    "task_actions.STORED": "task_action_tasks",
    "task_actions.USED": "command_log, inputs",
    "task_index.TAKE": "task_index_changes",
    "task_lists.by_name": "tasks",
    "task_queries.current_task_ids": "task_index, task_index_changes",
    "task_queries.explanation_facts 2": "task_builds",
    "task_queries.explanation_facts 3": "tasks",
    "task_queries.task 2": "task_builds",
    "task_queries.task 3": "tasks",
    "task_queries.task_ids": "tasks",
    "task_queries.task_ids, by index": "task_index, task_index_changes",
    "task_queries.tasks": "tasks",
    "task_queries.tasks, by index": "task_index, task_index_changes",
    "task_queries.tasks, of ids": "task_index_changes",
    "task_totals.totals": "task_index_changes",
    "tasks.DUE": "task_deadlines",
    "work_request_details.INPUTS": "inputs",
    "work_requests.DELETE": "work_requests",
    "work_requests.EXPIRED_INPUTS": "work_requests",
    "work_requests.PICK_DUE": "work_requests",
}
"""The hot statements that read hot tables without the task's id, and these tables."""

ADR: Final = Path(__file__).parents[2] / "docs/adr/0045-what-a-distributed-postgresql-would-need.md"
CONDITIONS: Final = ("Index Cond", "Recheck Cond", "Filter", "Hash Cond", "Merge Cond", "Join Filter", "TID Cond")
_DIALECT: Final = dialect.dialect()  # type: ignore[no-untyped-call]
_EQUALITY: Final = re.compile(r"(\w+\.\w+) = (?:ANY \()?(\$\d+|\w+\.\w+)")
_NOT_IN: Final = re.compile(r"NOT \(ANY \((?:\(\w+\.\w+ = \(hashed SubPlan \d+\)\.\w+\)(?: AND )?)+\)\)")
"""What leaves out rows, and so leads to none."""
_COMPLETE: Final = re.compile(r"\s*(SELECT|WITH|INSERT|UPDATE|DELETE)\b")
_INCOMPLETE: Final = re.compile(r"(?<!:):[a-z]\w*|\{\w*\}")
"""What a part of another statement has: parameters by name, or places to fill."""
_COMPLETED_BY_CALLERS: Final = {"task_queries.EXPLANATION_FACTS"}
"""Complete as they are, but not executed like that."""

_KEYS_IN_CATALOGUE: Final = """
SELECT t.relname AS table_name, k.relname AS name,
       ARRAY(SELECT pg_get_indexdef(i.indexrelid, position, true)
             FROM generate_series(1, i.indnkeyatts) AS position ORDER BY position) AS columns
FROM pg_index AS i JOIN pg_class AS t ON t.oid = i.indrelid JOIN pg_class AS k ON k.oid = i.indexrelid
WHERE t.relnamespace = 'public'::regnamespace AND NOT t.relispartition AND (i.indisunique OR i.indisexclusion)
"""

_ALL_TABLES: Final = """
SELECT string_agg(oid::regclass::text, ', ') FROM pg_class
WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')
"""

_TABLES_OF_TASKS: Final = """
SELECT t.relname FROM pg_class AS t JOIN pg_attribute AS a ON a.attrelid = t.oid
WHERE t.relnamespace = 'public'::regnamespace AND t.relkind IN ('r', 'p') AND NOT t.relispartition
  AND a.attname = 'task_id' AND NOT a.attisdropped
"""

_FOREIGN_KEYS: Final = """
SELECT c.conrelid::regclass::text AS child, c.confrelid::regclass::text AS parent FROM pg_constraint AS c
WHERE c.contype = 'f' AND c.connamespace = 'public'::regnamespace
"""


class Recorder:
    """A reader that finds nothing, and keeps the statements that it was asked to execute."""

    def __init__(self) -> None:
        self.statements: list[str] = []

    async def fetch(self, statement: str, *_values: Any) -> Sequence[Row]:
        """Keep the statement."""
        self.statements.append(statement)
        return []

    async def fetch_one(self, statement: str, *_values: Any) -> Row | None:
        """Keep the statement."""
        self.statements.append(statement)
        return None


async def keys_without_task_id(connection: asyncpg.Connection) -> dict[str, str]:
    """Return the columns of each unique key in the database, of a hot table, that lacks the task's id, by name."""
    keys = await connection.fetch(_KEYS_IN_CATALOGUE)
    return {
        key["name"]: ", ".join(column.strip('"') for column in key["columns"])
        for key in keys
        if key["table_name"] in HOT and task_id_of(key["table_name"]) not in key["columns"]
    }


def constants() -> Iterator[tuple[str, str]]:
    """Yield the name, as ``module.CONSTANT``, and the SQL, with parameters such as ``$1``, of each statement."""
    for module in iter_modules(store.__path__):
        for name, value in vars(import_module(f"{store.__name__}.{module.name}")).items():
            for number, statement in enumerate(value if isinstance(value, tuple) else (value,)):
                full = f"{module.name}.{name}" + (f" {number}" if isinstance(value, tuple) else "")
                if isinstance(statement, DirectStatement):
                    yield full, statement.sql
                elif isinstance(statement, TextClause):
                    yield full, str(statement.compile(dialect=_DIALECT))
                elif isinstance(statement, str) and _is_complete(name, statement) and full not in _COMPLETED_BY_CALLERS:
                    yield full, statement


def _is_complete(name: str, text: str) -> bool:
    return not name.startswith("_") and _COMPLETE.match(text) is not None and _INCOMPLETE.search(text) is None


async def hot_statements() -> AsyncIterator[tuple[str, str]]:
    """Yield the name and the SQL of each statement of the hot modules, and of those that are built for a request."""
    for name, sql in constants():
        if name.partition(".")[0] in MODULES:
            yield name, sql
    for name, call in BUILT.items():
        recorder = Recorder()
        await call(recorder)
        for number, sql in enumerate(recorder.statements, 1):
            yield (name if len(recorder.statements) == 1 else f"{name} {number}"), sql


def all_conditions(plan: dict[str, Any]) -> str:
    """Return the conditions of a plan and of all that is below it."""
    return " ".join([own_conditions(plan), *(all_conditions(child) for child in plan.get("Plans", ()))])


def own_conditions(plan: dict[str, Any]) -> str:
    """Return the conditions of a plan alone, but for ``NOT IN``."""
    return _NOT_IN.sub("", " ".join(str(plan[name]) for name in CONDITIONS if name in plan))


def given_columns(plan: dict[str, Any]) -> set[str]:
    """Return the columns, such as ``t.id``, that are equal to a parameter, or to another column that is."""
    pairs = _EQUALITY.findall(all_conditions(plan))
    given = {column for column, value in pairs if value.startswith("$")}
    while more := {each for pair in pairs if given & set(pair) for each in pair if "." in each} - given:
        given |= more
    return given


def scans(plan: dict[str, Any], given: set[str], joined: str = "") -> Iterator[tuple[str, bool]]:
    """Yield each hot table that a plan scans, and whether the scan, or a join of it, is by the task's id."""
    conditions = own_conditions(plan)
    table = re.sub(r"_(\d{4}\w*|default)$", "", plan.get("Relation Name", ""))
    if table in HOT and "Scan" in plan["Node Type"]:
        own = f"{plan['Alias']}.{task_id_of(table)}"
        column = re.escape(own) if table == "tasks" else r"\w+\.task_id"  # a partition has an alias of its own
        by_id = rf"\b{re.escape(own)} = |= {re.escape(own)}\b"
        joined_by_id = rf"\b{column} = |= {column}\b"
        yield table, own in given or bool(re.search(by_id, conditions) or re.search(joined_by_id, joined))
    if plan["Node Type"] == "Limit":
        conditions = joined = ""  # chosen before it is joined
    for child in plan.get("Plans", ()):
        yield from scans(child, given, f"{conditions} {joined}")


def task_id_of(table: str) -> str:
    """Return the name of the column of a hot table that has the task's id."""
    return "id" if table == "tasks" else "task_id"


async def plan_of(connection: asyncpg.Connection, sql: str) -> dict[str, Any]:
    """Return the generic plan of a statement."""
    await connection.execute(f"PREPARE hot AS {sql}")
    count = await connection.fetchval(
        "SELECT cardinality(parameter_types) FROM pg_prepared_statements WHERE name = 'hot'"
    )
    values = f"({', '.join(['NULL'] * count)})" if count else ""
    await connection.execute("SET plan_cache_mode = force_generic_plan")
    plan: dict[str, Any] = orjson.loads(
        await connection.fetchval(f"EXPLAIN (FORMAT JSON, VERBOSE) EXECUTE hot{values}")
    )[0]["Plan"]
    await connection.execute("DEALLOCATE hot")
    return plan


async def statements_without_task_id(connection: asyncpg.Connection) -> dict[str, str]:
    """Return the hot tables that each hot statement reads without the task's id, by the statement's name."""
    await connection.execute("SET enable_seqscan = off")
    found: dict[str, str] = {}
    async with as_new(connection):
        async for name, sql in hot_statements():
            plan = await plan_of(connection, sql)
            if without := sorted({table for table, keyed in scans(plan, given_columns(plan)) if not keyed}):
                found[name] = ", ".join(without)
    return found


@asynccontextmanager
async def as_new(connection: asyncpg.Connection) -> AsyncIterator[None]:
    """Plan as in a new database during the block: the pages that tests left behind change which joins are chosen."""
    changes = connection.transaction()
    await changes.start()
    try:
        await connection.execute(f"TRUNCATE {await connection.fetchval(_ALL_TABLES)}")
        await connection.execute("DELETE FROM pg_statistic")
        yield
    finally:
        await changes.rollback()


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    """Yield a connection to a migrated database."""
    connection = await asyncpg.connect(database_url, timeout=30, command_timeout=60)
    yield connection
    await connection.close(timeout=30)


def test_the_decision_says_what_would_have_to_change() -> None:
    """ADR 45 has each entry of the lists."""
    named = set(re.findall(r"`([\w.]+)`", ADR.read_text()))
    assert {re.split(r"[ ,]", name)[0] for name in (*KEYS, *STATEMENTS)} <= named


async def test_each_table_with_rows_of_tasks_is_hot(connection: asyncpg.Connection) -> None:
    """A new table with the task's id is a decision, too."""
    assert {"tasks", *(row[0] for row in await connection.fetch(_TABLES_OF_TASKS))} == HOT


def test_each_module_that_reads_hot_tables_is_looked_at_or_says_why_not() -> None:
    """A new module of statements about tasks is hot, or rarely executed, or a statement that it builds is planned."""
    table = re.compile(rf"\b(FROM|JOIN|INTO|UPDATE)\s+({'|'.join(HOT)})\b")
    modules = {path.stem for path in Path(store.__path__[0]).glob("*.py") if table.search(path.read_text())}
    assert modules == MODULES | RARE.keys() | {name.partition(".")[0] for name in BUILT}


def test_each_function_that_builds_a_statement_is_called() -> None:
    """A new one in the modules that read hot tables is planned, too."""
    built = {
        f"{module}.{name}"
        for module in MODULES | {name.partition(".")[0] for name in BUILT}
        for name, function in vars(import_module(f"{store.__name__}.{module}")).items()
        if iscoroutinefunction(function) and not name.startswith("_") and function.__module__.endswith(f".{module}")
        if "Statement(" in getsource(function)
    }
    assert built
    assert built <= {name.partition(",")[0] for name in BUILT}


async def test_no_foreign_key_leads_to_a_hot_table(connection: asyncpg.Connection) -> None:
    """Foreign keys are those of the directory alone; between tables of tasks they would need the task's id as well."""
    keys = await connection.fetch(_FOREIGN_KEYS)
    assert keys
    assert [tuple(key) for key in keys if HOT & set(key)] == []


async def test_unique_keys_without_the_task_id(connection: asyncpg.Connection) -> None:
    """Each unique key of a hot table contains the task's id, but for those that ADR 45 lists."""
    assert await keys_without_task_id(connection) == KEYS


async def test_hot_statements_without_the_task_id(connection: asyncpg.Connection) -> None:
    """Each hot statement reads hot tables by the task's id, but for those that ADR 45 lists."""
    assert await statements_without_task_id(connection) == STATEMENTS
