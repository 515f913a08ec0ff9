from __future__ import annotations

import asyncio
import math
import signal
from random import Random

import aio_pika
import pytest

from taskherd.dev.postgres import PostgresNode
from taskherd.dev.rabbitmq import RabbitNode
from taskherd.observe.failpoints import Failpoint
from tests.chaos import workload
from tests.chaos.stage import GRACE, Stage, until
from tests.chaos.workload import Workload

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]

OFTEN = [pytest.mark.chaos, pytest.mark.timeout(1800)]
PIECES = 120


def load(stage: Stage, seed: str, *, tasks: int = 40) -> Workload:
    """A workload that takes the worker a moment, already in the ledger."""
    work = workload.build(stage.names, Random(seed), tasks=tasks, statuses=20)
    stage.enter(work)
    return work


async def trickle(stage: Stage, work: Workload) -> None:
    """Send it piece after piece, so that for some seconds there is always something under way."""
    for piece in work.parts(PIECES):
        await stage.send(piece)
        await asyncio.sleep(0.02)


async def under_way(stage: Stage, share: float) -> None:
    """Wait until more of the log is committed, by such a share of the latest workload, than there was before it."""
    wanted = sum(report.type == "task.log" for told in stage.ledger.reports.values() for report in told)
    wanted = round(wanted * share / math.ceil(share))
    await until(stage.progress, lambda entries: entries >= wanted)


async def test_a_worker_asked_to_leave_under_load_hands_nothing_back(stage: Stage) -> None:
    """SIGTERM ends the worker with 0 within the grace time, all it was handed is done, and the next does the rest."""
    work = load(stage, "leave", tasks=100)
    await stage.send(work.messages)
    first = await stage.start(batch_most="20", prefetch="300")
    await under_way(stage, 0.05)
    await stage.leaves(first, GRACE)
    left = await stage.left()
    assert left, "the worker was done with everything before it was asked to leave"
    assert not any(left), "what was handed to the worker came back"
    await stage.finished(work, await stage.start())


@pytest.mark.parametrize("times", [5, pytest.param(60, marks=OFTEN)])
async def test_crash_loops_over_a_backlog_bury_no_healthy_message(stage: Stage, times: int) -> None:
    """However often workers die over the same messages, before and after commit, none of these is dead-lettered."""
    work = load(stage, "crash loop", tasks=16)
    await stage.send(work.messages)
    for number in range(times):
        await stage.dies(Failpoint.RECEIVE if number % 2 else Failpoint.POST_COMMIT)
    await stage.finished(work, await stage.start())


@pytest.mark.parametrize("times", [1, pytest.param(20, marks=OFTEN)])
async def test_a_killed_broker_costs_nothing_but_time(breakable_stage: Stage, rabbit: RabbitNode, times: int) -> None:
    """The broker dies under load; the worker waits, comes back by itself, and everything is there, once."""
    stage = breakable_stage
    worker = await stage.start()
    await worker.ready()
    await stage.survivable()
    for number in range(times):
        work = load(stage, f"broker {number}")
        sending = asyncio.create_task(trickle(stage, work))
        await under_way(stage, number + 0.2)
        assert not sending.done()
        rabbit.kill()
        await asyncio.to_thread(rabbit.restart)
        await sending
        await stage.wound_up(work)
    await stage.leaves(worker)
    assert await stage.ledger.violations() == []


@pytest.mark.parametrize("times", [1, pytest.param(20, marks=OFTEN)])
async def test_a_restarted_database_costs_nothing_but_time(
    breakable_stage: Stage, postgres: PostgresNode, times: int
) -> None:
    """PostgreSQL is shut down at once under load; deliveries are held, and none goes to the dead letters."""
    stage = breakable_stage
    worker = await stage.start()
    await worker.ready()
    await stage.survivable()
    for number in range(times):
        work = load(stage, f"database {number}")
        sending = asyncio.create_task(trickle(stage, work))
        await under_way(stage, number + 0.2)
        assert not sending.done()
        await asyncio.to_thread(postgres.ctl, "stop", "-m", "immediate")
        await asyncio.to_thread(postgres.restart)
        await sending
        await stage.wound_up(work)
    await stage.leaves(worker)
    assert await stage.ledger.violations() == []


async def test_a_worker_whose_queue_is_deleted_makes_it_again(stage: Stage) -> None:
    """The queue of the reports is deleted under the worker; it makes it again, and does what is sent from then on."""
    worker = await stage.start()
    before = load(stage, "before", tasks=12)
    await stage.send(before.messages)
    await stage.wound_up(before)
    async with await aio_pika.connect(stage.ledger.amqp_url, timeout=10) as connection:
        await (await connection.channel()).queue_delete(stage.names.reports, timeout=10)
    after = load(stage, "after", tasks=12)
    await stage.send(after.messages, within=15)
    await stage.finished(after, worker)


@pytest.mark.chaos
@pytest.mark.timeout(300)
async def test_a_worker_frozen_for_a_minute_comes_back(stage: Stage) -> None:
    """A worker that is stopped under load for a minute, and then goes on, is as if nothing had been."""
    work = load(stage, "frozen worker")
    worker = await stage.start()
    first, second = work.parts(2)
    await stage.send(first)
    await under_way(stage, 0.1)
    worker.signal(signal.SIGSTOP)
    await stage.send(second)
    await asyncio.sleep(60)
    worker.signal(signal.SIGCONT)
    await stage.finished(work, worker)
