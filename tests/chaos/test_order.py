from __future__ import annotations

import asyncio
from functools import partial
from operator import le
from random import Random
from typing import TYPE_CHECKING
from uuid import UUID

import asyncpg
import pytest

from taskherd.broker.publisher import OutgoingMessage
from tests.chaos import workload
from tests.chaos.figures import Figures
from tests.chaos.workload import ChaosWorkload
from tests.harness import histories
from tests.harness.chaos import ChaosHarness, WorkerProcess, until

if TYPE_CHECKING:
    from taskherd.domain.reports import Report

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

FULL_SIZE = [pytest.mark.chaos, pytest.mark.timeout(1800)]
WINDOW = 150
"""How far a report of a hot task may move ahead of others."""


def shuffled_histories(harness: ChaosHarness, random: Random, count: int) -> ChaosWorkload:
    """Return ``count`` histories, each of another task: permuted, repeated, and split into arrays that tasks share."""
    work = ChaosWorkload()
    pieces: list[list[Report]] = []
    for number in range(count):
        task_id = UUID(int=random.getrandbits(128), version=4)
        history = histories.history(random, task_id)
        work.reports[task_id] = history
        pieces += histories.shuffled_batches(random, history)
        work.messages.append(workload.create(harness.names, task_id, f"Order {number}"))
    random.shuffle(pieces)
    while pieces:
        size = random.choice((1, 1, 1, 2, 3))
        joined = [report for piece in pieces[:size] for report in piece][:1000]
        work.messages.append(workload.message(harness.names, workload.encode(joined)))
        work.messages += [
            workload.message(harness.names, workload.encode([report])) for report in random.sample(joined, 1)
        ]
        pieces = pieces[size:]
    random.shuffle(work.messages)
    return work


def hot_tasks(harness: ChaosHarness, random: Random, tasks: int, statuses: int) -> ChaosWorkload:
    """Return many reports about few tasks, almost in order, so that nearly every batch changes nearly every task."""
    work = ChaosWorkload()
    reports: list[Report] = []
    for number in range(tasks):
        task_id = UUID(int=random.getrandbits(128), version=4)
        work.reports[task_id] = workload.regular(task_id, statuses)
        reports += work.reports[task_id]
        work.messages.append(workload.create(harness.names, task_id, f"Hot {number}"))
    reports += random.sample(reports, len(reports) // 10)
    reports.sort(key=lambda report: report.sort_key[1] % 100 * WINDOW + random.randrange(2 * WINDOW))
    work.messages += [workload.message(harness.names, workload.encode([report])) for report in reports]
    return work


async def start_workers(harness: ChaosHarness, count: int) -> list[WorkerProcess]:
    """Start ``count`` workers with a small prefetch, so that all of them receive reports."""
    workers = [await harness.start(prefetch="120", batch_most="60") for _ in range(count)]
    for worker in workers:
        await worker.until_ready(60)
    return workers


async def check_all_busy(workers: list[WorkerProcess]) -> None:
    """Check that each of the workers has processed reports."""
    assert all([await worker.metric("taskherd_reports_total") > 0 for worker in workers])


@pytest.mark.parametrize(("many", "workers"), [(60, 2), pytest.param(1_000, 3, marks=FULL_SIZE)])
async def test_histories_in_any_order_end_at_the_pure_fold(
    harness: ChaosHarness, figures: Figures, many: int, workers: int
) -> None:
    """Shuffled, repeated, in arrays or single, before and after the create: several workers end at the fold."""
    work = shuffled_histories(harness, Random(many), many)
    harness.add_to_ledger(work)
    running = await start_workers(harness, workers)
    await harness.send(work.messages, within=300)
    await harness.until_settled(within=40 + many)
    await check_all_busy(running)
    for worker in running[1:]:
        await harness.stop_worker(worker)
    await harness.finish(work, running[0])
    reports = sum(map(len, work.reports.values()))
    note = f"{reports:,} reports, repeated and shuffled, {workers} workers"
    await figures.record_run(harness, "reports in random order", faults=many, note=note)


@pytest.mark.parametrize(("statuses", "deadlocks"), [(25, 2), pytest.param(700, 25, marks=FULL_SIZE)])
async def test_two_workers_on_hot_tasks_lose_no_update(
    harness: ChaosHarness, figures: Figures, statuses: int, deadlocks: int
) -> None:
    """Two workers process reports of the same 50 tasks and run into deadlocks; every report is applied once."""
    work = hot_tasks(harness, Random(statuses), tasks=50, statuses=statuses)
    harness.add_to_ledger(work)
    running = await start_workers(harness, 2)
    creates, reports = work.messages[:50], work.messages[50:]
    await harness.send(creates)
    await until(harness.ledger.rows, lambda rows: len(rows.tasks) == len(creates))
    sending = asyncio.create_task(_in_parts(harness, running, reports, 4 * deadlocks))
    connection = await asyncpg.connect(harness.ledger.database_url, timeout=5, command_timeout=20)
    try:
        aborted = 0
        while aborted < deadlocks and not sending.done():
            aborted += await _deadlock(connection)
    finally:
        await connection.close(timeout=5)
    await sending
    await harness.until_settled(within=40 + statuses)
    assert aborted >= deadlocks, f"only {aborted} of {deadlocks} deadlocks occurred before all was sent"
    await check_all_busy(running)
    await harness.stop_worker(running[1])
    await harness.finish(work, running[0])
    events = len((await harness.ledger.rows()).events)
    note = f"{len(reports):,} reports, {events:,} versions; faults: deadlocks that aborted a worker's transaction"
    await figures.record_run(harness, "two workers on the same 50 tasks", faults=aborted, note=note)


async def _in_parts(
    harness: ChaosHarness, running: list[WorkerProcess], messages: list[OutgoingMessage], parts: int
) -> None:
    """Send the messages in parts, each after all earlier ones are processed."""
    size = 1 + len(messages) // parts

    async def processed() -> float:
        return sum([await worker.metric("taskherd_reports_total") for worker in running])

    for start in range(0, len(messages), size):
        await harness.send(messages[start : start + size])
        await until(processed, partial(le, start))


async def _deadlock(connection: asyncpg.Connection) -> int:
    """Cause a deadlock with a worker, and return the number of deadlocks: 1, or 0 if it did not occur.

    Lock the last task, and when a worker waits for it, lock the first one, which the worker has locked. The worker has
    waited for longer, so PostgreSQL aborts its transaction.
    """
    first, last = await connection.fetchrow("SELECT min(id::text)::uuid, max(id::text)::uuid FROM tasks")
    before = await _deadlocks(connection)
    async with connection.transaction():
        await connection.execute("SET LOCAL deadlock_timeout = '15s'")
        await connection.execute("SELECT FROM tasks WHERE id = $1 FOR UPDATE", last)
        async with asyncio.timeout(10):
            while not await connection.fetchval(_WAITING):  # noqa: ASYNC110 - a lock sends no notification
                await asyncio.sleep(0.01)
        await connection.execute("SELECT FROM tasks WHERE id = $1 FOR UPDATE", first)
    return int(await _deadlocks(connection) > before)


_WAITING = "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY(pg_blocking_pids(pid))"


async def _deadlocks(connection: asyncpg.Connection) -> int:
    await connection.execute("SELECT pg_stat_clear_snapshot()")
    deadlocks: int = await connection.fetchval(
        "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    )
    return deadlocks
