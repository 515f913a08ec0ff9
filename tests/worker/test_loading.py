"""What a batch locks and reads for its reports, claims and timer checks, and nothing else."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from taskherd.backoff import Backoff
from taskherd.domain.claims import BuildClaim, Ownership
from taskherd.domain.commands import Pause
from taskherd.domain.inbox import QueuedInput
from taskherd.domain.reports import (
    AgentDisconnected,
    AgentHeartbeat,
    AgentLifecycle,
    JobStatus,
    Lifecycle,
    Transition,
    WorkspaceBuild,
)
from taskherd.domain.task import Inbox
from taskherd.domain.updates import TimerCheck
from taskherd.messages.claims import OwnershipQuery
from taskherd.messages.run_policy import recovery_policy
from taskherd.store import build_claims, inputs, leases, parked_reports
from taskherd.store.engine import transaction
from taskherd.worker.batch import Batch
from taskherd.worker.directory_cache import NO_ENTRIES
from taskherd.worker.load import load_ownership
from tests.harness.histories import NOON
from tests.harness.worker import VERSION
from tests.store.conftest import waits_for_lock
from tests.worker.loads import (
    FAILED,
    FOUR,
    LOCKS,
    ONE,
    OTHERS,
    POLICY,
    POOL,
    QUEUED,
    RUN,
    SENT,
    THREE,
    TIMEOUTS,
    TWO,
    UNASKED,
    Seen,
    command,
    context_of,
    lease,
    load,
    load_while_created,
    locked_rows,
    new_input,
    outcome,
    see,
    status,
    store,
    task_row,
)


async def test_reports_lock_their_tasks_alone(engine: AsyncEngine) -> None:
    """Those that are asked for lock each task once, and for most nothing else is read."""
    row = task_row(ONE)
    context = context_of(engine)
    await store(engine, row, task_row(TWO))
    async with transaction(engine) as connection:
        await leases.upsert(connection, [lease(ONE), lease(TWO)])
        await build_claims.save(connection, [BuildClaim(ONE, 1, "r1")], NOON)
    batch = Batch([status(ONE), status(TWO), status(ONE, seq=1), status(THREE)])
    loaded, seen = await load(context, batch, [0, 2])
    assert seen == Seen(["tasks", "template_versions"], {"tasks": {ONE}}, [{ONE}])
    assert (loaded.batch, loaded.rows) == (batch, {ONE: row})
    assert [*loaded.updates] == [ONE]
    update = loaded.updates[ONE]
    assert update.before is update.task is loaded.rows[ONE].task
    assert (update.core_document, update.queue) == ('{"number":11}', ())
    assert (loaded.lease_checked, loaded.leases, loaded.claims) == (frozenset(), {}, {})
    assert (loaded.parked, loaded.recorded_replies, loaded.entries) == ({}, {}, NO_ENTRIES)
    assert loaded.template_pools == {VERSION: POOL}
    decided_by = loaded.update_context
    assert (decided_by.timeouts, decided_by.delete_backoff) == (TIMEOUTS, Backoff(1, 2))
    assert (decided_by.default_policy, decided_by.policies) == (POLICY, {VERSION: recovery_policy(RUN, POLICY)})
    assert (decided_by.known_inputs, decided_by.open_inputs) == (frozenset(), frozenset())
    assert (await load(context, batch, [1]))[1] == Seen(["tasks"], {"tasks": {TWO}}, [{TWO}])


async def test_a_task_that_does_not_exist_is_looked_for_again(engine: AsyncEngine) -> None:
    """Once its id is locked, since it may have been created meanwhile; ids of the others are left alone."""
    await store(engine, task_row(ONE))
    batch = Batch([status(FOUR), status(THREE), status(ONE)])
    loaded, seen = await load_while_created(context_of(engine), batch, task_row(THREE))
    assert loaded.rows == {ONE: task_row(ONE), THREE: task_row(THREE)}
    assert {*loaded.updates} == {ONE, THREE}
    assert seen.locked == {"tasks": {ONE, THREE}, "ids": {THREE, FOUR}}
    assert seen.read == [LOCKS, "tasks", "tasks", "template_versions"]
    assert seen.looked_up == [{ONE, THREE, FOUR}, {THREE, FOUR}]


async def test_tasks_are_locked_before_the_ids_of_missing_ones(engine: AsyncEngine) -> None:
    """Reports and commands take both locks in one order, in which no two transactions deadlock."""
    await store(engine, task_row(ONE))
    for batch in (Batch([status(ONE), status(FOUR)]), Batch(commands=[command(Pause, ONE), command(Pause, FOUR, 51)])):
        async with transaction(engine) as holding:
            await parked_reports.lock_task_ids(holding, [FOUR])
            loading = asyncio.create_task(load(context_of(engine), batch))
            assert await waits_for_lock(engine, loading)
            assert await locked_rows(engine) == {"tasks": {ONE}, "ids": {FOUR}}
        assert {*(await loading)[0].updates} == {ONE}


@pytest.mark.parametrize(
    "report",
    [
        WorkspaceBuild(task_id=ONE, build_number=1, seq=1, job_status=JobStatus.SUCCEEDED, transition=Transition.START),
        AgentLifecycle(task_id=ONE, build_number=1, seq=1, lifecycle=Lifecycle.READY),
        AgentHeartbeat(task_id=ONE, build_number=1, seq=8),
        AgentDisconnected(task_id=ONE, build_number=1, seq=8),
    ],
    ids=lambda report: report.type,
)
async def test_a_report_that_may_change_a_connection_locks_the_lease(engine: AsyncEngine, report: Any) -> None:
    """What is in it is newer than the task; a lease that was left behind without one is not touched."""
    await store(engine, task_row(ONE), task_row(TWO))
    async with transaction(engine) as connection:
        await leases.upsert(connection, [lease(ONE, 5), lease(TWO), lease(THREE)])
    batch = Batch([report, status(TWO)], timer_checks={THREE: TimerCheck(None)})
    loaded, seen = await load(context_of(engine), batch)
    assert seen.locked == {"tasks": {ONE, TWO}, "leases": {ONE}, "ids": {THREE}}
    assert (loaded.lease_checked, loaded.leases) == (frozenset({ONE, THREE}), {ONE: lease(ONE, 5)})
    update = loaded.updates[ONE]
    assert update.before is update.task
    assert update.existing_task.state.last_heartbeat == {1: NOON + timedelta(seconds=5)}
    assert loaded.rows[ONE] == task_row(ONE)
    assert loaded.updates[TWO].task is loaded.rows[TWO].task


@pytest.mark.parametrize(
    "batch",
    [Batch(commands=[command(Pause, TWO)]), Batch([status(ONE)], timer_checks={TWO: TimerCheck(None)})],
    ids=["command", "timer check"],
)
async def test_commands_and_timer_checks_lock_leases(engine: AsyncEngine, batch: Batch) -> None:
    """They may change any part of their task, so a heartbeat waits for them."""
    await store(engine, task_row(ONE), task_row(TWO))
    async with transaction(engine) as connection:
        await leases.upsert(connection, [lease(ONE), lease(TWO)])
    loaded, seen = await load(context_of(engine), batch)
    assert seen.locked["leases"] == loaded.lease_checked == loaded.leases.keys() == {TWO}
    assert seen.locked["tasks"] == {each.task_id for each in batch.reports} | {TWO}
    assert loaded.updates[TWO].existing_task.state.last_heartbeat == {1: NOON + timedelta(seconds=7)}


async def test_inputs_are_read_that_a_batch_is_about(engine: AsyncEngine) -> None:
    """Which exist, and which of them have no outcome yet; one of another task is not known."""
    await store(engine, task_row(ONE), task_row(TWO))
    async with transaction(engine) as connection:
        await inputs.append(connection, [new_input(ONE, each) for each in (SENT, FAILED, UNASKED)])
        await inputs.append(connection, [new_input(TWO, each) for each in (OTHERS, QUEUED)])
        decided = inputs.InputOutcomeRow(FAILED, ONE, "failed", NOON, "It has ended")
        await inputs.mark_sent(connection, [SENT, FAILED, OTHERS], NOON)
        assert await inputs.record_outcomes(connection, [decided]) == {FAILED}
    reports = [outcome(ONE, each) for each in (SENT, FAILED, OTHERS)]
    batch = Batch(reports, timer_checks={TWO: TimerCheck(None, expired_inputs=(QUEUED, UUID(int=99)))})
    loaded, seen = await load(context_of(engine), batch)
    assert loaded.update_context.known_inputs == {(ONE, SENT), (ONE, FAILED), (TWO, QUEUED)}
    assert loaded.update_context.open_inputs == {(ONE, SENT), (TWO, QUEUED)}
    assert seen.read == ["inputs", "leases", "tasks", "template_versions"]


async def test_queued_inputs_are_read_as_far_as_they_may_be_sent(engine: AsyncEngine) -> None:
    """One more than the batch decides; of tasks without any none are read."""
    await store(engine, task_row(ONE, inbox=Inbox(4)), task_row(TWO))
    waiting = [UUID(int=number) for number in range(0x61, 0x65)]
    async with transaction(engine) as connection:
        await inputs.append(connection, [new_input(ONE, each) for each in waiting])
    queue = [QueuedInput(each, steers=False) for each in waiting]
    context = context_of(engine)
    for batch, read in (
        (Batch([status(ONE), status(TWO)]), 1),
        (Batch([outcome(ONE, SENT), outcome(TWO, OTHERS), outcome(TWO, FAILED)]), 2),
        (Batch([outcome(ONE, SENT)], timer_checks={ONE: TimerCheck(None, expired_inputs=(OTHERS,))}), 3),
    ):
        loaded, _ = await load(context, batch)
        assert loaded.updates[ONE].queue == queue[:read]
        assert all(update.queue == () for each, update in loaded.updates.items() if each != ONE)
    assert (await load(context, Batch([status(TWO)])))[1].read == ["tasks"]


async def test_claims_are_read_with_their_tasks(engine: AsyncEngine) -> None:
    """Of the tasks that are claimed, which are locked, although nothing else is about them."""
    await store(engine, task_row(ONE), task_row(TWO))
    granted = BuildClaim(ONE, 1, "r2")
    async with transaction(engine) as connection:
        await build_claims.save(connection, [granted, BuildClaim(TWO, 1, "r3")], NOON)
    loaded, seen = await load(context_of(engine), Batch([status(TWO)], claims=[BuildClaim(ONE, 1, "r1")]))
    assert loaded.claims == {ONE: granted}
    assert seen == Seen(["build_claims", "tasks", "template_versions"], {"tasks": {ONE, TWO}}, [{ONE, TWO}])
    assert {*loaded.updates} == {ONE, TWO}


async def test_whose_tasks_are(engine: AsyncEngine) -> None:
    """Each question is answered by itself, from one read of all tasks, which locks none."""
    await store(engine, task_row(ONE), task_row(TWO))
    async with transaction(engine) as connection:
        await build_claims.save(connection, [BuildClaim(ONE, 1, "r1")], NOON)
    questions = [OwnershipQuery((ONE,), "r1"), OwnershipQuery((ONE, TWO, THREE), "r2")]
    answers, seen = await see(engine, lambda connection: load_ownership(connection, questions))
    assert answers == [
        {ONE: Ownership.OWNED}, {ONE: Ownership.ELSEWHERE, TWO: Ownership.OWNED, THREE: None}
    ]  # fmt: skip
    assert seen == Seen(["build_claims", "tasks"], {}, [])
