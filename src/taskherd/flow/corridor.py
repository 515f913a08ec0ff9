"""The corridor: a batch of inputs goes in, one transaction, and what changed comes out.

``reconcile`` is the whole of it: lock the tasks in id order, fold each one's inputs in pure code, save what came of it.
Reports, commands and the sweeper all come through here; nothing else writes a task. Running it twice with the same
inputs does no harm, so whoever calls it retries freely.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import TYPE_CHECKING

from taskherd.core import lease as leasing
from taskherd.core.outcome import ReportOutcome
from taskherd.core.reports import AgentHeartbeat
from taskherd.core.turn import Turn, conclude, take_command, take_look, take_report
from taskherd.flow import loading, saving
from taskherd.flow.batch import Batch, Outcome
from taskherd.observe.failpoints import Failpoint
from taskherd.store import leases
from taskherd.store.engine import transaction

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy.ext.asyncio import AsyncEngine

    from taskherd.flow.ground import Ground
    from taskherd.flow.loading import Scene


async def reconcile(ground: Ground, batch: Batch, now: datetime) -> Outcome:
    """Take a batch through the corridor. Raises Unavailable when the database is away; nothing is committed then."""
    outcome = Outcome(now, [ReportOutcome.UNCHANGED] * len(batch.reports))
    beats, rest = _apart(batch)
    touching = asyncio.create_task(_touch(ground.engine, batch, beats, now), name="touch leases")
    try:
        await _pass(ground, batch, rest, now, outcome)
    finally:
        await asyncio.wait({touching})  # neither left behind nor cancelled, which would lose its connection
        if not touching.cancelled():
            touching.exception()  # else asyncio would tell of it as of one that nobody has seen, where both have failed
    touched = touching.result()
    left = [index for task_id, indexes in beats.items() if task_id not in touched for index in indexes]
    if left:
        await _pass(ground, Batch(batch.reports), left, now, outcome)
    return outcome


def _apart(batch: Batch) -> tuple[dict[UUID, list[int]], list[int]]:
    """The indexes of reports of tasks that only have heartbeats where the connection is concerned, and the others."""
    moving: set[UUID] = set(batch.looks)
    beats: dict[UUID, list[int]] = defaultdict(list)
    rest: list[int] = []
    for index, report in enumerate(batch.reports):
        if isinstance(report, AgentHeartbeat):
            beats[report.task_id].append(index)
        else:
            rest.append(index)
            if report.type in loading.MOVES_CONNECTION:
                moving.add(report.task_id)
    for task_id in moving & beats.keys():
        rest.extend(beats.pop(task_id))
    rest.sort()
    return beats, rest


async def _touch(engine: AsyncEngine, batch: Batch, beats: dict[UUID, list[int]], now: datetime) -> set[UUID]:
    """Move the leases of plain tasks on; the tasks whose heartbeats are thereby done with."""
    if not beats:
        return set()
    latest = leasing.latest({task_id: [batch.reports[i] for i in indexes] for task_id, indexes in beats.items()}, now)
    async with transaction(engine) as connection:
        return await leases.touch(connection, latest)


async def _pass(ground: Ground, batch: Batch, indexes: list[int], now: datetime, outcome: Outcome) -> None:
    """One transaction: load, fold, save."""
    if not (indexes or batch.command or batch.looks):
        return
    with ground.tracing.span("commit", reports=len(indexes)):
        async with transaction(ground.engine) as connection:
            scene = await loading.load(connection, ground, batch, indexes, now)
            _fold(scene, indexes, now)
            ground.hit(Failpoint.WRITE)
            await saving.save(connection, ground, scene, outcome)
            ground.hit(Failpoint.PRE_COMMIT)


def _fold(scene: Scene, indexes: list[int], now: datetime) -> None:
    """Every task's turn: the command, what was parked for it, the reports in order, the look, and what follows."""
    batch, turns = scene.batch, scene.turns
    if batch.command:
        turn = turns.setdefault(batch.command.task_id, Turn(None, None))
        if not scene.replied:
            take_command(turn, batch.command, now, scene.rules)
        if turn.before is None and turn.task is not None:
            for place, report in scene.parked:
                take_report(turn, -1 - place, report, now, scene.rules)
    for index in indexes:
        report = batch.reports[index]
        if report.task_id not in turns:  # not setdefault, which would make a turn for each report
            turns[report.task_id] = Turn(None, None)
        turn = turns[report.task_id]
        if turn.task is None:
            turn.outcomes.append((index, ReportOutcome.PARKED))
        else:
            take_report(turn, index, report, now, scene.rules)
    for task_id, look in batch.looks.items():
        take_look(turns.setdefault(task_id, Turn(None, None)), look, now, scene.rules)
    for turn in turns.values():
        conclude(turn, now, scene.rules)
