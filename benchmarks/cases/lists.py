"""Lists of tasks over HTTP: each filter alone, common pairs, and the totals, as the number of tasks grows.

The tasks are those of a fleet that has run for long: most are paused, the failed ones are from an old incident, the
newest 2 % are active, and every tenth belongs to one owner. An admin of the organization and that owner read them.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote
from uuid import UUID

from benchmarks.harness import http_load
from benchmarks.harness.api_databases import TASKHERD_API, make_token, running_api
from benchmarks.harness.http_load import LoadPlan, request
from benchmarks.harness.services import connected
from taskherd.api.http import search_query
from taskherd.api.tasks import search
from taskherd.api.tasks.overview import GROUPS
from taskherd.store import task_lists, task_queries, task_totals
from taskherd.store.task_index import INDEX_RESOLUTION
from taskherd.store.task_queries import TaskFilter

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import asyncpg

    from benchmarks.harness.http_load import LoadResult
    from benchmarks.harness.run import Run
    from benchmarks.harness.services import BenchmarkServices
    from taskherd.store.read_pool import Row

SIZES: Final = (1_000, 100_000, 1_000_000)
QUICK_SIZES: Final = (1_000, 100_000)
SECONDS: Final = 1.5
PAGE: Final = 50
ADMIN, OWNER = "admin", "owner-0"

SINGLE: Final = (
    "",
    "owner:owner-0",
    "organization:bench",
    "template:template-3",
    "pool:gpu",
    "runner:rack-7",
    "status:active",
    "status:error",
    "status:pending",
    "state:working",
    "state:complete",
    "failed:true",
    "failed:false",
    "health:healthy",
    "health:lost",
    "health:not_running",
    "health:unhealthy",
    "waiting:true",
    "stalled:true",
    "name:task-123",
    "created:>30d",
    "created:<1d",
    "changed:<1d",
    "label:repo=acme/r7",
)
PAIRS: Final = (
    "owner:owner-0 status:active",
    "owner:owner-0 state:failed",
    "status:active state:idle",
    "status:error created:>30d",
    "state:failed changed:<1d",
    "template:template-3 status:error",
    "runner:rack-7 health:lost",
    "runner:rack-7 status:active",
    "label:repo=acme/r7 status:error",
    "pool:gpu waiting:true",
)
SORTED: Final = (
    ("", "changed"),
    ("status:active", "changed"),
    ("status:paused", "changed"),
    ("status:error", "changed"),
    ("", "changed-asc"),
    ("status:paused", "changed-asc"),
    ("failed:true", "changed-asc"),
    *((group.q, group.sort) for group in GROUPS.values() if group.sort != "created"),
)
"""Queries by the last change, the latest or the earliest first; with those of Home's groups."""
PLANNED: Final = ("status:active state:idle", "label:repo=acme/r7 status:error", "waiting:true")
TOTALS: Final = ("", "owner:owner-0")

_DIRECTORY: Final = """
INSERT INTO users (id, username, name, email, avatar_url)
SELECT md5('owner' || g)::uuid, 'owner-' || g, '', '', '' FROM generate_series(0, 199) AS g;
INSERT INTO users (id, username, name, email, avatar_url) VALUES (md5('admin')::uuid, 'admin', '', '', '');
INSERT INTO memberships (user_id, organization_id, role)
SELECT u.id, o.id, CASE u.username WHEN 'admin' THEN 'admin' ELSE 'member' END
FROM users AS u, organizations AS o WHERE u.username <> 'bench';
INSERT INTO templates (id, organization_id, name, display_name, icon, active_version_id)
SELECT md5('template' || g)::uuid, o.id, 'template-' || g, '', '', md5('template' || g)::uuid
FROM generate_series(0, 7) AS g, organizations AS o;
"""

