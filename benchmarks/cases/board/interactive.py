"""The time until the home page can be used: from the navigation to the first rows of tasks, with a CPU slowed down.

Everything is loaded over loopback, so this is the browser's and the API's time, not the network's. On a busy machine
only the ratio to another checkout says something, whose page is loaded in turns with ours (``--than FOLDER``).
"""

from __future__ import annotations

import asyncio
import statistics
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks.cases.board import home
from benchmarks.cases.board.figures import Figure
from benchmarks.harness.api_databases import TASKHERD_API, make_token, running_api

if TYPE_CHECKING:
    from benchmarks.cases.board.plan import Plan
    from tests.harness.browser import Browser, Tab

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
    async with home.chromium() as browser:
        with ExitStack() as running:
            ports = [running.enter_context(running_api(plan.services, TASKHERD_API))]
            if plan.than:
                sources = {"PYTHONPATH": str(Path(plan.than) / "src")}
                ports.append(running.enter_context(running_api(plan.services, TASKHERD_API, **sources)))
            loads = await _load_in_turns(plan, browser, token, ports)
    (cold, warm), *others = loads
    figures = [
        Figure(f"home page usable, CPU {SLOWER} times slower", statistics.median(cold), "ms", MOST, _of(cold)),
        Figure("the same with its files in the cache", statistics.median(warm), "ms", MOST, _of(warm)),
    ]
    for other in others:
        for what, ours, theirs in zip(("usable", "usable with cached files"), (cold, warm), other, strict=True):
            ratio = statistics.median(ours) / statistics.median(theirs)
            theirs_of = f"{statistics.median(theirs):,.0f} ms, {_of(theirs)}"
            figures.append(Figure(f"{what}, compared with {plan.than}", ratio, "times", None, theirs_of))
    return figures


async def _load_in_turns(
    plan: Plan, browser: Browser, token: str, ports: list[int]
) -> list[tuple[list[float], list[float]]]:
    """Return the times of each API's page, first with an empty cache, then with its files in it."""
    loads: list[tuple[list[float], list[float]]] = [([], []) for _ in ports]
    for number in range(plan.rounds + 1):
        for port, (cold, warm) in zip(ports, loads, strict=True):
            tab = await home.new_tab(browser, token, _PROBE % home.READY)
            await tab.call("Emulation.setCPUThrottlingRate", rate=SLOWER)
            first, second = await _load(tab, port), await _load(tab, port)
            await tab.call("Page.close")
            if number:  # the first load of all prepares the API's statements
                cold.append(first)
                warm.append(second)
            plan.log(f"interactive: {port}: rows after {first:.0f} ms; with cached files {second:.0f} ms")
    return loads


def _of(times: list[float]) -> str:
    return f"median of {len(times)}, {min(times):,.0f} to {max(times):,.0f}"


async def _load(tab: Tab, port: int) -> float:
    """Return milliseconds until rows are painted and the page's thread is free; a task of over 50 ms after counts."""
    await tab.call("Page.navigate", url="about:blank")
    await tab.open(f"http://127.0.0.1:{port}/")
    await tab.until("'shown' in document.documentElement.dataset")
    await asyncio.sleep(QUIET)
    shown = await tab.evaluate("shownAt")
    ends = await tab.evaluate("longTasks")
    return float(max([shown, *ends]))
