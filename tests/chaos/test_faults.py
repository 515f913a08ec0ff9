from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

import aio_pika
import pytest

from taskherd.dev.services import Services
from taskherd.dev.sources import Broker, Database
from tests.chaos.disturbance import disturbed, load, trickle
from tests.chaos.figures import Figures
from tests.chaos.proxy import cutting
from tests.harness.chaos import SETTLES_WITHIN, ChaosHarness, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

OFTEN = [pytest.mark.chaos, pytest.mark.timeout(3600)]
RECOVERS_WITHIN = 40.0


@pytest.mark.parametrize("times", [1, pytest.param(20, marks=OFTEN)])
async def test_a_killed_broker_costs_nothing_but_time(
    breakable_stage: ChaosHarness, rabbit: Broker, figures: Figures, times: int
) -> None:
    """The broker dies under load; the worker waits, comes back by itself, and everything is there, once."""
    stage = breakable_stage
    worker = await stage.start()
    await worker.ready()
    await stage.survivable()
    seconds = []
    for number in range(times):
        async with disturbed(stage, "broker", number):
            rabbit.kill()
            await asyncio.to_thread(rabbit.restart)
            seconds.append(await stage.first_progress())
    redelivered = await worker.metric("taskherd_redeliveries_total")
    await stage.stop_worker(worker)
    assert await stage.ledger.violations() == []
    await figures.of(stage, "RabbitMQ kill -9 and restart", faults=times, redelivered=redelivered, seconds=seconds)


@pytest.mark.parametrize(
    ("times", "away"),
    [(1, 0), pytest.param(20, 0, marks=OFTEN), pytest.param(1, 30, marks=OFTEN)],
)
async def test_a_database_away_costs_nothing_but_time(
    breakable_stage: ChaosHarness, postgres: Database, figures: Figures, times: int, away: int
) -> None:
    """PostgreSQL is shut down at once under load; deliveries are held, and none goes to the dead letters."""
    stage = breakable_stage
    worker = await stage.start()
    await worker.ready()
    await stage.survivable()
    seconds = []
    for number in range(times):
        async with disturbed(stage, "database", number):
            await asyncio.to_thread(postgres.abort)
            if away:
                await worker.unready()
                await asyncio.sleep(away)
            await asyncio.to_thread(postgres.restart)
            seconds.append(await stage.first_progress())
            await worker.ready(RECOVERS_WITHIN)
    await stage.stop_worker(worker)
    assert await stage.ledger.violations() == []
    row = f"PostgreSQL away for {away} s" if away else "PostgreSQL stopped at once and restarted"
    await figures.of(stage, row, faults=times, seconds=seconds, note="no dead letter")


@contextmanager
def frozen(services: Services, service: str) -> Iterator[None]:
    """Freeze a service while the body runs."""
    node = services.rabbit if service == "RabbitMQ" else services.postgres
    assert node is not None, f"only a {service} of our own can be frozen"
    node.freeze()
    try:
        yield
    finally:
        node.thaw()


@pytest.mark.parametrize("service", ["RabbitMQ", "PostgreSQL"])
@pytest.mark.parametrize("length", [0, pytest.param(60, marks=OFTEN)])
async def test_a_frozen_service_is_noticed_and_its_return_too(
    breakable_stage: ChaosHarness, breakable: Services, figures: Figures, service: str, length: int
) -> None:
    """A service that answers nothing makes the worker unready; once it answers again, the worker goes on by itself."""
    stage = breakable_stage
    worker = await stage.start()
    await worker.ready()
    await stage.survivable()
    async with disturbed(stage, service, 0):
        began = time.monotonic()
        with frozen(breakable, service):
            await worker.unready()
            noticed = time.monotonic() - began
            await asyncio.sleep(max(0.0, length - noticed))
        seconds = await stage.first_progress()
        await worker.ready(RECOVERS_WITHIN)
    assert seconds <= RECOVERS_WITHIN
    await stage.stop_worker(worker)
    assert await stage.ledger.violations() == []
    told = f"unready after {noticed:.1f} s, ready again by itself"
    row = f"{service} SIGSTOP for {length} s" if length else f"{service} SIGSTOP until unready"
    await figures.of(stage, row, faults=1, seconds=[seconds], note=told)


