"""Timer checks of which one fails, or has to wait."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

import asyncpg
import pytest

from taskherd.worker.sweeper import Sweeper
from taskherd.worker.timer_checks import RETRY_AFTER
from tests.harness.worker import WorkerHarness, running_worker

LOST = {"healthy": False, "reason": "agent has lost connection"}
DAMAGE = "UPDATE tasks SET state = '{}' WHERE id = $1"


async def test_a_task_that_cannot_be_checked_delays_no_other(external: WorkerHarness) -> None:
    """A task's stored state is damaged: the timers of all others go on, it is checked again later, the worker lives."""
    async with running_worker(external):
        damaged = await external.create()
        others = [await external.create() for _ in range(4)]
    await external.database.execute(DAMAGE, damaged)
    async with running_worker(external, sweep_every=0.1, probe_every=0.1, request_ttl=2):
        await external.database.execute("UPDATE task_deadlines SET due_at = clock_timestamp()")
        await external.until(lambda: all(external.document(each).get("status") == "error" for each in others))
        assert external.metric("taskherd_timer_checks_failed_total") == 1
        due_at, now = await external.database.fetchrow(
            "SELECT due_at, clock_timestamp() FROM task_deadlines WHERE task_id = $1", damaged
        )
        assert due_at - now > RETRY_AFTER - timedelta(minutes=2)
        await external.create()


async def test_a_task_that_cannot_be_erased_delays_no_other(external: WorkerHarness) -> None:
    """Of deleted tasks one is damaged: the others are erased."""
    async with running_worker(external):
        tasks = [await external.create() for _ in range(3)]
        for task_id in tasks:
            assert (await external.command("task.delete", task_id))["ok"]
        await external.until_row("SELECT count(*) FROM outbox", is_=0)
    await external.database.execute(DAMAGE, tasks[0])
    async with running_worker(external, sweep_every=0.1, deleted_retention=0):
        await external.until_row("SELECT count(*) FROM tasks WHERE erased_at IS NOT NULL", is_=2)
    assert await external.database.fetchval("SELECT erased_at IS NULL FROM tasks WHERE id = $1", tasks[0])


async def test_a_task_that_is_locked_delays_no_other(external: WorkerHarness) -> None:
    """Somebody keeps the row of a due task locked: other timers go on, silent agents are found, and its turn comes."""
    async with running_worker(external):
        locked = await external.create()
        others = [await external.create() for _ in range(3)]
        silent = await external.make_active()
    somebody = await asyncpg.connect(external.urls[0], timeout=30, command_timeout=30)
    try:
        await somebody.execute("BEGIN")
        await somebody.execute("SELECT FROM tasks WHERE id = $1 FOR UPDATE", locked)
        await external.database.execute("UPDATE task_deadlines SET due_at = clock_timestamp()")
        async with running_worker(external, sweep_every=0.1, probe_every=0.1, request_ttl=2, agent_lost_after=2):
            await external.until(lambda: all(external.document(each).get("status") == "error" for each in others))
            await external.until(lambda: external.document(silent).get("workspace_agent_health") == LOST)
            status = await external.database.fetchval("SELECT status FROM tasks WHERE id = $1", locked)
            await somebody.execute("ROLLBACK")
            await external.until(lambda: external.document(locked).get("status") == "error")
        assert status == "pending"
    finally:
        await somebody.close(timeout=30)


@pytest.mark.parametrize("table", ["leases", "task_deadlines", "work_requests"])
async def test_a_task_of_which_another_row_is_locked_delays_no_other(
    external: WorkerHarness, monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    """It is due first. No sweep fails: the other fails or loses its agent, the index follows; then its turn comes."""
    failed: list[Exception] = []
    sweep_once = Sweeper.sweep_once

    async def note(self: Sweeper) -> None:
        try:
            await sweep_once(self)
        except Exception as error:
            failed.append(error)
            raise

    def is_over(task_id: UUID) -> bool:
        document = external.document(task_id)
        return document.get("status") == "error" or document.get("workspace_agent_health") == LOST

    async with running_worker(external):
        make = external.make_active if table == "leases" else external.create
        stuck, other = await make(), await make()
        await external.until_row("SELECT count(*) FROM outbox", is_=0)
    monkeypatch.setattr(Sweeper, "sweep_once", note)
    somebody = await asyncpg.connect(external.urls[0], timeout=30, command_timeout=30)
    try:
        await external.database.execute("UPDATE task_deadlines SET due_at = clock_timestamp()")
        await external.database.execute(
            "UPDATE task_deadlines SET due_at = clock_timestamp() - interval '1 second' WHERE task_id = $1", stuck
        )
        await somebody.execute("BEGIN")
        await somebody.execute(f"SELECT FROM {table} WHERE task_id = $1 FOR UPDATE", stuck)
        async with running_worker(external, sweep_every=0.1, probe_every=0.1, request_ttl=2, agent_lost_after=2):
            await external.until(lambda: is_over(other))
            await external.until_row("SELECT count(*) FROM task_index_changes", is_=0)
            assert (failed, is_over(stuck)) == ([], False)
            await somebody.execute("ROLLBACK")
            await external.until(lambda: is_over(stuck))
    finally:
        await somebody.close(timeout=30)
