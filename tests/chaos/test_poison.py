"""A message that kills every worker that processes it: no other message is dead-lettered with it."""

from __future__ import annotations

import signal
from random import Random

import pytest

from taskherd.broker import topology
from tests.chaos import workload
from tests.harness.chaos import ChaosHarness

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]

DELIVERY_LIMIT = 6
POISON = b'{"type": "poison"}'
LAUNCH = f"""
import os, signal
from taskherd.__main__ import start
from taskherd.broker import topology
from taskherd.worker.report_consumer import ReportConsumer

async def process_or_die(self, decoded, previous, process=ReportConsumer._process):
    if any(delivery.body == {POISON!r} for delivery in decoded.deliveries):
        await self._consumer.consumer_count()  # some round trips, in which the broker delivers what it may
        os.kill(os.getpid(), signal.SIGKILL)
    await process(self, decoded, previous)

topology.DELIVERY_LIMIT = {DELIVERY_LIMIT}
ReportConsumer._process = process_or_die
start()
"""


@pytest.fixture
def _small_delivery_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Declare queues with the delivery limit of this test, as its workers do."""
    monkeypatch.setattr(topology, "DELIVERY_LIMIT", DELIVERY_LIMIT)


@pytest.mark.usefixtures("_small_delivery_limit")
async def test_poison_takes_no_other_message_with_it(harness: ChaosHarness) -> None:
    """It alone reaches the delivery limit: after three failures a worker takes one message at a time."""
    harness.launch = ("-c", LAUNCH)
    work = workload.build(harness.names, Random(7), tasks=4, adversarial=False)
    work.to_delete.clear()
    harness.add_to_ledger(work)
    first, second = work.split(2)
    await harness.send([*first, workload.message(harness.names, POISON), *second])
    harness.ledger.expected_dead_letters.append(("broker: delivery_limit", POISON))
    for _ in range(DELIVERY_LIMIT + 1):
        worker = await harness.start()
        assert await worker.exit_code(60) == -signal.SIGKILL, harness.log_tail(worker)
    worker = await harness.start()
    await worker.until_ready()  # all may be settled before it handles the signal that stops it
    await harness.until_settled(60)
    await harness.finish(work, worker)
