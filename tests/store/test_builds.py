"""Builds: one row each however often they are saved, and looked up without scanning a table."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from taskherd.store import agent_queries, builds
from taskherd.store.builds import BuildRow
from taskherd.store.engine import transaction
from tests.store.conftest import NOW

FILL = """
INSERT INTO task_builds
SELECT md5(n::text)::uuid, md5('t' || n / 3)::uuid, n % 3 + 1, 'start', 'succeeded', md5('w' || n)::uuid,
       md5('a' || n)::uuid, NULL, now(), now()
FROM generate_series(1, 20000) AS n;
INSERT INTO tasks (id, owner_id, organization_id, template_id, template_version_id, name, display_name, created_at,
                   version, updated_at, status, document, state, prompt_version)
SELECT md5('t' || n)::uuid, md5('o' || n)::uuid, md5('g')::uuid, md5('x')::uuid, md5('v')::uuid, 't' || n, '', now(), 1,
       now(), 'active', '{}', '{}', 1
FROM generate_series(0, 6700) AS n;
INSERT INTO task_events (task_id, version, occurred_at, kind, document, changes, cause, prompt_version)
SELECT md5('t' || n / 3)::uuid, n % 3 + 1, now(), 'updated', '{"workspace_build_number": 1}', '{workspace_status}',
       '{}', 1
FROM generate_series(1, 20000) AS n;
ANALYZE task_builds, tasks, task_events;
"""


def row(build_id: UUID | None = None) -> BuildRow:
    """Return a pending start."""
    return BuildRow(build_id or uuid4(), uuid4(), 1, "start", "pending", None, None, None, NOW)


async def test_the_last_saved_row_of_a_build_wins(engine: AsyncEngine) -> None:
    """A build saved repeatedly, in one call or in two, is one row with the last values and the first creation time."""
    first = row()
    later = replace(first, job_status="running", at=NOW + timedelta(seconds=1))
    ended = replace(first, job_status="failed", error="x", at=NOW + timedelta(seconds=2))
    async with transaction(engine) as connection:
        await builds.save(connection, [first, row(), later])
    async with transaction(engine) as connection:
        await builds.save(connection, [ended])
        query = text("SELECT job_status, error, created_at, updated_at FROM task_builds WHERE build_id = :id")
        stored = (await connection.execute(query, {"id": first.build_id})).one()
        assert (await connection.execute(text("SELECT count(*) FROM task_builds"))).scalar_one() == 2
    assert tuple(stored) == ("failed", "x", later.at, ended.at)


@pytest.mark.parametrize(
    ("statement", "values"),
    [
        (builds.BUILD, ["md5('o1')::uuid", "md5('3')::uuid"]),
        (builds.WORKSPACE, ["md5('o1')::uuid", "md5('w3')::uuid"]),
        (builds.AGENT, ["md5('o1')::uuid", "md5('a3')::uuid"]),
        (builds.HISTORY, ["md5('t1')::uuid", "0", "1", "'{workspace_status}'", "1000"]),
        (agent_queries.OWNER_OF_LATEST_START, ["md5('t1')::uuid", "1"]),
        (agent_queries.GIVEN_TEXTS, ["md5('t1')::uuid", "'{Fixit}'", "20", "200", "65536"]),
    ],
    ids=["build", "workspace", "agent", "steps", "token", "given"],
)
async def test_no_lookup_scans_a_table(database_url: str, statement: str, values: list[str]) -> None:
    """The generic plan reads builds, tasks and history by index."""
    connection = await asyncpg.connect(database_url, timeout=30, command_timeout=30)
    try:
        await connection.execute(FILL)
        await connection.execute("SET plan_cache_mode = force_generic_plan")
        await connection.execute(f"PREPARE lookup AS {statement}")
        explained = await connection.fetchval(f"EXPLAIN (FORMAT JSON) EXECUTE lookup({', '.join(values)})")
    finally:
        await connection.close(timeout=30)
    assert scanned_tables(json.loads(explained)[0]["Plan"]) == []


def scanned_tables(plan: dict[str, Any]) -> list[str]:
    """Return the tables that a plan scans in full, except those that are nearly empty."""
    costly = plan["Node Type"] == "Seq Scan" and plan["Total Cost"] > 100
    own = [plan["Relation Name"]] if costly else []
    return own + [name for part in plan.get("Plans", ()) for name in scanned_tables(part)]