# Pseudo-random numbers of a task: h for its owner, template and runner, r for what became of it.
_FLEET: Final = """
CREATE TABLE fleet AS
SELECT g, md5(g::text)::uuid AS id, 'task-' || g AS name,
       now() - ($1 - g) * interval '90 days' / $1 AS created_at,
       now() - ($1 - g) * interval '90 days' / $1 * 0.9 AS changed_at,
       md5('owner' || CASE g % 10 WHEN 0 THEN 0 ELSE 1 + h % 199 END)::uuid AS owner_id,
       md5('template' || h % 8)::uuid AS template_id,
       (ARRAY['default', 'default', 'gpu'])[1 + h % 3] AS pool, 'rack-' || h % 50 AS runner,
       'repo=acme/r' || h % 100 AS label, f.*
FROM (
    SELECT g::bigint AS g, abs(hashint4(g::int)) AS h, abs(hashint4(g::int + 1000000007)) AS r
    FROM generate_series(1, $1) AS g
) AS n, LATERAL (
    SELECT CASE WHEN g > 0.98 * $1 THEN CASE WHEN r % 50 = 0 THEN 'pending' ELSE 'active' END
                WHEN g < 0.3 * $1 AND r % 30 = 0 THEN 'error' ELSE 'paused' END AS status,
           CASE WHEN g > 0.98 * $1 THEN CASE WHEN r % 50 = 0 THEN 'none' WHEN r % 20 = 1 THEN 'idle' ELSE 'working' END
                WHEN g < 0.3 * $1 AND r % 30 = 0 THEN 'failed'
                WHEN r % 9 = 0 THEN 'idle' ELSE 'complete' END AS state,
           CASE WHEN g > 0.98 * $1 AND r % 50 <> 0 THEN CASE WHEN r % 200 = 3 THEN 'lost' ELSE 'healthy' END
                WHEN g < 0.3 * $1 AND r % 30 = 0 THEN 'not_running' ELSE 'none' END AS health,
           g > 0.98 * $1 AND r % 100 = 4 AS waiting, g > 0.98 * $1 AND r % 300 = 6 AS stalled
) AS f
"""
_COLUMNS: Final = "organization_id, owner_id, template_id, pool, status, state, health, waiting, stalled"
_OF_FLEET: Final = "o.id, f.owner_id, f.template_id, f.pool, f.status, f.state, f.health, f.waiting, f.stalled"
_GROUP: Final = "template_id, pool, status, state, health, waiting, stalled"

_ROWS: Final = (
    """
INSERT INTO tasks (id, owner_id, organization_id, template_id, template_version_id, preset_id, name, display_name,
                   created_at, version, updated_at, deleted_at, status, document, state, due_at, prompt_version)
SELECT f.id, f.owner_id, t.organization_id, f.template_id, t.template_version_id, t.preset_id, f.name, t.display_name,
       f.created_at, t.version, f.changed_at, NULL, f.status, t.document, t.state, NULL, 1
FROM tasks AS t, fleet AS f WHERE t.name = 'benchmark-seed' ORDER BY f.g;
INSERT INTO task_prompts (task_id, version, prompt)
SELECT f.id, 1, p.prompt FROM task_prompts AS p, tasks AS t, fleet AS f
WHERE t.name = 'benchmark-seed' AND p.task_id = t.id;
TRUNCATE task_index, task_index_changes, task_totals;
INSERT INTO task_index (task_id, term, {_COLUMNS}, created_at, changed_at)
SELECT f.id, s.term, {_OF_FLEET}, f.created_at, f.changed_at
FROM organizations AS o, fleet AS f, LATERAL (VALUES (''), ('runner:' || f.runner), ('label:' || f.label)) AS s(term);
INSERT INTO task_totals ({_COLUMNS}, tasks)
SELECT {_COLUMNS}, count(*) FROM task_index WHERE term = '' GROUP BY {_COLUMNS};
INSERT INTO task_totals ({_COLUMNS}, tasks)
SELECT organization_id, '00000000-0000-0000-0000-000000000000', {_GROUP}, count(*)
FROM task_index WHERE term = '' GROUP BY organization_id, {_GROUP};
DROP TABLE fleet
""".replace("{_COLUMNS}", _COLUMNS)
    .replace("{_OF_FLEET}", _OF_FLEET)
    .replace("{_GROUP}", _GROUP)
)
_SCAN: Final = re.compile(
    r"(?:Index Only|Index|Bitmap Index|Seq) Scan(?: Backward)?(?: using (\w+))?"
    r" on ((?:tasks|task_totals|task_index)\w*)[^(]*\(actual rows=[\d.]+ loops=(\d+)\)"
)
_INDEXES: Final = """
SELECT indexname, indexdef FROM pg_indexes
WHERE tablename IN ('tasks', 'task_index') AND indexname NOT IN ('tasks_pkey', 'task_index_pkey')
"""


