"""The primary is lost, and its standby is promoted by hand."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.chaos.fault_injection import add_workload, fault_under_load, send_slowly
from tests.chaos.pair import Pair, replicated_pair

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture
async def pair(tmp_path: Path, amqp_url: str) -> AsyncIterator[Pair]:
    """Yield a primary that leads, and a standby that receives its changes asynchronously."""
    async with replicated_pair(tmp_path, amqp_url) as pair:
        yield pair


async def test_nothing_acknowledged_is_lost_when_the_standby_is_promoted(pair: Pair) -> None:
    """If commits wait for the standby, the same worker goes on after the promotion, and nothing is lost."""
    harness = pair.harness
    await pair.wait_for_standby()
    worker = await harness.start()
    await worker.until_ready()
    async with fault_under_load(harness, "promotion", 0):
        pair.primary.kill()
        await pair.promote()
        await harness.seconds_to_progress()
    await worker.until_ready()
    await harness.stop_worker(worker)
    assert await harness.ledger.violations() == []


async def test_a_standby_that_is_behind_loses_what_was_acknowledged(pair: Pair) -> None:
    """If commits do not wait, those that the standby has not received are lost, and the ledger finds them."""
    harness = pair.harness
    worker = await harness.start()
    await worker.until_ready()
    pair.standby.kill()
    work = add_workload(harness, "asynchronous")
    await send_slowly(harness, work)
    await harness.until_settled()
    await worker.kill()
    pair.primary.kill()
    await pair.promote()
    assert await harness.ledger.violations() != []
    assert harness.ledger.lost > 0
