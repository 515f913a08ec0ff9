"""Tasks for the benchmarks: a worker creates and starts one, the others are copies of its rows."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import aio_pika
import asyncpg
import orjson

from benchmarks.harness.workload import PROMPT_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from taskherd.broker.topology import TopologyNames

DIRECTORY = Path(__file__).parent / "directory.yaml"
OWNER = UUID("00000000-0000-4000-8000-0000000000a1")
VERSION = UUID("00000000-0000-4000-8000-0000000000d1")
TASK = UUID("00000000-0000-4000-8000-0000000000e1")
AGENT = UUID("00000000-0000-4000-8000-0000000000f1")
NAME = "benchmark-seed"
TIMEOUT = 30.0

_INDEXES = "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 'tasks' AND indexname <> 'tasks_pkey'"

_COPIES = """
CREATE TEMPORARY TABLE copies AS
SELECT md5(g::text)::uuid AS id, md5('agent' || g)::uuid AS agent_id, 'bench-' || g AS name, g,
       CASE WHEN {owners} = 1 THEN '{owner}' ELSE md5('owner' || g % {owners})::uuid END AS owner_id
FROM generate_series(0, {tasks} - 1) AS g ORDER BY 1
"""

_OWNERS = """
INSERT INTO users (id, username, name, email, avatar_url)
SELECT md5('owner' || g)::uuid, 'owner-' || g, 'Owner ' || g, 'owner' || g || '@example.com', '/icon/owner.png'
FROM generate_series(0, $1 - 1) AS g;
INSERT INTO memberships (user_id, organization_id, role)
SELECT md5('owner' || g)::uuid, o.id, 'member' FROM generate_series(0, $1 - 1) AS g, organizations AS o
"""

_TASKS = """
INSERT INTO tasks (id, owner_id, organization_id, template_id, template_version_id, preset_id, name, display_name,
                   created_at, version, updated_at, deleted_at, status, document, state, due_at, prompt_version)
SELECT c.id, c.owner_id, t.organization_id, t.template_id, t.template_version_id, t.preset_id, c.name, t.display_name,
       t.created_at + c.g * interval '1 microsecond', t.version, t.updated_at, t.deleted_at, t.status,
       replace(replace(replace(replace(t.document::text, $1, c.id::text), $2, c.agent_id::text), $3, c.name),
               t.owner_id::text, c.owner_id::text)::json,
       replace(replace(replace(t.state::text, $1, c.id::text), $2, c.agent_id::text),
               t.owner_id::text, c.owner_id::text)::json, t.due_at, t.prompt_version
FROM tasks AS t, copies AS c
WHERE t.id = $1::text::uuid
"""

_OTHER_TABLES = """
INSERT INTO task_prompts (task_id, version, prompt)
SELECT c.id, p.version, p.prompt FROM task_prompts AS p, copies AS c WHERE p.task_id = '{task}';
INSERT INTO leases (task_id, build_number, agent_id, seq, observed_at, last_heartbeat_at)
SELECT c.id, l.build_number, c.agent_id, l.seq, l.observed_at, now()
FROM leases AS l, copies AS c WHERE l.task_id = '{task}';
INSERT INTO task_deadlines (task_id, due_at)
SELECT c.id, d.due_at FROM task_deadlines AS d, copies AS c WHERE d.task_id = '{task}';
INSERT INTO task_index (task_id, term, organization_id, owner_id, template_id, pool, status, state, health, waiting,
                        stalled, created_at, changed_at)
SELECT c.id, i.term, i.organization_id, c.owner_id, i.template_id, i.pool, i.status, i.state, i.health, i.waiting,
       i.stalled, i.created_at + c.g * interval '1 microsecond', i.changed_at
