from __future__ import annotations

import asyncio
import signal
import time
from random import Random

import pytest

from taskherd.observability.failpoints import Failpoint
from tests.chaos import workload
from tests.chaos.disturbance import load, under_way
from tests.chaos.figures import Figures
from tests.chaos.workload import Workload
from tests.harness.chaos import ChaosHarness

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

ROUNDS = 2
EACH = 25
LEAVES_WITHIN = 30.0
OFTEN = [pytest.mark.chaos, pytest.mark.timeout(3600)]


async def test_workers_killed_at_every_place_in_turn_lose_and_double_nothing(
    stage: ChaosHarness, figures: Figures
) -> None:
    """One worker after the other dies, each at another place; the last one ends at the fold of all inputs."""
    places = list(Failpoint) * ROUNDS
    work = workload.build(stage.names, Random(1), tasks=48)
    stage.enter(work)
    *parts, last = work.parts(len(places) + 1)
    for place, part in zip(places, parts, strict=True):
        await stage.send(part)
        await stage.dies(place)
        await stage.delete_existing(work)
    await stage.send(last)
    before = await stage.progress()
    worker = await stage.start()
    seconds = await stage.first_progress(before)
    await stage.finished(work, worker)
    await figures.of(stage, "worker kill -9 at each place in turn", faults=len(places), seconds=[seconds])


@pytest.mark.chaos
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("place", list(Failpoint))
async def test_workers_killed_again_and_again_at_one_place_lose_and_double_nothing(
    stage: ChaosHarness, figures: Figures, place: Failpoint
) -> None:
    """Wherever a worker dies, and however often, the next one ends at the fold of all inputs, each change told."""
    work = workload.build(stage.names, Random(str(place)), tasks=64)
    stage.enter(work)
    *parts, last = work.parts(EACH + 1)
    for part in parts:
        await stage.send(part)
        await stage.dies(place)
        await stage.delete_existing(work)
    await stage.send(last)
    before = await stage.progress()
    worker = await stage.start()
    seconds = await stage.first_progress(before)
    await stage.finished(work, worker)
    await figures.of(stage, f"worker kill -9 at {place}", faults=EACH, seconds=[seconds])


@pytest.mark.parametrize("times", [1, pytest.param(100, marks=OFTEN)])
async def test_a_worker_asked_to_leave_under_load_hands_nothing_back(
    stage: ChaosHarness, figures: Figures, times: int
) -> None:
    """SIGTERM ends the worker with 0 within the grace time, all it was handed is done, and the next does the rest."""
    everything = Workload()
    exits = []
    redelivered = 0.0
    for number in range(times):
        work = load(stage, f"leave {number}", tasks=24)
        everything.doomed += work.doomed
        await stage.send(work.messages)
        before = await stage.progress()
        worker = await stage.start(batch_most="10", prefetch="100")
        await stage.first_progress(before)
        redelivered += await worker.metric("taskherd_redeliveries_total")
        asked = time.monotonic()
        await stage.stop_worker(worker, LEAVES_WITHIN)
        exits.append(time.monotonic() - asked)
    asked_broker = await stage.redelivered()
    left = await stage.remaining_messages()
    assert left, "the worker was done with everything before it was asked to leave"
    assert not any(left), "what was handed to the worker came back"
    assert redelivered == 0
    assert not asked_broker
    await stage.finished(everything, await stage.start())
    told = f"exit code 0 within {max(exits):.1f} s each time"
    await figures.of(stage, "worker SIGTERM under load", faults=times, redelivered=asked_broker, note=told)


@pytest.mark.parametrize("times", [5, pytest.param(60, marks=OFTEN)])
async def test_crash_loops_over_a_backlog_bury_no_healthy_message(
    stage: ChaosHarness, figures: Figures, times: int
) -> None:
    """However often workers die over the same messages, before and after commit, none of these is dead-lettered."""
    work = load(stage, "crash loop", tasks=16)
    await stage.send(work.messages)
    for number in range(times):
        await stage.dies(Failpoint.RECEIVE if number % 2 else Failpoint.POST_COMMIT)
    await stage.finished(work, await stage.start())
    told = "the same backlog each time; no healthy message in the dead letters"
    await figures.of(stage, "worker kill -9 in a crash loop", faults=times, note=told)


@pytest.mark.chaos
@pytest.mark.timeout(300)
async def test_a_worker_frozen_for_a_minute_comes_back(stage: ChaosHarness, figures: Figures) -> None:
    """A worker that is stopped under load for a minute, and then goes on, is as if nothing had been."""
    work = load(stage, "frozen worker")
    worker = await stage.start()
    first, second = work.parts(2)
    await stage.send(first)
    await under_way(stage, 0.1)
    worker.signal(signal.SIGSTOP)
    await stage.send(second)
    before = await stage.progress()
    await asyncio.sleep(60)
    worker.signal(signal.SIGCONT)
    seconds = await stage.first_progress(before)
    await stage.finished(work, worker)
    await figures.of(stage, "worker SIGSTOP for 60 s", faults=1, seconds=[seconds])