@dataclass(frozen=True, slots=True)
class Case:
    """One request: a page of a list, or totals if ``counts``."""

    query: str
    caller: str
    sort: str = "created"
    counts: bool = False

    @property
    def path(self) -> str:
        """The path of the request below the API's root."""
        if self.counts:
            return f"task-totals?q={quote(self.query)}"
        sort = "" if self.sort == "created" else f"&sort={self.sort}"
        return f"tasks?limit={PAGE}&q={quote(self.query)}{sort}"

    @property
    def title(self) -> str:
        """What is requested, in a few words."""
        query = f"`{self.query}`" if self.query else "all"
        return f"totals of {query}" if self.counts else query + _ORDERS[self.sort]


_ORDERS: Final = {"created": "", "changed": ", by last change", "changed-asc": ", longest unchanged first"}

LISTS: Final = (
    *(Case(query, caller) for query in (*SINGLE, *PAIRS) for caller in (ADMIN, OWNER)),
    *(Case(query, caller, sort=sort) for query, sort in SORTED for caller in (ADMIN, OWNER)),
)
CASES: Final = (
    *LISTS,
    *(Case(query, caller, counts=True) for query in TOTALS for caller in (ADMIN, OWNER)),
)


async def measure(run: Run) -> str:
    """Return a table of the times of each list with each number of tasks; with the most, the scans and some plans."""
    sizes = QUICK_SIZES if run.options.quick else SIZES
    times: dict[Case, dict[int, LoadResult]] = {case: {} for case in CASES}
    blocks: dict[Case, dict[int, int]] = {case: {} for case in CASES}
    plans: dict[Case, str] = {}
    for size in sizes:
        await fill(run.services, size)
        plans = await explain(run.services, size, blocks)
        tokens = {name: await make_token(run.services, name) for name in (ADMIN, OWNER)}
        with running_api(run.services, TASKHERD_API) as port:
            for case in CASES:
                times[case][size] = await load(case, port, tokens[case.caller], SECONDS)
                run.record(
                    f"lists: {size:,} tasks: {case.title}, {case.caller}: {times[case][size].description}, "
                    f"{blocks[case][size]} blocks"
                )
    some = [f"{case.query}\n{plan}" for case, plan in plans.items() if case.caller == ADMIN and case.query in PLANNED]
    parts = (_table(times, blocks, sizes), f"With {sizes[-1]:,} tasks:", scans_table(plans), _code("\n\n".join(some)))
    return "\n\n".join(parts)


async def load(case: Case, port: int, token: str, seconds: float) -> LoadResult:
    """Send one request after the other for so long."""
    plan = LoadPlan(port, [request("GET", f"/api/v2/{case.path}", token)], 1, seconds, 200)
    return await asyncio.to_thread(http_load.run, plan)


def _table(
    times: Mapping[Case, Mapping[int, LoadResult]], blocks: Mapping[Case, Mapping[int, int]], sizes: Sequence[int]
) -> str:
    heads = [f"{size:,} tasks" for size in sizes]
    lines = [f"| list of {PAGE} | of | {' | '.join(heads)} |", f"|---|---|{'---:|' * len(sizes)}"]
    for case, results in times.items():
        cells = [
            f"{results[size].p50 * 1e3:.1f} / {results[size].p99 * 1e3:.1f} ms, {blocks[case][size]:,}"
            for size in sizes
        ]
        lines.append(f"| {case.title} | {case.caller} | {' | '.join(cells)} |")
    return "p50 / p99 over HTTP, one request at a time, and blocks that the statements touch:\n\n" + "\n".join(lines)


def scans_table(plans: Mapping[Case, str]) -> str:
    """Return a table of what the plan of each list scans to find its tasks."""
    rows = [f"| {case.title} | {case.caller} | {scans_of(plan)} |" for case, plan in plans.items()]
    return "\n".join(["| list | of | scans, and how often |", "|---|---|---|", *rows])


