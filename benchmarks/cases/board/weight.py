"""The bytes of the home page: its files and the answers of the API that it reads, as served; and what gzip costs."""

from __future__ import annotations

import asyncio
import statistics
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any, Final

import psutil

from benchmarks.cases.board import home
from benchmarks.cases.board.figures import Figure
from benchmarks.harness.api_databases import TASKHERD_API, make_token, running_api_process

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.cases.board.plan import Plan

TASKS, OWNERS = 1_000, 20
KB: Final = 1_024
MOST: Final = 100.0
"""KB of the page in all."""
LIST: Final = "/api/v2/tasks?limit=50&include=state_since"
BLOCKS, REQUESTS = 9, 40
"""Number of blocks of each encoding, in turns, and of the requests in one."""

# The browser lists everything but the icon, which it may load whenever it likes. The page loads what it will need for
# open requests once the browser is idle.
_LOADED: Final = """(async () => {
  const icon = document.getElementById("favicon").href;
  await (await fetch(icon, {cache: "reload"})).arrayBuffer();
  const count = () => performance.getEntriesByType("resource").length;
  for (let before = -1; before !== count();) {
    before = count();
    await new Promise((done) => setTimeout(done, 1_000));
  }
  return [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")].map(
    ({ name, encodedBodySize, decodedBodySize }) => ({ name, encodedBodySize, decodedBodySize }));
})()"""


@dataclass(frozen=True, slots=True)
class Weight:
    """Number of files and of answers of the API, and their bytes as served and decoded."""

    files: int
    file_bytes: int
    decoded_bytes: int
    answers: int
    answer_bytes: int


async def measure(plan: Plan) -> list[Figure]:
    """Load the page once with an empty cache."""
    await home.fill(plan.services, TASKS, OWNERS)
    token = await make_token(plan.services, home.ADMIN)
    with running_api_process(plan.services, TASKHERD_API) as (api, port):
        async with home.chromium() as browser:
            tab = await home.new_tab(browser, token)
            await tab.open(f"http://127.0.0.1:{port}/")
            await tab.until(home.READY)
            loaded = await tab.evaluate(_LOADED)
        costs = await asyncio.to_thread(_costs, psutil.Process(api.pid), port, token)
    weight = weigh(loaded)
    plan.log(f"weight: {weight}")
    files = f"{weight.files} files, {weight.decoded_bytes / KB:.0f} KB unpacked"
    answers = f"{weight.answers} answers of the API, {weight.answer_bytes / KB:.0f} KB; all lists full"
    (plain, plain_bytes), (packed, packed_bytes) = costs
    cost = f"{packed:.2f} ms of CPU for {packed_bytes / KB:.0f} KB, {plain:.2f} for {plain_bytes / KB:.0f}"
    return [
        Figure("home page, all files as served", weight.file_bytes / KB, "KB", MOST, files),
        Figure("the same with what it reads", (weight.file_bytes + weight.answer_bytes) / KB, "KB", MOST, answers),
        Figure("a list of 50 as gzip, compared with plain", packed / plain, "times", None, cost),
    ]


def _costs(api: psutil.Process, port: int, token: str) -> list[tuple[float, int]]:
    """Return the API's CPU for a list in ms, a median of blocks, and its bytes; for plain ones, then for gzip."""
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    spent: dict[str, list[float]] = {"identity": [], "gzip": []}
    size = dict.fromkeys(spent, 0)
    for number in range(BLOCKS + 1):
        for encoding, values in spent.items():
            before = sum(api.cpu_times()[:2])
            for _ in range(REQUESTS):
                connection.request("GET", LIST, headers={"Coder-Session-Token": token, "Accept-Encoding": encoding})
                size[encoding] = len(connection.getresponse().read())
            if number:  # the first block prepares the statement
                values.append((sum(api.cpu_times()[:2]) - before) / REQUESTS * 1_000)
    connection.close()
    return [(statistics.median(values), size[encoding]) for encoding, values in spent.items()]


def weigh(loaded: Sequence[dict[str, Any]]) -> Weight:
    """Add up what a browser has loaded, each a ``name`` with ``encodedBodySize`` and ``decodedBodySize`` in bytes."""
    answers = [each for each in loaded if "/api/" in each["name"]]
    files = list({each["name"]: each for each in loaded if "/api/" not in each["name"]}.values())
    return Weight(
        len(files),
        sum(each["encodedBodySize"] for each in files),
        sum(each["decodedBodySize"] for each in files),
        len(answers),
        sum(each["encodedBodySize"] for each in answers),
    )