FROM task_index AS i, copies AS c WHERE i.task_id = '{task}';
INSERT INTO task_totals (organization_id, owner_id, template_id, pool, status, state, health, waiting, stalled, tasks)
SELECT organization_id, owner_id, template_id, pool, status, state, health, waiting, stalled, count(*)
FROM (
    SELECT * FROM task_index WHERE term = ''
    UNION ALL
    SELECT task_id, term, organization_id, '00000000-0000-0000-0000-000000000000', template_id, pool, status, state,
           health, waiting, stalled, created_at, changed_at
    FROM task_index WHERE term = ''
) AS counted
GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9
ON CONFLICT (organization_id, owner_id, template_id, pool, status, state, health, waiting, stalled)
DO UPDATE SET tasks = excluded.tasks;
DROP TABLE copies;
"""


async def multiply(connection: asyncpg.Connection, tasks: int, owners: int = 1) -> None:
    """Make ``tasks`` copies of the first task; with more than one owner, spread evenly over new ones.

    The indexes are created afterwards, which is faster.
    """
    indexes = await connection.fetch(_INDEXES)
    for name, _ in indexes:
        await connection.execute(f"DROP INDEX {name}")
    if owners > 1:
        await connection.execute(_OWNERS.replace("$1", str(owners)))
    await connection.execute(_COPIES.format(tasks=tasks, owners=owners, owner=OWNER))
    await connection.execute(_TASKS, str(TASK), str(AGENT), NAME)
    await connection.execute(_OTHER_TABLES.format(task=TASK))
    for _, definition in indexes:
        await connection.execute(definition)


async def create_first(database_url: str, amqp_url: str, names: TopologyNames, environment: Mapping[str, str]) -> None:
    """Let a real worker create one task and process reports until its agent is ready, alive and working."""
    command = [sys.executable, "-m", "taskherd", "directory", "apply", str(DIRECTORY)]
    await asyncio.to_thread(subprocess.run, command, env=environment, check=True, timeout=60, stdout=subprocess.DEVNULL)
    with _worker(environment):
        async with await aio_pika.connect(amqp_url, timeout=10) as connection:
            channel = await connection.channel()
            commands = await channel.get_exchange(names.commands, ensure=False)
            await commands.publish(_message(_create()), "task.create", timeout=10)
            await _until(database_url, "SELECT EXISTS (SELECT FROM tasks WHERE id = $1)")
            reports = await channel.get_exchange(names.reports, ensure=False)
            for report in _start_reports():
                await reports.publish(_message(report), str(TASK), timeout=10)
            await _until(
                database_url,
                "SELECT EXISTS (SELECT FROM tasks JOIN leases ON task_id = id WHERE id = $1 AND status = 'active'"
                " AND document::text LIKE '%under way%') AND NOT EXISTS (SELECT FROM outbox)"
                " AND NOT EXISTS (SELECT FROM work_requests) AND NOT EXISTS (SELECT FROM task_index_changes)",
            )


@contextmanager
def _worker(environment: Mapping[str, str]) -> Iterator[None]:
    process = subprocess.Popen(
        [sys.executable, "-m", "taskherd", "worker"],
        env={**environment, "TASKHERD_LOG_LEVEL": "warning"},
        start_new_session=True,
    )
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


async def _until(database_url: str, condition: str) -> None:
    connection = await asyncpg.connect(database_url, timeout=10, command_timeout=10)
    try:
        async with asyncio.timeout(TIMEOUT):
            while not await connection.fetchval(condition.replace("$1", f"'{TASK}'")):  # noqa: ASYNC110 - of another process, which sends no event
                await asyncio.sleep(0.05)
    finally:
        await connection.close(timeout=5)


def _message(body: Mapping[str, Any]) -> aio_pika.Message:
    return aio_pika.Message(orjson.dumps(body), content_type="application/json")


def _create() -> dict[str, Any]:
    return {
        "type": "task.create",
        "command_id": str(UUID(int=1)),
        "task_id": str(TASK),
        "actor_id": str(OWNER),
        "owner_id": str(OWNER),
        "template_version_id": str(VERSION),
        "input": "Find out why the tests fail on Tuesdays. ".ljust(PROMPT_BYTES, "x"),
        "name": NAME,
        "display_name": "Tests fail on Tuesdays",
    }


def _start_reports() -> list[dict[str, Any]]:
    common = {"task_id": str(TASK), "build_number": 1, "seq": 1, "observed_at": "2026-01-01T00:00:00Z"}
    agent = {**common, "agent_id": str(AGENT)}
    workspace = {"id": str(UUID(int=2)), "name": "bench-workspace"}
    app = {"id": str(UUID(int=3)), "slug": "claude", "url": "http://localhost:3284", "health": "healthy"}
    build = {"transition": "start", "job_status": "succeeded", "workspace": workspace, "app": app, "runner": "bench"}
    return [
        {**agent, "type": "workspace.build", **build},
        {**agent, "type": "agent.lifecycle", "lifecycle": "ready"},
        {**agent, "type": "agent.heartbeat"},
        {**agent, "type": "app.status", "state": "working", "message": "under way", "uri": ""},
    ]
