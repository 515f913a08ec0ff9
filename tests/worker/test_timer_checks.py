"""Timer checks of which one fails, or has to wait."""

from __future__ import annotations

from datetime import timedelta

import asyncpg

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
