from __future__ import annotations

import asyncio
from functools import partial
from operator import le
from random import Random
from typing import TYPE_CHECKING
from uuid import UUID

import asyncpg
import pytest

from taskherd.broker.publish import OutgoingMessage
from tests.chaos import workload
from tests.chaos.figures import Figures
from tests.chaos.workload import Workload
from tests.harness import histories
from tests.harness.chaos import ChaosHarness, WorkerProcess, until

if TYPE_CHECKING:
    from taskherd.domain.reports import Report

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

OFTEN = [pytest.mark.chaos, pytest.mark.timeout(1800)]
WINDOW = 150
"""How far a report of a hot task may overtake others."""


def strewn(stage: ChaosHarness, dice: Random, many: int) -> Workload:
    """So many histories, each of a task of its own, permuted, repeated, and cut into arrays that tasks share."""
    work = Workload()
    pieces: list[list[Report]] = []
    for place in range(many):
        task_id = UUID(int=dice.getrandbits(128), version=4)
        told = histories.history(dice, task_id)
        work.reports[task_id] = told
        pieces += histories.delivered(dice, told)
        work.messages.append(workload.create(stage.names, task_id, f"Order {place}"))
    dice.shuffle(pieces)
    while pieces:
        size = dice.choice((1, 1, 1, 2, 3))
        joined = [report for piece in pieces[:size] for report in piece][:1000]
        work.messages.append(workload.message(stage.names, workload.said(joined)))
        work.messages += [workload.message(stage.names, workload.said([one])) for one in dice.sample(joined, 1)]
        pieces = pieces[size:]
    dice.shuffle(work.messages)
    return work


def hot(stage: ChaosHarness, dice: Random, tasks: int, statuses: int) -> Workload:
    """Reports of few tasks, many of each and almost in order, so that nearly every batch changes nearly every task."""
    work = Workload()
    reports: list[Report] = []
    for place in range(tasks):
        task_id = UUID(int=dice.getrandbits(128), version=4)
        work.reports[task_id] = workload.orderly(task_id, statuses)
        reports += work.reports[task_id]
        work.messages.append(workload.create(stage.names, task_id, f"Hot {place}"))
    reports += dice.sample(reports, len(reports) // 10)
    reports.sort(key=lambda report: report.key[1] % 100 * WINDOW + dice.randrange(2 * WINDOW))
    work.messages += [workload.message(stage.names, workload.said([report])) for report in reports]
    return work


async def shared(stage: ChaosHarness, many: int) -> list[WorkerProcess]:
    """So many ready workers, each taking little at a time, so that all of them get their part."""
    workers = [await stage.start(prefetch="120", batch_most="60") for _ in range(many)]
    for worker in workers:
        await worker.ready(60)
    return workers


async def all_busy(workers: list[WorkerProcess]) -> None:
    """See that each of the workers has taken reports."""
    assert all([await worker.metric("taskherd_reports_total") > 0 for worker in workers])


@pytest.mark.parametrize(("many", "workers"), [(60, 2), pytest.param(1_000, 3, marks=OFTEN)])
async def test_histories_in_any_order_end_as_the_pure_fold(
    stage: ChaosHarness, figures: Figures, many: int, workers: int
) -> None:
    """Shuffled, doubled, in arrays and singly, before and after the create: workers side by side end at the fold."""
    work = strewn(stage, Random(many), many)
    stage.enter(work)
    running = await shared(stage, workers)
    await stage.send(work.messages, within=300)
    await stage.settled(within=40 + many)
    await all_busy(running)
    for worker in running[1:]:
        await stage.stop_worker(worker)
    await stage.finished(work, running[0])
    told = sum(map(len, work.reports.values()))
    note = f"{told:,} reports, doubled and shuffled, {workers} workers"
    await figures.of(stage, "histories in any order", faults=many, note=note)


@pytest.mark.parametrize(("statuses", "deadlocks"), [(25, 2), pytest.param(700, 25, marks=OFTEN)])
async def test_two_workers_on_hot_tasks_lose_no_update(
    stage: ChaosHarness, figures: Figures, statuses: int, deadlocks: int
) -> None:
    """Two workers take turns on the same 50 tasks, and lose races on purpose; every report counts, each change once."""
    work = hot(stage, Random(statuses), tasks=50, statuses=statuses)
    stage.enter(work)
    running = await shared(stage, 2)
    creates, rest = work.messages[:50], work.messages[50:]
    await stage.send(creates)
    await until(stage.ledger.rows, lambda rows: len(rows.tasks) == len(creates))
    sending = asyncio.create_task(_in_parts(stage, running, rest, 4 * deadlocks))
    connection = await asyncpg.connect(stage.ledger.database_url, timeout=5, command_timeout=20)
    try:
        lost = 0
        while lost < deadlocks and not sending.done():
            lost += await _deadlock(connection)
    finally:
        await connection.close(timeout=5)
    await sending
    await stage.settled(within=40 + statuses)
    assert lost >= deadlocks, f"the workers lost only {lost} of {deadlocks} races before all was sent"
    await all_busy(running)
    await stage.stop_worker(running[1])
    await stage.finished(work, running[0])
    events = len((await stage.ledger.rows()).events)
    note = f"{len(rest):,} reports, {events:,} versions; times: deadlocks that a worker lost"
    await figures.of(stage, "two workers on 50 hot tasks", faults=lost, note=note)


async def _in_parts(
    stage: ChaosHarness, running: list[WorkerProcess], messages: list[OutgoingMessage], parts: int
) -> None:
    """Send the messages part after part, each once all before it are taken."""
    size = 1 + len(messages) // parts

    async def taken() -> float:
        return sum([await worker.metric("taskherd_reports_total") for worker in running])

    for start in range(0, len(messages), size):
        await stage.send(messages[start : start + size])
        await until(taken, partial(le, start))


async def _deadlock(connection: asyncpg.Connection) -> int:
    """Lock a late task, and once a worker waits for it, want an early one that it holds; whether a deadlock came of it.

    The worker began to wait first, so it is the one that PostgreSQL picks.
    """
    first, last = await connection.fetchrow("SELECT min(id::text)::uuid, max(id::text)::uuid FROM tasks")
    before = await _deadlocks(connection)
    async with connection.transaction():
        await connection.execute("SET LOCAL deadlock_timeout = '15s'")
        await connection.execute("SELECT FROM tasks WHERE id = $1 FOR UPDATE", last)
        async with asyncio.timeout(10):
            while not await connection.fetchval(_WAITING):  # noqa: ASYNC110 - a lock tells nobody
                await asyncio.sleep(0.01)
        await connection.execute("SELECT FROM tasks WHERE id = $1 FOR UPDATE", first)
    return int(await _deadlocks(connection) > before)


_WAITING = "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY(pg_blocking_pids(pid))"


async def _deadlocks(connection: asyncpg.Connection) -> int:
    await connection.execute("SELECT pg_stat_clear_snapshot()")
    found: int = await connection.fetchval("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    return found