@pytest.mark.parametrize("length", [0, pytest.param(60, marks=OFTEN)])
async def test_a_memory_alarm_holds_up_what_is_told_but_not_what_is_taken(
    breakable_stage: ChaosHarness, rabbit: Broker, figures: Figures, length: int
) -> None:
    """While the broker lets nobody publish, reports are committed and acked; the events follow when it is over."""
    stage = breakable_stage
    worker = await stage.start()
    await worker.ready()
    work = load(stage, "alarm", nasty=False)
    worker.signal(signal.SIGSTOP)
    await stage.send(work.messages)
    with alarmed(rabbit):
        worker.signal(signal.SIGCONT)
        began = time.monotonic()
        taken = await stage.first_progress(0)
        await until(stage.progress, lambda entries: entries == stage.expected_entries(), SETTLES_WITHIN)
        await until(lambda: queued(stage, rabbit), lambda messages: messages == 0, SETTLES_WITHIN)
        drained = time.monotonic() - began
        await asyncio.sleep(max(0.0, length - drained))
        waiting = (await stage.ledger.rows()).outbox
        assert waiting > 0, "events were published in spite of the alarm"
        over = time.monotonic()
    await until(stage.ledger.rows, lambda rows: rows.outbox == 0)
    told_after = time.monotonic() - over
    await stage.finished(work, worker)
    note = f"all taken {drained:.1f} s into the alarm; {waiting} events held, told within {told_after:.1f} s"
    row = f"RabbitMQ memory alarm for {length} s" if length else "RabbitMQ memory alarm until drained"
    await figures.of(stage, row, faults=1, seconds=[taken], note=note)


def ctl(rabbit: Broker, *words: str) -> str:
    """What `rabbitmqctl` prints for these words, however busy the machine is."""
    return rabbit.ctl(*words, within=SETTLES_WITHIN)


@contextmanager
def alarmed(rabbit: Broker) -> Iterator[None]:
    """Have the broker's memory alarm on while the body runs."""
    before = ctl(rabbit, "eval", "application:get_env(rabbit, vm_memory_high_watermark).").strip()
    ctl(rabbit, "set_vm_memory_high_watermark", "0.00001")
    assert "memory" in ctl(rabbit, "eval", "rabbit_alarm:get_alarms().")
    try:
        yield
    finally:
        ctl(rabbit, "set_vm_memory_high_watermark", before.removeprefix("{ok,").removesuffix("}"))
    assert "memory" not in ctl(rabbit, "eval", "rabbit_alarm:get_alarms().")


async def queued(stage: ChaosHarness, rabbit: Broker) -> int:
    """How many messages with reports the broker still has, be they handed out and not acked or not handed out."""
    said = await asyncio.to_thread(ctl, rabbit, "list_queues", "--no-table-headers", "name", "messages")
    counts = dict(line.split() for line in said.splitlines())
    return int(counts[stage.names.reports])


@pytest.mark.parametrize("cuts", [20, pytest.param(200, marks=OFTEN)])
async def test_a_commit_without_an_answer_is_neither_lost_nor_done_twice(
    stage: ChaosHarness, figures: Figures, cuts: int
) -> None:
    """A connection cut at COMMIT leaves the outcome unknown; doing it again is right whether it took effect or not."""
    number = 0
    async with cutting(stage.ledger.database_url, Random(cuts), 0.3) as (cutter, through):
        worker = await stage.start(database_url=through)
        await worker.ready()
        cutter.armed = True
        while cutter.cuts < cuts:
            work = load(stage, f"commit {number}", tasks=24)
            await trickle(stage, work)
            await stage.delete_and_settle(work)
            number += 1
        cutter.armed = False
        await stage.stop_worker(worker)
    assert await stage.ledger.violations() == []
    told = f"{cutter.took_effect} took effect unseen, {cutter.never_arrived} never arrived"
    await figures.of(stage, "connection cut at COMMIT", faults=cutter.cuts, note=told)


@pytest.mark.parametrize("times", [1, pytest.param(20, marks=OFTEN)])
async def test_a_worker_whose_queue_is_deleted_makes_it_again(
    stage: ChaosHarness, figures: Figures, times: int
) -> None:
    """The queue of the reports is deleted under the worker; it makes it again, and does what is sent from then on."""
    worker = await stage.start()
    work = load(stage, "before", tasks=12)
    await stage.send(work.messages)
    seconds = []
    for number in range(times):
        await stage.delete_and_settle(work)
        before = await stage.progress()
        async with await aio_pika.connect(stage.ledger.amqp_url, timeout=10) as connection:
            await (await connection.channel()).queue_delete(stage.names.reports, timeout=10)
        deleted = time.monotonic()
        work = load(stage, f"after {number}", tasks=12)
        await stage.send(work.messages, within=15)
        await stage.first_progress(before)
        seconds.append(time.monotonic() - deleted)
    await stage.finished(work, worker)
    await figures.of(stage, "queue deleted under the worker", faults=times, seconds=seconds)
