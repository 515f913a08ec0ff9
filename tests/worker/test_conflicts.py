"""Transactions of several workers on the same rows: each waits or gives way, and nothing is done twice or lost."""

from __future__ import annotations

import asyncio
import json
import uuid
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from taskherd import retry
from taskherd.broker.dead_letters import publish_dead_letters
from taskherd.domain.commands import Pause, Resume
from taskherd.domain.outcome import ReportOutcome
from taskherd.domain.reports import AgentHeartbeat, AgentLifecycle, AgentState, AppStatus, Lifecycle
from taskherd.store import command_preconditions
from taskherd.store.parked_reports import LOCK_CLASS
from taskherd.worker import maintenance, reconcile
from taskherd.worker.batch import Batch, BatchResult
from taskherd.worker.save import save_batch
from tests.harness.worker import (
    ALICE,
    TIMEOUT,
    WorkerHarness,
    bring_to_status,
    make_create,
    make_report,
    running_worker,
)
from tests.worker.conftest import StartWorker

if TYPE_CHECKING:
    from collections.abc import Callable

    from taskherd.worker.context import WorkerContext

WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"


class Hold:
    """A replacement of an asynchronous function whose first call waits for ``release``."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.reached, self.release = asyncio.Event(), asyncio.Event()

    async def __call__(self, *arguments: Any) -> Any:
        """Call the function, the first time once released."""
        if not self.reached.is_set():
            self.reached.set()
            async with asyncio.timeout(TIMEOUT):
                await self.release.wait()
        return await self._function(*arguments)


async def waits_for_lock(harness: WorkerHarness, work: asyncio.Task[Any]) -> bool:
    """Wait until ``work`` waits for a lock, or is done, and return whether it waits."""
    async with asyncio.timeout(TIMEOUT):
        while not work.done() and not await harness.database.fetchval(WAITING):  # noqa: ASYNC110 - it sends no event
            await asyncio.sleep(0.01)
    return not work.done()


async def park(harness: WorkerHarness, count: int) -> tuple[uuid.UUID, list[dict[str, Any]]]:
    """Park reports of a task that does not exist, and return its id and them."""
    task_id = uuid.uuid4()
    reports = [
        make_report("app.status", task_id, build_number=1, seq=seq, state="idle", message=f"report {seq}")
        for seq in range(count)
    ]
    await harness.report(*reports)
    await harness.until_row("SELECT count(*) FROM parked WHERE task_id = $1", task_id, is_=count)
    return task_id, reports


async def test_two_workers_expire_a_parked_report_once(harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one worker publishes the dead letters of expired reports, another takes none of them and does not wait."""
    _, reports = await park(harness, 3)
    first = harness.worker
    async with running_worker(harness) as second:
        hold = Hold(publish_dead_letters)
        monkeypatch.setattr(maintenance, "publish_dead_letters", hold)
        expiring = asyncio.create_task(harness.expire_parked(first))
        await hold.reached.wait()
        assert await harness.expire_parked(second) == 0
        hold.release.set()
        assert await expiring == 3
    harness.worker = first
    await harness.until(lambda: len(harness.dead_letters) >= 3)
    assert [json.loads(letter.body) for letter in harness.dead_letters] == reports
    assert await harness.database.fetchval("SELECT count(*) FROM parked") == 0


