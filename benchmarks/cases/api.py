"""The API: reads compared with FastAPI and SQLAlchemy's ORM, writes, and events to a thousand watchers."""

from __future__ import annotations

import asyncio
import json
import statistics
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Final

from benchmarks.cases import watching
from benchmarks.harness import http_load
from benchmarks.harness.api_databases import PEER_API, TASKHERD_API, TASKS_PER_OWNER, fill, running_api, running_worker
from benchmarks.harness.http_load import LoadPlan, LoadResult, request
from benchmarks.harness.run import Row
from benchmarks.harness.seed import VERSION
from benchmarks.harness.services import connected

if TYPE_CHECKING:
    from benchmarks.harness.api_databases import ApiDatabase
    from benchmarks.harness.run import Run
    from benchmarks.harness.services import BenchmarkServices

CONNECTIONS: Final = 16
WRITERS: Final = 4
FEW, MANY = 1_000, 1_000_000
_TASKHERD, _PEER = "taskherd api", "FastAPI + SQLAlchemy ORM"
_GET, _LIST, _UNCHANGED = "GET of a task", f"GET of a list of {TASKS_PER_OWNER}", "GET of a task, 304"
_TARGET: Final = 4
_LIST_SQL: Final = """
EXPLAIN (COSTS OFF) SELECT t.* FROM tasks AS t
WHERE t.owner_id = $1 AND t.deleted_at IS NULL ORDER BY t.created_at DESC, t.id DESC LIMIT 51
"""


async def measure(run: Run) -> None:
    """Add all rows of the API; reads are measured with each number of tasks."""
    sizes = (FEW,) if run.options.quick else (FEW, MANY)
    seconds = 2.0 if run.options.quick else 5.0
    run.record(
        f"api: {CONNECTIONS} connections, each with one request at a time, {TASKS_PER_OWNER} tasks of one owner, "
        f"{seconds:g} s each"
    )
    rates: dict[int, dict[str, float]] = {}
    for tasks in sizes:
        database = await fill(run.services, tasks)
        with running_api(run.services, TASKHERD_API) as ours, running_api(run.services, PEER_API) as peer:
            tags = await asyncio.to_thread(_etags, ours, database)
            results = await _measure_reads(run, database, {_TASKHERD: ours, _PEER: peer}, tags, seconds)
        rates[tasks] = _add_rows(run, tasks, results)
        run.record(await _plan(run.services, database))
        if tasks == sizes[0]:
            await _measure_watchers_and_writes(run, database, seconds)
    few, many = sizes[0], sizes[-1]
    for what in (_GET, _LIST) if many > few else ():
        with_many, with_few = rates[many][what], rates[few][what]
        run.rows.append(
            Row(
                f"{what}, {many:,} tasks",
                f"{with_many:,.0f}/s",
                f"{few:,} tasks",
                f"{with_few:,.0f}/s",
                with_many / with_few,
                0.8,
            )
        )


async def _measure_reads(
    run: Run, database: ApiDatabase, ports: dict[str, int], tags: dict[str, str], seconds: float
) -> dict[tuple[str, str], list[LoadResult]]:
    """Send each kind of request to both servers, in turns."""
    results: dict[tuple[str, str], list[LoadResult]] = {}
    turns = [
        (what, name) for what in (_GET, _LIST, _UNCHANGED) for name in ports if (what, name) != (_UNCHANGED, _PEER)
    ]
    for number in range(run.rounds):
        for what, name in turns:
            plan = _load_plan(ports[name], database, what, seconds, tags)
            result = await asyncio.to_thread(http_load.run, plan)
            results.setdefault((what, name), []).append(result)
            run.record(f"round {number + 1}: {name}: {what}, {database.tasks:,} tasks: {result.description}")
    return results


