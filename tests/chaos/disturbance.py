"""Load that is under way for some seconds, for a test to break something in the middle of it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

from tests.chaos import workload
from tests.chaos.workload import Workload
from tests.harness.chaos import SETTLES_WITHIN, ChaosHarness, until

PIECES = 120


def load(stage: ChaosHarness, seed: str, *, tasks: int = 40, nasty: bool = True) -> Workload:
    """A workload that takes the worker a moment, already in the ledger."""
    work = workload.build(stage.names, Random(seed), tasks=tasks, statuses=20, nasty=nasty)
    stage.enter(work)
    return work


async def trickle(stage: ChaosHarness, work: Workload, rest: asyncio.Event | None = None) -> None:
    """Send it piece after piece, so that there is always something under way; the last third not before `rest`."""
    for number, piece in enumerate(work.parts(PIECES)):
        if rest is not None and number == PIECES * 2 // 3:
            await rest.wait()
        await stage.send(piece, within=180)
        await asyncio.sleep(0.02)


async def under_way(stage: ChaosHarness, share: float) -> None:
    """Wait until more of the log is committed, by such a share of the latest workload, than there was before it."""
    part = round(stage.expected_entries() * share / math.ceil(share))
    await until(stage.progress, lambda entries: entries >= part, SETTLES_WITHIN)


@asynccontextmanager
async def disturbed(stage: ChaosHarness, seed: str, number: int) -> AsyncIterator[None]:
    """Send a workload, have the body break something in the middle of it, and find in the end that nothing is wrong."""
    work = load(stage, f"{seed} {number}")
    breaking = asyncio.Event()
    sending = asyncio.create_task(trickle(stage, work, breaking))
    try:
        await under_way(stage, number + 0.2)
        breaking.set()
        yield
    except BaseException:
        sending.cancel()
        raise
    await sending
    await stage.delete_and_settle(work)
