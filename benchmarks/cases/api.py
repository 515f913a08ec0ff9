"""The API's rows: reads beside the same in FastAPI with SQLAlchemy's ORM, writes, and events to a thousand watchers."""

from __future__ import annotations

import asyncio
import json
import statistics
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Final

from benchmarks.cases import watching
from benchmarks.cases.rows import LEAST_ROUNDS, Row
from benchmarks.harness import http_load
from benchmarks.harness.api_databases import OF_ONE, OURS, THEIRS, fill, serving, working
from benchmarks.harness.http_load import LoadPlan, LoadResult, request
from benchmarks.harness.seed import VERSION
from benchmarks.harness.services import connected

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.cases.rows import Results
    from benchmarks.harness.api_databases import ApiDatabase
    from benchmarks.harness.services import BenchmarkServices

CONNECTIONS: Final = 16
WRITERS: Final = 4
FEW, MANY = 1_000, 1_000_000
_US, _PEER = "taskherd api", "FastAPI + SQLAlchemy ORM"
_GET, _LIST, _SAME = "GET of a task", f"GET of a list of {OF_ONE}", "GET of a task, 304"
_FACTOR: Final = 4
_LIST_SQL: Final = """
EXPLAIN (COSTS OFF) SELECT t.* FROM tasks AS t
WHERE t.owner_id = $1 AND t.deleted_at IS NULL ORDER BY t.created_at DESC, t.id DESC LIMIT 51
"""


async def measure(
    stage: BenchmarkServices,
    results: Results,
    sizes: tuple[int, ...],
    *,
    seconds: float,
    rounds: int,
    say: Callable[[str], None],
) -> None:
    """All rows of the API; reads among each number of tasks."""

    def note(line: str) -> None:
        results.single.append(line)
        say(line)

    note(
        f"api: {CONNECTIONS} connections that ask again when answered, {OF_ONE} tasks of one owner, {seconds:g} s each"
    )
    rates: dict[int, dict[str, float]] = {}
    for tasks in sizes:
        house = await fill(stage, tasks)
        with serving(stage, OURS) as ours, serving(stage, THEIRS) as theirs:
            tags = await asyncio.to_thread(_tags, ours, house)
            found = await _taken_in_turn(
                house, {_US: ours, _PEER: theirs}, tags, seconds=seconds, rounds=rounds, note=note
            )
        rates[tasks] = _rows(results, tasks, found)
        note(await _plan(stage, house))
        if tasks == sizes[0]:
            await _writes_and_watchers(stage, results, house, seconds, note)
    few, many = sizes[0], sizes[-1]
    for what in (_GET, _LIST) if many > few else ():
        ours_, theirs_ = rates[many][what], rates[few][what]
        row = Row(
            f"{what}, {many:,} tasks", f"{ours_:,.0f}/s", f"{few:,} tasks", f"{theirs_:,.0f}/s", ours_ / theirs_, 0.8
        )
        results.rows.append(row)


async def _taken_in_turn(
    house: ApiDatabase,
    ports: dict[str, int],
    tags: dict[str, str],
    *,
    seconds: float,
    rounds: int,
    note: Callable[[str], None],
) -> dict[tuple[str, str], list[LoadResult]]:
    found: dict[tuple[str, str], list[LoadResult]] = {}
    turns = [(what, name) for what in (_GET, _LIST, _SAME) for name in ports if (what, name) != (_SAME, _PEER)]
    for number in range(max(rounds, LEAST_ROUNDS)):
        for what, name in turns:
            wanted = _wanted(ports[name], house, what, seconds, tags)
            one = await asyncio.to_thread(http_load.run, wanted)
            found.setdefault((what, name), []).append(one)
            note(f"round {number + 1}: {name}: {what}, {house.tasks:,} tasks: {one.describe}")
    return found


def _rows(results: Results, tasks: int, found: dict[tuple[str, str], list[LoadResult]]) -> dict[str, float]:
    """Add the rows of reads; our rates, by what was asked."""
    rate = {key: statistics.median(one.rate for one in all_) for key, all_ in found.items()}
    late = {key: statistics.median(one.p99 for one in all_) for key, all_ in found.items()}
    for what, beside in ((_GET, _GET), (_LIST, _LIST), (_SAME, _GET)):
        ours, theirs = ((what, _US), (beside, _PEER))
        told = [f"{rate[key]:,.0f}/s, p99 {late[key] * 1e3:.1f} ms" for key in (ours, theirs)]
        results.rows.append(
            Row(f"{what}, {tasks:,} tasks", told[0], _PEER, told[1], rate[ours] / rate[theirs], _FACTOR)
        )
    return {what: rate[what, _US] for what in (_GET, _LIST)}


def _wanted(port: int, house: ApiDatabase, what: str, seconds: float, tags: dict[str, str]) -> LoadPlan:
    if what == _LIST:
        requests = [request("GET", f"/api/v2/tasks?limit={OF_ONE}", house.token)]
    else:
        held = tags if what == _SAME else {}
        requests = [
            request("GET", f"/api/v2/tasks/me/{task}", house.token, f"If-None-Match: {held[task]}\r\n" if held else "")
            for task in map(str, house.mine)
        ]
    return LoadPlan(port, requests, CONNECTIONS, seconds, 304 if what == _SAME else 200)


def _tags(port: int, house: ApiDatabase) -> dict[str, str]:
    """The ETag of each task."""
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    found: dict[str, str] = {}
    for task in map(str, house.mine):
        connection.request("GET", f"/api/v2/tasks/me/{task}", headers={"Coder-Session-Token": house.token})
        answer = connection.getresponse()
        found[task] = answer.headers["ETag"]
        answer.read()
    connection.close()
    return found


async def _plan(stage: BenchmarkServices, house: ApiDatabase) -> str:
    """How PostgreSQL finds the list of one owner."""
    async with connected(stage.database_url) as connection:
        owner = await connection.fetchval("SELECT owner_id FROM tasks WHERE id = $1", house.mine[0])
        lines = [row[0].strip() for row in await connection.fetch(_LIST_SQL, owner)]
    return f"plan of a list among {house.tasks:,} tasks: {' '.join(lines)}"


async def _writes_and_watchers(
    stage: BenchmarkServices, results: Results, house: ApiDatabase, seconds: float, note: Callable[[str], None]
) -> None:
    with serving(stage, OURS) as port, working(stage):
        body = json.dumps({"template_version_id": str(VERSION), "input": "Find out why"})
        create = request("POST", "/api/v2/tasks/me", house.token, body=body)
        told = await asyncio.to_thread(http_load.run, LoadPlan(port, [create], WRITERS, seconds, 201))
        note(f"POST of a task, {WRITERS} at a time: {told.describe}")
        results.rows.append(
            Row(
                f"POST of a task, {WRITERS} at a time, p99",
                f"{told.p99 * 1e3:.1f} ms",
                "p50",
                f"{told.p50 * 1e3:.1f} ms",
                told.p99 / told.p50,
                None,
            )
        )
        seen = await watching.measure(stage, house, port)
        note(
            f"{watching.WATCHERS:,} watchers: p50 {seen.p50 * 1e3:.0f} ms, p99 {seen.p99 * 1e3:.0f} ms, "
            f"last {seen.worst * 1e3:.0f} ms from publishing a report to each having its event"
        )
        results.rows.append(
            Row(
                f"report to each of {watching.WATCHERS:,} watchers, p99",
                f"{seen.p99 * 1e3:.0f} ms",
                "p50",
                f"{seen.p50 * 1e3:.0f} ms",
                seen.p99 / seen.p50,
                None,
            )
        )
