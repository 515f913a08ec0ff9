from __future__ import annotations

import asyncio
import signal
import time
from random import Random

import pytest

from taskherd.observability.failpoints import Failpoint
from tests.chaos import workload
from tests.chaos.fault_injection import add_workload, until_committed
from tests.chaos.figures import Figures
from tests.chaos.workload import ChaosWorkload
from tests.harness.chaos import ChaosHarness

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

REPORT_FAILPOINTS = list(Failpoint)[: list(Failpoint).index(Failpoint.POST_CLAIM)]
"""The failpoints that a report reaches in a worker."""
ROUNDS = 2
KILLS_PER_FAILPOINT = 25
STOPS_WITHIN = 30.0
FULL_SIZE = [pytest.mark.chaos, pytest.mark.timeout(3600)]


async def test_nothing_is_lost_or_duplicated_by_kills_at_every_failpoint_in_turn(
    harness: ChaosHarness, figures: Figures
) -> None:
    """One worker after the other dies, each at another failpoint; the last one ends at the fold of all inputs."""
    failpoints = REPORT_FAILPOINTS * ROUNDS
    work = workload.build(harness.names, Random(1), tasks=48)
    harness.add_to_ledger(work)
    *parts, last = work.split(len(failpoints) + 1)
    for failpoint, part in zip(failpoints, parts, strict=True):
        await harness.send(part)
        await harness.run_to_failpoint(failpoint)
        await harness.delete_existing(work)
    await harness.send(last)
    before = await harness.committed_entries()
    worker = await harness.start()
    seconds = await harness.seconds_to_progress(before)
    await harness.finish(work, worker)
    await figures.record_run(
        harness, "worker kill -9 at each failpoint in turn", faults=len(failpoints), seconds=[seconds]
    )


@pytest.mark.chaos
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("failpoint", REPORT_FAILPOINTS)
async def test_nothing_is_lost_or_duplicated_by_repeated_kills_at_one_failpoint(
    harness: ChaosHarness, figures: Figures, failpoint: Failpoint
) -> None:
    """The last worker ends at the fold of all inputs, and every change is published."""
    work = workload.build(harness.names, Random(str(failpoint)), tasks=64)
    harness.add_to_ledger(work)
    *parts, last = work.split(KILLS_PER_FAILPOINT + 1)
    for part in parts:
        await harness.send(part)
        await harness.run_to_failpoint(failpoint)
        await harness.delete_existing(work)
    await harness.send(last)
    before = await harness.committed_entries()
    worker = await harness.start()
    seconds = await harness.seconds_to_progress(before)
    await harness.finish(work, worker)
    await figures.record_run(harness, f"worker kill -9 at {failpoint}", faults=KILLS_PER_FAILPOINT, seconds=[seconds])


@pytest.mark.parametrize("times", [1, pytest.param(100, marks=FULL_SIZE)])
async def test_a_worker_stopped_under_load_causes_no_redelivery(
    harness: ChaosHarness, figures: Figures, times: int
) -> None:
    """After SIGTERM the worker processes all its deliveries and exits with 0 in time; the next one continues."""
    everything = ChaosWorkload()
    durations = []
    redelivered = 0.0
    for number in range(times):
        work = add_workload(harness, f"stop {number}", tasks=24)
        everything.to_delete += work.to_delete
        await harness.send(work.messages)
        before = await harness.committed_entries()
        worker = await harness.start(batch_most="10", prefetch="100")
        await harness.seconds_to_progress(before)
        redelivered += await worker.metric("taskherd_redeliveries_total")
        stopped_at = time.monotonic()
        await harness.stop_worker(worker, STOPS_WITHIN)
        durations.append(time.monotonic() - stopped_at)
    counted_by_broker = await harness.redelivered()
    remaining = await harness.remaining_messages()
    assert remaining, "the worker had processed everything before it was stopped"
    assert not any(remaining), "messages that the worker had received were requeued"
    assert redelivered == 0
    assert not counted_by_broker
    await harness.finish(everything, await harness.start())
    note = f"exit code 0 within {max(durations):.1f} s each time"
    await figures.record_run(
        harness, "worker SIGTERM under load", faults=times, redelivered=counted_by_broker, note=note
    )


@pytest.mark.parametrize("times", [5, pytest.param(60, marks=FULL_SIZE)])
async def test_a_crash_loop_dead_letters_no_valid_message(harness: ChaosHarness, figures: Figures, times: int) -> None:
    """Workers die again and again with the same messages, before and after commit; none is dead-lettered."""
    work = add_workload(harness, "crash loop", tasks=16)
    await harness.send(work.messages)
    for number in range(times):
        await harness.run_to_failpoint(Failpoint.RECEIVE if number % 2 else Failpoint.POST_COMMIT)
    await harness.finish(work, await harness.start())
    note = "the same backlog each time; no valid message dead-lettered"
    await figures.record_run(harness, "worker kill -9 in a crash loop", faults=times, note=note)


@pytest.mark.chaos
@pytest.mark.timeout(300)
async def test_a_worker_frozen_for_a_minute_recovers(harness: ChaosHarness, figures: Figures) -> None:
    """A worker that is frozen under load for a minute and then continues loses and duplicates nothing."""
    work = add_workload(harness, "frozen worker")
    worker = await harness.start()
    first, second = work.split(2)
    await harness.send(first)
    await until_committed(harness, 0.1)
    worker.signal(signal.SIGSTOP)
    await harness.send(second)
    before = await harness.committed_entries()
    await asyncio.sleep(60)
    worker.signal(signal.SIGCONT)
    seconds = await harness.seconds_to_progress(before)
    await harness.finish(work, worker)
    await figures.record_run(harness, "worker frozen (SIGSTOP) for 60 s", faults=1, seconds=[seconds])