async def test_a_report_that_expires_is_not_folded_by_a_create(
    harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A create that comes while its reports expire waits, and does not fold what is in the dead letters by then."""
    task_id, reports = await park(harness, 3)
    hold = Hold(publish_dead_letters)
    monkeypatch.setattr(maintenance, "publish_dead_letters", hold)
    expiring = asyncio.create_task(harness.expire_parked())
    await hold.reached.wait()
    creating = asyncio.create_task(harness.create(task_id))
    assert await waits_for_lock(harness, creating)
    hold.release.set()
    assert await expiring == 3
    await creating
    await harness.until(lambda: harness.document(task_id) and len(harness.dead_letters) >= 3)
    assert harness.document(task_id)["current_state"] is None
    assert [json.loads(letter.body) for letter in harness.dead_letters] == reports


async def test_a_heartbeat_during_the_reconcile_of_its_task_counts(
    harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for the transaction that has read the lease, and renews what that one has written."""
    task_id = await harness.make_active()
    context = harness.worker._context
    hold = Hold(save_batch)
    monkeypatch.setattr(reconcile, "save_batch", hold)
    now = context.now()
    later = now + timedelta(seconds=1)
    seq = round(later.timestamp() * 1_000_000)
    lifecycle = AgentLifecycle(task_id=task_id, build_number=1, seq=seq, lifecycle=Lifecycle.START_TIMEOUT)
    beat = AgentHeartbeat(task_id=task_id, build_number=1, seq=seq)
    reconciling = asyncio.create_task(reconciled(context, Batch([lifecycle]), now))
    await hold.reached.wait()
    renewing = asyncio.create_task(reconciled(context, Batch([beat]), later))
    assert await waits_for_lock(harness, renewing)
    hold.release.set()
    await asyncio.gather(reconciling, renewing)
    row = await harness.database.fetchrow("SELECT last_heartbeat_at, seq FROM leases WHERE task_id = $1", task_id)
    assert tuple(row) == (later, seq)


async def reconciled(context: WorkerContext, batch: Batch, now: datetime) -> BatchResult:
    """Reconcile a batch as the consumers do, which repeat it after a conflict."""
    return await context.until_stopped(lambda: reconcile.reconcile(context, batch, now), "database")


async def test_a_conflict_that_does_not_end_ends_no_worker(
    harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the number of conflicts that are retried at once it counts as an outage, and is retried as long as one."""
    monkeypatch.setattr(retry, "MAX_CONFLICTS", 0)
    task_id = await harness.create()
    failures = partial(harness.metric, "taskherd_batch_failures_total")
    blocked = await harness.block_writes("tasks, runner_hellos")
    hello = await harness.post({"type": "runner.hello", "runner": "r1", "pool": "default"}, "claims")
    await harness.report(make_report("app.status", task_id, state="working", message="Reading"))
    async with asyncio.timeout(TIMEOUT):
        while not (failures(reason="broker") and failures(reason="database")):  # noqa: ASYNC110 - a counter is silent
            await asyncio.sleep(0.05)
    await blocked.rollback()
    async with asyncio.timeout(TIMEOUT):
        assert (await hello)["ok"]
    await harness.until(lambda: harness.state(task_id).get("message") == "Reading")
    await harness.channel.queue_delete(f"{harness.prefix}.work.r1", timeout=30)


async def hold_save(harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch, task_id: uuid.UUID) -> Hold:
    """Create a task up to where its transaction has locked everything and saves nothing yet."""
    hold = Hold(save_batch)
    monkeypatch.setattr(reconcile, "save_batch", hold)
    await harness.post(make_create(task_id))
    await hold.reached.wait()
    return hold


async def test_a_report_that_comes_while_its_task_is_created_waits_for_it(
    harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then it finds the task, and is not parked where nobody looks for it any more."""
    task_id, context = uuid.uuid4(), harness.worker._context
    hold = await hold_save(harness, monkeypatch, task_id)
    report = AppStatus(task_id=task_id, build_number=1, seq=1, state=AgentState.IDLE, message="As early as that")
    reporting = asyncio.create_task(reconciled(context, Batch([report]), context.now()))
    assert await waits_for_lock(harness, reporting)
    hold.release.set()
    assert (await reporting).outcomes == [ReportOutcome.APPLIED]
    assert await harness.database.fetchval("SELECT count(*) FROM parked") == 0


ID_LOCKS = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = $1"


async def test_only_ids_of_tasks_that_do_not_exist_are_locked(
    harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A report and a command of a task that exists lock its row alone, and so hold up no other with the same key."""
    task_id, context = await harness.make_active(), harness.worker._context
    status = AppStatus(task_id=task_id, build_number=1, seq=1, state=AgentState.IDLE, message="One of many")
    pause = Pause(command_id=uuid.uuid4(), task_id=task_id, actor_id=ALICE)
    for batch, locks in ((Batch([status]), 0), (Batch(commands=[pause]), 0)):
        hold = Hold(save_batch)
        monkeypatch.setattr(reconcile, "save_batch", hold)
        saving = asyncio.create_task(reconciled(context, batch, context.now()))
        await hold.reached.wait()
        assert await harness.database.fetchval(ID_LOCKS, LOCK_CLASS) == locks
        hold.release.set()
        await saving
    hold = await hold_save(harness, monkeypatch, uuid.uuid4())
    assert await harness.database.fetchval(ID_LOCKS, LOCK_CLASS) == 1
    hold.release.set()


async def test_a_resume_counts_what_its_owner_runs_although_its_task_is_new(
    start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task is created, and another one started, while the resume looks for it: the maximum holds all the same."""
    async with start_worker(tasks_running_most=1) as harness:
        task_id, context = uuid.uuid4(), harness.worker._context
        hold = Hold(command_preconditions.lock_and_read)
        monkeypatch.setattr(command_preconditions, "lock_and_read", hold)
        resume = Resume(command_id=uuid.uuid4(), task_id=task_id, actor_id=ALICE)
        resuming = asyncio.create_task(reconciled(context, Batch(commands=[resume]), context.now()))
        await hold.reached.wait()
        await bring_to_status(harness, "paused", await harness.create(task_id))
        await harness.create()
        hold.release.set()
        (reply,) = (await resuming).replies
        assert reply.refusal is not None
        assert reply.refusal.message == "Too many tasks are running."
