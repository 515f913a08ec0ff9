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
from tests.chaos.fault_injection import add_workload, fault_under_load, send_slowly
from tests.chaos.figures import Figures
from tests.chaos.proxy import commit_cutter
from tests.harness.chaos import SETTLES_WITHIN, ChaosHarness, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

FULL_SIZE = [pytest.mark.chaos, pytest.mark.timeout(3600)]
RECOVERS_WITHIN = 40.0


@pytest.mark.parametrize("times", [1, pytest.param(20, marks=FULL_SIZE)])
async def test_nothing_is_lost_when_the_broker_is_killed(
    breakable_harness: ChaosHarness, rabbit: Broker, figures: Figures, times: int
) -> None:
    """The broker is killed under load; the worker reconnects, and every input is processed once."""
    harness = breakable_harness
    worker = await harness.start()
    await worker.until_ready()
    await harness.until_crash_safe()
    seconds = []
    for number in range(times):
        async with fault_under_load(harness, "broker", number):
            rabbit.kill()
            await asyncio.to_thread(rabbit.restart)
            seconds.append(await harness.seconds_to_progress())
    redelivered = await worker.metric("taskherd_redeliveries_total")
    await harness.stop_worker(worker)
    assert await harness.ledger.violations() == []
    await figures.record_run(
        harness, "RabbitMQ kill -9 and restart", faults=times, redelivered=redelivered, seconds=seconds
    )


@pytest.mark.parametrize(
    ("times", "downtime"),
    [(1, 0), pytest.param(20, 0, marks=FULL_SIZE), pytest.param(1, 30, marks=FULL_SIZE)],
)
async def test_nothing_is_lost_while_the_database_is_down(
    breakable_harness: ChaosHarness, postgres: Database, figures: Figures, times: int, downtime: int
) -> None:
    """PostgreSQL is shut down immediately under load; the worker keeps its deliveries, and none is dead-lettered."""
    harness = breakable_harness
    worker = await harness.start()
    await worker.until_ready()
    await harness.until_crash_safe()
    seconds = []
    for number in range(times):
        async with fault_under_load(harness, "database", number):
            await asyncio.to_thread(postgres.abort)
            if downtime:
                await worker.until_unready()
                await asyncio.sleep(downtime)
            await asyncio.to_thread(postgres.restart)
            seconds.append(await harness.seconds_to_progress())
            await worker.until_ready(RECOVERS_WITHIN)
    await harness.stop_worker(worker)
    assert await harness.ledger.violations() == []
    row = f"PostgreSQL down for {downtime} s" if downtime else "PostgreSQL immediate shutdown and restart"
    await figures.record_run(harness, row, faults=times, seconds=seconds, note="no dead letters")


@contextmanager
def frozen(services: Services, service: str) -> Iterator[None]:
    """Freeze a service while the block runs."""
    node = services.rabbit if service == "RabbitMQ" else services.postgres
    assert node is not None, f"only a {service} node that taskherd started can be frozen"
    node.freeze()
    try:
        yield
    finally:
        node.unfreeze()


@pytest.mark.parametrize("service", ["RabbitMQ", "PostgreSQL"])
@pytest.mark.parametrize("length", [0, pytest.param(60, marks=FULL_SIZE)])
async def test_a_frozen_service_makes_the_worker_unready_until_it_responds(
    breakable_harness: ChaosHarness, breakable: Services, figures: Figures, service: str, length: int
) -> None:
    """A service that does not respond makes the worker unready; when it responds again, the worker recovers."""
    harness = breakable_harness
    worker = await harness.start()
    await worker.until_ready()
    await harness.until_crash_safe()
    async with fault_under_load(harness, service, 0):
        started_at = time.monotonic()
        with frozen(breakable, service):
            await worker.until_unready()
            noticed = time.monotonic() - started_at
            await asyncio.sleep(max(0.0, length - noticed))
        seconds = await harness.seconds_to_progress()
        await worker.until_ready(RECOVERS_WITHIN)
    assert seconds <= RECOVERS_WITHIN
    await harness.stop_worker(worker)
    assert await harness.ledger.violations() == []
    note = f"unready after {noticed:.1f} s, then ready again without intervention"
    row = f"{service} frozen (SIGSTOP) for {length} s" if length else f"{service} frozen (SIGSTOP) until unready"
    await figures.record_run(harness, row, faults=1, seconds=[seconds], note=note)


