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
from taskherd.domain.reports import AgentHeartbeat, AgentLifecycle, Lifecycle
from taskherd.worker import maintenance, reconcile
from taskherd.worker.batch import Batch, BatchResult
from taskherd.worker.save import save_batch
from tests.harness.worker import TIMEOUT, WorkerHarness, make_report, running_worker

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
    await harness.channel.queue_delete(f"{harness.prefix}.work.r1", timeout=5)
