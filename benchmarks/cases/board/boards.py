"""Many boards at once: the CPU of the API that feeds them, and the time from a report to its arrival at a board."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

import psutil

from benchmarks.cases.board import changing, home
from benchmarks.cases.board.changing import REPORTS_PER_CHANGE
from benchmarks.cases.board.feeds import READY, FeedPlan, Received
from benchmarks.cases.board.figures import Figure, percentile
from benchmarks.harness.api_databases import TASKHERD_API, make_token, running_api_process
from benchmarks.harness.http_load import request
from benchmarks.harness.services import connected
from taskherd.api.http import user_tokens

if TYPE_CHECKING:
    from benchmarks.cases.board.plan import Plan
    from benchmarks.harness.services import BenchmarkServices

TASKS: Final = 1_000
"""Minimum number of tasks; each board has at least one."""
MOST: Final = 1_000.0
"""Milliseconds, p99 from a report to the arrival of its change."""
_LATE: Final = 60.0
"""Seconds for connecting, and after the last change."""


async def measure(plan: Plan) -> list[Figure]:
    """Open the feeds in a separate process, and make changes."""
    services, owners = plan.services, plan.boards
    tasks = -(-TASKS // owners) * owners
    await services.prepare_tasks(tasks, owners)
    if plan.everyone:
        await home.add_admin(services)
        requests = [_open("", await make_token(services, home.ADMIN))] * plan.boards
    else:
        requests = [_open("&q=owner%3Ame", token) for token in await _tokens(services)]
    changes = int(plan.rate * plan.seconds)
    events = changes * (plan.boards if plan.everyone else 1)
    with running_api_process(services, TASKHERD_API) as (process, port):
        feed_plan = FeedPlan(port, requests, REPORTS_PER_CHANGE * plan.rate, events, plan.seconds + _LATE)
        async with changing.running_worker(services) as worker:
            received, cpu, resident = await _run(plan, feed_plan, process, worker, tasks)
    what = f"{plan.boards:,} boards of {'everyone' if plan.everyone else 'an owner each'}, {plan.rate} changes/s"
    began = round(worker.began * 1e3)
    delays = {int(delay) - began: count for delay, count in received.delays.items()}
    plan.log(f"boards: {received.events:,} of {feed_plan.events:,} events, {received.resets} resets")
    missing = f"{received.events:,} events of {feed_plan.events:,} changes, {received.resets} resets"
    return [
        Figure(f"{what}: CPU of the API", 100 * cpu, "% of a core", None, f"{resident / 2**20:.0f} MiB"),
        Figure(f"{what}: report to arrival, p50", percentile(delays, 0.5), "ms"),
        Figure(f"{what}: report to arrival, p99", percentile(delays, 0.99), "ms", MOST, missing),
    ]


def _open(query: str, token: str) -> str:
    """Return the request with which a board opens its feed."""
    return request(
        "GET", f"/api/v2/tasks/watch?snapshot=false&include=state_since{query}", token, "Accept: text/event-stream\r\n"
    )


async def _tokens(services: BenchmarkServices) -> list[str]:
    """Return a new token of each owner."""
    async with connected(services.database_url) as connection:
        owners = await connection.fetch("SELECT id FROM users WHERE username LIKE 'owner-%' ORDER BY id")
        made = [user_tokens.generate() for _ in owners]
        await connection.executemany(
            "INSERT INTO api_tokens (id, user_id, secret_hash) VALUES ($1, $2, $3)",
            [(stored.id, owner["id"], stored.secret_hash) for (_, stored), owner in zip(made, owners, strict=True)],
        )
    return [token for token, _ in made]


async def _run(
    plan: Plan,
    feed_plan: FeedPlan,
    api: subprocess.Popen[bytes],
    worker: changing.Changes,
    tasks: int,
) -> tuple[Received, float, int]:
    """Return what arrived, the API's share of a core while changes were made, and its memory in bytes at the end."""
    feeds = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "benchmarks.cases.board.feeds"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        limit=1 << 24,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)},
    )
    assert feeds.stdin is not None
    assert feeds.stdout is not None
    async with asyncio.timeout(3 * _LATE + 2 * plan.seconds):
        feeds.stdin.write(json.dumps(asdict(feed_plan)).encode() + b"\n")
        ready = (await feeds.stdout.readline()).decode().strip()
        if ready != READY:
            raise RuntimeError(f"the feeds did not open: {ready}")
        plan.log(f"boards: {len(feed_plan.requests):,} feeds are open")
        measured, loop = psutil.Process(api.pid), asyncio.get_running_loop()
        began, before = loop.time(), _cpu(measured)
        await worker.publish(plan.services, tasks, plan.rate, plan.seconds)
        cpu = (_cpu(measured) - before) / (loop.time() - began)
        received = Received(**json.loads(await feeds.stdout.readline()))
        resident = measured.memory_info().rss
        await feeds.wait()
    return received, cpu, resident


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
