"""The API's rows: reads beside the same in FastAPI with SQLAlchemy's ORM, writes, and events to a thousand watchers."""

from __future__ import annotations

import asyncio
import statistics
import urllib.request
from typing import TYPE_CHECKING, Final

from benchmarks import load
from benchmarks.houses import OF_ONE, OURS, THEIRS, fill, serving
from benchmarks.load import Load, Wanted, request
from benchmarks.rows import Row

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.houses import House
    from benchmarks.rows import Results
    from benchmarks.stage import Stage

CONNECTIONS: Final = 16
FEW: Final = 1_000
MANY: Final = 1_000_000
LEAST_ROUNDS: Final = 3
_PEER: Final = "FastAPI + SQLAlchemy ORM"
_GET, _LIST, _SAME = "GET of a task", f"GET of a list of {OF_ONE}", "GET of a task, 304"


def _wanted(port: int, house: House, what: str, seconds: float, tags: dict[str, str]) -> Wanted:
    status = 304 if what == _SAME else 200
    if what == _LIST:
        requests = [request("GET", f"/api/v2/tasks?limit={OF_ONE}", house.token)]
    else:
        requests = [
            request(
                "GET", f"/api/v2/tasks/me/{each}", house.token, f"If-None-Match: {tags[str(each)]}\r\n" if tags else ""
            )
            for each in house.mine
        ]
    return Wanted(port, requests, CONNECTIONS, seconds, status)


def _tags(port: int, house: House) -> dict[str, str]:
    found: dict[str, str] = {}
    for each in house.mine:
        url = f"http://127.0.0.1:{port}/api/v2/tasks/me/{each}"
        asked = urllib.request.Request(url, headers={"Coder-Session-Token": house.token})
        with urllib.request.urlopen(asked, timeout=10) as answer:
            found[str(each)] = answer.headers["ETag"]
    return found


async def reads(
    stage: Stage, results: Results, tasks: int, seconds: float, rounds: int, say: Callable[[str], None]
) -> dict[str, float]:
    """Rates of reads among so many tasks, beside the peer, in turn; returns ours by what was asked."""
    house = await fill(stage, tasks)
    found: dict[tuple[str, str], list[Load]] = {}
    with serving(stage, OURS) as ours, serving(stage, THEIRS) as theirs:
        tags = await asyncio.to_thread(_tags, ours, house)
        for number in range(max(rounds, LEAST_ROUNDS)):
            for what in (_GET, _LIST, _SAME):
                for name, port in (("taskherd api", ours), (_PEER, theirs)):
                    if what == _SAME and port == theirs:
                        continue
                    wanted = _wanted(port, house, what, seconds, tags if what == _SAME else {})
                    one = await asyncio.to_thread(load.ask, wanted)
                    found.setdefault((what, name), []).append(one)
                    note = (
                        f"round {number + 1}: {name}: {what}, {tasks:,} tasks: {one.rate:,.0f}/s, "
                        f"p50 {one.p50 * 1e3:.1f} ms, p99 {one.p99 * 1e3:.1f} ms"
                    )
                    results.single.append(note)
                    say(note)
    rate = {key: statistics.median(one.rate for one in all_) for key, all_ in found.items()}
    slow = {key: statistics.median(one.p99 for one in all_) for key, all_ in found.items()}
    for what, beside in ((_GET, _GET), (_LIST, _LIST), (_SAME, _GET)):
        our, their = rate[what, "taskherd api"], rate[beside, _PEER]
        ours_told = f"{our:,.0f}/s, p99 {slow[what, 'taskherd api'] * 1e3:.1f} ms"
        theirs_told = f"{their:,.0f}/s, p99 {slow[beside, _PEER] * 1e3:.1f} ms"
        results.rows.append(Row(f"{what}, {tasks:,} tasks", ours_told, _PEER, theirs_told, our / their, 4))
    return {what: rate[what, "taskherd api"] for what in (_GET, _LIST)}
