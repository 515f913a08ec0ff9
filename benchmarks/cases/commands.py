"""POSTs of tasks, also in batches, compared with FastAPI, SQLAlchemy's ORM and one confirmed publish.

And those of a user who posts one after the other, while another user posts many at a time, compared with alone.
"""

from __future__ import annotations

import asyncio
import json
import statistics
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Final

from benchmarks.cases.batches import BatchMeasurement
from benchmarks.harness import http_load
from benchmarks.harness.api_databases import TASKHERD_API, fill, make_token, running_api, running_worker
from benchmarks.harness.http_load import LoadPlan, LoadResult, request
from benchmarks.harness.run import Row
from benchmarks.harness.seed import VERSION
from benchmarks.harness.services import connected

if TYPE_CHECKING:
    from benchmarks.harness.run import Run
    from benchmarks.harness.services import BenchmarkServices

CONCURRENCIES: Final = (1, 4, 64)
MANY: Final = 64
PEER: Final = "benchmarks.peers.fastapi_writes"
_NAMES: Final = {TASKHERD_API: "taskherd api and worker", PEER: "FastAPI + ORM + confirmed publish"}
_TASKS: Final = 1_000
_START_TIMEOUT: Final = 60.0


async def measure(run: Run) -> None:
    """Add the rows of writes: our API with one worker, and the peer, in turns on the same services."""
    seconds = 3.0 if run.options.quick else 8.0
    database = await fill(run.services, _TASKS)
    other_token = await make_token(run.services, "owner-1")
    results: dict[tuple[str, int], list[LoadResult]] = {}
    pairs: list[tuple[LoadResult, LoadResult]] = []
    with (
        running_api(run.services, TASKHERD_API) as ours,
        running_api(run.services, TASKHERD_API) as another,
        running_worker(run.services),
        running_api(run.services, PEER) as peer,
    ):
        async with _answering_requests(run.services):
            await asyncio.to_thread(_create_one, ours, database.token)
            batches = BatchMeasurement(run, (ours, another), (database.token, other_token))
            for number in range(run.rounds):
                for connections in CONCURRENCIES:
                    for module, port in ((TASKHERD_API, ours), (PEER, peer)):
                        plan = _plan(port, database.token, connections, seconds)
                        result = await asyncio.to_thread(http_load.run, plan)
                        results.setdefault((module, connections), []).append(result)
                        run.record(
                            f"round {number + 1}: {_NAMES[module]}: POST of a task, {connections} at a time: "
                            f"{result.description}"
                        )
                alone, beside, many = await _beside_another(ours, (database.token, other_token), seconds)
                pairs.append((alone, beside))
                run.record(
                    f"round {number + 1}: alone: {alone.description}; beside another user: {beside.description}; "
                    f"that user's {MANY} at a time: {many.description}"
                )
                await batches.measure(seconds)
    _add_rows(run, results)
    batches.add_rows(_NAMES[PEER], statistics.median(one.rate for one in results[PEER, 1]))
    cells = [statistics.median(each.p99 for each in loads) for loads in zip(*pairs, strict=True)]
    what = f"POST of a task, 1 at a time, while another user posts {MANY} at a time, p99"
    times = [f"{seconds * 1e3:.1f} ms" for seconds in cells]
    run.rows.append(Row(what, times[1], "alone", times[0], cells[1] / cells[0], 3, at_most=True))


def _create_one(port: int, token: str) -> None:
    """Create a task, and so wait until the worker consumes."""
    connection = HTTPConnection("127.0.0.1", port, timeout=_START_TIMEOUT)
    body = json.dumps({"template_version_id": str(VERSION), "input": "Start"})
    connection.request("POST", "/api/v2/tasks/me", body, {"Coder-Session-Token": token})
    status = connection.getresponse().status
    connection.close()
    if status != HTTPStatus.CREATED:
        message = f"the first create got {status}"
        raise RuntimeError(message)


@asynccontextmanager
async def _answering_requests(services: BenchmarkServices) -> AsyncIterator[None]:
    """End start requests within a second, as runners do: after five the worker would send those of each task again."""

    async def answer() -> None:
        async with connected(services.database_url) as connection:
            while True:
                await connection.execute("DELETE FROM work_requests")
                await asyncio.sleep(1)

    answering = asyncio.create_task(answer())
    try:
        yield
    finally:
        answering.cancel()
        await asyncio.gather(answering, return_exceptions=True)


async def _beside_another(
    port: int, tokens: tuple[str, str], seconds: float
) -> tuple[LoadResult, LoadResult, LoadResult]:
    """Measure the POSTs of the second user alone, those while the first one posts many at a time, and these."""
    one = _plan(port, tokens[1], 1, seconds)
    alone = await asyncio.to_thread(http_load.run, one)
    many = _plan(port, tokens[0], MANY, seconds + http_load.WARM_UP)
    beside, others = await asyncio.gather(*(asyncio.to_thread(http_load.run, plan) for plan in (one, many)))
    return alone, beside, others


def _plan(port: int, token: str, connections: int, seconds: float) -> LoadPlan:
    bodies = [{"template_version_id": str(VERSION), "input": f"Find out why step {step} fails"} for step in range(50)]
    requests = [request("POST", "/api/v2/tasks/me", token, body=json.dumps(body)) for body in bodies]
    return LoadPlan(port, requests, connections, seconds, 201)


def _add_rows(run: Run, results: dict[tuple[str, int], list[LoadResult]]) -> None:
    rate = {key: statistics.median(one.rate for one in loads) for key, loads in results.items()}
    p50 = {key: statistics.median(one.p50 for one in loads) for key, loads in results.items()}
    ours, peer = (TASKHERD_API, 1), (PEER, 1)
    cells = [f"{p50[key] * 1e3:.1f} ms" for key in (ours, peer)]
    ratio = p50[ours] / p50[peer]
    run.rows.append(Row("POST of a task, 1 at a time, p50", cells[0], _NAMES[PEER], cells[1], ratio, 2, at_most=True))
    best = max(rate[PEER, connections] for connections in CONCURRENCIES)
    for connections, other, name, target in (
        (4, rate[PEER, 4], _NAMES[PEER], 1.5),
        (64, best, f"{_NAMES[PEER]}, at its best", 3.0),
    ):
        mine = rate[TASKHERD_API, connections]
        what = f"POST of a task, {connections} at a time"
        run.rows.append(Row(what, f"{mine:,.0f}/s", name, f"{other:,.0f}/s", mine / other, target))
