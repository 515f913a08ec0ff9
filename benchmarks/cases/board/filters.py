"""The list of tasks by each filter alone, by the ten commonest pairs and in each order, as the number of tasks grows.

Tasks, requests and plans are those of the case ``lists``; its table has the blocks that each statement touches.
"""

from __future__ import annotations

import asyncio
import json
import statistics
from typing import TYPE_CHECKING, Final
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from benchmarks.cases import lists
from benchmarks.cases.board.figures import Figure
from benchmarks.harness import http_load
from benchmarks.harness.api_databases import TASKHERD_API, make_token, running_api
from benchmarks.harness.http_load import LoadPlan, request

if TYPE_CHECKING:
    from benchmarks.cases.board.plan import Plan
    from benchmarks.harness.http_load import LoadResult

MOST: Final = 100.0
"""Milliseconds, p99 of a list."""
FLAT: Final = 2.0
"""Times by which p50 may be longer with the most tasks than with the fewest, for lists with a full page of each."""

FULL: Final = f"200, {lists.PAGE} tasks"
REFUSED: Final = (
    "runner:rack-7 label:repo=acme/r7",
    "created:<1d changed:<1d",
    "name:task-",
)
"""Queries that no index serves; with 2,000 tasks or less, the last one is served."""


async def measure(plan: Plan) -> list[Figure]:
    """Request each list again and again with each number of tasks."""
    results: dict[int, dict[lists.Case, LoadResult]] = {}
    full: dict[int, set[lists.Case]] = {}
    overviews: list[Figure] = []
    for size in plan.sizes:
        await lists.fill(plan.services, size)
        tokens = {name: await make_token(plan.services, name) for name in (lists.ADMIN, lists.OWNER)}
        with running_api(plan.services, TASKHERD_API) as port:
            results[size], full[size] = {}, set()
            for name, token in tokens.items():
                load = LoadPlan(port, [request("GET", "/api/v2/task-overview", token)], 1, plan.list_seconds, 200)
                found = await asyncio.to_thread(http_load.run, load)
                plan.log(f"filters: {size:,} tasks: overview, {name}: {found.description}")
                what = f"{size:,} tasks, overview of {name}, p99"
                overviews.append(Figure(what, found.p99 * 1e3, "ms", MOST, f"p50 {found.p50 * 1e3:.1f} ms"))
            for case in lists.LISTS:
                result = await lists.load(case, port, tokens[case.caller], plan.list_seconds)
                results[size][case] = result
                if await asyncio.to_thread(answer, port, tokens[case.caller], case.path) == FULL:
                    full[size].add(case)
                plan.log(f"filters: {size:,} tasks: {case.title}, {case.caller}: {result.description}")
            for query in REFUSED:
                refused = lists.Case(query, lists.ADMIN).path
                said = await asyncio.to_thread(answer, port, tokens[lists.ADMIN], refused)
                plan.log(f"filters: {size:,} tasks: `{query}`: {said}")
    slowest = [figure for size, measured in results.items() for figure in summarize(size, measured)]
    return slowest + flatness(results, full) + overviews


def summarize(size: int, measured: dict[lists.Case, LoadResult]) -> list[Figure]:
    """Return the slowest filter alone, the slowest pair and the slowest list by the last change."""
    figures = []
    for what, queries, by_change in (
        ("filter alone", lists.SINGLE, False),
        ("pair of filters", lists.PAIRS, False),
        ("list by the last change", [query for query, _ in lists.SORTED], True),
    ):
        of = {
            case: result
            for case, result in measured.items()
            if case.query in queries and (case.sort != "created") == by_change
        }
        slowest = max(of, key=lambda case: of[case].p99)
        detail = (
            f"{slowest.title} of {slowest.caller}; {sum(r.p99 * 1e3 <= MOST for r in of.values())} of {len(of)} within"
        )
        figures.append(Figure(f"{size:,} tasks, slowest {what}, p99", of[slowest].p99 * 1e3, "ms", MOST, detail))
    return figures


def flatness(results: dict[int, dict[lists.Case, LoadResult]], full: dict[int, set[lists.Case]]) -> list[Figure]:
    """Return by how much p50 grows from each number of tasks to the most, for the list with full pages that grows most.

    A list costs the combinations of values that match, times a page of each. With few tasks most have less than a page.
    """
    *others, large = sorted(results)
    figures = []
    for small in others:
        ratios = {case: results[large][case].p50 / results[small][case].p50 for case in full[small] & full[large]}
        if ratios:
            most = max(ratios, key=lambda case: ratios[case])
            median = statistics.median(ratios.values())
            what = f"p50 with {large:,} tasks, compared with {small:,}, of the list that grows most"
            detail = f"{most.title} of {most.caller}; median {median:.1f} of {len(ratios)} full pages"
            figures.append(Figure(what, ratios[most], "times", FLAT, detail))
    return figures


def answer(port: int, token: str, path: str) -> str:
    """Return the status and the number of tasks, or the words, with which the API answers a request for a list."""
    url = f"http://127.0.0.1:{port}/api/v2/{path}"
    try:
        with urlopen(Request(url, headers={"Coder-Session-Token": token}), timeout=60) as response:
            return f"{response.status}, {len(json.load(response)['tasks'])} tasks"
    except HTTPError as error:
        body = json.load(error)
        words = [body["message"], *(each["detail"] for each in body.get("validations") or [])]
        return f"{error.code}: {' '.join(words)}"