def _add_rows(run: Run, tasks: int, results: dict[tuple[str, str], list[LoadResult]]) -> dict[str, float]:
    """Add the rows of reads and return the API's rates by kind of request."""
    rate = {key: statistics.median(one.rate for one in loads) for key, loads in results.items()}
    p99 = {key: statistics.median(one.p99 for one in loads) for key, loads in results.items()}
    for what, compared_with in ((_GET, _GET), (_LIST, _LIST), (_UNCHANGED, _GET)):
        ours, peer = ((what, _TASKHERD), (compared_with, _PEER))
        cells = [f"{rate[key]:,.0f}/s, p99 {p99[key] * 1e3:.1f} ms" for key in (ours, peer)]
        run.rows.append(Row(f"{what}, {tasks:,} tasks", cells[0], _PEER, cells[1], rate[ours] / rate[peer], _TARGET))
    return {what: rate[what, _TASKHERD] for what in (_GET, _LIST)}


def _load_plan(port: int, database: ApiDatabase, what: str, seconds: float, tags: dict[str, str]) -> LoadPlan:
    if what == _LIST:
        requests = [request("GET", f"/api/v2/tasks?limit={TASKS_PER_OWNER}", database.token)]
    else:
        etags = tags if what == _UNCHANGED else {}
        requests = [
            request(
                "GET", f"/api/v2/tasks/me/{task}", database.token, f"If-None-Match: {etags[task]}\r\n" if etags else ""
            )
            for task in map(str, database.own_tasks)
        ]
    return LoadPlan(port, requests, CONNECTIONS, seconds, 304 if what == _UNCHANGED else 200)


def _etags(port: int, database: ApiDatabase) -> dict[str, str]:
    """Return the ETag of each task."""
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    etags: dict[str, str] = {}
    for task in map(str, database.own_tasks):
        connection.request("GET", f"/api/v2/tasks/me/{task}", headers={"Coder-Session-Token": database.token})
        response = connection.getresponse()
        etags[task] = response.headers["ETag"]
        response.read()
    connection.close()
    return etags


async def _plan(services: BenchmarkServices, database: ApiDatabase) -> str:
    """Return the plan of the list of one owner's tasks."""
    async with connected(services.database_url) as connection:
        owner = await connection.fetchval("SELECT owner_id FROM tasks WHERE id = $1", database.own_tasks[0])
        lines = [row[0].strip() for row in await connection.fetch(_LIST_SQL, owner)]
    return f"plan of a list among {database.tasks:,} tasks: {' '.join(lines)}"


async def _measure_watchers_and_writes(run: Run, database: ApiDatabase, seconds: float) -> None:
    """Add the rows of watchers, each of whom first gets the owner's few tasks, and then of writes, which add many."""
    with running_api(run.services, TASKHERD_API) as port, running_worker(run.services):
        delays = await watching.measure(run.services, database, port)
        run.record(
            f"{watching.WATCHERS:,} watchers: p50 {delays.p50 * 1e3:.0f} ms, p99 {delays.p99 * 1e3:.0f} ms, "
            f"maximum {delays.maximum * 1e3:.0f} ms from publishing a report to each event"
        )
        run.rows.append(
            Row(
                f"report to each of {watching.WATCHERS:,} watchers, p99",
                f"{delays.p99 * 1e3:.0f} ms",
                "p50",
                f"{delays.p50 * 1e3:.0f} ms",
                delays.p99 / delays.p50,
                None,
            )
        )
        body = json.dumps({"template_version_id": str(VERSION), "input": "Find out why"})
        create = request("POST", "/api/v2/tasks/me", database.token, body=body)
        posts = await asyncio.to_thread(http_load.run, LoadPlan(port, [create], WRITERS, seconds, 201))
        run.record(f"POST of a task, {WRITERS} at a time: {posts.description}")
        run.rows.append(
            Row(
                f"POST of a task, {WRITERS} at a time, p99",
                f"{posts.p99 * 1e3:.1f} ms",
                "p50",
                f"{posts.p50 * 1e3:.1f} ms",
                posts.p99 / posts.p50,
                None,
            )
        )