def scans_of(plan: str) -> str:
    """Return the indexes by which an executed plan has found tasks, or tables that it read whole, and how often."""
    loops: dict[str, int] = {}
    for index, table, count in _SCAN.findall(plan):
        name = index or table
        loops[name] = loops.get(name, 0) + int(count)
    return ", ".join(f"`{name}` {count:,}" for name, count in loops.items())


def _code(text: str) -> str:
    return f"```\n{text}\n```"


async def fill(services: BenchmarkServices, size: int) -> None:
    """Create a database with a fleet of this size."""
    await services.prepare_tasks(0)
    async with connected(services.database_url) as connection:
        await connection.execute(_DIRECTORY)
        indexes = await connection.fetch(_INDEXES)
        for name, _ in indexes:
            await connection.execute(f"DROP INDEX {name}")
        await connection.execute(_FLEET.replace("$1", str(size)))
        for statement in _ROWS.split(";\n"):
            await connection.execute(statement)
        for _, definition in indexes:
            await connection.execute(definition)
        await connection.execute("VACUUM (ANALYZE, FREEZE)")
        await connection.execute("CHECKPOINT")


class ExplainingReader:
    """A reader that executes each statement as EXPLAIN ANALYZE first, and adds up the blocks."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        """Read with this connection."""
        self._connection = connection
        self.blocks = 0
        self.plan = ""

    async def fetch(self, statement: str, *values: Any) -> Sequence[Row]:
        """Explain and execute a statement."""
        explain = f"EXPLAIN (ANALYZE, BUFFERS, COSTS OFF, TIMING OFF, SUMMARY OFF) {statement}"
        lines = [row[0] for row in await self._connection.fetch(explain, *values)]
        whole = next((line for line in lines if "Buffers:" in line), "")
        self.blocks += sum(map(int, re.findall(r"(?:hit|read)=(\d+)", whole)))
        self.plan = "\n".join(lines)
        rows: Sequence[Row] = await self._connection.fetch(statement, *values)
        return rows

    async def fetch_one(self, statement: str, *values: Any) -> Row | None:
        """Explain a statement, and return its first row."""
        return next(iter(await self.fetch(statement, *values)), None)


async def explain(services: BenchmarkServices, size: int, blocks: dict[Case, dict[int, int]]) -> dict[Case, str]:
    """Add the blocks that each request touches, and return the plan of its last statement."""
    plans: dict[Case, str] = {}
    async with connected(services.database_url) as connection:
        users = {row[0]: UUID(str(row[1])) for row in await connection.fetch("SELECT username, id FROM users")}
        organization = UUID(str(await connection.fetchval("SELECT id FROM organizations")))
        for case in CASES:
            reader = ExplainingReader(connection)
            await _read(reader, case, users, organization)
            blocks[case][size] = reader.blocks
            plans[case] = reader.plan
    return plans


async def _read(reader: ExplainingReader, case: Case, users: Mapping[str, UUID], organization: UUID) -> None:
    """Read what the request for a case reads, but who calls it and whom it names."""
    terms = search_query.read(case.query, bare="owner", allowed=search.TERMS, message="")
    caller, owner = users[case.caller], users[terms["owner"]] if "owner" in terms else None
    within = organization if "organization" in terms else None
    listed = search.listed(terms)
    if case.counts:
        await task_totals.totals(reader, caller, listed, owner=owner, organization=within)
        return
    ids = None
    if "name" in terms:
        found = await task_lists.by_name(reader, caller, terms["name"], owner, within)
        ids = [task_id for _, task_id in found[: PAGE + 1]]
    wanted = TaskFilter(
        caller,
        PAGE,
        owner,
        within,
        listed,
        search.between(terms, "created", timedelta(0)),
        search.between(terms, "changed", INDEX_RESOLUTION),
        by_change=case.sort != "created" or "changed" in terms,
        oldest_first=case.sort == "changed-asc",
        ids=ids,
        with_state_since=True,  # as the board
    )
    await task_queries.tasks(reader, wanted)
