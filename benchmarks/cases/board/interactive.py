"""The time until the home page can be used: from the navigation to the first rows of tasks, with a CPU slowed down.

Everything is loaded over loopback, so this is the browser's and the API's time, not the network's.
"""

from __future__ import annotations

import asyncio
import statistics
from typing import TYPE_CHECKING, Final

from benchmarks.cases.board import home
from benchmarks.cases.board.figures import Figure
from benchmarks.harness.api_databases import TASKHERD_API, make_token, running_api

if TYPE_CHECKING:
    from benchmarks.cases.board.plan import Plan
    from tests.harness.browser import Tab

TASKS, OWNERS = 1_000, 20
SLOWER: Final = 4
MOST: Final = 1_000.0
"""Milliseconds until the page can be used."""
QUIET: Final = 1.0
"""Seconds after the rows in which the browser says which tasks were long."""

_PROBE: Final = """
if (location.protocol === "http:") {
  window.longTasks = [];
  new PerformanceObserver((list) => longTasks.push(...list.getEntries().map((each) => each.startTime + each.duration)))
    .observe({ type: "longtask", buffered: true });
  const look = () => requestAnimationFrame(() => {
    if (!%s) return look();
    setTimeout(() => { window.shownAt = performance.now(); document.documentElement.dataset.shown = ""; });
  });
  look();
}"""


async def measure(plan: Plan) -> list[Figure]:
    """Load the page several times, with an empty cache and with its files in the cache."""
    await home.fill(plan.services, TASKS, OWNERS)
    token = await make_token(plan.services, home.ADMIN)
    cold, warm = [], []
    with running_api(plan.services, TASKHERD_API) as port:
        async with home.chromium() as browser:
            for number in range(plan.rounds + 1):
                tab = await home.new_tab(browser, token, _PROBE % home.READY)
                await tab.call("Emulation.setCPUThrottlingRate", rate=SLOWER)
                first, second = await _load(tab, port), await _load(tab, port)
                await tab.call("Page.close")
                if number:  # the first load of all prepares the API's statements
                    cold.append(first)
                    warm.append(second)
                plan.log(f"interactive: rows after {first:.0f} ms; with cached files {second:.0f} ms")
    of = f"median of {plan.rounds}, {min(cold):,.0f} to {max(cold):,.0f}"
    of_warm = f"median of {plan.rounds}, {min(warm):,.0f} to {max(warm):,.0f}"
    return [
        Figure(f"home page usable, CPU {SLOWER} times slower", statistics.median(cold), "ms", MOST, of),
        Figure("the same with its files in the cache", statistics.median(warm), "ms", MOST, of_warm),
    ]


async def _load(tab: Tab, port: int) -> float:
    """Return milliseconds until rows are painted and the page's thread is free; a task of over 50 ms after counts."""
    await tab.call("Page.navigate", url="about:blank")
    await tab.open(f"http://127.0.0.1:{port}/")
    await tab.until("'shown' in document.documentElement.dataset")
    await asyncio.sleep(QUIET)
    shown = await tab.evaluate("shownAt")
    ends = await tab.evaluate("longTasks")
    return float(max([shown, *ends]))
