"""Whether the index of the tasks and the totals have exactly the tasks that exist, with what their documents say."""

from __future__ import annotations

from collections import Counter
from typing import Any

import asyncpg
import orjson

from taskherd.messages.listing import listing, terms
from taskherd.store.task_index import LISTED

TASKS = """
SELECT t.id, t.organization_id, t.owner_id, t.template_id, t.document::text, t.state::text,
       COALESCE(NULLIF(v.run ->> 'pool', ''), 'default') AS pool
FROM tasks AS t JOIN template_versions AS v ON v.id = t.template_version_id WHERE t.deleted_at IS NULL
"""

# A task with recorded changes is what those say, any other what the index says.
INDEXED = f"""
SELECT task_id, organization_id, owner_id, {", ".join(LISTED)}, terms::text
FROM task_index_changes WHERE NOT deleted
UNION ALL
SELECT i.task_id, organization_id, owner_id, {", ".join(LISTED)},
       (SELECT json_agg(o.term ORDER BY o.term) FROM task_index AS o WHERE o.task_id = i.task_id AND o.term <> '')::text
FROM task_index AS i
WHERE i.term = '' AND NOT EXISTS (SELECT FROM task_index_changes AS c WHERE c.task_id = i.task_id)
"""


async def index_violations(connection: asyncpg.Connection) -> list[str]:
    """Return what is wrong with the index and with the totals, all read at one moment: a worker may apply changes."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        return await _violations(connection)


async def _violations(connection: asyncpg.Connection) -> list[str]:
    expected = {row["id"]: _expected(row) for row in await connection.fetch(TASKS)}
    found = {row[0]: (*row[1:-1], orjson.loads(row[-1] or "[]")) for row in await connection.fetch(INDEXED)}
    wrong = [
        f"{task_id}: {found.get(task_id)} instead of {expected.get(task_id)}"
        for task_id in expected.keys() | found.keys()
        if found.get(task_id) != expected.get(task_id)
    ]
    columns = ", ".join(("organization_id", "owner_id", *LISTED))
    counted = Counter(tuple(row) for row in await connection.fetch(f"SELECT {columns} FROM task_index WHERE term = ''"))
    nobody = "'00000000-0000-0000-0000-000000000000'"
    rows = await connection.fetch(f"SELECT {columns}, tasks FROM task_totals WHERE owner_id <> {nobody} AND tasks <> 0")
    totals = {tuple(row[:-1]): row[-1] for row in rows}
    if totals != counted:
        wrong.append(f"totals {totals} instead of {dict(counted)}")
    together = await connection.fetchval(f"SELECT sum(tasks) FROM task_totals WHERE owner_id = {nobody}")
    if (together or 0) != sum(counted.values()):
        wrong.append(f"{together} tasks of all owners instead of {sum(counted.values())}")
    return wrong


def _expected(row: asyncpg.Record) -> tuple[Any, ...]:
    document, state = orjson.loads(row["document"]), orjson.loads(row["state"])
    facet = state.get("runner")
    index = facet[0] if isinstance(facet, list) else facet
    runner = None if index is None else state["builds"][index][8]
    return (
        *(row[name] for name in ("organization_id", "owner_id", "template_id", "pool")),
        *listing(document),
        terms(runner, document.get("labels", {})),
    )