@pytest.mark.parametrize("length", [0, pytest.param(60, marks=FULL_SIZE)])
async def test_a_memory_alarm_delays_events_but_not_reports(
    breakable_harness: ChaosHarness, rabbit: Broker, figures: Figures, length: int
) -> None:
    """While the broker blocks all publishers, reports are committed and acked; the events follow after the alarm."""
    harness = breakable_harness
    worker = await harness.start()
    await worker.until_ready()
    work = add_workload(harness, "alarm", adversarial=False)
    worker.signal(signal.SIGSTOP)
    await harness.send(work.messages)
    with alarmed(rabbit):
        worker.signal(signal.SIGCONT)
        started_at = time.monotonic()
        seconds = await harness.seconds_to_progress(0)
        await until(harness.committed_entries, lambda entries: entries == harness.expected_entries(), SETTLES_WITHIN)
        await until(lambda: queued(harness, rabbit), lambda messages: messages == 0, SETTLES_WITHIN)
        drained = time.monotonic() - started_at
        await asyncio.sleep(max(0.0, length - drained))
        waiting = (await harness.ledger.rows()).outbox
        assert waiting > 0, "events were published in spite of the alarm"
        alarm_ended_at = time.monotonic()
    await until(harness.ledger.rows, lambda rows: rows.outbox == 0)
    published_after = time.monotonic() - alarm_ended_at
    await harness.finish(work, worker)
    published = f"{waiting} events waited, published {published_after:.1f} s after the alarm"
    note = f"all committed after {drained:.1f} s; {published}"
    row = f"RabbitMQ memory alarm for {length} s" if length else "RabbitMQ memory alarm until drained"
    await figures.record_run(harness, row, faults=1, seconds=[seconds], note=note)


def rabbitmqctl(rabbit: Broker, *arguments: str) -> str:
    """Run ``rabbitmqctl`` and return its output, with a timeout for a busy machine."""
    return rabbit.ctl(*arguments, within=SETTLES_WITHIN)


@contextmanager
def alarmed(rabbit: Broker) -> Iterator[None]:
    """Raise the broker's memory alarm while the block runs."""
    before = rabbitmqctl(rabbit, "eval", "application:get_env(rabbit, vm_memory_high_watermark).").strip()
    rabbitmqctl(rabbit, "set_vm_memory_high_watermark", "0.00001")
    assert "memory" in rabbitmqctl(rabbit, "eval", "rabbit_alarm:get_alarms().")
    try:
        yield
    finally:
        rabbitmqctl(rabbit, "set_vm_memory_high_watermark", before.removeprefix("{ok,").removesuffix("}"))
    assert "memory" not in rabbitmqctl(rabbit, "eval", "rabbit_alarm:get_alarms().")


async def queued(harness: ChaosHarness, rabbit: Broker) -> int:
    """Return the number of messages in the queue of reports, ready or unacknowledged."""
    output = await asyncio.to_thread(rabbitmqctl, rabbit, "list_queues", "--no-table-headers", "name", "messages")
    counts = dict(line.split() for line in output.splitlines())
    return int(counts[harness.names.reports])


@pytest.mark.parametrize("cuts", [20, pytest.param(200, marks=FULL_SIZE)])
async def test_a_commit_without_a_response_is_neither_lost_nor_repeated(
    harness: ChaosHarness, figures: Figures, cuts: int
) -> None:
    """After a cut at COMMIT the outcome is unknown; a retry is correct whether the commit took effect or not."""
    number = 0
    async with commit_cutter(harness.ledger.database_url, Random(cuts), 0.3) as (cutter, proxy_url):
        worker = await harness.start(database_url=proxy_url)
        await worker.until_ready()
        cutter.armed = True
        while cutter.cuts < cuts:
            work = add_workload(harness, f"commit {number}", tasks=24)
            await send_slowly(harness, work)
            await harness.delete_and_settle(work)
            number += 1
        cutter.armed = False
        await harness.stop_worker(worker)
    assert await harness.ledger.violations() == []
    note = f"{cutter.took_effect} commits took effect, {cutter.never_arrived} never reached the server"
    await figures.record_run(harness, "database connection cut at COMMIT", faults=cutter.cuts, note=note)


@pytest.mark.parametrize("times", [1, pytest.param(20, marks=FULL_SIZE)])
async def test_a_worker_declares_a_deleted_queue_again(harness: ChaosHarness, figures: Figures, times: int) -> None:
    """The queue of reports is deleted while the worker runs; it declares it again and processes later reports."""
    worker = await harness.start()
    work = add_workload(harness, "before", tasks=12)
    await harness.send(work.messages)
    seconds = []
    for number in range(times):
        await harness.delete_and_settle(work)
        before = await harness.committed_entries()
        async with await aio_pika.connect(harness.ledger.amqp_url, timeout=10) as connection:
            await (await connection.channel()).queue_delete(harness.names.reports, timeout=10)
        deleted_at = time.monotonic()
        work = add_workload(harness, f"after {number}", tasks=12)
        await harness.send(work.messages, within=15)
        await harness.seconds_to_progress(before)
        seconds.append(time.monotonic() - deleted_at)
    await harness.finish(work, worker)
    await figures.record_run(harness, "report queue deleted while the worker runs", faults=times, seconds=seconds)
