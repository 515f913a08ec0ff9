"""A tab with the home page while tasks change: the memory of the page, after its garbage was collected."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import psutil

from benchmarks.cases.board import changing, home
from benchmarks.cases.board.figures import Figure, growth
from benchmarks.harness.api_databases import TASKHERD_API, make_token, running_api

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.cases.board.plan import Plan
    from tests.harness.browser import Browser, Tab

TASKS, OWNERS = 1_000, 20
FLAT: Final = 1.0
"""MiB by which the heap may be larger in the second half."""
_STEP: Final = re.compile(r"step (\d+):")


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of the page's heap and of the renderers (PSS), and numbers of DOM nodes and of listeners."""

    heap: int
    resident: int
    nodes: int
    listeners: int


async def measure(plan: Plan) -> list[Figure]:
    """Follow the changes with one page, and look at its memory at even intervals."""
    await home.fill(plan.services, TASKS, OWNERS)
    token = await make_token(plan.services, home.ADMIN)
    with running_api(plan.services, TASKHERD_API) as port:
        async with home.chromium() as browser, changing.running_worker(plan.services) as worker:
            tab = await home.new_tab(browser, token)
            await tab.call("Performance.enable")
            await tab.open(f"http://127.0.0.1:{port}/")
            await tab.until(home.READY)
            samples = await _sample(plan, browser, tab, worker)
            behind = (worker.sent - await _newest(tab)) / (changing.REPORTS_PER_CHANGE * plan.rate)
            assert tab.errors == [], tab.errors
    what = f"a tab over {plan.minutes:g} min at {plan.rate} changes/s"
    seldom = f"{TASKS / plan.rate:g} s between two changes of a task; it shows a dozen"
    return [*_figures(what, samples), Figure(f"{what}: age of the newest change on it", behind, "s", None, seldom)]


async def _sample(plan: Plan, browser: Browser, tab: Tab, worker: changing.Changes) -> list[Memory]:
    """Return the memory at the beginning and after each interval."""
    every, samples = plan.minutes * 60 / plan.samples, []
    publishing = worker.publish(plan.services, TASKS, plan.rate, plan.minutes * 60 + every)
    for number in range(plan.samples + 1):
        memory = await _look(browser, tab)
        plan.log(f"tab: after {number * every:.0f} s: {memory}")
        samples.append(memory)
        if number < plan.samples:
            await asyncio.wait({publishing}, timeout=every)
        assert not publishing.done(), "the changes ended early"
    return samples


async def _look(browser: Browser, tab: Tab) -> Memory:
    counted = await home.metrics(tab)
    found = await browser.call("SystemInfo.getProcessInfo")
    renderers = [each["id"] for each in found["processInfo"] if each["type"] == "renderer"]
    resident = sum(psutil.Process(pid).memory_full_info().pss for pid in renderers)
    return Memory(int(counted["JSHeapUsedSize"]), resident, int(counted["Nodes"]), int(counted["JSEventListeners"]))


async def _newest(tab: Tab) -> int:
    """Return the number of the newest report that the page shows."""
    steps = _STEP.findall(await tab.evaluate("document.body.innerText"))
    assert steps, "the page shows no change"
    return max(map(int, steps))


def _figures(what: str, samples: Sequence[Memory]) -> list[Figure]:
    heaps = [each.heap / 2**20 for each in samples[1:]]  # the first is from before the changes
    last = samples[-1]
    detail = f"from {heaps[0]:.1f} to {heaps[-1]:.1f} MiB, at most {max(heaps):.1f}"
    return [
        Figure(f"{what}: growth of the heap", growth(heaps), "MiB", FLAT, detail),
        Figure(f"{what}: DOM nodes, more in the second half", growth([each.nodes for each in samples[1:]]), "nodes"),
        Figure(f"{what}: memory of the renderers at the end", last.resident / 2**20, "MiB"),
    ]
