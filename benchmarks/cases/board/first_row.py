"""The list of tasks in Chromium: from Enter in its filter to the rows on the screen, as the number of tasks grows.

Tasks and filters are those of the case ``lists``. What ``filters`` measures is the API's share of it.
"""

from __future__ import annotations

import json
import statistics
from typing import TYPE_CHECKING, Final

from benchmarks.cases import lists
from benchmarks.cases.board import home
from benchmarks.cases.board.figures import Figure
from benchmarks.harness.api_databases import TASKHERD_API, make_token, running_api

if TYPE_CHECKING:
    from benchmarks.cases.board.plan import Plan
    from tests.harness.browser import Browser

MOST: Final = 100.0
"""Milliseconds, p99 from Enter to the rows."""
FLAT: Final = 2.0
"""Times by which the median may be longer with the most tasks than with the fewest."""
READY: Final = "document.querySelector('.list[aria-busy=false] tbody tr')"

# Rows are shown once the browser has painted a frame with them: the next task after the next frame.
_SHOW: Final = """(typed) => new Promise((done) => {
    const field = document.querySelector(".filter input"), list = document.querySelector(".list");
    field.focus();
    field.value = typed;
    field.dispatchEvent(new InputEvent("input", { bubbles: true }));
    const began = performance.now();
    field.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", bubbles: true, cancelable: true }));
    const look = () => {
        if (list.ariaBusy !== "false") return;
        seen.disconnect();
        requestAnimationFrame(() => setTimeout(() => done(performance.now() - began)));
    };
    const seen = new MutationObserver(look);
    seen.observe(list, { attributes: true, attributeFilter: ["aria-busy"] });
})"""


async def measure(plan: Plan) -> list[Figure]:
    """Filter the list by each filter alone, several times, with each number of tasks."""
    times: dict[int, list[float]] = {}
    async with home.chromium() as browser:
        for size in plan.sizes:
            await lists.fill(plan.services, size)
            token = await make_token(plan.services, lists.ADMIN)
            with running_api(plan.services, TASKHERD_API) as port:
                times[size] = await _filter(plan, browser, token, port, size)
    figures = [
        Figure(f"{size:,} tasks, from Enter to the rows, p99", _p99(found), "ms", MOST, _of(found))
        for size, found in times.items()
    ]
    fewest, most = min(times), max(times)
    ratio = statistics.median(times[most]) / statistics.median(times[fewest])
    return [*figures, Figure(f"the median with {most:,} tasks, compared with {fewest:,}", ratio, "times", FLAT, "")]


async def _filter(plan: Plan, browser: Browser, token: str, port: int, size: int) -> list[float]:
    """Return the milliseconds of each filter and round; the first round prepares the API's statements."""
    tab = await home.new_tab(browser, token)
    await tab.open(f"http://127.0.0.1:{port}/tasks")
    await tab.until(READY)
    times: list[float] = []
    for number in range(plan.rounds + 1):
        found = {query: float(await tab.evaluate(f"({_SHOW})({json.dumps(query)})")) for query in lists.SINGLE if query}
        if number:
            times += found.values()
        slowest = max(found, key=lambda query: found[query])
        median = statistics.median(found.values())
        plan.log(f"first_row: {size:,} tasks: median {median:.0f} ms, slowest {slowest} {found[slowest]:.0f} ms")
    await tab.call("Page.close")
    return times


def _p99(times: list[float]) -> float:
    return sorted(times)[-1 - len(times) // 100]


def _of(times: list[float]) -> str:
    return f"p50 {statistics.median(times):.0f} ms, {min(times):.0f} to {max(times):.0f}; {len(times)} times"
