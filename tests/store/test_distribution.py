"""What a PostgreSQL that is distributed by task could not do as it is: keys and statements without the task's id.

Citus and its like keep the rows of a task together on one node. A unique key must then contain the task's id, and a
statement without it goes to all nodes. ADR 45 says what would have to change for each entry of these lists.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import asyncpg
import orjson
from sqlalchemy import Index, PrimaryKeyConstraint, TextClause, UniqueConstraint
from sqlalchemy.dialects.postgresql import asyncpg as dialect

from taskherd.store import __main__ as printing
from taskherd.store import tables
from taskherd.store.direct import DirectStatement

HOT: Final = {
    "agent_requests", "build_claims", "command_log", "inputs", "leases", "outbox", "parked", "running_tasks",
    "task_builds", "task_deadlines", "task_events", "task_feed", "task_log_heads", "task_logs", "task_prompts", "tasks",
    "work_requests",
}  # fmt: skip
"""Tables with rows of single tasks, whose size or rate of changes grows with the number of tasks."""

MODULES: Final = {
    "agent_requests", "build_claims", "builds", "command_log", "inputs", "leases", "logs", "outbox", "parked_reports",
    "running_tasks", "task_creation", "tasks", "work_requests",
}  # fmt: skip
"""Modules of the statements of a batch, a sweep and the relay."""

KEYS: Final = {
    "command_log_pkey": "command_id",
    "inputs_pkey": "input_id",
    "parked_pkey": "id",
    "task_builds_pkey": "build_id",
    "task_feed_pkey": "position",
    "tasks_owner_name_key": "owner_id, lower(name)",
    "work_requests_pkey": "request_id",
}
"""The unique keys without the task's id, and their columns."""

STATEMENTS: Final = {
    "command_log.FIND": "command_log",
    "command_log.PRUNE": "command_log",
    "inputs.LOAD": "inputs",
    "inputs.MARK_SENT": "inputs",
    "inputs.REQUEUE": "inputs",
    "leases.SCAN": "leases",
    "outbox.MARK_PUBLISHED": "outbox",
    "outbox.STALE": "outbox",
    "parked_reports.DELETE": "parked",
    "parked_reports.LOCK_EXPIRED": "parked",
    "tasks.DUE": "task_deadlines",
    "work_requests.DELETE": "work_requests",
    "work_requests.EXPIRED_INPUTS": "work_requests",
    "work_requests.PICK_DUE": "work_requests",
}
"""The hot statements that read hot tables without the task's id, and these tables."""

CONDITIONS: Final = ("Index Cond", "Recheck Cond", "Filter", "Hash Cond", "Merge Cond", "Join Filter", "TID Cond")
_DIALECT: Final = dialect.dialect()  # type: ignore[no-untyped-call]
_TASK_ID: Final = {table: re.compile(r"\bid\b" if table == "tasks" else r"\btask_id\b") for table in HOT}


def keys_without_task_id() -> dict[str, str]:
    """Return the columns of each unique key of a hot table that lacks the task's id, by name."""
    keys: dict[str, str] = {}
    for name in HOT:
        table = tables.METADATA.tables[name]
        own = table.c.id if name == "tasks" else table.c.task_id
        constraints = [each for each in table.constraints if isinstance(each, (PrimaryKeyConstraint, UniqueConstraint))]
        indexes = [each for each in table.indexes if each.unique]
        for key in (*constraints, *indexes):
            if own not in list(key.columns):
                expressions = key.expressions if isinstance(key, Index) else list(key.columns)
                keys[str(key.name)] = ", ".join(str(each).removeprefix(f"{name}.") for each in expressions)
    return keys


def scans(plan: dict[str, Any], joined: str = "") -> Iterator[tuple[str, bool]]:
    """Yield each hot table that a plan scans, and whether the scan, or a join of it, is by the task's id."""
    conditions = " ".join(str(plan[name]) for name in CONDITIONS if name in plan)
    table = re.sub(r"_(\d{4}\w*|default)$", "", plan.get("Relation Name", ""))
    if table in HOT and "Scan" in plan["Node Type"]:
        yield table, bool(_TASK_ID[table].search(f"{conditions} {joined}"))
    if plan["Node Type"] == "Limit":
        conditions = joined = ""  # chosen before it is joined
    for child in plan.get("Plans", ()):
        yield from scans(child, f"{conditions} {joined}")


async def statements_without_task_id(connection: asyncpg.Connection) -> dict[str, str]:
    """Return the hot tables that each hot statement reads without the task's id, by the statement's name."""
    await connection.execute("SET enable_seqscan = off")
    found: dict[str, str] = {}
    for name, statement in hot_statements():
        sql = statement.sql if isinstance(statement, DirectStatement) else str(statement.compile(dialect=_DIALECT))
        await connection.execute(f"PREPARE hot AS {sql}")
        count = await connection.fetchval(
            "SELECT cardinality(parameter_types) FROM pg_prepared_statements WHERE name = 'hot'"
        )
        values = f"({', '.join(['NULL'] * count)})" if count else ""
        await connection.execute("SET plan_cache_mode = force_generic_plan")
        plan = orjson.loads(await connection.fetchval(f"EXPLAIN (FORMAT JSON) EXECUTE hot{values}"))[0]["Plan"]
        await connection.execute("DEALLOCATE hot")
        if without := sorted({table for table, keyed in scans(plan) if not keyed}):
            found[name] = ", ".join(without)
    return found


def hot_statements() -> Iterator[tuple[str, TextClause | DirectStatement]]:
    """Yield the statements of the hot modules, as objects, by name."""
    for name, statement in printing.constants():
        if name.partition(".")[0] in MODULES:
            yield name, statement


def test_unique_keys_without_the_task_id() -> None:
    """Each unique key of a hot table contains the task's id, but for those that ADR 45 lists."""
    assert keys_without_task_id() == KEYS


async def test_hot_statements_without_the_task_id(database_url: str) -> None:
    """Each hot statement reads hot tables by the task's id, but for those that ADR 45 lists."""
    connection = await asyncpg.connect(database_url)
    try:
        assert await statements_without_task_id(connection) == STATEMENTS
    finally:
        await connection.close()
