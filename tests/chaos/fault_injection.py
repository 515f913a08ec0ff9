"""Fault injection under load: send a workload over some seconds, and inject a fault in the middle of it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

from tests.chaos import workload
from tests.chaos.workload import ChaosWorkload
from tests.harness.chaos import SETTLES_WITHIN, ChaosHarness, until

PIECES = 120


def add_workload(harness: ChaosHarness, seed: str, *, tasks: int = 40, adversarial: bool = True) -> ChaosWorkload:
    """Build a workload that keeps the worker busy for some seconds, and add it to the ledger."""
    work = workload.build(harness.names, Random(seed), tasks=tasks, statuses=20, adversarial=adversarial)
    harness.add_to_ledger(work)
    return work


async def send_slowly(harness: ChaosHarness, work: ChaosWorkload, last_third: asyncio.Event | None = None) -> None:
    """Send a workload piece by piece, so that something is always in progress; hold the last third until the event."""
    for number, piece in enumerate(work.split(PIECES)):
        if last_third is not None and number == PIECES * 2 // 3:
            await last_third.wait()
        await harness.send(piece, within=180)
        await asyncio.sleep(0.02)


async def until_committed(harness: ChaosHarness, share: float) -> None:
    """Wait until this share of the log entries is committed, counted in workloads: 1.2 is a fifth of the second one."""
    wanted = round(harness.expected_entries() * share / math.ceil(share))
    await until(harness.committed_entries, lambda entries: entries >= wanted, SETTLES_WITHIN)


@asynccontextmanager
async def fault_under_load(harness: ChaosHarness, seed: str, number: int) -> AsyncIterator[None]:
    """Send a workload, run the block in the middle of it to inject a fault, and verify all invariants at the end."""
    work = add_workload(harness, f"{seed} {number}")
    fault_injected = asyncio.Event()
    sending = asyncio.create_task(send_slowly(harness, work, fault_injected))
    try:
        await until_committed(harness, number + 0.2)
        fault_injected.set()
        yield
    except BaseException:
        sending.cancel()
        raise
    await sending
    await harness.delete_and_settle(work)
