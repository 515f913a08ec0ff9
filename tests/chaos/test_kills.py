from __future__ import annotations

from random import Random

import pytest

from taskherd.observe.failpoints import Failpoint
from tests.chaos import workload
from tests.chaos.stage import Stage

ROUNDS = 2
OFTEN = 25


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_workers_killed_at_every_place_in_turn_lose_and_double_nothing(stage: Stage) -> None:
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
    await stage.finished(work, await stage.start())


@pytest.mark.chaos
@pytest.mark.timeout(600)
@pytest.mark.parametrize("place", list(Failpoint))
async def test_workers_killed_again_and_again_at_one_place_lose_and_double_nothing(
    stage: Stage, place: Failpoint
) -> None:
    """Wherever a worker dies, and however often, the next one ends at the fold of all inputs, each change told."""
    work = workload.build(stage.names, Random(str(place)), tasks=64)
    stage.enter(work)
    *parts, last = work.parts(OFTEN + 1)
    for part in parts:
        await stage.send(part)
        await stage.dies(place)
        await stage.delete_existing(work)
    await stage.send(last)
    await stage.finished(work, await stage.start())
